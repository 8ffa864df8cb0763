"""Moore Threads (`musa`). Its hook hands in what is assigned: counted from 0 inside. No nodes are documented.

Sources: MT CloudNative Toolkit (`mthreads` runtime, `MTHREADS_VISIBLE_DEVICES`); the field's published device table.
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

MOORE_THREADS: Final = Vendor(
    visible=("CUDA_VISIBLE_DEVICES", "MUSA_VISIBLE_DEVICES"),
    cdi_kind="mthreads.com/gpu",
    hook="MTHREADS_VISIBLE_DEVICES",
    runtime="mthreads",
)
