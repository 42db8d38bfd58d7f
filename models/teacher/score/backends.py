"""The ways to compute a teacher's pooled vectors, and which of them is the fastest on this machine.

Processor flags mislead: bfloat16 was slower than float32 on one machine that has the instruction and 4.6 times as fast
on another. So each way is timed where it is to run.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heft.models.teacher.network.model import Model
from heft.models.teacher.network.tokens import padded
from heft.models.teacher.state import TeacherState

Columns: TypeAlias = Mapping[str, NDArray[np.int64]]
Forward: TypeAlias = Callable[[Columns], NDArray[np.float32]]
"""From a batch, [B, L] each, to its pooled vectors [B, D]."""

_TIMED_TOKENS = (16, 32)  # of the texts that are timed, where they may be so long
_ROUNDS = 3
_EXACT = 1e-4  # of a logit
_COMPILED_ROWS = 64  # each pass has so many, filled up: as many as are scored together unless configured
_MOST_COMPILED = 1 << 10  # shapes, of all teachers that a process has had


class Way(NamedTuple):
    """One way to compute a model.

    ``exact``: its logits are those of plain float32 within 1e-4. ``batch``: pairs of a forward pass at most.
    ``prepare`` is called once, before it is timed. ``widths``: tokens that a batch is padded to, ascending, the last of
    them those of the longest texts; none: to its longest. ``compiled``: for each of them.
    """

    name: str
    exact: bool
    batch: int
    prepare: Callable[[], Forward]
    widths: tuple[int, ...] = ()
    compiled: bool = False


def ways_of(model: Model, folder: Path, state: TeacherState) -> list[Way]:
    """Return the ways there are for a model where it is.

    Parameters
    ----------
    model
        On its device, in evaluation mode.
    folder
        The teacher's; what is exported is kept in it, by version.
    state
        The teacher's.
    """
    if next(model.parameters()).device.type == "cuda":
        return ways_of_gpu(model, state.max_tokens)
    ways = [
        Way("torch float32", True, 16, lambda: _torch(model)),
        Way("torch bfloat16", False, 16, lambda: _torch(_halved(model))),
    ]
    if model.pooling != "last" and _has_onnx():  # encoders: exported decoders were never tried
        exported = folder / f"onnx-{state.version}"
        ways.append(Way("onnxruntime float32", True, 16, lambda: _onnx(_export(model, exported) / "model.onnx")))
        ways.append(Way("onnxruntime int8", False, 8, lambda: _onnx(_quantise(_export(model, exported)))))
    return ways


def ways_of_gpu(model: Model, max_tokens: int) -> list[Way]:
    """Return the ways of a GPU. They have run on an H200; what is tested of them is tested on a CPU.

    What is compiled is compiled for each shape, tens of seconds the first time: so there are few, one for each width,
    and none that is not among them.
    """
    eights = (*range(8, max_tokens, 8), max_tokens)
    doubled = (*(16 << n for n in range(16) if 16 << n < max_tokens), max_tokens)
    return [
        Way("torch float32", True, 256, lambda: _torch(model), eights),
        Way("torch.compile float32", True, _COMPILED_ROWS, lambda: _compiled(model), doubled, True),
        Way("torch bfloat16", False, 256, lambda: _torch(_halved(model)), eights),
        Way("torch.compile bfloat16", False, _COMPILED_ROWS, lambda: _compiled(_halved(model)), doubled, True),
    ]


def fastest(
    ways: Sequence[Way],
    columns: Sequence[str],
    timer: Callable[[], float],
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    together: int,
) -> tuple[Way, Forward, Timings]:
    """Return the fastest way for so many pairs at once, ready, and the pairs a second of each.

    A pass of a GPU that is not compiled takes as long for ten pairs as for a hundred: timed with more pairs than it
    will be given, such a way seems faster than it is. A way that cannot be prepared or run on this machine is passed
    over, and so is one that is to be exact and is not; its figure is why.

    Parameters
    ----------
    ways
        To choose from; the first has to work, and exact is what agrees with it.
    columns
        What the model takes.
    timer
        Seconds, of any origin.
    logits
        What the heads make of vectors [B, D].
    together
        Pairs that are scored together; a way is timed with as many, or with a full batch where it holds fewer.
    """
    ready: list[tuple[Way, Forward]] = []
    said: Timings = {}
    plain: list[NDArray[np.float32]] = []
    for way in ways:
        try:
            forward = way.prepare()
            rows = min(way.batch, together)
            found = [forward(_made_up(columns, way, tokens, rows)) for tokens in _TIMED_TOKENS]  # compiles, allocates
        except Exception as error:
            if way is ways[0]:
                raise
            said[way.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        plain = plain or found
        difference = max(_difference(logits(one), logits(two)) for one, two in zip(found, plain, strict=True))
        if way.exact and way is not ways[0] and not difference <= _EXACT:
            said[way.name] = f"not exact: a logit differs by {difference:.1e}"
            continue
        ready.append((way, forward))
    seconds: dict[str, list[float]] = {way.name: [] for way, _ in ready}
    for _ in range(_ROUNDS):
        for way, forward in ready:
            rows = min(way.batch, together)
            begun = timer()
            for tokens in _TIMED_TOKENS:
                forward(_made_up(columns, way, tokens, rows))
            seconds[way.name].append((timer() - begun) / (rows * len(_TIMED_TOKENS)))
    best = min(ready, key=lambda each: min(seconds[each[0].name]))
    said |= {name: 1.0 / max(min(each), 1e-9) for name, each in seconds.items()}
    return (*best, said)


def run_through(way: Way, forward: Forward, columns: Sequence[str]) -> None:
    """Compute a batch of each width that a way is compiled for: now, and not while pairs wait."""
    for width in way.widths if way.compiled else ():
        forward(_made_up(columns, way, width, way.batch))


def _difference(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    alike = min(len(one), len(two))
    return float(np.abs(one[:alike] - two[:alike]).max())


Timings: TypeAlias = dict[str, float | str]
"""Pairs a second of each way; of one that does not work here, why."""


def _made_up(columns: Sequence[str], way: Way, tokens: int, rows: int) -> dict[str, NDArray[np.int64]]:
    """A batch of texts as long as that, if there may be such, and of some half as long."""
    if way.widths:
        tokens = min(tokens, way.widths[-1])
    width = padded(tokens, way.widths)
    lengths = np.where(np.arange(rows) % 2, max(1, tokens // 2), tokens)
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    values = {"input_ids": 5 * mask, "attention_mask": mask, "token_type_ids": 0 * mask}
    return {name: values[name] for name in columns}


def _torch(module: Model) -> Forward:
    device = next(module.parameters()).device

    @torch.inference_mode()
    def forward(columns: Columns) -> NDArray[np.float32]:
        inputs = {name: torch.from_numpy(column).to(device) for name, column in columns.items()}
        vectors: NDArray[np.float32] = module.vectors(inputs).float().cpu().numpy()
        return vectors

    return forward


def _halved(model: Model) -> Model:
    return copy.deepcopy(model).to(torch.bfloat16)


class _Vectors(nn.Module):
    """The model as a function of its columns in order, for what traces it."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model.vectors(dict(zip(self.names, columns, strict=True)))


