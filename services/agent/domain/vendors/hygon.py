"""Hygon DCU (`dtk`), a relative of ROCm: inside a container counted from 0 by the render nodes that are there.

The name of its hook's variable is the field's; whether each release of its toolkit reads it is not documented, and the
runtime's name neither: so the nodes themselves are handed in, with the driver's directory.

Sources: the field's published device table (2026-08); `docker run` lines of Hygon's image pages.
"""

from typing import Final

from services.agent.domain.runtime import Mount
from services.agent.domain.vendors.vendor import Vendor

HYGON: Final = Vendor(
    visible=("HIP_VISIBLE_DEVICES",),
    cdi_kind="hygon.com/dcu",
    hook="HYGON_VISIBLE_DEVICES",
    shared_nodes=("/dev/kfd", "/dev/mkfd"),
    own_nodes=("/dev/dri/card{index}", "/dev/dri/renderD{render}"),
    mounts=(Mount("/opt/hyhal"),),
    groups=("video",),
)
