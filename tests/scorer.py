"""A process that answers as `heft teacher serve` does, without a model, and misbehaves as it is told.

``python tests/scorer.py PORT ORDERS``: the file ORDERS holds JSON, read at each request: ``version``, ``seconds`` (how
long an answer takes), ``nan`` (whether it is no number). Port 0 is a free one. It says which, and then a line for each
batch it has answered.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TEMPLATE = "{query} | {item.text}"


class Scorer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        orders = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        time.sleep(orders.get("seconds", 0))
        logits = [
            [None if orders.get("nan") else len(item) / 7 - len(query) / 3, None] for query, item in asked["pairs"]
        ]
        body = json.dumps({"version": orders["version"], "template": TEMPLATE, "logits": logits}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        print(len(logits), flush=True)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Scorer)
    print(server.server_port, flush=True)
    server.serve_forever()
