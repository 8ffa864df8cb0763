"""MetaX (`maca`). No hook: the nodes themselves go in, and CUDA's variable chooses among those, counted from 0.

Sources: the field's published device table (2026-08); `docker run` lines of MetaX's image pages (group `video`).
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

METAX: Final = Vendor(
    visible=("CUDA_VISIBLE_DEVICES",),
    cdi_kind="metax-tech.com/gpu",
    shared_nodes=("/dev/mxcd", "/dev/mxnd", "/dev/mxgd"),
    own_nodes=("/dev/dri/card{index}", "/dev/dri/renderD{render}"),
    groups=("video",),
)
