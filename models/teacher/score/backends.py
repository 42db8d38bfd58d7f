"""The backends that can compute a teacher's pooled vectors, and which of them is the fastest on this machine.

Processor flags mislead: bfloat16 was slower than float32 on one machine that has the instruction, and 4.6 times as fast
on another. So each backend is timed on the machine where it is to run.
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

_TIMED_TOKENS = (16, 32)  # lengths of the texts that are timed, where texts may be so long
_ROUNDS = 3
_EXACT = 1e-4  # largest difference of a logit from plain float32
_COMPILED_ROWS = 64  # rows of every compiled pass, filled up; the default of `teacher.batch`
_MOST_COMPILED = 1 << 10  # shapes that a process may compile, for all of its teachers together


class Backend(NamedTuple):
    """One way to compute a model.

    Attributes
    ----------
    exact
        Whether its logits are those of plain float32, within 1e-4.
    batch
        Most pairs of a forward pass.
    prepare
        Called once, before it is timed.
    widths
        Tokens that a batch may be padded to, ascending; the last one holds the longest texts. Without any, a batch is
        padded to its longest text.
    compiled
        Whether it is compiled once for each of the widths.
    """

    name: str
    exact: bool
    batch: int
    prepare: Callable[[], Forward]
    widths: tuple[int, ...] = ()
    compiled: bool = False


def backends_of(model: Model, folder: Path, state: TeacherState) -> list[Backend]:
    """Return the backends that can compute a model on its device.

    Parameters
    ----------
    model
        On its device, in evaluation mode.
    folder
        Of the teacher; exported models are kept in it, by version.
    state
        Of the teacher.
    """
    if next(model.parameters()).device.type == "cuda":
        return backends_of_gpu(model, state.max_tokens)
    backends = [
        Backend("torch float32", True, 16, lambda: _torch(model)),
        Backend("torch bfloat16", False, 16, lambda: _torch(_halved(model))),
    ]
    if model.pooling != "last" and _has_onnx():  # exported decoders were never tried
        exported = folder / f"onnx-{state.version}"
        backends.append(
            Backend("onnxruntime float32", True, 16, lambda: _onnx(_export(model, exported) / "model.onnx"))
        )
        backends.append(Backend("onnxruntime int8", False, 8, lambda: _onnx(_quantise(_export(model, exported)))))
    return backends


def backends_of_gpu(model: Model, max_tokens: int) -> list[Backend]:
    """Return the backends of a GPU. They have run on an H200; the tests run them on a CPU.

    Compiling takes tens of seconds for each shape, the first time. So there are few shapes, one for each width, and no
    batch has another.
    """
    eights = (*range(8, max_tokens, 8), max_tokens)
    doubled = (*(16 << n for n in range(16) if 16 << n < max_tokens), max_tokens)
    return [
        Backend("torch float32", True, 256, lambda: _torch(model), eights),
        Backend("torch.compile float32", True, _COMPILED_ROWS, lambda: _compiled(model), doubled, True),
        Backend("torch bfloat16", False, 256, lambda: _torch(_halved(model)), eights),
        Backend("torch.compile bfloat16", False, _COMPILED_ROWS, lambda: _compiled(_halved(model)), doubled, True),
    ]


def fastest(
    backends: Sequence[Backend],
    columns: Sequence[str],
    timer: Callable[[], float],
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    together: int,
) -> tuple[Backend, Forward, Timings]:
    """Return the fastest backend for so many pairs at once, ready to run, and the pairs a second of each backend.

    A pass of a GPU that is not compiled takes as long for ten pairs as for a hundred. Timed with more pairs than it
    will be given, such a backend would seem faster than it is. A backend is passed over if it cannot be prepared or run
    on this machine, or should be exact and is not; then the reason stands in the place of its pairs a second.

    Parameters
    ----------
    backends
        To choose from. The first one has to work, and the exact ones have to agree with it.
    columns
        Names of the model's inputs.
    timer
        Seconds, of any origin.
    logits
        From vectors [B, D] to the logits of the heads.
    together
        Pairs that are scored together; a backend is timed with as many, or with a full batch where it holds fewer.
    """
    ready: list[tuple[Backend, Forward]] = []
    timings: Timings = {}
    plain: list[NDArray[np.float32]] = []
    for backend in backends:
        try:
            forward = backend.prepare()
            rows = min(backend.batch, together)
            found = [
                forward(_made_up(columns, backend, tokens, rows)) for tokens in _TIMED_TOKENS
            ]  # compiles, allocates
        except Exception as error:
            if backend is backends[0]:
                raise
            timings[backend.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        plain = plain or found
        difference = max(_difference(logits(one), logits(two)) for one, two in zip(found, plain, strict=True))
        if backend.exact and backend is not backends[0] and not difference <= _EXACT:
            timings[backend.name] = f"not exact: a logit differs by {difference:.1e}"
            continue
        ready.append((backend, forward))
    seconds: dict[str, list[float]] = {backend.name: [] for backend, _ in ready}
    for _ in range(_ROUNDS):
        for backend, forward in ready:
            rows = min(backend.batch, together)
            begun = timer()
            for tokens in _TIMED_TOKENS:
                forward(_made_up(columns, backend, tokens, rows))
            seconds[backend.name].append((timer() - begun) / (rows * len(_TIMED_TOKENS)))
    best = min(ready, key=lambda each: min(seconds[each[0].name]))
    timings |= {name: 1.0 / max(min(each), 1e-9) for name, each in seconds.items()}
    return (*best, timings)


def run_through(backend: Backend, forward: Forward, columns: Sequence[str]) -> None:
    """Compute a batch of each width that a backend is compiled for: compiling now spares the pairs that come a wait."""
    for width in backend.widths if backend.compiled else ():
        forward(_made_up(columns, backend, width, backend.batch))


def _difference(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    alike = min(len(one), len(two))
    return float(np.abs(one[:alike] - two[:alike]).max())


Timings: TypeAlias = dict[str, float | str]
"""Pairs a second of each backend; in their place the reason, if it does not work here."""


def _made_up(columns: Sequence[str], backend: Backend, tokens: int, rows: int) -> dict[str, NDArray[np.int64]]:
    """Return a batch of texts of so many tokens, or of the most that there may be; every other text is half as long."""
    if backend.widths:
        tokens = min(tokens, backend.widths[-1])
    width = padded(tokens, backend.widths)
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
    """The model as a function of its inputs in order, as tracing needs it."""

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model.vectors(dict(zip(self.names, columns, strict=True)))


def _compiled(model: Model) -> Forward:
    """Run the model as CUDA graphs of fixed shapes; batches that are not full are filled up.

    A model that cannot be compiled whole is an error here: otherwise torch would run it without compiling, silently.
    It did so from the ninth shape on: it compiles eight versions of a function unless the limit is raised, and the
    models of all backends and of all teachers of a process share this function.
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

    # CUDA graphs work only in the thread that recorded them; a teacher may be made in one thread and score in another.
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
    """Return the names of the inputs that a model takes."""
    typed = getattr(model.encoder.config, "type_vocab_size", 0)
    return ["input_ids", "attention_mask", *(["token_type_ids"] if typed else [])]


def _has_onnx() -> bool:
    from importlib.util import find_spec

    return all(find_spec(name) for name in ("onnxruntime", "onnx", "onnxscript"))


def _export(model: Model, folder: Path) -> Path:
    """Return the folder with the exported model, which replaces those of other versions."""
    if (folder / "model.onnx").exists():
        return folder
    names = input_names(model)
    example = tuple(torch.from_numpy(np.full((2, 8), 1, np.int64)) for _ in names)
    axes = tuple({0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")} for _ in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of libraries that are not needed
    with _complete_or_absent(folder) as unfinished, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
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
def _complete_or_absent(folder: Path) -> Iterator[Path]:
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
    """Return the model with 8-bit weights, one scale for each channel; activations are scaled while it runs."""
    path = folder / "model.int8.onnx"
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        part = folder / ".model.int8.onnx"
        with _without_messages_about("pre-processing"):
            quantize_dynamic(str(folder / "model.onnx"), str(part), per_channel=True, weight_type=QuantType.QInt8)
        part.rename(path)
    return path


@contextlib.contextmanager
def _without_messages_about(what: str) -> Iterator[None]:
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
