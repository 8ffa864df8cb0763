"""Environment of torch engines: where caches lie, which network interface their libraries use. Values are the field's.

Sources: the field's published launch environment (2026-08); NCCL's, Gloo's and HCCL's documentation of `*_SOCKET_IFNAME`.
"""

from services.agent.domain.engines.start import Start


def on_ascend(start: Start) -> dict[str, str]:
    """`HCCL_*_TIMEOUT` in seconds, 0: none."""
    if start.assigned.accelerator != "cann":
        return {}
    return {
        "TASK_QUEUE_ENABLE": "1",
        "CPU_AFFINITY_CONF": "1",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "HCCL_CONNECT_TIMEOUT": "7200",
        "HCCL_EXEC_TIMEOUT": "0",
        "HCCL_OP_EXPANSION_MODE": "AIV",
    }


def interfaces(start: Start) -> dict[str, str]:
    """Of an engine on several machines. `=eth0`: that one and no other whose name begins so (NCCL)."""
    if start.interface is None or start.nodes < 2:
        return {}
    if start.assigned.accelerator == "cann":
        names = ("HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
        return dict.fromkeys(names, start.interface)
    return {"NCCL_SOCKET_IFNAME": f"={start.interface}", "GLOO_SOCKET_IFNAME": start.interface}


def torch_threads() -> dict[str, str]:
    """Each worker of an engine would start as many threads as there are cores."""
    return {"OMP_NUM_THREADS": "1"}
