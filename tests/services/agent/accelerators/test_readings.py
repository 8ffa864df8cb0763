from dataclasses import replace

import pytest

from services.agent.domain.accelerators.reading import BadOutput, GpuProcess, GpuReading, RocePort
from services.agent.domain.accelerators.vendors import VENDORS
from tests.services.agent.accelerators.recordings import PARSERS, cases, read, recorded

GIB, MIB = 2**30, 2**20

ONE = {
    "nvidia": GpuReading(
        vendor="nvidia",
        type="cuda",
        index=0,
        name="NVIDIA H100 80GB HBM3",
        uuid="GPU-5f3c1e1d-0b1e-6a2b-9d9f-2d8e4c1a7b00",
        memory_total_bytes=85_520_809_984,
        memory_used_bytes=512 * MIB,
        utilisation_percent=0,
        temperature_celsius=31,
        power_watts=69.42,
        driver_version="570.172.08",
        runtime_version="12.8",
        compute_capability="9.0",
        processes=(),
    ),
    "amd": GpuReading(
        vendor="amd",
        type="rocm",
        index=0,
        name="AMD Instinct MI300X",
        uuid="a1ff74a1-0000-1000-8000-b2c3d4e5f6a7",
        memory_total_bytes=196_592 * MIB,
        memory_used_bytes=284 * MIB,
        utilisation_percent=0,
        temperature_celsius=38,
        power_watts=141,
        driver_version="6.16.6",
        runtime_version="7.0.2",
        compute_capability="gfx942",
        processes=(),
    ),
    "ascend": GpuReading(
        vendor="ascend",
        type="cann",
        index=0,
        name="910B3",
        memory_total_bytes=64 * GIB,
        memory_used_bytes=3439 * MIB,
        utilisation_percent=0,
        temperature_celsius=36,
        power_watts=90.3,
        driver_version="25.2.0",
        compute_capability="910b",
        network=RocePort("192.168.100.100", up=True),
        processes=(),
    ),
    "hygon": GpuReading(
        vendor="hygon",
        type="dtk",
        index=0,
        name="BW",
        uuid="TCA24620040801",
        memory_total_bytes=65_520 * MIB,
        memory_used_bytes=3 * MIB,
        utilisation_percent=0,
        temperature_celsius=51,
        power_watts=87,
        driver_version="6.3.31-V1.5.0a",
        processes=(),
    ),
    "mthreads": GpuReading(
        vendor="mthreads",
        type="musa",
        index=0,
        name="MTT S5000",
        uuid="2f6d0c1e-8a41-4b7d-9c1e-1a2b3c4d5e00",
        memory_total_bytes=80 * GIB,
        memory_used_bytes=0,
        utilisation_percent=0,
        temperature_celsius=48,
        driver_version="5.1.0-server",
        processes=(),
    ),
    "iluvatar": GpuReading(
        vendor="iluvatar",
        type="corex",
        index=0,
        name="Iluvatar BI-V150",
        uuid="GPU-1ac807aa-cbcd-5579-8591-d59d436d6ec0",
        memory_total_bytes=32 * GIB,
        memory_used_bytes=257 * MIB,
        utilisation_percent=0,
        temperature_celsius=30,
        power_watts=97,
        driver_version="4.3.0",
        processes=(),
    ),
    "metax": GpuReading(
        vendor="metax",
        type="maca",
        index=0,
        name="MetaX C500",
        uuid="GPU-2f0c6a4e-3b1d-0b5e-8f4a-0c5d7e9a1b30",
        memory_total_bytes=64 * GIB,
        memory_used_bytes=826 * MIB,
        utilisation_percent=0,
        temperature_celsius=35,
        power_watts=57,
        driver_version="3.4.4",
        runtime_version="3.3.0.15",
        processes=(),
    ),
    "cambricon": GpuReading(
        vendor="cambricon",
        type="neuware",
        index=0,
        name="MLU370-X8",
        uuid="77013000-2457-0000-0000-000000000000",
        memory_total_bytes=23_374 * MIB,
        memory_used_bytes=0,
        utilisation_percent=0,
        temperature_celsius=28,
        power_watts=107,
        driver_version="5.10.22",
        processes=(),
    ),
    "thead": GpuReading(
        vendor="thead",
        type="hggc",
        index=0,
        name="PPU-ZW810E",
        uuid="GPU-019ea108-c110-0828-0000-0000c07e1a40",
        memory_total_bytes=96 * GIB,
        memory_used_bytes=9 * MIB,
        utilisation_percent=0,
        temperature_celsius=24,
        power_watts=74,
        driver_version="2.1.0-dbda51",
        runtime_version="13.0",
        processes=(),
    ),
}

