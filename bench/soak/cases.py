"""What happens to workers. Each case opens its scene, does it, and returns when the causes were there."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from time import time  # noqa: TID251 - a benchmark is a shell

from bench.soak.scene import Scene, SoakError
from bench.soak.timeline import Window

_CHURN_SECONDS = 20.0
_CHURNING, _ROLLING = 4, 3
_DISK = "64m"
Run = Callable[[Scene], list[Window]]


def restart(scene: Scene) -> list[Window]:
    """SIGTERM, and start again at once."""
    scene.open(1)
    began = time()
    scene.workers[0].stop()
    gone = scene.workers[0].start()
    return [_after(scene, began, gone)]


def killed(scene: Scene) -> list[Window]:
    """SIGKILL, a while without any worker under traffic, start."""
    scene.open(1)
    began = time()
    scene.workers[0].kill()
    scene.watch(scene.form.quiet, "nobody works")
    gone = scene.workers[0].start()
    return [_after(scene, began, gone)]


def churn(scene: Scene) -> list[Window]:
    """Four workers, of which one leaves or comes back every 20 s; each second one that leaves is killed."""
    scene.open(_CHURNING)
    windows, end, turn = [], time() + scene.form.churn * 60, 0
    while time() < end:
        worker = scene.workers[turn // 2 % _CHURNING]
        began = time()
        if worker.process is None:
            worker.start()
        elif turn // 2 % 2:
            worker.kill()
        else:
            worker.stop()
        gone = time()
        scene.watch(_CHURN_SECONDS, "workers come and go")
        windows.append(Window(began, gone, time()))
        turn += 1
    for worker in scene.workers:
        if worker.process is None:
            worker.start()
    scene.watch(scene.form.after, "after it")
    return windows


def rolling(scene: Scene) -> list[Window]:
    """Three workers, each stopped and started when the one before is ready again."""
    scene.open(_ROLLING)
    windows = []
    for worker in scene.workers:
        began = time()
        worker.stop()
        gone = time()  # others have its partitions from now on; when it is back some move again
        worker.start()
        scene.until(lambda slot=worker: slot.ready and scene.all_restored(), 120, "a worker comes back")  # type: ignore[misc]
        scene.watch(5.0, "the next is stopped soon")
        windows.append(Window(began, gone, time()))
    scene.watch(scene.form.after, "after it")
    return windows


def broker(scene: Scene) -> list[Window]:
    """The broker away; what the shop's visitors do meanwhile is sent when it is back."""
    scene.open(1)
    began = _broker_goes(scene)
    scene.watch(scene.form.away, "the broker is away")
    gone = _broker_comes(scene)
    return [_after(scene, began, gone)]


def stop_away(scene: Scene) -> list[Window]:
    """SIGTERM while the broker is away; then the broker is back, and the worker started."""
    scene.open(1)
    began = _broker_goes(scene)
    scene.watch(10.0, "the broker is away")
    took = scene.workers[0].stop()
    if took > 10.0:
        scene.workers[0].faults.append(f"SIGTERM without a broker took {took:.1f} s")
    _broker_comes(scene)
    gone = scene.workers[0].start()
    return [_after(scene, began, gone)]


def store(scene: Scene) -> list[Window]:
    """A file where the folder of the snapshots was."""
    scene.open(1)
    began = time()
    aside = scene.snapshots.with_name("aside")
    scene.snapshots.rename(aside)
    scene.snapshots.write_text("a file where the folder was")
    scene.watch(scene.form.away, "the store is away")
    _must_be_told(scene, began)
    scene.snapshots.unlink()
    aside.rename(scene.snapshots)
    return [_saved(scene, began, time())]


def full(scene: Scene) -> list[Window]:
    """No byte left where the snapshots lie: a small file system in memory, which takes root to mount."""
    scene.keeps.enter_context(_small_disk(scene.snapshots))
    scene.open(1)
    began = time()
    ballast = scene.snapshots / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    scene.watch(scene.form.full, "the disk is full")
    _must_be_told(scene, began)
    ballast.unlink()
    return [_saved(scene, began, time())]


CASES: dict[str, Run] = {
    "restart": restart,
    "killed": killed,
    "churn": churn,
    "rolling": rolling,
    "broker": broker,
    "stop-away": stop_away,
    "store": store,
    "full": full,
}


def _after(scene: Scene, began: float, gone: float) -> Window:
    scene.until(lambda: all(slot.ready for slot in scene.running) and scene.all_restored(), 120, "workers come back")
    scene.watch(scene.form.after, "after it")
    return Window(began, gone, time())


def _saved(scene: Scene, began: float, gone: float) -> Window:
    """Look until each partition has written a snapshot again: that is when it is back from a store that was away."""
    back: dict[str, float] = {}

    def all_written() -> bool:
        for owner in scene.partitions:
            written = [path.stat().st_mtime for path in (scene.snapshots / owner).glob("*.heft")]
            if owner not in back and written and max(written) > gone:
                back[owner] = max(written) - gone
        return len(back) == len(scene.partitions)

    scene.until(all_written, 120, "snapshots are written again")
    scene.back = [back.get(owner, inf) for owner in scene.partitions]
    return _after(scene, began, gone)


def _broker_goes(scene: Scene) -> float:
    scene.traffic.hold()
    began = time()
    scene.broker.stop()
    return began


def _broker_comes(scene: Scene) -> float:
    scene.broker.start()
    gone = time()
    scene.traffic.release()
    return gone


def _must_be_told(scene: Scene, since: float) -> None:
    told = [look for look in scene.looks if look.at >= since and "store" in look.error]
    if not told:
        scene.workers[0].faults.append("/readyz said nothing of the store")


@contextmanager
def _small_disk(at: Path) -> Iterator[None]:
    at.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "heft-soak", str(at)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"full: a small file system cannot be mounted here ({done.stderr.strip()}); run as root, or leave it out"
        raise SoakError(msg)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=False)
