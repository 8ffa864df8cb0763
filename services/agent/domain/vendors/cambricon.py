"""Cambricon (`neuware`). Its hook hands in what is assigned: counted from 0 inside.

Sources: the field's published device table (variables); Cambricon's container toolkit and device plugin (nodes, the runtime's name).
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

CAMBRICON: Final = Vendor(
    visible=("MLU_VISIBLE_DEVICES",),
    cdi_kind="cambricon.com/mlu",
    hook="CAMBRICON_VISIBLE_DEVICES",
    runtime="cambricon",
    shared_nodes=("/dev/cambricon_ctl",),
    own_nodes=("/dev/cambricon_dev{index}",),
)
