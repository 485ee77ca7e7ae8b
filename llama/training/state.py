"""The saved state of a run, from which it resumes, and the lock on its folder.

A state is a folder `step-NNNNNNN` of `torch.distributed.checkpoint`, to which each rank writes its
own shard. It is written under another name, renamed when all ranks are done, and only then the
previous state is deleted: a run that is killed at any moment finds a complete one. The number of
processes may change in between, but not the number that share a model.
"""

import contextlib
import itertools
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from llama import console, distributed
from llama.errors import InputError
from llama.model import Transformer
from llama.storage.files import short_size
from llama.training.metrics import METRICS

Optimizers = Sequence[torch.optim.Optimizer]

STATES = "training"  # folder in a model's folder
_STATE = re.compile(r"step-(\d+)")
_RUN = "run.json"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a model's folder; all ranks call it, and it may be nested.

    A folder that it made is removed at an error before the first step. Raises ValueError where
    another process trains there.
    """
    states, problem = folder / STATES, [""]
    made = next((path for path in (folder, states) if not path.exists()), None)
    if console.is_main():
        states.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(states / ".lock", timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            problem = [f"another process trains in {folder}; wait for it, or give another folder"]
    dist.broadcast_object_list(problem)
    if problem[0]:
        raise InputError(problem[0])
    try:
        yield
    except BaseException:
        if console.is_main() and made and not (states / METRICS).exists():
            shutil.rmtree(made, ignore_errors=True)
        raise
    finally:
        if console.is_main():
            lock.release()


def latest_state(folder: Path) -> Path | None:
    """The state in `folder` with the most steps, None if there is none."""
    found = [path for path in folder.glob("step-*") if _STATE.fullmatch(path.name)]
    return max(found, key=lambda path: int(path.name[5:]), default=None)


def save_state(
    folder: Path, step: int, model: Transformer, optimizers: Optimizers, run: dict[str, Any]
) -> None:
    """Writes weights, optimizers and `run` (JSON values) as the state of `step` into `folder`.

    All ranks call it. Raises OSError, on all of them, where one can't write; the previous state is
    kept then.
    """
    path = folder / f"step-{step:07d}"
    partial = path.with_suffix(".incomplete")
    if console.is_main():
        shutil.rmtree(partial, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    try:
        with warnings.catch_warnings(action="ignore"):  # about dcp's own internals
            dcp.save(_tensors(model, optimizers), checkpoint_id=partial)
        if console.is_main():
            (partial / _RUN).write_text(json.dumps({"step": step, **run}, indent=1) + "\n")
            shutil.rmtree(path, ignore_errors=True)
            partial.replace(path)
    except dcp.CheckpointException as error:
        free = short_size(shutil.disk_usage(folder).free)
        raise OSError(
            f"{path} can't be written: {_reason(error)}. The disk has {free} left; the previous "
            "state is kept, and the same call resumes from it"
        ) from error
    finally:
        if console.is_main():
            shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    if console.is_main():
        for other in folder.glob("step-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)


def read_run(state: Path) -> dict[str, Any]:
    """The `run` and `step` of a state. Raises ValueError for a damaged one."""
    try:
        return json.loads((state / _RUN).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{state} is damaged ({error}); delete it") from error


def load_state(state: Path, model: Transformer, optimizers: Optimizers) -> None:
    """Restores weights and optimizers. Raises ValueError where they do not fit the state."""
    step = float(read_run(state)["step"])
    for optimizer in optimizers:
        is_adam = isinstance(optimizer, torch.optim.AdamW)
        moments = ("exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",)
        for parameter in itertools.chain(*(group["params"] for group in optimizer.param_groups)):
            kept = {key: torch.zeros_like(parameter) for key in moments}
            if is_adam:
                kept["step"] = torch.tensor(step, device=parameter.device)
            optimizer.state[parameter] = kept
    try:
        with warnings.catch_warnings(action="ignore"):
            dcp.load(_tensors(model, optimizers), checkpoint_id=state)
    except dcp.CheckpointException as error:
        raise InputError(
            f"{state} does not fit this model: {_reason(error)}; is it of another shape, or of "
            "another model_parallel_size?"
        ) from error


def _tensors(model: Transformer, optimizers: Optimizers) -> dict[str, Tensor]:
    """Trained weights and their moments, under different names on ranks that share a model."""
    rank = distributed.model_parallel_rank()
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
    tensors = {f"{rank}/weight/{name}": p.detach() for p, name in names.items()}
    for optimizer in optimizers:
        for parameter, kept in optimizer.state.items():
            moments = {key: tensor for key, tensor in kept.items() if key != "step"}
            tensors |= {f"{rank}/{key}/{names[parameter]}": t for key, t in moments.items()}
    return tensors


def _reason(error: dcp.CheckpointException) -> str:
    reasons = {str(failure[0]).partition("\n")[0] for failure in error.failures.values()}
    return "; ".join(sorted(reasons))
