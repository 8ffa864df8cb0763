"""Ways to answer over HTTP that the tests' hub does not know, with and without TLS, and a proxy before them."""

import http.client
import re
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

Manner = Literal[
    "plain", "chunked", "chunked_longer", "closing", "hanging_up", "unframed", "stuck", "stuck_once", "moved"
]
"""`hanging_up`: it closes without a word.
`unframed`: until the connection closes. `stuck`: half of it, and `Connection: close`, then nothing."""


@dataclass
class Odd:
    url: str
    content: bytes
    connections: int = 0
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list[tuple[str, str | None, str | None]])
    """Path, Range and Authorization."""
    target: str = ""
    """Where `moved` leads."""
    ended: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        if self.tls is None or isinstance(request, tuple):
            super().finish_request(request, client_address)  # pyright: ignore[reportArgumentType]
            return
        with self.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)  # pyright: ignore[reportArgumentType]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is gone is no error."""


@contextmanager
def odd_server(
    content: bytes, tls: ssl.SSLContext | None = None, host: str = "localhost", address: str = "127.0.0.1"
) -> Generator[Odd]:
    """`/<manner>` is the content, sent in that manner."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            odd.connections += 1

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
            pass

        def do_GET(self) -> None:
            odd.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            body = odd.content
            manner = cast("Manner", self.path.strip("/"))
            if manner == "moved":
                self.send_response(302)
                self.send_header("Location", odd.target)
                self.send_header("Connection", "close")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if found is None:
                self.send_response(200)
            else:
                start, last = int(found[1]), min(int(found[2]), len(body) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(body)}")
                body = body[start : last + 1]
            self._send(manner, body)

        def _send(self, manner: Manner, body: bytes) -> None:
            if manner.startswith("chunked"):
                body += b"more" if manner == "chunked_longer" else b""
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for at in range(0, len(body), 100_000):
                    piece = body[at : at + 100_000]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.write(b"0\r\n\r\n")
                return
            if manner != "unframed":
                self.send_header("Content-Length", str(len(body)))
            if manner in ("closing", "stuck", "stuck_once", "unframed"):
                self.send_header("Connection", "close")
            self.close_connection = manner != "plain"
            self.end_headers()
            if manner == "stuck" or (manner == "stuck_once" and len(odd.requests) == 1):
                self.wfile.write(body[: len(body) // 2])
                odd.ended.wait()
            else:
                self.wfile.write(body)

    server = _Server((address, 0), Handler)
    server.tls = tls
    odd = Odd(f"{'http' if tls is None else 'https'}://{host}:{server.server_port}", content)
    with _serving(server):
        yield odd
        odd.ended.set()


@dataclass
class Proxy:
    address: str
    seen: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    """Method, target and Proxy-Authorization."""


@contextmanager
def proxy_server() -> Generator[Proxy]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
            pass

        def do_GET(self) -> None:
            proxy.seen.append((self.command, self.path, self.headers.get("Proxy-Authorization")))
            parts = urlsplit(self.path)
            upstream = http.client.HTTPConnection(parts.netloc)
            headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
            upstream.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
            answer = upstream.getresponse()
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("date", "server", "transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            upstream.close()

        def do_CONNECT(self) -> None:
            proxy.seen.append((self.command, self.path, self.headers.get("Proxy-Authorization")))
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port))) as there:
                self.send_response(200)
                self.end_headers()
                _join(self.connection, there)
            self.close_connection = True

    server = _Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"127.0.0.1:{server.server_port}")
    with _serving(server):
        yield proxy


def _join(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while True:
            for ready in select.select([one, other], [], [])[0]:
                block = ready.recv(65536)
                if not block:
                    return
                (other if ready is one else one).sendall(block)


@contextmanager
def _serving(server: ThreadingHTTPServer) -> Generator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(directory: Path, host: str = "localhost") -> tuple[Path, ssl.SSLContext]:
    """A certificate that vouches for itself, and a server's context with it."""
    own, key = directory / "certificate.pem", directory / "key.pem"
    subject = ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-days", "1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *kind, "-keyout", str(key), "-out", str(own), *subject]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    return own, context