WHOLE = [0] * 8
QUADS = [0] * 4 + [1] * 4
ISLANDS = {
    "nvidia": WHOLE,
    "amd": WHOLE,
    "ascend": WHOLE,
    "hygon": WHOLE,
    "mthreads": WHOLE,
    "iluvatar": QUADS,
    "metax": QUADS,
    "cambricon": [None] * 8,
    "thead": [0, 0, 1, 1, 1, 1, 2, 2],
}

HELD = {
    "nvidia": (48 * GIB, 25_232_932_864),
    "amd": (120 * GIB, 4 * GIB),
    "ascend": (55_000 * MIB, 4561 * MIB),
    "hygon": (48 * GIB, 8700 * MIB),
    "mthreads": (64 * GIB, 4 * GIB),
    "iluvatar": (25 * GIB, 4000 * MIB),
    "metax": (52_000 * MIB, 7000 * MIB),
    "cambricon": (17_320 * MIB, 3000 * MIB),
    "thead": (80 * GIB, 8000 * MIB),
}

WRONG = {
    "nvidia": [
        None,
        "GPU is lost",
        "the driver asks for a GPU reset; 2 uncorrected ECC errors since the driver was loaded; XID 48: double-bit ECC error",
        "a memory row could not be remapped",
    ],
    "amd": [None, "3 uncorrectable ECC errors since the driver was loaded"],
    "ascend": [None, "npu-smi calls its health Alarm", None],
    "metax": [None, "mx-smi calls its state Unavailable"],
    "cambricon": [None, "2 ECC errors", "cnmon calls its health Bad"],
    "thead": [None, "1 uncorrected ECC errors since the driver was loaded"],
}


def test_every_vendor_has_recordings_of_one_of_eight_and_of_used_gpus() -> None:
    assert {vendor.name for vendor in VENDORS} == PARSERS.keys() == ONE.keys() == ISLANDS.keys() == HELD.keys()
    assert [vendor for vendor in PARSERS if not {"one", "eight", "in_use"} <= set(cases(vendor))] == []
    assert {vendor for vendor in PARSERS if "unhealthy" in cases(vendor)} == WRONG.keys()


@pytest.mark.parametrize("vendor", PARSERS)
def test_one_gpu_is_read_with_all_that_its_tool_tells(vendor: str) -> None:
    assert read(vendor, "one") == (ONE[vendor],)


@pytest.mark.parametrize("vendor", PARSERS)
def test_eight_gpus_are_read_with_the_islands_that_their_links_make(vendor: str) -> None:
    readings = read(vendor, "eight")
    assert [reading.index for reading in readings] == list(range(8))
    assert [reading.island for reading in readings] == ISLANDS[vendor]
    assert len({reading.uuid for reading in readings}) == (1 if vendor == "ascend" else 8)  # npu-smi tells none
    assert {reading.memory_total_bytes for reading in readings} == {ONE[vendor].memory_total_bytes}


@pytest.mark.parametrize("vendor", PARSERS)
def test_what_each_process_holds_is_read(vendor: str) -> None:
    engine, other = HELD[vendor]
    first = read(vendor, "in_use")[0]
    assert first.processes == (GpuProcess(4242, engine), GpuProcess(515_151, other))
    assert first.memory_used_bytes is not None
    assert first.memory_used_bytes >= engine + other


@pytest.mark.parametrize("vendor", WRONG)
def test_a_gpu_is_unhealthy_in_the_words_of_its_driver(vendor: str) -> None:
    assert [reading.unhealthy for reading in read(vendor, "unhealthy")] == WRONG[vendor]