def _compiled(model: Model) -> Forward:
    """CUDA graphs of fixed shapes: batches that are not full are filled up.

    What cannot be compiled whole is an error here: left alone, it would run as if nothing had been compiled. So it was
    for most shapes when there were more than eight: that many versions of a function are compiled, and the models of
    all ways and of all teachers that a process has had share this one.
    """
    device = next(model.parameters()).device
    names = input_names(model)
    run = torch.compile(_Vectors(model, names), mode="reduce-overhead", dynamic=False, fullgraph=True)

    @torch.inference_mode()
    @torch._dynamo.config.patch(recompile_limit=_MOST_COMPILED, accumulated_recompile_limit=_MOST_COMPILED)
    def forward(columns: Columns) -> NDArray[np.float32]:
        n = len(columns["input_ids"])
        filled = [np.concatenate([columns[name], columns[name][:1].repeat(_COMPILED_ROWS - n, 0)]) for name in names]
        vectors = run(*(torch.from_numpy(each).to(device) for each in filled))[:n]
        return np.asarray(vectors.float().cpu().numpy())

    # CUDA graphs belong to the thread that recorded them, and a teacher may be made in another than it scores in.
    thread = ThreadPoolExecutor(1, "compiled", _let_graphs_be_recorded)
    return lambda columns: thread.submit(forward, columns).result()


def _let_graphs_be_recorded() -> None:
    """Give this thread a place for its CUDA graphs.

    Torch 2.15 does so itself. In torch 2.11 only the thread that imported it has one, and an assertion fails in others:
    https://github.com/pytorch/pytorch/issues/123177.
    """
    from torch._inductor import cudagraph_trees

    cudagraph_trees.local.tree_manager_containers = {}
    cudagraph_trees.local.tree_manager_locks = defaultdict(Lock)


def input_names(model: Model) -> list[str]:
    """Return the columns that a model takes."""
    typed = getattr(model.encoder.config, "type_vocab_size", 0)
    return ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]


def _has_onnx() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) for name in ("onnxruntime", "onnx", "onnxscript"))


def _export(model: Model, folder: Path) -> Path:
    """Return the folder with the exported model; other versions' make way for it."""
    if (folder / "model.onnx").exists():
        return folder
    names = input_names(model)
    example = tuple(torch.from_numpy(np.full((2, 8), 1, np.int64)) for _ in names)
    axes = tuple({0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")} for _ in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what else it could export if more were installed
    with _whole_or_not(folder) as unfinished, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            _Vectors(copy.deepcopy(model), names).eval(),
            example,
            str(unfinished / "model.onnx"),
            input_names=names,
            output_names=["vectors"],
            dynamic_shapes=(axes,),
            dynamo=True,
            verbose=False,
        )
    return folder


@contextlib.contextmanager
def _whole_or_not(folder: Path) -> Iterator[Path]:
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    unfinished.mkdir()
    try:
        yield unfinished
        for old in folder.parent.glob("onnx-*"):
            shutil.rmtree(old)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _quantise(folder: Path) -> Path:
    """Return the model with 8-bit weights, a scale for each channel; activations are scaled as they come."""
    path = folder / "model.int8.onnx"
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        part = folder / ".model.int8.onnx"
        with _without_words_about("pre-processing"):
            quantize_dynamic(str(folder / "model.onnx"), str(part), per_channel=True, weight_type=QuantType.QInt8)
        part.rename(path)
    return path


@contextlib.contextmanager
def _without_words_about(what: str) -> Iterator[None]:
    def filter(record: logging.LogRecord) -> bool:
        return what not in record.getMessage()

    logging.getLogger().addFilter(filter)
    yield
    logging.getLogger().removeFilter(filter)


def _onnx(path: Path) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}

    def forward(columns: Columns) -> NDArray[np.float32]:
        fed = {name: column for name, column in columns.items() if name in names}
        vectors: NDArray[np.float32] = session.run(None, fed)[0]
        return vectors

    return forward
