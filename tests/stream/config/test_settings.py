"""The configuration: file, environment, durations, errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from heft.stream.cli.doctor import check_snapshots
from heft.stream.config.as_toml import explanations, to_toml
from heft.stream.config.settings import (
    BadValueError,
    Config,
    ConfigError,
    KafkaConfig,
    MetricsConfig,
    SnapshotConfig,
    Topics,
    UnknownKeyError,
    format_ms,
    load,
    parse_ms,
)
from heft.stream.kafka.connect import _by_meaning, client_settings
from heft.stream.state.credentials import is_credential, without_credentials
from heft.stream.state.store import SnapshotStore, StoreError


def loaded(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "heft.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ)


def test_without_file_and_variables_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(None, {}) == Config()


def test_heft_toml_of_the_working_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heft.toml").write_text("[snapshots]\nkeep = 9\n")
    assert load(None, {}).snapshots.keep == 9


def test_durations_are_written_with_units_or_as_milliseconds(tmp_path: Path) -> None:
    text = '[join]\nclick_window = "5m"\nconversion_window = "2d"\nlateness = 1500\nidle_after_ms = 250\n'
    join = loaded(tmp_path, text).join
    assert (join.click_window_ms, join.conversion_window_ms) == (300_000, 172_800_000)
    assert (join.lateness_ms, join.idle_after_ms) == (1500, 250)


@pytest.mark.parametrize("ms", [0, 1, 999, 1000, 90_000, 3_600_000, 86_400_000, 86_400_001])
def test_a_printed_duration_reads_back(ms: int) -> None:
    assert parse_ms(format_ms(ms)) == ms


@pytest.mark.parametrize("text", ["", "ten", "5 parsecs", "-5s", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(BadValueError, match="expected a duration"):
        parse_ms(text)


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        '[kafka]\nbootstrap = "a:1"\n[join]\nclick_window = "5m"\n',
        HEFT_KAFKA__BOOTSTRAP="b:2",
        HEFT_JOIN__CLICK_WINDOW_MS="1000",
        HEFT_KAFKA__TOPICS__CLICKS="taps",
        HEFT_JOIN__SHARD_BY="surface",
        HEFT_JOIN__SHARDS='["search", "home"]',
        HEFT_METRICS__PORT="0",
    )
    assert config.kafka.bootstrap == "b:2"
    assert config.join.click_window_ms == 1000
    assert config.kafka.topics.clicks == "taps"
    assert config.shards == 2
    assert config.metrics.port == 0


def test_a_password_of_digits_stays_a_text() -> None:
    security = {"HEFT_KAFKA__SECURITY__SASL_PASSWORD": "1234", "HEFT_KAFKA__GROUP": "42"}
    config = load(Path("/dev/null"), security)
    assert config.kafka.security == {"sasl_password": "1234"}
    assert config.kafka.group == "42"


def test_other_variables_are_none_of_our_business() -> None:
    assert load(Path("/dev/null"), {"HEFT_TEST_DATA": "x", "PATH": "y"}) == Config()


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("[join]\nclik_window = 1\n", "join.click_window"),
        ("[kafka.topics]\nclick = 'x'\n", "kafka.topics.clicks"),
        ("[snapshot]\nkeep = 1\n", "snapshots"),
        ("[[ranker.click_arms]]\nname = 'uniform'\nalfa = 1\n", r"ranker.click_arms\[0\].alpha"),
        ("[[mapping]]\ntopik = 'x'\n", r"mapping\[0\].topic"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, text: str, near: str) -> None:
    with pytest.raises(UnknownKeyError, match=f"did you mean {near}"):
        loaded(tmp_path, text)


def test_an_unknown_variable_is_an_error_too() -> None:
    with pytest.raises(UnknownKeyError, match=r"join\.lateness"):
        load(Path("/dev/null"), {"HEFT_JOIN__LATENES": "1"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kafka]\npartitions = 0\n", "kafka.partitions: Expected `int` >= 1"),
        ("[snapshots]\ninterval = 'soon'\n", "snapshots.interval: expected a duration"),
        ("[join]\nconversion_window = '1m'\n", "at least click_window"),
        ("[join]\nlateness = 1\nlateness_ms = 2\n", "given twice"),
        ("[[mapping]]\ntopic = 't'\ntype = 'clack'\n", "field"),
        ("kafka = [", "not TOML"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadValueError, match=r"heft\.toml") as caught:
        loaded(tmp_path, text)
    assert says in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(Path("nowhere.toml"), {})


def test_what_is_printed_reads_back(tmp_path: Path) -> None:
    text = '[join]\nclick_window = "90s"\n[[mapping]]\ntopic = "t"\ntype = "click"\nfields = { "user_id" = "a.b" }\n'
    config = loaded(tmp_path, text, HEFT_KAFKA__SECURITY__SASL_PASSWORD='s"ecret')
    assert loaded(tmp_path, to_toml(config, secrets=True)) == config


SECRET = """
[kafka.security]
"security.protocol" = "SASL_SSL"
"sasl.username" = "me"
"sasl.password" = "hush"
"ssl.key.password" = "hush"
[snapshots]
url = "s3://me:hu/sh@bucket/heft"
[teacher]
url = "https://gpu:8600/?key=hush&signature=hush&size=2"
token = "hush"
[[mapping]]
topic = "t"
type = "click"
fields = { "user_id" = "token" }
"""


def test_credentials_are_neither_printed_nor_reported(tmp_path: Path) -> None:
    config = loaded(tmp_path, SECRET)
    for text in (to_toml(config), repr(config.plain())):
        assert "hush" not in text
        assert "hu/sh" not in text
        for open_to_all in (
            "SASL_SSL",
            "me",
            "s3://me:***@bucket/heft",
            "https://gpu:8600/?key=***&signature=***&size=2",
        ):
            assert open_to_all in text
    assert config.plain()["mapping"][0]["fields"] == {"user_id": "token"}


def test_what_is_printed_with_credentials_left_out_names_the_variables_that_supply_them(tmp_path: Path) -> None:
    config = loaded(tmp_path, SECRET)
    text = to_toml(config)
    supplied = {
        "HEFT_KAFKA__SECURITY__SASL_PASSWORD": "hush",
        "HEFT_KAFKA__SECURITY__SSL_KEY_PASSWORD": "hush",
        "HEFT_SNAPSHOTS__URL": config.snapshots.url,
        "HEFT_TEACHER__URL": config.teacher.url,
        "HEFT_TEACHER__TOKEN": "hush",
    }
    assert [name for name in supplied if name not in text] == []
    again = loaded(tmp_path, text, **supplied)
    assert (again.snapshots, again.teacher, again.mapping) == (config.snapshots, config.teacher, config.mapping)
    assert _by_meaning(again.kafka.security)[0] == _by_meaning(config.kafka.security)[0]


@pytest.mark.parametrize("key", ['[snapshots]\nurl = "s3://me:***@bucket"', '[teacher]\ntoken = "***"'])
def test_a_mask_is_not_taken_for_a_credential(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadValueError, match=r"is masked \(\*\*\*\); set HEFT_(SNAPSHOTS__URL|TEACHER__TOKEN)"):
        loaded(tmp_path, key)


@pytest.mark.parametrize(
    "name",
    ["sasl.password", "sasl_plain_password", "ssl.key.password", "sasl.jaas.config", "sasl.oauthbearer.token", "Token"],
)
def test_a_setting_is_known_for_a_credential_by_its_name(name: str) -> None:
    assert is_credential(name)


@pytest.mark.parametrize(
    "name",
    ["security.protocol", "sasl.username", "ssl.key.location", "ssl_keyfile", "sasl.oauthbearer.command", "seed"],
)
def test_other_settings_are_none(name: str) -> None:
    assert not is_credential(name)


@pytest.mark.parametrize(
    "url",
    ["data/snapshots", "http://gpu:8600/score", "abfss://box@account.dfs.core.windows.net/a", "http://h:1/x?at=u@h"],
)
def test_a_url_without_a_credential_stays_as_it_is(url: str) -> None:
    assert without_credentials(url) == url


def test_the_errors_of_a_store_hold_no_credential() -> None:
    store = SnapshotStore("memory://me:hush@box/a?key=hush")
    error = OSError("cannot reach memory://me:hush@box/a?key=hush")
    with pytest.raises(StoreError) as caught, store._reached():
        raise error
    assert "memory://me:***@box" in str(caught.value)
    assert "hush" not in str(caught.value)
    (finding,) = check_snapshots("nosuchscheme://me:hush@box")
    assert "hush" not in finding.what


@pytest.mark.parametrize("section", [KafkaConfig, Topics, SnapshotConfig, MetricsConfig])
def test_every_key_is_explained(section: type) -> None:
    fields = set(section.__struct_fields__) - {"topics"}  # type: ignore[attr-defined]
    assert fields <= set(explanations(section))


def test_inputs_are_our_topics_without_those_left_out() -> None:
    config = Config(kafka=KafkaConfig(topics=Topics(actions="")))
    assert config.inputs == ("impressions", "clicks", "orders")


def test_mapped_topics_take_the_place_of_those_for_their_types(tmp_path: Path) -> None:
    table = '[[mapping]]\ntopic = "shop"\ntype = "{}"\nfields = {{ user_id = "u" }}\n'
    config = loaded(tmp_path, table.format("click") + table.format("order"))
    assert config.inputs == ("shop", "impressions", "actions")


def test_security_is_given_once_in_either_naming() -> None:
    librdkafka = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
    }
    python = {
        "security_protocol": "sasl_ssl",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": "p",
    }
    one, other = (client_settings(KafkaConfig("a:1,b:2", security)) for security in (librdkafka, python))
    assert one.pop("ssl_context").check_hostname is True
    other.pop("ssl_context")
    assert one == other
    assert one["bootstrap_servers"] == ["a:1", "b:2"]
    assert one["sasl_plain_password"] == "p"


def test_without_security_a_client_gets_the_brokers_only() -> None:
    assert client_settings(KafkaConfig()) == {"bootstrap_servers": ["127.0.0.1:9092"]}


@pytest.mark.parametrize(
    ("security", "says"),
    [
        ({"sasl.passwort": "p"}, "sasl.passwort"),
        ({"security.protocol": "TLS"}, "SASL_SSL"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nowhere.pem"}, "cannot be read"),
    ],
)
def test_security_that_cannot_be_is_refused(security: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        client_settings(KafkaConfig(security=security))
