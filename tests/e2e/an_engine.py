"""An engine that is a few lines of Python: takes llama-server's flags, is healthy at once, and does what it is asked.

Run as a program (`-I -S`: 40 ms), so it imports nothing of ours. What it answers is the same bytes every time, so that a
test can compare what the gateway passed on. The last message of a chat may be a word that it obeys:
`die`: exits before the first byte. `die once <file>`: the same, unless one has done so already and left this file.
`die later`: exits after the first chunk. `slowly`: one chunk every 0.2 s. `think`: 0.5 s before the first byte.
`gorge`: holds 200 MB for a moment. `echo`: answers with what it was sent.
With a key (`LLAMA_API_KEY`) it answers nobody else.
`until <file>`: the first chunk, and the others when this file is there.
Flags of its own: `--healthy-after=<seconds>`, `--chatty` (it writes while it is not), `--exit-after=<seconds>`, `--exit-code=<n>`.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHUNKS = (
    b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n',
    b": a comment, as some engines send\r\n\r\n",
    'data: {"choices":[{"delta":{"content":"zwei \u2603"}}]}\n\n'.encode(),
    b'event: done\ndata: {"usage":{"total_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
)
COMMAND = f"{sys.executable} -I -S {Path(__file__)}"


def main(argv: list[str]) -> None:
    flags: dict[str, str] = {}
    for position, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            following = argv[position + 1] if position + 1 < len(argv) else ""
            flags[name] = value if equals else "" if following.startswith("--") else following
    name, key = flags.get("--alias", "?"), os.environ.get("LLAMA_API_KEY")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200 if time.monotonic() >= healthy_at else 503, {"status": "ok"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if key and self.headers["authorization"] != f"Bearer {key}":
                self._answer(401, {"error": "no key"})
                return
            messages = body.get("messages") or [{"content": ""}]
            what = messages[-1]["content"]
            if what == "die" or (what.startswith("die once ") and self._is_first(what.removeprefix("die once "))):
                os._exit(3)
            if what == "think":
                time.sleep(0.5)
            if what == "gorge":
                _ = b"x" * 200_000_000
            if what == "echo":
                self._answer(200, body)
            elif body.get("stream"):
                self._stream(what)
            else:
                message = {"role": "assistant", "content": name}
                self._answer(200, {"choices": [{"message": message}], "pid": os.getpid(), "model": body["model"]})

        def _stream(self, what: str) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for chunk in CHUNKS:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                self.wfile.flush()
                if what == "die later":
                    os._exit(3)
                while what.startswith("until ") and not Path(what.removeprefix("until ")).exists():
                    time.sleep(0.05)
                if what == "slowly":
                    time.sleep(0.2)
            self.wfile.write(b"0\r\n\r\n")

        @staticmethod
        def _is_first(file: str) -> bool:
            try:
                Path(file).touch(exist_ok=False)
            except FileExistsError:
                return False
            return True

        def _answer(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
            """Its log is what a test looks at."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Who asked hung up."""

    healthy_at = time.monotonic() + float(flags.get("--healthy-after", "0"))
    print(f"engine of {name} starts", flush=True)
    if "--exit-after" in flags:
        threading.Timer(float(flags["--exit-after"]), os._exit, [int(flags.get("--exit-code", "1"))]).start()
    if "--chatty" in flags:
        threading.Thread(target=_chat, args=[healthy_at], daemon=True).start()
    Server((flags["--host"], int(flags["--port"])), Handler).serve_forever()


def _chat(until: float) -> None:
    while time.monotonic() < until:
        print(f"loads since {time.monotonic()}", flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1:])
