"""The exported metrics: named with units, filled from the stages, read without a server."""

from __future__ import annotations

import re
from importlib.metadata import version
from platform import python_version

import msgspec
from prometheus_client import generate_latest

from heft.models.features.config import FeatureConfig
from heft.models.rankers.arms import Arm, RankerConfig
from heft.models.rankers.mixture import Decision
from heft.models.records import FIRST_KEY
from heft.stream.config.settings import Config
from heft.stream.events.messages import Message, ScoredReader
from heft.stream.events.wire import encode
from heft.stream.join.config import JoinConfig
from heft.stream.join.joiner import Joiner
from heft.stream.learn.learner import Learner, LearnerConfig
from heft.stream.observe.exporter import Metrics, Observed, Scores
from heft.stream.observe.families import TeacherNow
from heft.stream.observe.health import Health
from heft.stream.score.requests import Clocks, ScoreRequests
from tests.support.builders import click, crowd, impression, joined
from tests.support.places import ROOT

SMALL = LearnerConfig(
    features=FeatureConfig(history_bits=8),
    ranker=RankerConfig(click_bits=10, conversion_bits=10, click_arms=(Arm("uniform"), Arm("thinned", keep=0.5))),
)


def exported() -> str:
    records, joiner = joined([impression(), click(), *crowd(3 * 86_400_000)])
    learner = Learner(SMALL)
    for record in records:
        learner.apply(0, record)
    learner.flush()
    learner.click.hedge.decisions[1] = Decision(True, 1_700_000_000_000, 0.5, 0.25, 700)
    learner.featurizer.ignored_fields = 3
    reader = ScoredReader()
    read = Message(0, 0, 0, "", FIRST_KEY, (), records=records)
    for message in (read, read, msgspec.structs.replace(read, writer="replaced")):
        reader.read(message)
    requests = ScoreRequests("{query}", Clocks(lambda: 0, lambda: 0.0))
    requests.ask(impression())
    requests.counts.missing["shed"] = requests.counts.failures["timeout"] = 2
    observed = Observed(
        joiners={0: joiner},
        learners={0: learner},
        lag={("join", "clicks", 0): 7},
        scores=Scores({0: {"on_time": 5}}, TeacherNow(requests.counts, requests.ready, requests.waiting)),
        readers={("score", 0): [reader, ScoredReader()], ("learn", 0): [ScoredReader()]},
    )
    metrics = Metrics(lambda: observed, Health(most_lag=100))
    for _ in metrics.measure():
        pass
    metrics.scoring_delay.observe(0.3)
    metrics.stage_delay.labels("learn").observe(0.3)
    metrics.snapshot_stall.labels("learn").observe(0.02)
    metrics.snapshot_written("learn-0", 1_700_000_000.0, 1234)
    return generate_latest(metrics.registry).decode()


def test_a_scrape_tells_what_the_stages_know() -> None:
    text = exported()
    for line in (
        'heft_events_total{fate="joined",partition="0",type="impression"} 1.0',
        'heft_samples_total{shard="0"} 3.0',
        'heft_lag_records{partition="0",stage="join",topic="clicks"} 7.0',
        'heft_stage_delay_seconds_bucket{le="0.5",stage="learn"} 1.0',
        'heft_scores_total{partition="0",when="on_time"} 5.0',
        'heft_scores_missing_total{reason="shed"} 2.0',
        'heft_teacher_failures_total{reason="timeout"} 2.0',
        'heft_teacher_pairs_total{what="hits"} 2.0',
        "heft_teacher_waiting_pairs 1.0",
        "heft_teacher_ready 0.0",
        'heft_scoring_delay_seconds_bucket{le="0.5"} 1.0',
        'heft_snapshot_bytes{owner="learn-0"} 1234.0',
        "heft_snapshot_failures_total 0.0",
        "heft_snapshot_store_away_seconds 0.0",
        'heft_auc_ratio{arm="uniform",head="click",shard="0"}',
        'heft_mixture_weight_ratio{arm="thinned",head="click",shard="0"} 0.0',
        'heft_effective_samples_ratio{arm="uniform",head="click",label="positive",shard="0"} 1.0',
        'heft_arm_decision_timestamp_seconds{arm="thinned",decision="out",head="click",shard="0"} 1.7e+09',
        'heft_arm_decision_nats{arm="thinned",bound="low",head="click",shard="0"} 0.25',
        f'heft_build_info{{python="{python_version()}",version="{version("heft")}"}} 1.0',
        'heft_log_samples{shard="0"} 3.0',
        'heft_log_events{fate="joined",partition="0",type="impression"} 1.0',
    ):
        assert line in text


def test_what_was_dropped_on_the_way_is_exported() -> None:
    text = exported()
    records = joined([impression(), click(), *crowd(3 * 86_400_000)])[0]
    for line in (
        'heft_ignored_fields_total{shard="0"} 3.0',
        f'heft_repeated_records_total{{partition="0",stage="score"}} {len(records)}.0',
        'heft_fenced_messages_total{partition="0",stage="score"} 1.0',
    ):
        assert line in text


