"""A process that answers like `heft teacher serve`, without a model, and misbehaves on demand.

``python tests/support/scorer_process.py PORT ORDERS``: the file ORDERS holds JSON, which is read at each request:
``version``; ``seconds``, how long an answer takes; ``nan``, whether scores are no numbers; ``random``, whether they are
arbitrary numbers; ``knows``, a JSON file with logits by query and item. Without any of these the lengths of the texts
decide. PORT 0 means any free port. The process prints its port.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TEMPLATE = "{query} | {item.text}"


class Scorer:
    """The process, and the orders that it follows."""

    def __init__(self, folder: Path, **orders: object) -> None:
        self.orders, self.port = folder / "orders.json", 0
        self.order(**orders)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def order(self, **orders: object) -> None:
        part = self.orders.with_suffix(".part")
        part.write_text(json.dumps(orders), encoding="utf-8")
        part.replace(self.orders)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self.port), str(self.orders)], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@cache
def known(path: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found


def logit(orders: dict[str, Any], query: str, item: str) -> float | None:
    if orders.get("nan"):
        return None
    if orders.get("random"):
        return int.from_bytes(blake2b(f"{query}|{item}".encode(), digest_size=2).digest()) / 2**13 - 4
    if "knows" in orders:
        return known(orders["knows"]).get(query, {}).get(item, 0.0)
    return len(item) / 7 - len(query) / 3


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        orders = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        time.sleep(orders.get("seconds", 0))
        logits = [[logit(orders, query, item), None] for query, item in asked["pairs"]]
        body = json.dumps({"version": orders["version"], "template": TEMPLATE, "logits": logits}).encode()
        with suppress(ConnectionError):  # the client has given up
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers)
    print(server.server_port, flush=True)
    server.serve_forever()
