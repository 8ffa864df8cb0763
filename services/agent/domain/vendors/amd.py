"""AMD (`rocm`). ROCm counts the GPUs whose render node a process can open: inside a container from 0.

Every process needs `/dev/kfd`, and to be in the groups that its nodes belong to; no `card` node: those are for displays,
and numbered with cards that are no GPUs of ours.

Sources: "Running ROCm Docker containers" (nodes, groups); AMD Container Toolkit (`amd` runtime, `AMD_VISIBLE_DEVICES`, CDI).
"""

from typing import Final

from services.agent.domain.vendors.vendor import Vendor

AMD: Final = Vendor(
    visible=("HIP_VISIBLE_DEVICES",),
    cdi_kind="amd.com/gpu",
    hook="AMD_VISIBLE_DEVICES",
    runtime="amd",
    shared_nodes=("/dev/kfd",),
    own_nodes=("/dev/dri/renderD{render}",),
    groups=("video", "render"),
)