def test_a_gpu_that_is_split_is_reported_as_its_mig_devices_and_one_without_any_as_unhealthy() -> None:
    _, without, first, second = read("nvidia", "mig")
    parent = "GPU-5f3c1e1d-0b1e-6a2b-9d9f-2d8e4c1a7b00"
    assert without.unhealthy is not None
    assert without.unhealthy.startswith("MIG is on and it has no MIG device")
    assert (first.index, first.uuid, first.mig_parent) == (3, "MIG-0b1d4a9e-6d3c-5a44-8b8e-7a3f4f2f9c01", parent)
    assert (second.index, second.memory_total_bytes, second.compute_capability) == (5, 10_468_982_784, "9.0")
    assert second.processes == (GpuProcess(4242, 4_282_384_384),)


def test_a_card_with_two_chips_is_two_npus_by_their_physical_ids() -> None:
    readings = read("ascend", "two_chips_per_card")
    assert [reading.index for reading in readings] == [0, 1, 2, 3]
    assert {reading.compute_capability for reading in readings} == {"a3"}
    assert [reading.processes for reading in readings] == [(), (GpuProcess(4242, 2 * GIB),), (), ()]


def test_a_310p_has_no_hbm_and_no_power() -> None:
    (reading,) = read("ascend", "310p")
    assert (reading.index, reading.memory_total_bytes, reading.power_watts) == (1, 21_534 * MIB, None)
    assert reading.compute_capability == "310p"


def test_two_gpus_on_one_board_are_told_by_their_own_numbers() -> None:
    answers = recorded("metax", "in_use")
    answers["table"] = answers["table"].replace("| 1     MetaX C500 | 1 ", "| 0     MetaX C500 | 1 ")
    assert PARSERS["metax"](answers) == read("metax", "in_use")


def test_the_port_of_an_npu_may_be_down() -> None:
    assert [reading.network for reading in read("ascend", "unhealthy")] == [
        RocePort("192.168.100.100", up=True),
        RocePort("192.168.100.101", up=False),
        RocePort("192.168.100.102", up=True),
    ]


def test_what_a_process_on_several_dcus_holds_on_each_is_not_known() -> None:
    assert [reading.processes for reading in read("hygon", "one_process_on_two")] == [(GpuProcess(4242, None),)] * 2


def test_older_tools_are_understood_too() -> None:
    dcu, _ = read("hygon", "older")
    assert (dcu.index, dcu.name, dcu.memory_total_bytes, dcu.temperature_celsius) == (0, "Z100SM", 17_163_091_968, 50)
    (mtt,) = read("mthreads", "older")
    assert (mtt.name, mtt.memory_used_bytes, mtt.temperature_celsius) == ("MTT S80", 1339 * MIB, 49)
    assert mtt.processes == (GpuProcess(4242, 1331 * MIB),)
    (c500,) = read("metax", "older")
    assert (c500.name, c500.memory_used_bytes, c500.power_watts) == ("MetaX C500", 858 * MIB, 48)
    (mlu,) = read("cambricon", "older")
    assert (mlu.name, mlu.driver_version, mlu.unhealthy) == ("MLU370-X4", "4.20.11", None)


@pytest.mark.parametrize(
    ("vendor", "question"),
    [
        ("amd", "static"),
        ("ascend", "info"),
        ("hygon", "cards"),
        ("mthreads", "table"),
        ("metax", "table"),
        ("cambricon", "table"),
        ("nvidia", "nvml"),
    ],
)
def test_without_the_answer_that_matters_nothing_is_read(vendor: str, question: str) -> None:
    answers = recorded(vendor, "one")
    del answers[question]
    with pytest.raises(BadOutput):
        PARSERS[vendor](answers)


@pytest.mark.parametrize("vendor", ["iluvatar", "thead"])
def test_where_the_query_fails_the_table_will_do_and_the_other_way_round(vendor: str) -> None:
    answers = recorded(vendor, "one")
    (by_table,) = PARSERS[vendor]({"table": answers["table"]})
    assert by_table == replace(ONE[vendor], uuid=None)
    (by_query,) = PARSERS[vendor]({"query": answers["query"]})
    assert (by_query.uuid, by_query.memory_total_bytes) == (ONE[vendor].uuid, ONE[vendor].memory_total_bytes)
    assert (by_query.processes, by_query.power_watts) == (None, None)


def test_what_nvml_says_instead_of_gpus_is_told() -> None:
    with pytest.raises(BadOutput, match=r"^NVML: Driver Not Loaded$"):
        PARSERS["nvidia"]({"nvml": '{"error": "NVML: Driver Not Loaded", "cpu_seconds": 0.001}'})
