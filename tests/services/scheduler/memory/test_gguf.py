import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.models import ModelWeights
from services.scheduler.domain.memory.architecture import Architecture
from services.scheduler.domain.memory.gguf import OVERHEAD_BYTES, Layered, Offload, layered, layers_that_fit, offload

MIB = 2**20
GIB = 2**30

LLAMA = Architecture(layers=32, attention_layers=32, kv_heads=8, head_size=128)


def a_file(
    weight_bytes: int, layer_bytes: int | None = None, *, lora_bytes: int = 0, draft_bytes: int = 0
) -> ModelWeights:
    return ModelWeights(
        format="gguf",
        weight_bytes=weight_bytes,
        layer_bytes=layer_bytes,
        lora_bytes=lora_bytes,
        draft_bytes=draft_bytes,
    )


# How a file falls into layers


def test_a_layer_has_its_weights_and_its_part_of_the_cache() -> None:
    cache = 8192 * 32 * 2 * 8 * 128 * 2
    assert layered(a_file(5 * GIB, 4 * GIB), LLAMA, 8192, None) == Layered(32, (4 * GIB + cache) // 32, GIB)


def test_a_smaller_cache_type_makes_smaller_layers() -> None:
    cache = 8192 * 32 * 2 * 8 * 128
    assert layered(a_file(5 * GIB, 4 * GIB), LLAMA, 8192, 1.0).layer_bytes == (4 * GIB + cache) // 32


def test_without_the_bytes_of_its_layers_what_stands_once_counts_as_one_more() -> None:
    assert layered(a_file(33 * GIB), Architecture(layers=32), 8192, None) == Layered(32, GIB, GIB)


def test_adapters_and_a_draft_stand_once() -> None:
    weights = a_file(33 * GIB, 32 * GIB, lora_bytes=1, draft_bytes=2)
    assert layered(weights, Architecture(layers=32), 8192, None) == Layered(32, GIB, GIB + 3)


def test_a_file_that_tells_no_layers_is_one() -> None:
    assert layered(a_file(GIB, draft_bytes=3), Architecture(), 8192, None) == Layered(1, GIB, 3)


def test_a_layer_with_a_window_holds_that_of_each_slot_and_a_batch() -> None:
    gemma = Architecture(layers=12, attention_layers=12, windowed_layers=10, window=1000, kv_heads=4, head_size=256)
    cell = 2 * 4 * 256 * 2
    cells = 4608  # 4 × 1000 + 512 = 4512, in steps of 256
    expected = (32768 * 2 + cells * 10) * cell
    assert layered(a_file(12, 12), gemma, 32768, None).layer_bytes == -(-(12 + expected) // 12)
    assert layered(a_file(12, 12), gemma, 2048, None).layer_bytes == -(-(12 + 2048 * 12 * cell) // 12)


def test_a_recurrent_layer_holds_the_state_of_each_slot() -> None:
    hybrid = Architecture(layers=8, attention_layers=2, kv_heads=4, head_size=256, fixed_bytes=1000)
    cache = 1024 * 2 * 2 * 4 * 256 * 2 + 4 * 1000
    assert layered(a_file(8000, 8000), hybrid, 1024, None).layer_bytes == (8000 + cache) // 8


# Where layers stand

MODEL = Layered(layers=4, layer_bytes=GIB, rest_bytes=GIB // 2)
O = OVERHEAD_BYTES  # noqa: E741 - in every line below


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([8 * GIB], Offload((4,), is_full=True, gpu_bytes=(4 * GIB + GIB // 2 + O,), ram_bytes=O)),
        ([4 * GIB + GIB // 2 + O], Offload((4,), is_full=True, gpu_bytes=(4 * GIB + GIB // 2 + O,), ram_bytes=O)),
        (
            [4 * GIB + GIB // 2 + O - 1],
            Offload((4,), is_full=False, gpu_bytes=(4 * GIB + O,), ram_bytes=O + GIB // 2),
        ),
        ([3 * GIB], Offload((2,), is_full=False, gpu_bytes=(2 * GIB + O,), ram_bytes=O + 2 * GIB + GIB // 2)),
        ([GIB + O - 1], Offload((0,), is_full=False, gpu_bytes=(0,), ram_bytes=O + 4 * GIB + GIB // 2)),
        ([], Offload((), is_full=False, gpu_bytes=(), ram_bytes=O + 4 * GIB + GIB // 2)),
        (
            [3 * GIB, 3 * GIB],
            Offload((2, 2), is_full=True, gpu_bytes=(2 * GIB + O, 2 * GIB + GIB // 2 + O), ram_bytes=O),
        ),
        (
            [4 * GIB + O, 0, GIB],
            Offload((4, 0, 0), is_full=True, gpu_bytes=(4 * GIB + O, 0, GIB // 2 + O), ram_bytes=O),
        ),
        (
            [3 * GIB + O + GIB // 2, GIB + O],
            Offload((3, 1), is_full=False, gpu_bytes=(3 * GIB + O, GIB + O), ram_bytes=O + GIB // 2),
        ),
    ],
)
def test_gpus_take_whole_layers_one_after_the_other(free: list[int], expected: Offload) -> None:
    assert offload(MODEL, free) == expected


def test_the_number_that_llama_cpp_is_given_counts_what_stands_once() -> None:
    assert [offload(MODEL, [free]).gpu_layers for free in (8 * GIB, 4 * GIB + O, 2 * GIB + O, 0)] == [5, 4, 2, 0]
    assert [layers_that_fit(MODEL, [free]) for free in (8 * GIB, 4 * GIB + O, 2 * GIB + O, 0)] == [4, 4, 2, 0]


def sizes(most: int) -> st.SearchStrategy[int]:
    """In steps that are no power of two, so that every number of layers may or may not fit."""
    return st.sampled_from(range(0, most, 300 * MIB + 1)) | st.integers(0, most)


models = st.builds(
    Layered, layers=st.sampled_from(range(1, 131)), layer_bytes=sizes(4 * GIB), rest_bytes=sizes(8 * GIB)
)
gpus = st.lists(sizes(100 * GIB), max_size=8)


@given(models, gpus)
def test_nothing_is_lost_and_no_gpu_holds_more_than_is_free(model: Layered, free: list[int]) -> None:
    placed = offload(model, free)
    assert all(used <= room for used, room in zip(placed.gpu_bytes, free, strict=True))
    overhead = OVERHEAD_BYTES * (1 + sum(used > 0 for used in placed.gpu_bytes))
    assert sum(placed.gpu_bytes) + placed.ram_bytes == model.all_bytes + overhead
    assert placed.is_full == (placed.ram_bytes == OVERHEAD_BYTES and placed.gpu_layers > model.layers)


@given(models, gpus, st.data())
def test_more_memory_never_takes_fewer_layers(model: Layered, free: list[int], data: st.DataObject) -> None:
    more = [room + data.draw(st.integers(0, 8 * GIB)) for room in free]
    assert layers_that_fit(model, free) <= layers_that_fit(model, more) <= model.layers
    assert layers_that_fit(model, free) <= layers_that_fit(model, [*free, 8 * GIB])


@given(models, gpus)
def test_a_gpu_that_has_room_for_a_layer_takes_it(model: Layered, free: list[int]) -> None:
    placed = offload(model, free)
    if sum(placed.layers) < model.layers:
        left = [room - (used or OVERHEAD_BYTES) for room, used in zip(free, placed.gpu_bytes, strict=True)]
        assert all(room < model.layer_bytes for room in left)
