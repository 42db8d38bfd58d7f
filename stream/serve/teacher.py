"""``heft teacher serve``: a teacher on the host made for it, asked over HTTP by the workers.

``POST /score`` takes `PairsAsked` and answers `PairsScored`. Batches of several workers are computed one after
another, each as it came: a worker fills its own across slates. What nobody waits for any more is not computed, and a
worker whose turn would be far off is told so at once: it asks again for what is still of use then.
"""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import msgspec
from aiohttp import web

from heft.models.teacher.logits import STEPS
from heft.models.teacher.template import TeacherConfig
from heft.stream.score.requests import Teacher
from heft.stream.teacher.clients import LocalTeacher, PairsAsked, PairsScored

_MOST_BYTES = 64 << 20
_MOST_WAITING = 8  # batches, the one being computed among them


def application(teacher: Teacher) -> web.Application:
    """Return the server of a teacher, not started."""
    computing = ThreadPoolExecutor(1, "teacher")
    waiting = 0

    async def score(request: web.Request) -> web.Response:
        nonlocal waiting
        try:
            asked = msgspec.json.decode(await request.read(), type=PairsAsked)
        except msgspec.MsgspecError as error:
            return web.Response(status=400, text=f"{error}\n")
        if waiting >= _MOST_WAITING:
            return web.Response(status=503, text=f"{waiting} batches wait already\n")
        waiting += 1
        try:
            answer = await asyncio.get_running_loop().run_in_executor(computing, teacher.score, asked.pairs)
        finally:
            waiting -= 1
        logits: list[tuple[float | None, float | None]] = [
            (None, None)
            if each is None
            else (each.logit_256 / STEPS, None if each.order_256 is None else each.order_256 / STEPS)
            for each in answer.logits
        ]
        scored = PairsScored(answer.version, answer.template, logits)
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
    """Serve until SIGTERM or Ctrl-C; say where, port 0 being a free one."""
    teacher = LocalTeacher(config)
    engine = teacher.engine
    listening = socket.create_server((host, port))

    def said(text: str) -> None:
        if text.startswith("="):
            at = listening.getsockname()[1]
            print(f"teacher {engine.version} at http://{host}:{at}, computed by {engine.backend}", flush=True)

    # Cancelled with its connection: a batch whose worker has given up would keep those from their turn that wait.
    web.run_app(application(teacher), sock=listening, print=said, handler_cancellation=True)
