"""What gateways tell: how many requests an instance has, and when certainly none will come any more."""

from schemas.ids import InstanceId
from schemas.reports import RequestsInFlight
from services.scheduler.domain.traffic import (
    DEAF_SECONDS,
    FORGOTTEN_SECONDS,
    LISTEN_SECONDS,
    SILENT_SECONDS,
    Traffic,
)

A, B = InstanceId("i-a-0"), InstanceId("i-a-1")
STOPPING = 10
"""The fact that takes both out of all routes."""


def told(gateway: str, seq: int = STOPPING, **instances: int) -> RequestsInFlight:
    return RequestsInFlight(
        gateway=gateway, seq=seq, instances={InstanceId(f"i-a-{k[1:]}"): n for k, n in instances.items()}
    )


class Ears:
    def __init__(self) -> None:
        self.now = 100.0
        self.traffic = Traffic(self.now)
        self.traffic.listens(self.now)

    def after(self, seconds: float, *pictures: RequestsInFlight) -> "Ears":
        """In steps of a second, in which these go on telling."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.traffic.listens(self.now)
            for each in pictures:
                self.traffic.hear(each, self.now)
        return self

    def is_quiet(self, instance_id: InstanceId = A) -> bool:
        return self.traffic.is_quiet(instance_id, STOPPING, self.now)


def test_the_requests_of_an_instance_are_those_of_all_gateways() -> None:
    ears = Ears().after(1, told("g1", _0=2, _1=1), told("g2", _0=3))

    assert (ears.traffic.requests_of(A), ears.traffic.requests_of(B)) == (5, 1)


def test_a_picture_replaces_the_one_before_it() -> None:
    ears = Ears().after(1, told("g1", _0=2)).after(1, told("g1", _1=1))

    assert (ears.traffic.requests_of(A), ears.traffic.requests_of(B)) == (0, 1)


def test_nobody_knows_that_it_is_quiet_before_it_has_listened() -> None:
    ears = Ears().after(LISTEN_SECONDS - 1)
    assert not ears.is_quiet()

    assert ears.after(1).is_quiet(), "there is no gateway"


def test_it_is_not_quiet_while_a_gateway_counts_a_request() -> None:
    busy, idle = told("g1", _0=1), told("g2")
    ears = Ears().after(LISTEN_SECONDS, busy, idle)

    assert not ears.is_quiet(A)
    assert ears.is_quiet(B)
    assert ears.after(1, told("g1"), idle).is_quiet(A)


def test_a_gateway_that_does_not_know_yet_may_send_the_next_one_there() -> None:
    behind = told("g1", seq=STOPPING - 1)
    ears = Ears().after(LISTEN_SECONDS, behind)
    assert not ears.is_quiet()

    assert ears.after(1, told("g1", seq=STOPPING)).is_quiet()


def test_a_gateway_that_is_silent_is_not_waited_for_and_is_no_preference() -> None:
    ears = Ears().after(LISTEN_SECONDS, told("gone", seq=STOPPING - 1, _1=4))
    ears.after(SILENT_SECONDS - 1)
    assert (ears.is_quiet(A), ears.traffic.requests_of(B)) == (False, 4)

    ears.after(1)
    assert (ears.is_quiet(A), ears.traffic.requests_of(B)) == (True, 0)


def test_what_a_silent_gateway_counted_holds_for_a_minute() -> None:
    """It may be cut off from the bus alone."""
    ears = Ears().after(LISTEN_SECONDS, told("cut off", _0=1))
    ears.after(FORGOTTEN_SECONDS - 1)
    assert not ears.is_quiet(A)

    assert ears.after(1).is_quiet(A)


def test_who_was_deaf_may_not_know_all_gateways() -> None:
    ears = Ears().after(LISTEN_SECONDS, told("g1"))
    assert ears.is_quiet()
    ears.now += DEAF_SECONDS + 1
    ears.traffic.listens(ears.now)
    assert not ears.is_quiet()

    assert ears.after(LISTEN_SECONDS).is_quiet()


def test_who_was_deaf_listens_anew_and_takes_nobody_for_silent() -> None:
    """A scheduler that was paused has not read what was told meanwhile."""
    ears = Ears().after(LISTEN_SECONDS, told("g1", seq=STOPPING - 1))
    ears.now += SILENT_SECONDS + DEAF_SECONDS
    ears.traffic.listens(ears.now)

    ears.after(LISTEN_SECONDS)
    assert not ears.is_quiet(), "it has not been silent for long while somebody listened"
    assert ears.after(LISTEN_SECONDS).is_quiet()
