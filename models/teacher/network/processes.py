"""Several processes that train one model: ``torchrun`` starts them, each takes its share of every batch.

All of them read the same data and make the same choices; only the first one writes. With a single process, the
functions here change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

_T = TypeVar("_T")


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes if ``torchrun`` started this one, and leave them at the end."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Return the number of this process, from 0; number 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of a batch that this process computes."""
    return rows[number() :: count()]


def from_first(value: _T) -> _T:
    """Return the value that the first process has."""
    if count() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, device=_device())
    found: _T = box[0]
    return found


def synchronise(parameters: Iterable[torch.Tensor]) -> None:
    """Give all processes the first one's parameters."""
    if count() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


def add_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Replace the gradients by their sums over the processes: those of the whole batch."""
    if count() == 1:
        return
    of = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in of])
    dist.all_reduce(flat)
    for p, gradient in zip(of, torch.split(flat, [p.numel() for p in of]), strict=True):
        p.grad = gradient.view_as(p)


def add(values: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of an array over the processes."""
    if count() == 1:
        return values
    total = torch.from_numpy(values).to(_device())
    dist.all_reduce(total)
    summed: NDArray[Any] = total.cpu().numpy()
    return summed


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
