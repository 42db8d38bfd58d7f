"""Importers: somebody else's rows in, one well-ordered event log out."""

import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from heft.stream.cli.main import app
from heft.stream.events.log import read_lines
from heft.stream.events.wire import Click, Event, Impression, Order, decode, encode
from heft.stream.importers import open_bandit, trivago
from heft.stream.importers.ordered import in_order, write_log
from heft.stream.importers.table import SourceError, Table
from tests.support.builders import T0, action
from tests.support.places import DATA

TRIVAGO = ",".join(trivago.COLUMNS)
CLICKOUT = 'v1,s1,1541548955,3,clickout item,b,CH,"Zurich, Switzerland",mobile,Pool|Best Value,a|b|c,77|88|99.5'
VIEW = 'v1,s1,1541548939,1,interaction item image,a,CH,"Zurich, Switzerland",mobile,,,'


def data(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; HEFT_TEST_DATA names the folder of public logs")
    return path


def table_of(folder: Path, *lines: str) -> Table:
    path = folder / "source.csv"
    path.write_text("\n".join(lines) + "\n")
    return trivago.table(path)


def trivago_events(folder: Path, *rows: str) -> list[Event]:
    with table_of(folder, TRIVAGO, *rows) as source:
        return list(trivago.events(source))


def log_of(path: Path) -> list[Event]:
    return [decode(line) for line in read_lines(path)]


def imported(*arguments: str | Path) -> None:
    result = CliRunner().invoke(app, ["import", *map(str, arguments)])
    assert result.exit_code == 0, result.output


def test_a_clickout_is_a_list_five_seconds_before_its_click(tmp_path: Path) -> None:
    shown, clicked = trivago_events(tmp_path, CLICKOUT)
    assert isinstance(shown, Impression)
    assert isinstance(clicked, Click)
    assert (shown.at_ms, clicked.at_ms) == (1541548950000, 1541548955000)
    assert (clicked.request_id, clicked.user_id, clicked.item_id) == (shown.request_id, shown.user_id, "b") == (
        "s1-3", "v1", "b",
    )  # fmt: skip
    assert [(item.item_id, item.features) for item in shown.items] == [
        ("a", {"price": 77.0}), ("b", {"price": 88.0}), ("c", {"price": 99.5}),
    ]  # fmt: skip
    assert (shown.surface, shown.query) == ("search", "Zurich, Switzerland")
    assert shown.context == {
        "platform": "CH", "city": "Zurich, Switzerland", "device": "mobile", "filters": ["Pool", "Best Value"],
    }  # fmt: skip


def test_every_other_row_is_an_action_of_its_kind(tmp_path: Path) -> None:
    (act,) = trivago_events(tmp_path, VIEW)
    assert encode(act) == encode(action("a", user="v1", at=1541548939000 - T0, kind="interaction item image"))


def test_a_click_outside_its_list_is_kept_for_the_join_to_name(tmp_path: Path) -> None:
    _, clicked = trivago_events(tmp_path, CLICKOUT.replace(",b,", ",z,"))
    assert isinstance(clicked, Click)
    assert clicked.item_id == "z"


def test_rows_without_a_reference_are_left_out_and_counted(tmp_path: Path) -> None:
    with table_of(tmp_path, TRIVAGO, CLICKOUT.replace(",b,", ",,"), VIEW) as source:
        assert len(list(trivago.events(source))) == 1
        assert source.skipped == {"without a user or a reference": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (CLICKOUT.replace("1541548955", "1541548955000"), "line 3: expected `timestamp` in seconds"),
        (CLICKOUT.replace("1541548955", "soon"), "got 'soon'"),
        (CLICKOUT.replace("77|88", "77"), "got 3 items, 2 prices"),
        (CLICKOUT.replace("a|b|c", "a|b|a"), "each item once"),
        (CLICKOUT.replace("99.5", "dear"), "numbers in `prices`"),
        ("v1,s1", "expected 12 cells"),
    ],
)
def test_a_bad_cell_is_refused_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        trivago_events(tmp_path, VIEW, row)


def test_a_table_without_a_needed_column_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source\.csv: expected columns step, prices"):
        table_of(tmp_path, TRIVAGO.replace("step,", "").replace(",prices", ""), VIEW)


def test_a_truncated_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "source.csv.gz"
    rows = "\n".join([TRIVAGO, *(VIEW.replace("s1", f"s{n * 7919}") for n in range(20_000))])
    path.write_bytes(gzip.compress(rows.encode())[:-1000])
    with trivago.table(path) as source, pytest.raises(SourceError, match="the file is damaged"):
        list(trivago.events(source))


@given(times=st.lists(st.integers(0, 50), max_size=60), run_bytes=st.integers(1, 2_000))
def test_events_come_out_in_time_order_whatever_fits_in_memory(times: list[int], run_bytes: int) -> None:
    events = [action(item=str(n), at=at) for n, at in enumerate(times)]
    expected = [encode(event) for event in sorted(events, key=lambda event: event.at_ms)]
    assert list(in_order(events, run_bytes)) == expected


