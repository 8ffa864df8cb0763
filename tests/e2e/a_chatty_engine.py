"""An engine that is healthy at once and writes numbered lines without end; it takes llama-server's flags, `--quotes`, `--long`."""

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        """Its log is what a test looks at."""


def write(text: str) -> None:
    number = 0
    while True:
        for _ in range(50):
            print(f"line {number} {text}")
            number += 1
        sys.stdout.flush()
        time.sleep(0.02)


if __name__ == "__main__":
    host = sys.argv[sys.argv.index("--host") + 1]
    port = int(sys.argv[sys.argv.index("--port") + 1])
    text = '"\\\udcff' * 600 if "--quotes" in sys.argv else "of many " * (50 if "--long" in sys.argv else 1)
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    threading.Thread(target=write, args=[text], daemon=True).start()
    ThreadingHTTPServer((host, port), Handler).serve_forever()
