"""Settings of the agent (environment: MUSTER_<FIELD>)."""

import socket
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from kernel.settings import ServiceSettings
from schemas.models import Reach

SEGMENT_BYTES = 16 * 1024 * 1024
BUILT_IN_LLAMA_CPP = f"{sys.executable} -m services.agent.adapters.llama_cpp_server"


class AgentSettings(ServiceSettings):
    data_dir: Path = Path(".muster")
    cache_dir: Path | None = None
    """Where the downloader puts model files; `<data-dir>/cache` when not given. The same path in the downloader, the agent and on
    the host.
    """
    worker_name: str = Field(default_factory=socket.gethostname)
    """What people call this worker; a new name is a fact about the same worker."""
    worker_ip: str | None = None
    """Where the gateway reaches this worker's engines; detected when not given."""
    engine_bind: str | None = None
    """Where engines listen; the worker's address when not given. With `0.0.0.0` they survive a change of that address."""
    worker_ifname: str | None = None
    """The network interface by which other machines reach this one, in place of an address; engines on several machines talk by it."""
    reach: Reach = "auto"
    """How gateways get at this worker's engines: `direct`, they dial its address; `relay`, through the bus, for a worker behind
    NAT or a firewall; `auto`, through the bus when its address can't be dialled.
    """
    relayed_requests: Annotated[int, Field(ge=1)] = 256
    """So many requests go through the bus at one time; further ones are refused."""
    agent_nkey_seed: SecretStr | None = None
    """Seed of the agent's NKey; the worker's identity is derived from it."""
    inventory: Path | None = None
    """A JSON file that describes the machine by hand."""
    engine_ports: str = "0"
    """`40000-40063`: where engines listen; `0`: wherever the system finds a free port."""
    llama_cpp_command: str = BUILT_IN_LLAMA_CPP
    """The program of the llama.cpp backend, with leading arguments; it takes llama-server's flags."""
    vllm_command: str = ""
    """The program of the vLLM backend, with leading arguments: `/opt/vllm/bin/vllm serve`. Without one there is no vLLM, unless in
    containers. GPUs are offered with it, unless it is a build for processors (`0.32.0+cpu`); the built-in llama.cpp, which uses
    none, is not offered beside it then.
    """
    runtime: Literal["process", "docker"] = "process"
    """Engines run as processes of this machine, or in containers of its Docker Engine."""
    docker_host: str | None = None
    """Where the Docker Engine answers, `unix:///var/run/docker.sock`; as DOCKER_HOST says when not given."""
    programs_of_authors: bool = False
    """Without containers: models may name the program that is started (`entrypoint`, `run_command`). It runs as the agent's
    user, and so may do whatever the agent may.
    """
    gpu_handover: Literal["hook", "cdi", "nodes"] = "hook"
    """How a container gets its GPUs: by the vendor's container toolkit, by CDI, or as device nodes."""
    allowed_needs: str = "writable_root"
    """What backends may declare that they need beyond a locked-down container, with commas between:
    `writable_root,host_ipc,host_network,IPC_LOCK`.
    """
    engine_memory_limit: bool = True
    """An engine that holds far more RAM than it claims is killed, before the machine is out of it."""
    engine_cgroups: str = ""
    """Control groups that the agent may divide: directories with commas between them, of version 2 one. Without them, engines that are
    processes of this machine are not limited.
    """
    liveness_inference_seconds: Annotated[float, Field(ge=0)] = 0.0
    """So often a healthy engine is asked for one token; 0: never. It costs a little of every engine's time."""
    engine_log_segment_bytes: Annotated[int, Field(ge=4096)] = SEGMENT_BYTES
    """The log of an engine that runs as a process is compressed when it has grown by this; four such segments are kept."""
    stop_engines_on_exit: bool = False
    """Engines outlive the agent unless this is set (`muster up` sets it)."""
    stop_grace_seconds: Annotated[float, Field(ge=0)] = 5.0

    @property
    def cache(self) -> Path:
        return self.cache_dir or self.data_dir / "cache"
