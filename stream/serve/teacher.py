"""``heft teacher serve``: a teacher on a host of its own, asked over HTTP by the workers.

``POST /score`` takes `PairsAsked` and answers `PairsScored`. Requests are scored in chunks, one of each in turn, so
that a large one does not hold up the others; two are never merged, for a worker has filled each from several slates
already. What nobody waits for any more is not computed. Where many wait, a further one is refused at once with status
503, and its worker asks again later for the pairs that slates still wait for. `Limits` bounds what one may ask for.
With a token, ``/score`` answers only who sends it; ``/health``, ``/readyz`` and ``/metrics`` answer everyone.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import NamedTuple

import msgspec
from aiohttp import web

from heft.models.teacher.logits import STEPS
from heft.models.teacher.template import TeacherConfig
from heft.stream.config.settings import ConfigError
from heft.stream.observe.serving import ServingMetrics
from heft.stream.score.teacher import Answer, Teacher
from heft.stream.serve.fair_queue import FairQueue, QueueFullError
from heft.stream.teacher.clients import LocalTeacher, PairsAsked, PairsScored


class Limits(NamedTuple):
    """What one request may ask for, and how many may wait."""

    body_bytes: int = 8 << 20
    pairs: int = 8_192
    seconds: float = 60.0
    """From its first byte to its scores; workers wait for ``teacher.timeout``, 5 s by default."""
    waiting: int = 8
    """Requests, including the one that is being scored."""
    chunk: int = 64
    """Pairs that are scored together before another request has its turn."""


_LIMITS = Limits()


def application(teacher: Teacher, token: str = "", limits: Limits = _LIMITS) -> web.Application:
    """Return the server of a teacher; it is not started yet.

    Parameters
    ----------
    teacher
        What scores.
    token
        What a request must carry, as ``Authorization: Bearer TOKEN``; empty: nothing.
    limits
        What a request may ask for.
    """
    queue = FairQueue(teacher, limits.chunk, limits.waiting)
    metrics = ServingMetrics(lambda: queue.waiting)
    expected = f"Bearer {token}".encode()

    async def answer(request: web.Request) -> tuple[web.Response, int]:
        if token and not hmac.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            text = "a token is needed: set HEFT_TEACHER__TOKEN to that of this server\n"
            return web.Response(status=401, text=text, headers={"WWW-Authenticate": "Bearer"}), 0
        try:
            async with asyncio.timeout(limits.seconds):
                body = msgspec.json.decode(await request.read(), type=PairsAsked)
                if (n := len(body.pairs)) > limits.pairs:
                    return web.Response(status=413, text=f"{n} pairs; a request may hold {limits.pairs} at most\n"), 0
                found = await queue.score(body.pairs)
        except web.HTTPRequestEntityTooLarge:
            return web.Response(status=413, text=f"a request may hold {limits.body_bytes} bytes at most\n"), 0
        except msgspec.MsgspecError as error:
            return web.Response(status=400, text=f"{error}\n"), 0
        except QueueFullError as error:
            return web.Response(status=503, text=f"{error}\n"), 0
        except TimeoutError:
            return web.Response(status=503, text=f"not scored within {limits.seconds:g} s\n"), 0
        return web.Response(body=_encoded(found), content_type="application/json"), n

    async def score(request: web.Request) -> web.Response:
        begun, status, pairs = perf_counter(), 500, 0
        try:
            response, pairs = await answer(request)
            status = response.status
            return response
        finally:
            metrics.answered(status, perf_counter() - begun, pairs)

    async def ready(_: web.Request) -> web.Response:
        if queue.full:
            return web.Response(status=503, text=f"{queue.waiting} requests wait\n")
        return web.Response(text="ready\n")

    async def close(_: web.Application) -> None:
        queue.close()

    app = web.Application(client_max_size=limits.body_bytes)
    app.add_routes(
        [
            web.post("/score", score),
            web.get("/health", _saying(b"ok\n")),
            web.get("/readyz", ready),
            web.get("/metrics", _saying(metrics.text)),
        ]
    )
    app.on_cleanup.append(close)
    return app


def _encoded(answer: Answer) -> bytes:
    logits: list[tuple[float | None, float | None]] = [
        (None, None)
        if each is None
        else (each.logit_256 / STEPS, None if each.order_256 is None else each.order_256 / STEPS)
        for each in answer.logits
    ]
    return msgspec.json.encode(PairsScored(answer.teacher.version, answer.teacher.template, logits))


def _saying(text: bytes | Callable[[], bytes]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def say(_: web.Request) -> web.Response:
        body = text if isinstance(text, bytes) else text()
        return web.Response(body=body, content_type="text/plain", charset="utf-8")

    return say


def require_token_or_loopback(host: str, token: str, without_token: bool) -> None:
    """Refuse to serve other hosts without a token, unless that is wanted.

    Raises
    ------
    ConfigError
        If it is not.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not (token or loopback or without_token):
        msg = (
            f"--host {host} serves other hosts, and there is no token: set HEFT_TEACHER__TOKEN here and for the "
            "workers, or say --without-token"
        )
        raise ConfigError(msg)


def serve(config: TeacherConfig, host: str, port: int, *, without_token: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C, and print the address; port 0 means any free port.

    Raises
    ------
    ConfigError
        If others than this host would be served without a token, and ``without_token`` does not say so.
    """
    require_token_or_loopback(host, config.token, without_token)
    teacher = LocalTeacher(config)
    engine = teacher.engine
    listening = socket.create_server((host, port))

    def print_address(text: str) -> None:
        if text.startswith("="):  # the first line that aiohttp prints once it serves
            actual_port = listening.getsockname()[1]
            print(f"teacher {engine.version} at http://{host}:{actual_port}, computed by {engine.backend}", flush=True)

    app = application(teacher, config.token, Limits(chunk=config.batch))
    # With its connection a request is cancelled too: nobody waits for its scores, and others wait for their turn.
    web.run_app(app, sock=listening, print=print_address, handler_cancellation=True)