def test_a_log_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def lines() -> Iterator[bytes]:
        yield b"{}"
        msg = "the source is broken"
        raise SourceError(msg)

    with pytest.raises(SourceError):
        write_log(lines(), tmp_path / "log.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_trivago_day_one_holds_every_row_of_its_source(tmp_path: Path) -> None:
    source, out = data("trivago_day1.csv.gz"), tmp_path / "log.jsonl"
    imported("trivago", source, "--out", out)
    events = log_of(out)
    with gzip.open(source, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [event for event in events if isinstance(event, Impression)]
    clicks = Counter((e.user_id, e.item_id, e.at_ms) for e in events if isinstance(e, Click))
    clickouts = [row for row in rows if row["action_type"] == "clickout item"]
    assert (len(shown), sum(len(each.items) for each in shown)) == (6_842, 156_762)
    assert clicks == Counter((row["user_id"], row["reference"], 1000 * int(row["timestamp"])) for row in clickouts)
    assert len(events) == len(rows) + len(clickouts)
    assert len({each.request_id for each in shown}) == len(shown)
    times = [event.at_ms for event in events]
    assert times == sorted(times)


def bandit(folder: Path, rows: str, items: str, *, name: str = "men.csv", beside: str = "item_context.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / beside).write_text("item_id,item_feature_0,item_feature_1\n" + items)
    header = "timestamp,item_id,position,click,propensity_score,user_feature_0,user-item_affinity_7\n"
    (folder / name).write_text(header + rows)
    return folder / name


def test_a_bandit_row_is_one_item_with_its_place_propensity_and_features(tmp_path: Path) -> None:
    row = "2019-11-24 00:03:13.442536+00:00,7,3,1,0.125,aa,2.0\n"
    rows, items = open_bandit.find(bandit(tmp_path, row, "7,-0.5,cc\n"))
    with open_bandit.table(rows) as source:
        shown, clicked = open_bandit.events(source, open_bandit.items(items))
    assert json.loads(encode(shown)) == {
        "type": "impression", "request_id": "men-0", "user_id": "men-0", "at_ms": 1574553793442,
        "surface": "recommendation", "context": {"user_feature_0": "aa"},
        "items": [
            {
                "item_id": "7", "position": 2, "propensity": 0.125,
                "features": {"item_feature_0": -0.5, "item_feature_1": "cc", "affinity": 2.0},
            }
        ],
    }  # fmt: skip
    assert json.loads(encode(clicked)) == {
        "type": "click", "request_id": "men-0", "user_id": "men-0", "item_id": "7", "at_ms": 1574553794442,
    }  # fmt: skip


def test_the_files_of_a_bandit_log_are_found_in_both_layouts(tmp_path: Path) -> None:
    nested = bandit(tmp_path / "random" / "men", "", "")
    flat = bandit(tmp_path / "flat", "", "", name="few.csv", beside="few_items.csv")
    assert open_bandit.find(tmp_path / "random") == (nested, nested.with_name("item_context.csv"))
    assert open_bandit.find(tmp_path / "flat") == (flat, flat.with_name("few_items.csv"))
    bandit(tmp_path / "random" / "women", "", "", name="women.csv")
    with pytest.raises(SourceError, match=r"found .*men\.csv, .*women\.csv; name the one"):
        open_bandit.find(tmp_path / "random")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"expected NAME\.csv"):
        open_bandit.find(tmp_path / "empty")


@pytest.mark.parametrize(
    "row",
    ["2019-11-24,8,1,0,.5,aa,0", "2019-11-24,7,0,0,.5,aa,0", "2019-11-24,7,1,0,0,aa,0", "2019-11-24,7,1,2,.5,aa,0",
     "then,7,1,0,.5,aa,0"],
)  # fmt: skip
def test_a_bandit_row_that_cannot_be_is_refused_with_its_line(tmp_path: Path, row: str) -> None:
    rows, items = open_bandit.find(bandit(tmp_path, row + "\n", "7,0,cc\n"))
    with open_bandit.table(rows) as source, pytest.raises(SourceError, match="line 2: "):
        list(open_bandit.events(source, open_bandit.items(items)))


@pytest.mark.parametrize(("name", "clicks"), [("random", 46), ("bts", 69)])
def test_open_bandit_logs_keep_every_propensity(tmp_path: Path, name: str, clicks: int) -> None:
    source, out = data(f"open_bandit_{name}_men.csv.gz"), tmp_path / "log.jsonl.gz"
    imported("open-bandit", source, "--out", out)
    events = log_of(out)
    with gzip.open(source, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = [event for event in events if isinstance(event, Impression)]
    assert sum(isinstance(event, Click) for event in events) == clicks == sum(row["click"] == "1" for row in rows)
    assert not any(isinstance(event, Order) for event in events)
    got = sorted((e.at_ms, e.items[0].item_id, e.items[0].position or 0, e.items[0].propensity or 0) for e in shown)
    assert Counter(each[1:] for each in got) == Counter(
        (row["item_id"], int(row["position"]) - 1, float(row["propensity_score"])) for row in rows
    )
    assert all("item_feature_0" in event.items[0].features for event in shown)
    assert [event.at_ms for event in events] == sorted(event.at_ms for event in events)
