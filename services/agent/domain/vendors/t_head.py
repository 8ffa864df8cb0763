"""T-Head PPU (`hggc`). The name of a runtime with its hook is not documented: the nodes themselves go in, counted from 0.

Source: the field's published device table (2026-08).
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

T_HEAD: Final = Vendor(
    visible=("CUDA_VISIBLE_DEVICES",),
    cdi_kind="alibabacloud.com/ppu",
    hook="NVIDIA_VISIBLE_DEVICES",
    shared_nodes=("/dev/alixpu", "/dev/alixpu_ctl"),
    own_nodes=("/dev/alixpu_ppu{index}",),
)
