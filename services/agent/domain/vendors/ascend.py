"""Huawei Ascend (`cann`). Nodes keep their numbers inside a container, the runtime counts those that are there from 0:
`ASCEND_VISIBLE_DEVICES` has the machine's numbers, `ASCEND_RT_VISIBLE_DEVICES` those from 0.

Sources: Ascend Docker Runtime's guide; vLLM Ascend's installation guide (nodes and mounts of a plain `docker run`).
"""

from typing import Final

from services.agent.domain.runtime import Mount
from services.agent.domain.vendors.vendor import Vendor

ASCEND: Final = Vendor(
    visible=("ASCEND_RT_VISIBLE_DEVICES", "NPU_VISIBLE_DEVICES"),
    cdi_kind="huawei.com/npu",
    hook="ASCEND_VISIBLE_DEVICES",
    runtime="ascend",
    shared_nodes=("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
    own_nodes=("/dev/davinci{index}",),
    mounts=(
        Mount("/usr/local/Ascend/driver"),
        Mount("/usr/local/dcmi"),
        Mount("/usr/local/bin/npu-smi"),
        Mount("/etc/ascend_install.info"),
    ),
)
