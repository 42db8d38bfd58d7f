"""The training loop: batches, steps, early stopping, and a checkpoint from which a killed run goes on.

Order of examples and dropout at a step depend only on the seed and the number of the step. So a run that was killed
and goes on ends with the same weights as one that was not killed: to the bit with one torch thread, up to rounding with
more, since threads add in any order. Several processes share each batch and add their gradients: without dropout, they
end with the weights of a single process, up to rounding.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heft.models.teacher.network import processes
from heft.models.teacher.network.encoded import Encoded
from heft.models.teacher.network.model import Progress
from heft.models.teacher.settings import TrainSettings
from heft.models.teacher.state import OtherRunError, write_atomically

_POOL = 50  # batches whose examples are sorted by length together: little padding, and still a random order

CHECKPOINT = "checkpoint.pt"


class Best(msgspec.Struct):
    """The evaluation with the lowest loss so far."""

    loss: float = float("inf")
    step: int = 0


class Trainer:
    """Trains the parameters of a model that require gradients.

    Parameters
    ----------
    model
        Already on its device.
    encoded
        The training texts.
    loss
        From rows of ``encoded`` to the loss of this batch.
    validate
        Returns the validation loss of the model as it is, and further numbers for the log. None: all steps are done,
        and the last weights are kept.
    settings
        How to train.
    fast
        Beginnings of the names of parameters that start at 0: their learning rate is at least 1e-3.
    """

    def __init__(
        self,
        model: nn.Module,
        encoded: Encoded,
        loss: Callable[[NDArray[np.int64]], torch.Tensor],
        validate: Callable[[], tuple[float, dict[str, float]]] | None,
        settings: TrainSettings,
        fast: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.settings = settings
        self._encoded = encoded
        self._loss = loss
        self._validate = validate
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.device = next(iter(self._trainable.values())).device
        rates = {name: max(settings.learning_rate, 1e-3 * (name.startswith(fast) if fast else False))
                 for name in self._trainable}  # fmt: skip
        groups = [
            {"params": [p], "initial_lr": rates[name], "weight_decay": settings.l2 if p.ndim > 1 else 0.0}
            for name, p in self._trainable.items()
        ]
        processes.synchronise(self._trainable.values())
        self._optimizer = torch.optim.AdamW(_merged(groups), lr=settings.learning_rate, fused=True)
        batches = -(-len(encoded.lengths) // settings.batch)
        self.steps_an_epoch = -(-batches // settings.accumulate)
        self.steps = self.steps_an_epoch * settings.epochs
        self.step = 0
        self.best = Best()
        self._best_weights: dict[str, torch.Tensor] = {}
        self._worse = 0

    def run(self, out: Path, identity: str, progress: Progress | None = None) -> None:
        """Train until the steps are done or the validation loss stops falling; leave the best weights in the model.

        Parameters
        ----------
        out
            Folder of the checkpoint and of ``tensorboard/``.
        identity
            Digest of data and settings; a checkpoint with another one is refused.
        progress
            Called after every step.

        Raises
        ------
        OtherRunError
            If the folder holds the checkpoint of another run.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._resume(out, identity)
        first = processes.number() == 0
        every = max(1, self.steps_an_epoch // self.settings.evaluations)
        with SummaryWriter(str(out / "tensorboard"), purge_step=self.step or None) if first else nullcontext() as log:
            note = ""
            while self.step < self.steps and self._worse < self.settings.patience:
                for batches in self._remaining_steps():
                    loss = self._train_step(batches)
                    self.step += 1
                    if log is not None:
                        log.add_scalar("loss/train", loss, self.step)
                    if self._validate is not None and (self.step % every == 0 or self.step == self.steps):
                        note = f"validation loss {self._evaluate(log):.4f}"
                        self._save(out, identity)
                    elif self.step % self.settings.checkpoint_steps == 0:
                        self._save(out, identity)
                    if progress is not None:
                        progress(self.step, self.steps, note)
                    if self._worse >= self.settings.patience:
                        break
        if self._validate is None:
            self.best = Best(float("nan"), self.step)
        with torch.no_grad():
            for name, tensor in self._best_weights.items():
                self._trainable[name].copy_(tensor)

    def _remaining_steps(self) -> Iterator[list[NDArray[np.int64]]]:
        """Yield the batches of each step that is left in this epoch."""
        epoch, done = divmod(self.step, self.steps_an_epoch)
        rng = np.random.default_rng((self.settings.seed, epoch))
        order = rng.permutation(len(self._encoded.lengths))
        pool = _POOL * self.settings.batch
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self._encoded.lengths[rows], kind="stable")]
            batches += [rows[n : n + self.settings.batch] for n in range(0, len(rows), self.settings.batch)]
        shuffled = [batches[n] for n in rng.permutation(len(batches))]
        size = self.settings.accumulate
        for step in range(done, self.steps_an_epoch):
            yield shuffled[step * size : (step + 1) * size]

    def _train_step(self, batches: list[NDArray[np.int64]]) -> float:
        self.model.train()
        torch.manual_seed((self.settings.seed << 32) + self.step * processes.count() + processes.number())
        scale = self._schedule()
        for group in self._optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            rows = processes.share(batch)
            if not len(rows):
                continue
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
                loss = self._loss(rows) / len(batches)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        processes.add_gradients(self._trainable.values())
        nn.utils.clip_grad_norm_(self._trainable.values(), 1.0)
        self._optimizer.step()
        return total

    def _schedule(self) -> float:
        warmup = max(1, round(self.settings.warmup * self.steps))
        if self.step < warmup:
            return (self.step + 1) / warmup
        return (self.steps - self.step) / max(1, self.steps - warmup)

    def _evaluate(self, log: Any) -> float:
        assert self._validate is not None
        loss, more = self._validate()
        for name, value in {"loss/validation": loss, **more}.items() if log is not None else ():
            log.add_scalar(name, value, self.step)
        if loss < self.best.loss:
            self.best = Best(loss, self.step)
            self._best_weights = {name: p.detach().cpu().clone() for name, p in self._trainable.items()}
            self._worse = 0
        else:
            self._worse += 1
        return loss

    def _save(self, out: Path, identity: str) -> None:
        if processes.number():
            return
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": identity,
                "step": self.step,
                "worse": self._worse,
                "best": (self.best.loss, self.best.step),
                "best_weights": self._best_weights,
                "weights": {name: p.detach().cpu() for name, p in self._trainable.items()},
                "optimizer": self._optimizer.state_dict(),
            },
            buffer,
        )
        write_atomically(out / CHECKPOINT, buffer.getvalue())

    def _resume(self, out: Path, identity: str) -> None:
        path = out / CHECKPOINT
        content = processes.from_first(path.read_bytes() if path.exists() else None)
        if content is None:
            return
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["identity"] != identity:
            msg = f"{path} is of an unfinished run with other data or settings; delete it or choose another --out"
            raise OtherRunError(msg)
        self.step, self._worse = saved["step"], saved["worse"]
        self.best = Best(*saved["best"])
        self._best_weights = saved["best_weights"]
        with torch.no_grad():
            for name, tensor in saved["weights"].items():
                self._trainable[name].copy_(tensor)
        self._optimizer.load_state_dict(saved["optimizer"])


def _merged(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups with those of equal settings merged: the optimizer updates a group at once."""
    merged: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        key = (group["initial_lr"], group["weight_decay"])
        merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())
