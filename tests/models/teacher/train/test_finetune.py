"""Fine-tuning a tiny model on made-up text: it learns, goes on after a kill, and says on its card how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest

from heft.models.teacher.data.examples import Split

pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
pytest.importorskip("transformers", reason="the teacher's libraries are not installed: pip install '.[teacher]'")

import torch
from transformers import (
    AutoModel,
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from heft.models.teacher.network.bases import load_base, reads_left_to_right, resolve_base
from heft.models.teacher.network.encoded import Encoded
from heft.models.teacher.network.model import Model, predict
from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.network.vocabulary import train_tokenizer
from heft.models.teacher.settings import PretrainSettings
from heft.models.teacher.state import TeacherError, read_state
from heft.models.teacher.train import finetune as finetuning
from heft.models.teacher.train.evaluate import evaluate
from heft.models.teacher.train.finetune import finetune
from heft.models.teacher.train.pretrain import pretrain
from heft.models.teacher.train.train import CHECKPOINT
from heft.models.teacher.train.translate import back_translate
from tests.support.diagram import SVG, measured, points
from tests.support.finetuning import SOURCES, THINGS, settings, shop, split


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tiny matrices: a second thread costs more than it brings


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher")
    return folder, finetune(split(), folder, settings(epochs=10, patience=20), SOURCES)


def test_every_head_learns_from_its_own_labels(teacher: tuple[Path, dict[str, Any]]) -> None:
    heads = teacher[1]["heads"]
    assert set(heads) == {"click", "conversion", "relevance"}
    for name, head in heads.items():
        assert head["before"]["auc"] < 0.7, name
        assert head["after_calibrated"]["auc"] > 0.75, name
        assert head["after_calibrated"]["ne"] < 0.9, name
        assert head["after_calibrated"]["calibration"] == pytest.approx(1.0, abs=0.25), name
    # One head could not have learned both.
    z = logits(teacher[0], [("shoe", "lovely shoe luxury"), ("shoe", "dirty shoe sale")])
    assert z[0, 0] > z[1, 0]
    assert z[0, 1] < z[1, 1]


def logits(folder: Path, pairs: list[tuple[str, str]]) -> Any:
    model, tokenizer, state = load_teacher(folder, "cpu")
    return predict(model, Encoded(tokenizer, pairs, state.max_tokens))


def test_what_is_written_scores_as_the_card_says(teacher: tuple[Path, dict[str, Any]]) -> None:
    folder, card = teacher
    report = evaluate(folder, split().test, "cpu")
    for name, head in card["heads"].items():
        for metric in ("auc", "ne", "logloss", "calibration", "spearman"):
            assert report["heads"][name][metric] == pytest.approx(head["after_calibrated"][metric], abs=1e-5)
    assert report["version"] == card["version"]
    assert {"spearman", "auc", "logloss", "ne", "calibration"} <= set(report)


def test_the_folder_says_where_it_comes_from_and_when_its_data_ends(teacher: tuple[Path, dict[str, Any]]) -> None:
    folder, card = teacher
    state = read_state(folder)
    assert state is not None
    assert state.data_ends_ms == 1_600_000_000_000
    assert state.version == card["version"] != ""
    written = json.loads((folder / "card.json").read_text())
    assert written["data"]["sources"] == [{"name": "log.jsonl", "bytes": 12, "digest": "abc"}]
    assert written["heads"]["click"]["after_calibrated"]["auc"] == card["heads"]["click"]["after_calibrated"]["auc"]
    assert written["licence"] == "none: made from the data alone"
    text = (folder / "card.md").read_text()
    assert card["version"] in text
    assert "## conversion" in text
    assert list((folder / "tensorboard").iterdir())
    assert not (folder / CHECKPOINT).exists()
    AutoModel.from_pretrained(folder)  # the encoder is transformers' own format


def test_the_card_shows_how_well_each_head_is_calibrated(teacher: tuple[Path, dict[str, Any]]) -> None:
    folder, card = teacher
    assert "](calibration.svg)" in (folder / "card.md").read_text()
    panels = fromstring((folder / "calibration.svg").read_text()).findall(f"{SVG}g")
    for panel, head in zip(panels, card["heads"].values(), strict=True):
        for when, table in (("before", "calibration_table_raw"), ("after", "calibration_table")):
            assert np.array(points(panel, when)) == pytest.approx(np.array(measured(head[table])), abs=1e-4)


def test_a_teacher_made_in_the_place_of_another_has_its_own_diagram(tmp_path: Path) -> None:
    diagrams = []
    for static in (False, True):
        finetune(split(64), tmp_path, settings(epochs=1, static=static), SOURCES)
        diagrams.append((tmp_path / "calibration.svg").read_text())
    assert diagrams[0] != diagrams[1]


def test_a_score_does_not_depend_on_what_else_is_in_the_batch(teacher: tuple[Path, dict[str, Any]]) -> None:
    pairs = [
        *split().test.pairs[:40],
        ("a very long query of many words", "and as long a text beside it, cut in the end"),
    ]
    together = logits(teacher[0], pairs)
    alone = np.concatenate([logits(teacher[0], [pair]) for pair in pairs[::8]])
    assert together[::8] == pytest.approx(alone, abs=1e-4)


class KilledError(Exception):
    """Stands for the kill."""


def kill_at(step: int) -> Any:
    def progress(done: int, _total: int, _note: str) -> None:
        if done == step:
            raise KilledError

    return progress


@pytest.mark.parametrize("static", [False, True])
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path: Path, static: bool) -> None:
    how = settings(epochs=2, dropout=0.1, checkpoint_steps=5, learning_rate=5e-4, static=static)
    whole = finetune(split(200), tmp_path / "whole", how, SOURCES)
    for step in (4, 8, 12):  # before the first checkpoint, after it, after an evaluation
        with pytest.raises(KilledError):
            finetune(split(200), tmp_path / "killed", how, SOURCES, progress=kill_at(step))
        assert read_state(tmp_path / "killed") is None
    goes_on = finetune(split(200), tmp_path / "killed", how, SOURCES)
    assert goes_on["version"] == whole["version"]
    assert goes_on["training"] == whole["training"]


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        finetune(split(200), tmp_path, settings(checkpoint_steps=2), SOURCES, progress=kill_at(3))
    with pytest.raises(TeacherError, match="unfinished run with other data or settings"):
        finetune(split(200), tmp_path, settings(checkpoint_steps=2, l2=0.5), SOURCES)
    with pytest.raises(TeacherError, match="unfinished run with other data or settings"):
        finetune(split(201), tmp_path, settings(checkpoint_steps=2), SOURCES)


@pytest.mark.parametrize(
    "more",
    [
        {"lora": 8, "learning_rate": 1e-2},
        {"accumulate": 2, "batch": 16},
        {"bf16": True},
        {"gradient_checkpointing": True},
        {"lora": 8, "learning_rate": 1e-2, "gradient_checkpointing": True},
    ],
    ids=lambda more: "+".join(more),
)
def test_every_way_to_train_learns(tmp_path: Path, more: dict[str, Any]) -> None:
    card = finetune(split(), tmp_path, settings(**more), SOURCES)
    assert card["heads"]["click"]["after_calibrated"]["auc"] > 0.75
    assert AutoModel.from_pretrained(tmp_path).config.hidden_size == 128  # adapters are merged: any tool loads it


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    weights = []
    for batch, accumulate in ((32, 1), (16, 2)):
        folder = tmp_path / str(batch)
        part = split()._replace(train=shop(32, 5))  # one step
        finetune(part, folder, settings(epochs=1, batch=batch, accumulate=accumulate), SOURCES)
        weights.append(load_teacher(folder, "cpu")[0].linear.weight.detach().numpy())
    # A step of 1e-3 or more each; where the gradient is next to nothing, Adam makes much of its rounding.
    assert np.abs(weights[0]).mean() > 1e-3
    assert np.abs(weights[0] - weights[1]).mean() < 2e-5


def test_padding_on_to_a_multiple_of_tokens_changes_no_loss_and_exceeds_no_limit() -> None:
    encoder, tokenizer = load_base(resolve_base("tiny"), lambda: list(THINGS), 28, 0.0)
    torch.manual_seed(1)
    model = Model(encoder, ["click"], "mean", 0.0).eval()
    torch.nn.init.normal_(model.linear.weight)
    part, widths = shop(200, 3), set()
    encoded = Encoded(tokenizer, part.pairs, 28)
    model.encoder.register_forward_pre_hook(
        lambda _, __, given: widths.add(given["input_ids"].shape[1]), with_kwargs=True
    )
    plain, padded = (
        finetuning.loss_of(model, encoded, part, [0], 32, torch.device("cpu"), multiple) for multiple in (1, 8)
    )
    batches = encoded.batches_by_length() + [np.arange(n, n + 4) for n in range(0, 200, 4)]
    expected = [plain(rows).item() for rows in batches]
    assert any(width % 8 for width in widths)
    widths.clear()
    assert [padded(rows).item() for rows in batches] == pytest.approx(expected, rel=1e-5)
    assert widths <= {8, 16, 24, 28}


def test_the_bias_begins_at_the_class_prior_beside_the_offset(tmp_path: Path) -> None:
    part = shop(300, 1, shift=2.0)
    prior = finetuning._prior(part.offset, part.trials[:, 0], part.positives[:, 0])
    rate = part.positives[:, 0].sum() / part.trials[:, 0].sum()
    assert prior == pytest.approx(np.log(rate / (1 - rate)) - 2.0, abs=1e-6)
    card = finetune(Split(part, shop(150, 2, 2.0), shop(150, 3, 2.0), None, None, None), tmp_path, settings(), SOURCES)
    click = card["heads"]["click"]
    assert click["after_calibrated"]["calibration"] == pytest.approx(1.0, abs=0.25)
    assert click["after_without_position"]["calibration"] < 0.5  # scoring leaves out what the position added


def test_training_stops_when_the_held_out_loss_rises(tmp_path: Path) -> None:
    noise = shop(100, 1)
    rng = np.random.default_rng(4)
    noise.positives[:] = noise.trials * (rng.random((100, 1)) < 0.5)
    card = finetune(Split(noise, shop(100, 2), shop(100, 3), None, None, None), tmp_path, settings(epochs=40), SOURCES)
    assert card["training"]["steps"] < 40 * 4
    assert card["training"]["best_step"] < card["training"]["steps"]


def test_a_teacher_goes_on_from_a_teacher(tmp_path: Path, teacher: tuple[Path, dict[str, Any]]) -> None:
    how = settings(base=str(teacher[0]), epochs=1, learning_rate=1e-5)
    card = finetune(split(64), tmp_path, how, SOURCES)
    assert pooling(tmp_path) == pooling(teacher[0]) == "mean"
    head = card["heads"]["click"]
    assert head["before_is"] == "the base's own head"
    assert head["before"]["auc"] == pytest.approx(teacher[1]["heads"]["click"]["after_calibrated"]["auc"])
    assert head["after_calibrated"]["auc"] == pytest.approx(head["before"]["auc"], abs=0.02)


def decoder(folder: Path, texts: list[tuple[str, str]]) -> Path:
    """A tiny model that reads from left to right, saved without a head."""
    made = train_tokenizer([text for pair in texts for text in pair], 32)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, eos_token="[SEP]", unk_token="[UNK]")  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pooling(folder: Path) -> str:
    state = read_state(folder)
    assert state is not None
    return state.pooling


def test_a_decoder_is_a_teacher_too_and_one_goes_on_from_it(tmp_path: Path) -> None:
    base, out, on = decoder(tmp_path / "base", split().train.pairs), tmp_path / "out", tmp_path / "on"
    card = finetune(split(), out, settings(base=str(base)), SOURCES)
    assert pooling(out) == "last"
    assert card["heads"]["click"]["after_calibrated"]["auc"] > 0.75
    goes_on = finetune(split(64), on, settings(base=str(out), epochs=1, learning_rate=1e-5), SOURCES)
    assert pooling(on) == "last"
    head = goes_on["heads"]["click"]
    assert head["before_is"] == "the base's own head"
    assert head["before"]["auc"] == pytest.approx(card["heads"]["click"]["after_calibrated"]["auc"])


def test_a_teacher_that_reads_apart_is_a_base_of_its_kind(tmp_path: Path) -> None:
    base, out, on = decoder(tmp_path / "base", split().train.pairs), tmp_path / "out", tmp_path / "on"
    finetune(split(64), out, settings(base=str(base), epochs=1, towers=True), SOURCES)
    assert pooling(out) == "towers"
    finetune(split(64), on, settings(base=str(out), epochs=1), SOURCES)
    assert pooling(on) == "last", "pairs are read as a decoder reads them"


def test_a_decoder_is_pre_trained_as_one_even_where_a_teacher_was_made_of_it(tmp_path: Path) -> None:
    texts = split(200).train.pairs
    base, out = decoder(tmp_path / "base", texts), tmp_path / "out"
    finetune(split(64), out, settings(base=str(base), epochs=1), SOURCES)
    for n, folder in enumerate((base, out)):
        how = PretrainSettings(base=str(folder), epochs=1, max_tokens=16, device="cpu")
        assert pretrain(texts, tmp_path / str(n), how)["objective"] == "causal language model"


@pytest.mark.parametrize(
    ("config", "forward"),
    [
        (BertConfig(), False),
        (BertConfig(is_decoder=True), True),
        (GPT2Config(), True),
        (LlamaConfig(), True),
        (Gemma3TextConfig(use_bidirectional_attention=True), False),
    ],
    ids=lambda each: getattr(each, "model_type", ""),
)
def test_the_kind_of_a_model_says_whether_it_reads_from_left_to_right(config: Any, forward: bool) -> None:
    assert reads_left_to_right(config) == forward


def translator(folder: Path) -> Path:
    """An encoder-decoder that says something, if nothing of sense."""
    tokenizer = train_tokenizer([text for pair in split().train.pairs for text in pair], 32)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    T5ForConditionalGeneration(config).save_pretrained(folder)
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def test_texts_go_through_translation_models_and_are_trained_on_beside_the_originals(tmp_path: Path) -> None:
    model = str(translator(tmp_path / "model"))
    texts = ["lovely shoe", "torn hat", "lovely shoe", ""]
    there = back_translate(texts, [model], "cpu")
    assert list(there) == ["lovely shoe", "torn hat"]
    assert there == back_translate(texts, [model], "cpu")
    back = back_translate(texts, [model, model], "cpu")
    assert back["torn hat"] == back_translate([there["torn hat"]], [model], "cpu")[there["torn hat"]]
    with pytest.raises(TeacherError, match="expected a folder with a translation model"):
        back_translate(texts, ["nowhere"], "cpu")
    card = finetune(split(64), tmp_path / "out", settings(epochs=1, back_translate=(model,)), SOURCES)
    assert card["training"]["steps"] > 2  # of 64 pairs and their copies


def test_the_same_texts_give_the_same_vocabulary() -> None:
    texts = [text for pair in split().train.pairs for text in pair]
    assert train_tokenizer(texts, 16).get_vocab() == train_tokenizer(texts[::-1], 16).get_vocab()


def test_an_encoder_and_decoder_together_is_no_base(tmp_path: Path) -> None:
    model = translator(tmp_path / "model")
    with pytest.raises(TeacherError, match="t5 is an encoder and a decoder together; expected one of the two"):
        finetune(split(64), tmp_path / "out", settings(base=str(model)), SOURCES)


def test_pre_training_makes_a_base_that_knows_the_words(tmp_path: Path) -> None:
    texts = split(600).train.pairs
    how = PretrainSettings(base="tiny", epochs=4, batch=32, learning_rate=2e-3, max_tokens=16, device="cpu")
    card = pretrain(texts, tmp_path / "base", how)
    assert card["loss_after"] < 0.8 * card["loss_before"]
    on = pretrain(texts, tmp_path / "on", PretrainSettings(**{**settings_of(how), "base": str(tmp_path / "base")}))
    assert on["loss_before"] == pytest.approx(card["loss_after"], rel=0.05)
    tuned = finetune(split(), tmp_path / "out", settings(base=str(tmp_path / "base")), SOURCES)
    assert tuned["heads"]["click"]["after_calibrated"]["auc"] > 0.75
    assert tuned["licence"] == "none: made from the data alone"


def settings_of(how: PretrainSettings) -> dict[str, Any]:
    return {name: getattr(how, name) for name in how.__struct_fields__}
