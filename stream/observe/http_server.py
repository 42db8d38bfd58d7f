"""The pages of a worker over HTTP, answered by threads beside the event loop.

Threads, because the question whether the loop turns must be answered while it does not. What they answer lies ready:
they compute nothing.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import NamedTuple

PLAIN = "text/plain; charset=utf-8"
_PATIENCE = 5.0  # seconds for a client that connects and says nothing


class ListenError(RuntimeError):
    """The worker cannot listen where it was told to. The message names the address, the reason, and what to change."""


class Page(NamedTuple):
    """What is answered."""

    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    kind: str = PLAIN


class HttpServer:
    """Answers GET and HEAD with pages by their path; any other path is not found.

    Parameters
    ----------
    address, port
        Where to listen; port 0: any free one.
    pages
        Returns the page of each path; called in a thread of the server's own.

    Raises
    ------
    ListenError
        If it cannot listen there.
    """

    def __init__(self, address: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = _PATIENCE

            def do_GET(self) -> None:
                page = pages.get(self.path.partition("?")[0])
                answer = page() if page else Page(_not_found(self.path, pages), HTTPStatus.NOT_FOUND)
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.kind)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(answer.body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing: a probe comes every few seconds."""

        class Server(ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
            allow_reuse_address = True  # a worker that starts again finds its port in the state TIME_WAIT
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Say nothing: the client has gone."""

        try:
            self._server = Server((address, port), Handler)
        except OSError as error:
            raise ListenError(_why(address, port, error)) from None
        self.port: int = self._server.server_address[1]
        Thread(target=self._server.serve_forever, name="http", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def _not_found(path: str, pages: Mapping[str, Callable[[], Page]]) -> bytes:
    return f"There is no {path} here; there are {', '.join(pages)}\n".encode()


def _why(address: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"metrics.port {port}: taken on {address}, by another worker on this host perhaps. Give each worker a port "
            f"of its own, by [metrics] port in its heft.toml or by HEFT_METRICS__PORT={port + 1}, and tell Prometheus "
            "of it; port 0 takes any free one"
        )
    if error.errno == errno.EACCES:
        return (
            f"metrics.port {port}: this user may not listen there ({error.strerror}). Set a port from 1024 on, by "
            "[metrics] port in heft.toml or by HEFT_METRICS__PORT"
        )
    return (
        f"metrics.address {address!r}: cannot listen there ({error.strerror}). Set an address that this host has, by "
        "[metrics] address in heft.toml or by HEFT_METRICS__ADDRESS; 0.0.0.0 means all of them"
    )
