"""What is printed is whole: every name and number of a column that is shown, at 80 columns and at 140."""

from __future__ import annotations

import io
from math import inf, nan
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import Progress, TextColumn

from heft.models.rankers.arms import RankerConfig
from heft.models.teacher.template import TeacherConfig
from heft.stream.cli.cluster_tables import show_findings, topics_table
from heft.stream.cli.doctor import Finding
from heft.stream.cli.snapshots import Described, snapshots_table
from heft.stream.config.settings import Config
from heft.stream.demo.leaderboard import MIXTURE, Runner, race_table
from heft.stream.demo.oracle import Oracle
from heft.stream.demo.view import view
from heft.stream.kafka.topics import Found, Wanted
from heft.stream.observe.scrape import Scrape
from heft.stream.state.store import Name
from heft.stream.teacher.commands import card_table, evaluation_table, explanation_table
from heft.stream.terminal.progress import bar_columns
from heft.stream.terminal.report_tables import open_console, show_report
from heft.stream.terminal.table import Column, Fitted
from tests.support.scrape import of_arm, sample

TAUGHT = RankerConfig().taught()
ARMS = [*(arm.name for arm in TAUGHT.weightings_of(TAUGHT.click_arms)), MIXTURE]
WIDTHS = pytest.mark.parametrize("width", [80, 140])


def shown(what: RenderableType, width: int) -> list[str]:
    """The lines that a terminal of this width shows; one that is cut, folded within a word or too long is none."""
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert not any("…" in line or len(line) > width for line in lines)
    return lines


def measures(value: float, **more: float) -> dict[str, Any]:
    keys = "ne auc calibration ess gauc ndcg_at_10 mrr auc_rank logloss ne_raw ece pr_auc ess_positive ess_negative"
    return dict.fromkeys(keys.split(), value) | more


