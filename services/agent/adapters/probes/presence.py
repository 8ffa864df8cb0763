"""Whose GPUs may be in this machine."""

from pathlib import Path

from services.agent.adapters.probes.tool import Lookup
from services.agent.domain.accelerators.vendors import ACCELERATOR_CLASSES, VENDORS, Vendor


def present(sysfs: Path, lookup: Lookup) -> tuple[Vendor, ...]:
    """Those with an accelerator on the PCI bus, and those whose tool is here: a virtual machine (WSL) may show no device.

    `sysfs`: /sys.
    """
    on_the_bus = accelerators(sysfs)
    return tuple(
        vendor for vendor in VENDORS if vendor.pci_id in on_the_bus or lookup(vendor.tool, vendor.homes) is not None
    )


def accelerators(sysfs: Path) -> frozenset[str]:
    """PCI vendor ids (`0x10de`) of all devices that may be accelerators, other vendors' included."""
    found: set[str] = set()
    for device in (sysfs / "bus" / "pci" / "devices").glob("*"):
        try:
            vendor_id = (device / "vendor").read_text(encoding="ascii").strip().lower()
            class_ = (device / "class").read_text(encoding="ascii").strip().lower()
        except (OSError, ValueError):
            continue
        if class_.startswith(ACCELERATOR_CLASSES):
            found.add(vendor_id)
    return frozenset(found)
