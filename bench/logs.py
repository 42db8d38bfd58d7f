"""The logs to compare on when none are named: the simulated shop, and trivago_day1 where it is at hand."""

from __future__ import annotations

from pathlib import Path

from heft.stream.config.settings import environment
from heft.stream.events import wire
from heft.stream.events.log import open_log
from heft.stream.importers import trivago
from heft.stream.importers.ordered import in_order, write_log
from heft.stream.shop.traffic import Shop

REQUESTS = 15_000
SEED = 1
_TRIVAGO = "trivago_day1.csv.gz"


def found(folder: Path) -> list[Path]:
    """Make the logs in a folder and return them, the real one first."""
    logs = []
    data = environment("HEFT_TEST_DATA")
    if data is not None and (Path(data) / _TRIVAGO).exists():
        logs.append(folder / "trivago_day1.jsonl")
        with trivago.table(Path(data) / _TRIVAGO) as table:
            write_log(in_order(trivago.events(table)), logs[-1])
    else:
        print(f"HEFT_TEST_DATA names no folder with {_TRIVAGO}: the simulated shop alone", flush=True)
    logs.append(folder / "shop.jsonl")
    with open_log(logs[-1], "wb") as lines:
        for arrival in Shop(seed=SEED).arrivals(REQUESTS):
            lines.write(wire.encode(arrival.event) + b"\n")
    return logs