def test_what_never_happened_is_exported_as_0_so_that_a_rate_sees_the_first_time() -> None:
    text = exported()
    for line in (
        'heft_history_evicted_total{shard="0"} 0.0',
        'heft_repeated_records_total{partition="0",stage="learn"} 0.0',
        'heft_fenced_messages_total{partition="0",stage="learn"} 0.0',
        'heft_learner_skipped_total{shard="0",what="dropped_slates"} 0.0',
        'heft_join_dropped_total{partition="0",what="clicks"} 0.0',
        'heft_scores_missing_total{reason="not_finite"} 0.0',
        'heft_teacher_pairs_total{what="not_finite"} 0.0',
        'heft_teacher_failures_total{reason="failed"} 0.0',
        "heft_rebalances_total 0.0",
        'heft_restore_seconds_count{stage="join"} 0.0',
        'heft_retries_total{client="producer"} 0.0',
        'heft_retries_total{client="consumer"} 0.0',
        "heft_snapshot_failures_total 0.0",
    ):
        assert line in text


def test_names_end_in_their_unit() -> None:
    names = set(re.findall(r"^# TYPE (heft_\w+) \w+$", exported(), re.MULTILINE))
    units = (
        "_seconds",
        "_bytes",
        "_ratio",
        "_total",
        "_nats",
        "_records",
        "_events",
        "_slates",
        "_clicks",
        "_pairs",
        "_idle",
        "_benched",
        "_ready",
        "_created",
        "_info",
        "_samples",
    )
    assert names
    assert not {name for name in names if not name.endswith(units)}


def test_every_metric_of_the_dashboard_and_of_the_documents_is_exported() -> None:
    dashboard = (ROOT / "monitoring" / "heft-dashboard.json").read_text()
    documents = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    names = set(re.findall(r"\bheft_\w+", "".join([dashboard, *documents])))
    # Those of a teacher have no samples before its scores have come.
    known = set(re.findall(r"^(?:# TYPE )?(heft_\w+?)(?:\{| )", exported(), re.MULTILINE))
    assert names
    assert names <= known


def test_a_worker_says_where_it_answers() -> None:
    assert Metrics.where("127.0.0.1", 9464).split()[2] == "http://127.0.0.1:9464/metrics"
    assert Metrics.where("::1", 9464).split()[2] == "http://[::1]:9464/metrics"


def test_what_is_not_known_yet_has_no_sample() -> None:
    joiner, learner = Joiner(JoinConfig(), ("impressions", "clicks")), Learner(SMALL)
    metrics = Metrics(lambda: Observed(joiners={0: joiner}, learners={0: learner}), Health(most_lag=100))
    text = generate_latest(metrics.registry).decode()
    for name in ("watermark", "frontier", "learner"):
        assert f"# TYPE heft_{name}_timestamp_seconds gauge" in text
        assert f"\nheft_{name}_timestamp_seconds" not in text
    joiner.push(0, 0, encode(impression()))
    joiner._inputs[0].watermark = 1_700_000_000_000
    known = re.findall(r"^heft_watermark_timestamp_seconds(.*)$", generate_latest(metrics.registry).decode(), re.M)
    assert known == ['{partition="0",topic="impressions"} 1.7e+09']


def test_one_step_measures_one_arm_and_a_head_without_new_samples_is_not_measured_again() -> None:
    learner = Learner(SMALL)
    for record in joined([impression(), click(), *crowd(3 * 86_400_000)])[0]:
        learner.apply(0, record)
    learner.flush()
    metrics = Metrics(lambda: Observed(learners={0: learner}), Health(most_lag=100))
    arms = len(learner.click.metrics.arms) + len(learner.order.metrics.arms)
    assert len(list(metrics.measure())) == arms
    assert list(metrics.measure()) == []


def test_prometheus_is_told_of_the_default_port_and_of_those_that_the_readme_names() -> None:
    ports = re.findall(r'"127\.0\.0\.1:(\d+)"', (ROOT / "monitoring" / "prometheus.yml").read_text())
    readme = (ROOT / "README.md").read_text()
    assert ports[0] == str(Config().metrics.port)
    assert f"{ports[0]} to {ports[-1]} are scraped" in readme
    assert f"HEFT_METRICS__PORT={ports[1]} heft worker" in readme


def test_containers_open_the_port_of_the_worker_to_prometheus_and_grafana_to_nobody_as_its_admin() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    scraped = (ROOT / "monitoring" / "prometheus-compose.yml").read_text()
    assert "HEFT_METRICS__ADDRESS: 0.0.0.0" in compose
    assert f'HEFT_METRICS__PORT: "{Config().metrics.port}"' in compose
    assert f"names: [worker], type: A, port: {Config().metrics.port}" in scraped
    assert "GF_AUTH_ANONYMOUS_ORG_ROLE: Viewer" in compose
    assert "GF_SECURITY_ADMIN_PASSWORD: ${GRAFANA_ADMIN_PASSWORD:?" in compose
