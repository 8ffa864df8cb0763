"""Room on a disk: what fits, and what would have to go."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.reasons import NotEnoughDisk
from services.downloader.domain.space import Removable, missing_bytes, refusal, to_remove

sizes = st.integers(0, 2**40)
candidates = st.lists(
    st.builds(Removable, key=st.text(max_size=4), bytes=sizes, used_at=st.floats(0, 1e9)),
    max_size=8,
    unique_by=lambda each: each.key,
)


def test_what_does_not_fit_is_refused_with_all_its_numbers() -> None:
    assert refusal(needed=10, free=12, promised=2, reserved=0) is None
    assert refusal(needed=10, free=12, promised=2, reserved=1) == NotEnoughDisk(
        needed_bytes=10, free_bytes=12, promised_bytes=2, reserved_bytes=1
    )


def test_numbers_beyond_all_disks_are_refused_and_not_an_error() -> None:
    refused = refusal(needed=2**70, free=0, promised=2**70, reserved=2**70)
    assert refused is not None
    assert refused.needed_bytes == 2**60


@given(needed=sizes, free=sizes, promised=sizes, reserved=sizes)
def test_what_is_missing_is_exactly_what_would_have_to_be_free_beside(
    needed: int, free: int, promised: int, reserved: int
) -> None:
    missing = missing_bytes(needed, free, promised, reserved)
    assert (refusal(needed, free, promised, reserved) is None) == (missing == 0)
    assert refusal(needed, free + missing, promised, reserved) is None
    assert missing == 0 or refusal(needed, free + missing - 1, promised, reserved) is not None


def test_the_longest_unused_is_removed_first_and_no_more_than_is_needed() -> None:
    old, older, new = Removable("old", 5, 2.0), Removable("older", 5, 1.0), Removable("new", 100, 3.0)
    assert to_remove(5, [new, old, older]) == [older]
    assert to_remove(6, [new, old, older]) == [older, old]
    assert to_remove(0, [new, old, older]) == []
    assert to_remove(111, [new, old, older]) is None


@given(missing=sizes, among=candidates)
def test_either_enough_room_is_made_or_nothing_is_removed(missing: int, among: list[Removable]) -> None:
    chosen = to_remove(missing, among)
    if chosen is None:
        assert sum(each.bytes for each in among) < missing
        return
    assert sum(each.bytes for each in chosen) >= missing
    assert sum(each.bytes for each in chosen[:-1]) < missing or not chosen
    left = [each for each in among if each not in chosen]
    assert all(one.used_at <= other.used_at for one in chosen for other in left)
