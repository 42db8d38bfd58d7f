"""The demo without its terminal: the race as metrics tell it, the shop that goes on, the worker that ends."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from itertools import chain, islice
from pathlib import Path

import pytest
from rich.console import Console
from typer.main import get_command
from typer.testing import CliRunner

from heft.models.rankers.arms import RankerConfig
from heft.models.teacher.data.log_samples import Log
from heft.models.teacher.template import Template
from heft.stream.cli import teacher as teacher_cli
from heft.stream.cli.main import app
from heft.stream.config.settings import Config
from heft.stream.demo.leaderboard import race_table, runners, verdict
from heft.stream.demo.run import WorkerError, running_worker
from heft.stream.demo.teachers import FROZEN, STATIC, Kind, why_no_teacher
from heft.stream.demo.view import Scored
from heft.stream.events.log import read_lines
from heft.stream.events.wire import Impression, encode
from heft.stream.observe.scrape import Scrape
from heft.stream.shop.simulate import write_until
from heft.stream.shop.traffic import Shop, ShopConfig
from heft.stream.teacher.commands import read_log
from tests.support.builders import HOUR
from tests.support.scrape import of_arm, sample

TAUGHT = RankerConfig().taught()
NAMES = [arm.name for arm in TAUGHT.click_arms]
SMALL = ShopConfig(products=200, shoppers=50)


def race(*told: str) -> dict[str, str]:
    """The state of each arm."""
    return {runner.name: runner.state for runner in runners(Scrape("".join(told)), TAUGHT)}


def test_an_arm_without_weight_says_why() -> None:
    scores = "heft_reference_samples_total"
    states = race(
        *(of_arm(name, weight=0.9 if name == "uniform" else 0.0) for name in NAMES),
        sample("heft_arm_benched", 1.0, arm="faster"),
        sample(scores, 7.0, arm="stacked", score="present"),
        sample(scores, 7.0, arm="distill", score="late"),
        sample(scores, 7.0, arm="feature", score="late"),
    )
    assert states["uniform"] == ""
    assert states["faster"] == "benched"
    assert states["slower"] == states["stacked"] == "waiting"
    assert states["distill"] == "waiting", "a soft label may come late"
    assert states["feature"] == "asleep", "an input may not"
    assert states["permuted"] == "never served"
    assert states["mixture"] == "is served"


def test_a_score_that_never_came_leaves_the_arms_of_the_teacher_asleep() -> None:
    states = race(of_arm("uniform", 1.0))
    assert {states[name] for name in ("feature", "stacked", "distill", "rho_gate")} == {"asleep"}
    assert states["slower"] == "waiting"


def shown(*told: str) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=80).print(race_table(runners(Scrape("".join(told)), TAUGHT)))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_table_has_a_row_for_each_arm_with_its_interval_and_fits_into_80_columns() -> None:
    lines = shown(
        of_arm("uniform", 0.25, ne=0.85),
        of_arm("distill_gate", 0.75, ne=0.8123, mean=-0.0321, half=0.0123),
        of_arm("slowest", mean=0.05, half=float("inf")),
        sample("heft_reference_samples_total", 7.0, arm="distill_gate", score="present"),
    )
    rows = {line.split()[0]: line.split() for line in lines[1:]}
    assert list(rows) == [*NAMES, "mixture"]
    assert rows["distill_gate"] == ["distill_gate", "75.0%", "0.8123", "-0.0321", "±", "0.0123", "better"]
    assert rows["uniform"] == ["uniform", "25.0%", "0.8500"]
    assert rows["slowest"][-2:] == ["+0.0500", "waiting"], "no interval before there are slates enough"
    assert not any("…" in line for line in lines), "nothing is cut"


@pytest.mark.parametrize(
    ("mean", "says"), [(-0.1, "surely better than uniform"), (0.1, "LOST to uniform"), (0.0, "not shown to differ")]
)
def test_the_verdict_says_who_won_and_whether_the_mixture_lost(mean: float, says: str) -> None:
    told = [
        of_arm("uniform", 0.2, ne=0.85),
        of_arm("slower", 0.8, ne=0.82),
        of_arm("el2n", ne=0.1),
        of_arm("permuted", ne=0.2),
        of_arm("mixture", ne=0.83, mean=mean, half=0.05),
    ]
    said = verdict(runners(Scrape("".join(told)), TAUGHT))
    assert "slower, 0.8200" in said, "what is never served cannot win"
    assert "slower, 80% of the mixture" in said
    assert says in said


def test_before_any_click_is_known_nobody_has_won() -> None:
    assert "had not begun" in verdict(runners(Scrape(), TAUGHT))


def test_scores_are_shares_of_the_items_that_went_on() -> None:
    seen = Scrape(
        'heft_scores_total{partition="0",when="on_time"} 1\nheft_scores_total{partition="1",when="on_time"} 1\n'
        'heft_scores_total{partition="0",when="later"} 3\nheft_scores_missing_total{reason="waiting"} 5\n'
    )
    assert Scored.of(seen) == (0.2, 0.3, 0.5)
    assert str(Scored.of(seen)) == "20% on time, 30% late, 50% none"


@pytest.mark.parametrize(("kind", "name"), [(STATIC, "static"), (FROZEN, "frozen")])
def test_what_the_demo_asks_of_the_fine_tuning_is_known_there(kind: Kind, name: str) -> None:
    command = get_command(teacher_cli.app).commands["finetune"]  # type: ignore[attr-defined]
    settings = command.make_context("finetune", [*kind.options, "--out", "teacher"]).params
    assert (settings["static"], settings["frozen"]) == (name == "static", name == "frozen")


def test_a_kind_of_teacher_and_none_are_not_both_to_be_had() -> None:
    said = CliRunner().invoke(app, ["demo", "--frozen", "--no-teacher"])
    assert said.exit_code == 2
    assert "choose one" in said.output


def test_who_wants_no_teacher_is_not_told_to_install_one() -> None:
    assert "install" not in why_no_teacher(False, ["torch"])


def test_who_lacks_the_libraries_is_told_which_and_what_to_do() -> None:
    said = why_no_teacher(True, ["torch", "transformers"])
    for part in ("torch, transformers", "make teacher", "pip install 'heft[teacher]'", "heft demo"):
        assert part in said
    assert max(map(len, said.splitlines())) <= 120


def test_the_shop_goes_on_where_yesterday_ended(tmp_path: Path) -> None:
    log = tmp_path / "yesterday.jsonl"
    arrivals = Shop(SMALL, seed=1).arrivals()
    ended_ms = write_until(arrivals, SMALL.start_ms + HOUR, log)
    yesterday, today = list(read_lines(log)), list(islice(arrivals, 200))
    whole = islice(Shop(SMALL, seed=1).arrivals(), len(yesterday) + 200)
    assert list(chain(yesterday, (encode(each.event) for each in today))) == [encode(each.event) for each in whole]
    assert ended_ms >= SMALL.start_ms + HOUR
    assert all(each.arrived_ms >= ended_ms for each in today)


def test_what_the_teacher_learned_from_was_known_before_the_first_live_slate(tmp_path: Path) -> None:
    log = tmp_path / "yesterday.jsonl"
    arrivals = Shop(SMALL, seed=1).arrivals()
    write_until(arrivals, SMALL.start_ms + 4 * HOUR, log)
    first = next(each.event for each in arrivals if isinstance(each.event, Impression))
    ends_ms = Log(read_log([log], Config()), Template("{query} | {item.text}")).split().ends_ms
    assert ends_ms is not None
    assert ends_ms < first.at_ms


@pytest.mark.slow
def test_a_worker_that_ends_by_itself_leaves_its_last_words(tmp_path: Path) -> None:
    file = tmp_path / "heft.toml"
    file.write_text("[kafka]\nbotstrap = 'x'\n", encoding="utf-8")
    with pytest.raises(WorkerError, match=r"status 1.*did you mean kafka\.bootstrap"), running_worker(file) as worker:
        worker.wait()


@pytest.mark.kafka
@pytest.mark.slow
def test_a_demo_that_is_told_to_end_takes_its_worker_and_its_folder_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "heft", "demo", "--no-teacher"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        while demo.poll() is None and not list(tmp_path.glob("heft-demo-*/worker.log")):
            time.sleep(0.1)  # a poll for another process, not a guess at how long it takes
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
