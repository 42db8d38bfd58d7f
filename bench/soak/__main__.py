"""`make soak`: Apache Kafka, the simulated shop's traffic in real time, real workers, and what happens to them.

Each case has topics, snapshots and workers of its own. When it is over, every event must have exactly one fate, as many
be late as in a replay of the same topics, the records for the learner be those of the replay, and the learner the one
that `scored` gives, bit for bit. `--quick` takes some 20 minutes for all cases, the whole several hours.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn

import msgspec

from bench.soak.cases import CASES
from bench.soak.scene import Form, Scene, SoakError
from bench.soak.timeline import changes, quantile, untrue
from bench.soak.verdict import Fates, Way, counted, way_of
from heft.stream.config.settings import Config
from heft.stream.kafka.local_broker import Broker
from heft.stream.learn.learner import warm_up

MOST_BACK = 30.0
"""Seconds within which every partition must be back."""

_WHOLE = Form(
    rate=300.0, minutes=15.0, partitions=4, churn=10.0, quiet=900.0, away=300.0, full=60.0, after=60.0, settings=""
)
_QUICK = Form(
    rate=60.0, minutes=1.0, partitions=4, churn=1.0, quiet=20.0, away=40.0, full=20.0, after=20.0,
    settings='interval = "10s"\n[join]\nclick_window = "20s"\nconversion_window = "1m"\n[learn]\nserve_delay = "5s"\n',
)  # fmt: skip


class Result(NamedTuple):
    """What a case showed."""

    name: str
    fates: Fates
    way: Way
    stops: list[float]
    faults: list[str]


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    form = _QUICK if options.quick else _WHOLE
    given = {key: getattr(options, key) for key in ("rate", "minutes", "partitions")}
    form = msgspec.structs.replace(form, **{key: value for key, value in given.items() if value is not None})
    out: Path | None = options.out
    print(
        f"{form.rate:g} slates/s, {form.minutes:g} min before each case, {form.partitions} partitions, "
        + ("short windows" if form.settings else "default windows"),
        flush=True,
    )
    print("compiling what workers learn with; a minute, the first time ...", file=sys.stderr, flush=True)
    warm_up(Config().learner)
    results: list[Result] = []
    with TemporaryDirectory(prefix="heft-soak-") as name:
        folder = out or Path(name)
        broker = Broker("kafka")
        try:
            broker.start()
            results += [_run(case, broker, folder / case, form) for case in options.case or CASES]
        finally:
            broker.close()
        print("\n".join(["", *_table(results)]))
    faults = [f"{result.name}: {fault}" for result in results for fault in result.faults]
    print("\n".join(faults) or "all as it must be")
    return 1 if faults else 0


def _end(number: int, _: object) -> NoReturn:
    """End as after an error, so that the workers and the broker go too."""
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    about = "\n".join(f"  {name:10} {(run.__doc__ or '').splitlines()[0]}" for name, run in CASES.items())
    parser = argparse.ArgumentParser(
        "bench.soak", description=f"{__doc__}\n\ncases:\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="60 slates/s, a minute before each case, short windows")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    parser.add_argument("--rate", type=float, help="slates a second (300; quick: 60)")
    parser.add_argument("--minutes", type=float, help="of traffic before each case (15; quick: 1)")
    parser.add_argument("--partitions", type=int, help="of the inputs (4)")
    parser.add_argument("--out", type=Path, help="folder for timelines, logs and snapshots; by default they go")
    return parser


def _run(case: str, broker: Broker, folder: Path, form: Form) -> Result:
    print(f"\n{case}: {(CASES[case].__doc__ or '').splitlines()[0]}", flush=True)
    scene = Scene(broker, folder, case, form, lambda line: print(line, flush=True))
    faults: list[str] = []
    try:
        windows = CASES[case](scene)
        if not scene.finish():
            faults.append("not everything had come through two minutes after the traffic ended")
        looks = scene.looks
        print("comparing with a replay ...", file=sys.stderr, flush=True)
        fates, moments = counted(scene.config, scene.traffic.sent.total())
        way = way_of(scene.partitions, looks, moments, windows)
    except SoakError as error:
        faults.append(str(error))
        looks, fates, way = scene.looks, Fates(), Way([], [])
    finally:
        scene.close()
    with (folder / "timeline.jsonl").open("wb") as file:
        file.writelines(msgspec.json.encode(look._asdict()) + b"\n" for look in changes(looks))
    if scene.back:
        way = way._replace(back=scene.back)
    faults += [fault for worker in scene.workers for fault in worker.faults]
    wrong = untrue(looks)
    if wrong:
        faults.append(f"{len(wrong)} looks at which ready was not what it must be; the first: {wrong[0]}")
    result = Result(case, fates, way, [each for worker in scene.workers for each in worker.stops], faults)
    faults += _broken(result)
    print("\n".join([*_table([result]), *faults]), flush=True)
    return result


def _broken(result: Result) -> list[str]:
    """Return in words which invariants did not hold."""
    fates = result.fates
    found = {
        f"{fates.lost} events without a fate": fates.lost,
        f"{fates.twice} events with more than one fate": fates.twice,
        f"{fates.late} late, {fates.late_in_replay} in a replay": fates.late != fates.late_in_replay,
        f"{fates.differ} records are not those of a replay": fates.differ,
        f"{fates.unread} records unread": fates.unread,
        "learning `scored` again gives another learner": not fates.learned_again,
        f"a partition was away for {max(result.way.back, default=0):.1f} s": max(result.way.back, default=0)
        > MOST_BACK,
    }
    return [text for text, broken in found.items() if broken] + list(fates.notes)


def _table(results: list[Result]) -> list[str]:
    """Return the table, 80 columns wide."""
    lines = [
        f"{'':9} {'back, s':^11} {'pause, s':^17} {'stop':>5} {'':>8} {'lost/':>6} {'late/':>9} {'dif-':>5}",
        f"{'case':9} {'p50':>5} {'max':>5} {'p50':>5} {'p99':>5} {'max':>5} {'s':>5} {'events':>8} {'twice':>6} "
        f"{'replay':>9} {'fer':>5}",
    ]
    for case, fates, way, stops, faults in results:
        numbers = [quantile(way.back, 0.5), quantile(way.back, 1.0)]
        numbers += [quantile(way.pauses, q) for q in (0.5, 0.99, 1.0)] + [max(stops, default=0.0)]
        lines.append(
            f"{case:9} {' '.join(f'{n:5.1f}' for n in numbers)} {fates.events:8,} {fates.lost:>3}/{fates.twice:<2} "
            f"{fates.late:>4}/{fates.late_in_replay:<4} {fates.differ:5}{' !' if faults else ''}"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