def report(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    half = {"samples": 12_345_678, "positives": 1_234_567}
    arms = {name: each | {"second_half": each} for name, each in arms.items()}
    return {
        "events": dict.fromkeys(("impression", "click", "order", "action"), 12_345_678),
        "fates": dict.fromkeys(("joined", "late", "duplicate", "bot", "after_window", "orphan", "pending"), 12_345_678),
        "samples": 12_345_678,
        "seconds": 12_345.6,
        "samples_per_second": 12_345_678.9,
        "digest": "0123456789abcdef" * 2,
        "heads": {"click": {"samples": 1, "second_half": half, "arms": arms}},
    }


def replayed(arms: dict[str, dict[str, Any]], width: int) -> tuple[list[str], dict[str, list[str]]]:
    """The lines of a replay's report, and the cells of each arm."""
    out = io.StringIO()
    show_report(report(arms), Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert not any("…" in line or len(line.rstrip()) > width for line in lines)
    return lines, {line.split()[0]: line.split()[1:] for line in lines if line.split()[:1] and line.split()[0] in arms}


@WIDTHS
def test_a_replay_shows_every_arm_and_number_whole(width: int) -> None:
    arms = {name: measures(0.8765, ne=0.5 + n / 1000) for n, name in enumerate(ARMS)}
    lines, cells = replayed(arms, width)
    assert list(cells) == ARMS
    for n, name in enumerate(ARMS):
        assert cells[name][:2] == [f"{0.5 + n / 1000:.4f}", "0.8765"]
        assert len(cells[name]) == (14 if width == 140 else 8)
        assert set(cells[name][1:]) == {"0.8765"}
    text = "\n".join(lines)
    assert text.count("12,345,678") == 13
    assert "0123456789abcdef" * 2 in text
    assert ("wider terminals show:" in text) == (width == 80)


@WIDTHS
@pytest.mark.parametrize(
    ("value", "written"),
    [(1e-5, "1.0e-05"), (-1e-5, "-1.0e-05"), (-0.25, "-0.2500"), (12_345_678.0, "12,345,678.0000"), (inf, "inf")],
)
def test_extreme_numbers_are_whole_and_take_the_room_of_others(value: float, written: str, width: int) -> None:
    lines, cells = replayed({name: measures(value) for name in ARMS}, width)
    assert all(set(each) == {written} for each in cells.values())
    _, _, left_out = " ".join(lines).partition("wider terminals")
    assert len(cells[MIXTURE]) + left_out.count(",") + bool(left_out) == 14, "what is not shown is named"


@WIDTHS
def test_what_is_not_a_number_is_left_blank(width: int) -> None:
    _, cells = replayed({name: measures(nan, ne=0.5) for name in ARMS}, width)
    assert all(each == ["0.5000"] for each in cells.values())


@WIDTHS
def test_the_race_is_shown_whole(width: int) -> None:
    race = [Runner(name, "never served", 1.0, 12.3456, -12.3456, -0.0001, 12.3455) for name in ARMS]
    lines = shown(race_table(race), width)
    cells = [line.split() for line in lines[1:]]
    said = ["-0.0001", "±", "12.3456"]
    assert cells == [
        [name, "100.0%", "12.3456", *(said if name != "uniform" else []), "never", "served"] for name in ARMS
    ]


def live(width: int, height: int, samples: float = 12_345_678.0) -> list[str]:
    """What the demo with a teacher shows last on a terminal of this size."""
    seen = Scrape(
        "".join(of_arm(name, 0.123, 0.8765, mean=-0.0321) for name in ARMS)
        + f"heft_samples_total {samples}\nheft_learner_open_slates 123456\nheft_learner_open_clicks 12345\n"
        + "heft_teacher_waiting_pairs 12345\n"
        + 'heft_lag_records{stage="join"} 12345\n'
        + 'heft_scores_total{when="on_time"} 7\n'
        + "".join(sample(f"heft_{each}_ratio", 0.7123, arm=MIXTURE) for each in ("auc", "calibration"))
        + sample("heft_reference_samples_total", 7.0, arm="distill_gate", score="present")
    )
    config = Config(teacher=TeacherConfig(model="teacher"))
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    with Live(console=console, auto_refresh=False) as screen:
        screen.update(view(config, seen, Oracle(), 12_345_678, 100.0, 1.5), refresh=True)
        return out.getvalue().split("\x1b[?25l")[-1].splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_the_demo_fits_into_a_terminal_while_it_runs(width: int, height: int) -> None:
    lines = live(width, height)
    text = "\n".join(lines)
    assert len(lines) <= 24
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "…" not in text
    assert "..." not in text
    assert [line.split()[0] for line in lines[-len(ARMS) :]] == ARMS
    assert text.count("0.8765") == len(ARMS) + 1, "each arm's NE, and the mixture's above"
    for fact in ("12,345,678 (123,457/s)", "123,456 slates, 12,345 clicks", "12,345 pairs", "12,345 records"):
        assert fact in text
    assert "100% on time, 0% late, 0% none" in text


@WIDTHS
def test_topics_are_whole_with_long_names(width: int) -> None:
    wanted = [Wanted(f"company.production.{each}", 12, each, "1209600000", 1) for each in ("impressions", "scored")]
    found = {wanted[0].name: Found(wanted[0].name, 128, {"retention.ms": "31536000000"})}
    lines = shown(topics_table(wanted, found, set()), width)
    assert lines[1].split() == [wanted[0].name, "there", "128", "31536000000", "impressions"]
    assert lines[2].split() == [wanted[1].name, "missing", "12", "1209600000", "scored"]


@WIDTHS
def test_snapshots_are_whole(width: int) -> None:
    name = Name("learn-12", 12, 123_456_789_012, "313926cfc41b")
    lines = shown(snapshots_table([Described(name, 1_234, ""), Described(name, 0, "cut short")]), width)
    assert lines[1].split() == [name.file, "1,234", "123,456,789,012"]
    assert lines[2].split()[1] == "DAMAGED"


@WIDTHS
def test_the_measures_of_a_teacher_are_whole(width: int) -> None:
    measured = {"labels": 12_345_678.0, "positives": 123_456.7, "spearman": -0.1234, "ece": 1e-5}
    each = measures(0.8765) | measured
    heads = dict.fromkeys(("click", "conversion", "relevance"), each)
    lines = shown(evaluation_table({"heads": heads}), width)
    expected = ["conversion", "0.8765", "0.8765", "-0.1234", "0.8765", "0.8765", "12,345,678", "123,456.7"]
    assert lines[2].split()[:8] == expected
    assert ("1.0e-05" in lines[2]) == (width == 140) == ("wider" not in lines[-1])
    stages = dict.fromkeys(("before", "after_calibrated", "after_without_position"), each)
    lines = shown(card_table({"heads": dict.fromkeys(heads, stages)}), width)
    assert lines[6].split() == ["conversion", "text", "alone", "0.8765", "0.8765", "-0.1234", "0.8765", "0.8765"]


@WIDTHS
def test_tokens_and_their_bars_are_whole(width: int) -> None:
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    from heft.models.teacher.score.explain import Explanation, TokenShare

    tokens = [TokenShare("donaudampfschifffahrts", 1.0, -12.3456), TokenShare("[sep]", 0.0, 0.0)]
    lines = shown(explanation_table(Explanation("click", "v", 0.0, 0.5, tokens)), width)
    assert lines[1].split() == ["donaudampfschifffahrts", "1.000", "█" * 15, "-12.3456", "█" * 15]
    assert lines[2].split() == ["[sep]", "0.000", "+0.0000"], "brackets of a name are no markup"


def test_findings_break_between_words() -> None:
    out = io.StringIO()
    what = "clicks: at_ms is 12345678 s behind the records' own time, in the topic of production.clicks.of.shop"
    show_findings([Finding(what, "look at the producer's clock")], Console(file=out, width=40))
    assert set(what.split()) <= set(out.getvalue().split())


def test_the_first_column_is_shown_even_where_it_must_be_folded() -> None:
    columns = [Column[str]("arm", str, "left"), Column[str]("ne", lambda _: "0.8765")]
    lines = shown(Fitted(columns, ["distill_gate"]), 8)
    assert lines[:3] == ["arm", "distill_", "gate"]


def test_what_goes_into_a_file_has_every_column(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report({name: measures(0.8765) for name in ARMS}), open_console())
    out = capsys.readouterr().out
    assert "ess neg." in out
    assert "wider terminals" not in out
    assert max(map(len, out.splitlines())) < 250, "no line is filled up with blanks"


@pytest.mark.parametrize("note", ["", "validation loss 0.1234"])
def test_a_bar_fits_with_its_numbers(note: str) -> None:
    total = 123_456 if note else 123_456_789
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with Progress(*bar_columns("Fine-tuning"), TextColumn(note), console=console, auto_refresh=False) as bar:
        bar.add_task("", total=total, completed=total - 1)
        bar.refresh()
    assert "…" not in out.getvalue()
    assert f"{total - 1}/{total}" in out.getvalue()
    assert note in out.getvalue()
