"""Iluvatar CoreX (`corex`). CUDA's variable chooses; inside a container counted from 0.

Sources: IX container toolkit (`iluvatar` runtime, `IX_VISIBLE_DEVICES`); the field's published device table (nodes).
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

ILUVATAR: Final = Vendor(
    visible=("CUDA_VISIBLE_DEVICES",),
    cdi_kind="iluvatar.com/gpu",
    hook="IX_VISIBLE_DEVICES",
    runtime="iluvatar",
    shared_nodes=("/dev/itrctl",),
    own_nodes=("/dev/iluvatar{index}",),
)
