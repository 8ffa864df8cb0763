"""The vendors whose GPUs are detected, what their PCI devices, types and tools are called, and what to install where one is missing."""

from dataclasses import dataclass
from typing import Final

ACCELERATOR_CLASSES: Final = ("0x03", "0x0b", "0x12")
"""PCI classes of display controllers, processors and accelerators (PCI Code and ID Assignment Specification, 1.12).

Some accelerators call themselves network controllers (0x02), and so do network cards of the same vendors, Huawei's say: those machines
are told apart by whether the vendor's tool is there.
"""


@dataclass(frozen=True, slots=True)
class Vendor:
    name: str
    """`Gpu.vendor`."""
    label: str
    """For people."""
    type: str
    """`Gpu.type`: the software stack."""
    pci_id: str
    """PCI vendor id, as /sys/bus/pci/devices/*/vendor has it."""
    tool: str
    """The program that is asked, or (NVIDIA) whose presence says that a driver was installed."""
    install: str
    """What to do when it is missing."""
    homes: tuple[str, ...] = ()
    """Where its packages put the tool, besides PATH."""
    libraries: tuple[str, ...] = ()
    """Where the tool looks for libraries in vain unless it is told."""


NVIDIA: Final = Vendor(
    name="nvidia",
    label="NVIDIA",
    type="cuda",
    pci_id="0x10de",
    tool="nvidia-smi",
    install="Install NVIDIA's data centre driver (it brings libnvidia-ml.so.1) and see that `nvidia-smi` answers.",
    homes=("/usr/bin", "/usr/lib/wsl/lib", "/run/nvidia/driver/usr/bin"),
)
AMD: Final = Vendor(
    name="amd",
    label="AMD",
    type="rocm",
    pci_id="0x1002",
    tool="amd-smi",
    install="Install the amdgpu driver and ROCm's package amd-smi-lib, and see that `amd-smi static` answers.",
    homes=("/opt/rocm/bin",),
)
ASCEND: Final = Vendor(
    name="ascend",
    label="Ascend",
    type="cann",
    pci_id="0x19e5",
    tool="npu-smi",
    install="Install Huawei's Ascend HDK (driver and firmware), and see that `npu-smi info` answers.",
    homes=("/usr/local/sbin", "/usr/local/bin", "/usr/local/Ascend/driver/tools"),
    libraries=("/usr/local/Ascend/driver/lib64/driver", "/usr/local/Ascend/driver/lib64/common"),
)
HYGON: Final = Vendor(
    name="hygon",
    label="Hygon",
    type="dtk",
    pci_id="0x1d94",
    tool="hy-smi",
    install="Install Hygon's DCU driver with hyhal, and see that `hy-smi` answers.",
    homes=("/opt/hyhal/bin", "/opt/dtk/bin"),
)
MOORE_THREADS: Final = Vendor(
    name="mthreads",
    label="Moore Threads",
    type="musa",
    pci_id="0x1ed5",
    tool="mthreads-gmi",
    install="Install Moore Threads' MUSA driver, and see that `mthreads-gmi` answers.",
    homes=("/usr/bin",),
)
ILUVATAR: Final = Vendor(
    name="iluvatar",
    label="Iluvatar",
    type="corex",
    pci_id="0x1e3e",
    tool="ixsmi",
    install="Install Iluvatar's CoreX driver, and see that `ixsmi` answers.",
    homes=("/usr/local/corex/bin",),
    libraries=("/usr/local/corex/lib64", "/usr/local/corex/lib"),
)
METAX: Final = Vendor(
    name="metax",
    label="MetaX",
    type="maca",
    pci_id="0x9999",
    tool="mx-smi",
    install="Install MetaX's driver package (mxdriver), and see that `mx-smi` answers.",
    homes=("/opt/mxdriver/bin", "/opt/maca/bin"),
)
CAMBRICON: Final = Vendor(
    name="cambricon",
    label="Cambricon",
    type="neuware",
    pci_id="0xcabc",
    tool="cnmon",
    install="Install Cambricon's MLU driver, and see that `cnmon` answers.",
    homes=("/usr/bin", "/usr/local/neuware/bin"),
)
T_HEAD: Final = Vendor(
    name="thead",
    label="T-Head",
    type="hggc",
    pci_id="0x1ded",
    tool="ppu-smi",
    install="Install T-Head's SAIL driver and SDK, and see that `ppu-smi` answers.",
    homes=("/usr/local/PPU_SDK/bin", "/usr/local/PPU_SDK/ppu-smi/bin"),
)

VENDORS: Final = (NVIDIA, AMD, ASCEND, HYGON, MOORE_THREADS, ILUVATAR, METAX, CAMBRICON, T_HEAD)
