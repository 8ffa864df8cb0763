"""NVIDIA (`cuda`). Docker's own device requests with UUIDs; the container toolkit's hook must be installed.

Inside a container only the assigned GPUs are there, counted from 0 in PCI order. A process sees all of the machine's: it is
given their indexes, which are in PCI order when `CUDA_DEVICE_ORDER` says so (CUDA's own order is fastest first). Not UUIDs:
engines read numbers there.

Sources: NVIDIA Container Toolkit ("Specialized Configurations with Docker", "CDI"); CUDA C++ Programming Guide, environment.
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

NVIDIA: Final = Vendor(
    visible=("CUDA_VISIBLE_DEVICES",),
    cdi_kind="nvidia.com/gpu",
    cdi_by="uuid",
    hook="NVIDIA_VISIBLE_DEVICES",
    hook_by="uuid",
    hook_off="void",
    runtime="nvidia",
    requests="nvidia",
)
