"""``heft teacher serve``: a teacher on a host of its own, asked over HTTP by the workers.

``POST /score`` takes `PairsAsked` and answers `PairsScored`. Batches of several workers are computed one after another,
and never merged: a worker has filled each from several slates already. A batch whose worker has given up is not
computed. When many batches wait, a further one is refused at once with status 503, and its worker asks again later for
the pairs that slates still wait for.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import msgspec
from aiohttp import web

from heft.models.teacher.logits import STEPS
from heft.models.teacher.template import TeacherConfig
from heft.stream.score.teacher import Teacher
from heft.stream.teacher.clients import LocalTeacher, PairsAsked, PairsScored

_MOST_BYTES = 64 << 20
_MOST_WAITING = 8  # batches, including the one that is being computed


def application(teacher: Teacher) -> web.Application:
    """Return the server of a teacher; it is not started yet."""
    computing = ThreadPoolExecutor(1, "teacher")
    waiting = 0

    async def score(request: web.Request) -> web.Response:
        nonlocal waiting
        try:
            body = msgspec.json.decode(await request.read(), type=PairsAsked)
        except msgspec.MsgspecError as error:
            return web.Response(status=400, text=f"{error}\n")
        if waiting >= _MOST_WAITING:
            return web.Response(status=503, text=f"{waiting} batches wait already\n")
        waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(computing, teacher.score, body.pairs)
        finally:
            waiting -= 1
        logits: list[tuple[float | None, float | None]] = [
            (None, None)
            if each is None
            else (each.logit_256 / STEPS, None if each.order_256 is None else each.order_256 / STEPS)
            for each in answer.logits
        ]
        scored = PairsScored(answer.teacher.version, answer.teacher.template, logits)
        return web.Response(body=msgspec.json.encode(scored), content_type="application/json")

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def close(_: web.Application) -> None:
        computing.shutdown(wait=False, cancel_futures=True)

    app = web.Application(client_max_size=_MOST_BYTES)
    app.add_routes([web.post("/score", score), web.get("/health", health)])
    app.on_cleanup.append(close)
    return app


def serve(config: TeacherConfig, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, and print the address; port 0 means any free port."""
    teacher = LocalTeacher(config)
    engine = teacher.engine
    listening = socket.create_server((host, port))

    def print_address(text: str) -> None:
        if text.startswith("="):  # the first line that aiohttp prints once it serves
            actual_port = listening.getsockname()[1]
            print(f"teacher {engine.version} at http://{host}:{actual_port}, computed by {engine.backend}", flush=True)

    # With its connection a batch is cancelled too: nobody waits for its scores, and others wait for their turn.
    web.run_app(application(teacher), sock=listening, print=print_address, handler_cancellation=True)
