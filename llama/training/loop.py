"""The training loop: documents in, a checkpoint folder out that `Llama.build` runs.

    from llama.training import TrainConfig, tokenize, train

    tokenizer = Tokenizer("tokenizer.model")
    documents = tokenize("stories/", tokenizer)
    train("my-llama", tokenizer, documents, TrainConfig(epochs=10), args=ModelArgs(...))

The folder holds the finished model in Meta's layout; with validation documents it is the best one
on them, and the last one, if it is another, is in `last`. `training` holds the state that a run
resumes from (`state.py`), `metrics.jsonl`, TensorBoard's file and the curve. After Ctrl-C or a
crash the same call resumes at the last saved state and makes the same steps. With more steps or
epochs it extends a run, under the learning rate schedule of the new length.
"""

import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama import console, distributed
from llama.args import ModelArgs, is_linear, weight_shapes
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.checkpoint.saving import save_model
from llama.distributed.hardware_peak import matrix_rate
from llama.errors import InputError
from llama.lora.adapter_layers import save_adapter
from llama.storage.files import expand, short_size
from llama.tokenizer import Tokenizer
from llama.training.config import TrainConfig, default_learning_rate, learning_rate
from llama.training.documents import Document
from llama.training.metrics import METRICS, Report, draw_curve
from llama.training.packing import IGNORED, PackedRows, Row
from llama.training.state import STATES, latest_state, load_state, locked, read_run, save_state
from llama.training.trainable_model import TrainableModel, keep_freed_memory
from llama.training.validation import evaluate, samples

# Settings that may change when a run resumes: they leave its steps as they are, or extend it.
_MAY_CHANGE = {
    *("epochs", "steps", "micro_batch_size", "eval_every", "save_every", "patience", "samples"),
    *("data_parallel", "activation_checkpointing", "compile"),
}


class DivergenceError(InputError, FloatingPointError):
    """The loss or its gradient is not finite any more."""


def train(
    model_path: str | Path,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    config: TrainConfig,
    *,
    args: ModelArgs | None = None,
    base: str | Path | None = None,
    held_out: Sequence[Document] = (),
    device: str | torch.device | None = None,
) -> None:
    """Trains a model and writes it to the folder `model_path`; see above.

    It starts from random weights in the shape `args`, or from the checkpoint in the folder `base`
    (whose context `args` may shorten). With `config.lora` it writes an adapter. `held_out` are the
    validation documents. Progress goes to standard error.

    Raises ValueError for documents without loss tokens, settings that do not fit, or a folder that
    holds another run or another model, or in which one is running; DivergenceError (a
    FloatingPointError) where the loss is not finite; KeyboardInterrupt at Ctrl-C, after the state
    has been saved.
    """
    path = Path(expand(model_path))
    chosen = distributed.select_device(device)
    config.check_validation(bool(held_out))
    distributed.initialize(config.model_parallel_size, chosen)
    checkpoint = None if base is None else open_checkpoint(base)
    if checkpoint is not None:
        checkpoint.check_tokenizer(tokenizer)
        args = args or checkpoint.args
    if args is None:
        raise InputError("give args, the shape of a new model, or base, a checkpoint to start from")
    if args.vocab_size != tokenizer.n_words and checkpoint is None:
        raise InputError(
            f"vocab_size is {args.vocab_size}, but {tokenizer.model_path} has {tokenizer.n_words} "
            "tokens"
        )
    check_folder(path)
    keep_freed_memory()
    with locked(path), _deferred_interrupts() as interrupted:
        _Run(path, tokenizer, documents, held_out, config, args, checkpoint, chosen).go(interrupted)


def check_folder(path: Path) -> None:
    """Raises ValueError for a folder with a model that was not trained there."""
    names = ("params.json", "config.json")
    if not (path / STATES).exists() and any((path / name).exists() for name in names):
        raise InputError(
            f"{path} holds a model that was not trained there; give another folder to write to, "
            "and to train that model further give it as base"
        )


class _Run:
    """One call of `train`: its plan, its progress and the model."""

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        documents: Sequence[Document],
        held_out: Sequence[Document],
        config: TrainConfig,
        args: ModelArgs,
        base: Checkpoint | None,
        device: torch.device,
    ) -> None:
        self.path, self.tokenizer, self.config, self.args = path, tokenizer, config, args
        self.base = base
        seq_len = config.sequence_length(args)
        self.step_tokens = config.batch_size * seq_len
        self.micro_batch_size = config.local_micro_batch_size(
            seq_len, distributed.data_parallel_size()
        )
        self.rows = PackedRows(documents, seq_len, config.seed)
        self.held_out = PackedRows(held_out, seq_len, 0) if held_out else None
        for kind, rows in (("documents", self.rows), ("validation documents", self.held_out)):
            if rows is not None and not rows.rows_in_epoch(0):
                raise InputError(f"the {kind} have no tokens to train on: give some with text")
        self.steps_in_epoch = self.rows.rows_in_epoch(0) / config.batch_size
        self.steps = config.steps or math.ceil(config.epochs * self.steps_in_epoch)
        config.check_warmup(self.steps)
        self.rate = config.learning_rate or default_learning_rate(
            args, base is not None, config.lora is not None
        )
        self.identity = self._identity(device)
        self.step, self.best = 0, math.inf
        self.worse = 0  # evaluations since the best one
        self.former_steps = self.steps
        state = latest_state(path / STATES)
        if state is not None:
            self._resume(state)
        self.trainable = TrainableModel(args, base, config, device)
        if state is not None:
            load_state(state, self.trainable.model, self.trainable.optimizers)
        self.report = Report(path / STATES, self.step, self.steps)

    def _identity(self, device: torch.device) -> dict[str, Any]:
        """What has to be the same for a run to resume."""
        packed = bool(self.base and self.base.quantize)
        lengths = self.rows.documents.lengths
        identity = {
            **asdict(self.args),
            **{k: v for k, v in asdict(self.config).items() if k not in _MAY_CHANGE},
            "dtype": self.config.compute_dtype(device, packed),
            "base": self.base and self.base.fingerprint,
            "documents": [len(lengths), int(lengths.sum())],
        }
        return json.loads(json.dumps(identity, default=str))

    def _resume(self, state: Path) -> None:
        """Takes the progress of a saved run, if it is this one."""
        saved = read_run(state)
        if saved["identity"] != self.identity:
            different = [k for k, v in self.identity.items() if saved["identity"].get(k) != v]
            raise InputError(
                f"{state} is the state of another run ({', '.join(sorted(different))} differ); use "
                "that run's settings to resume it, or give another folder, or delete this one"
            )
        self.step, self.best, self.worse = saved["step"], saved["best"] or math.inf, saved["worse"]
        self.former_steps = saved["steps"]
        if self.steps < self.step:
            raise InputError(
                f"{state} has made {self.step} steps, more than the {self.steps} asked for; give "
                "more steps, or another folder"
            )

    def go(self, interrupted: Callable[[], bool]) -> None:
        """Makes all steps that are left."""
        config, report = self.config, self.report
        eval_every = config.eval_every or min(max(self.steps // 20, 1), 250)
        save_every = config.save_every or eval_every
        self._summarize()
        rows = self.rows.rows(self.step * config.batch_size)
        device, dtype = self.trainable.device, self.trainable.dtype
        peak = matrix_rate(device, dtype, 2048) * dist.get_world_size()
        peak_tokens = peak / (6 * _matrix_parameters(self.args))
        stops = self.step >= self.steps
        while not stops:
            started = time.perf_counter()
            batch = list(itertools.islice(rows, config.batch_size))
            loss, norm, interrupts = self._step(batch, interrupted)
            self.step += 1
            ended = self.step == self.steps
            speed = self.step_tokens / (time.perf_counter() - started)
            values = {"loss": loss, "lr": self._rate(self.step - 1), "grad_norm": norm}
            values |= {"tokens_per_second": speed, "mfu": speed / peak_tokens}
            if self.held_out and (ended or self.step % eval_every == 0):
                values |= self._validate(self.held_out)
            report.step(self.step, values)
            gives_up = config.patience is not None and self.worse >= config.patience
            stops = ended or interrupts or gives_up
            if stops or self.step % save_every == 0:
                self._save()
            if interrupts and not ended:
                report.close()
                report.say(f"stopped after step {self.step}; the same call resumes there")
                raise KeyboardInterrupt
            if gives_up:
                report.say(
                    f"stopped early: no better in {self.worse} evaluations, best {self.best:.4f}"
                )
        self._finish()

    def _summarize(self) -> None:
        """Prints what is about to be trained, on what, for how long and in how much memory."""
        config, steps, trainable, say = self.config, self.steps, self.trainable, self.report.say
        for kind, rows in (("train", self.rows), ("validate", self.held_out)):
            if rows is not None:
                lengths = rows.documents.lengths
                say(f"{kind} on {len(lengths):,} documents, {lengths.sum():,} tokens")
        trained = sum(math.prod(p.shape) for p in trainable.parameters)
        what = f"an adapter of {trained:,} parameters"
        if not config.lora:
            millions = trained * distributed.model_parallel_size() / 1e6
            what = f"a model of {millions:,.2f}M parameters"
        dtype = str(trainable.dtype).removeprefix("torch.")
        processes, where = dist.get_world_size(), trainable.device.type
        where = f"{processes} processes on {where}" if processes > 1 else where
        seq_len = self.rows.seq_len
        memory = short_size(trainable.memory(self.micro_batch_size * seq_len))
        say(f"{what}, matrix products in {dtype}, on {where}, about {memory} of memory each")
        say(
            f"{steps:,} steps, {steps / self.steps_in_epoch:.3g} epochs, of {config.batch_size} "
            f"sequences of {seq_len} tokens: {self.step_tokens:,} tokens a step, learning rate "
            f"{self.rate:.2g}"
        )
        if self.step:
            say(f"{self.path}: resumes after step {self.step}")
        if self.former_steps != steps:
            say(
                f"it was set to {self.former_steps:,} steps; from here the {config.schedule} "
                f"schedule is that of a run of {steps:,}, at {self._rate(self.step):.2g}"
            )

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, self.rate, step, self.steps)

    def _step(
        self, rows: Sequence[Row], interrupted: Callable[[], bool]
    ) -> tuple[float, float, bool]:
        """Loss, norm of the gradient, and whether any process was asked to stop."""
        batches = list(self.rows.local_batches(rows, self.micro_batch_size))
        loss_tokens = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        counts = torch.tensor([loss_tokens, interrupted()], device=self.trainable.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        loss_tokens, stops = counts.tolist()
        # Ranks that share a model count the same tokens.
        loss_tokens //= distributed.model_parallel_size()
        rate = self._rate(self.step)
        loss, norm = self.trainable.step(batches, rate, max(loss_tokens, 1))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            saved = latest_state(self.path / STATES)
            raise DivergenceError(
                f"step {self.step + 1}: the loss is {loss} and its gradient's norm {norm}, at "
                f"learning rate {rate:.2e}; try a lower learning_rate or a longer warm-up. "
                + (f"The last good state is {saved}" if saved else "No state had been saved yet")
            )
        return loss, norm, bool(stops)

    def _validate(self, rows: PackedRows) -> dict[str, float]:
        """Evaluates, keeps the model if it is the best so far, and prints samples."""
        loss, bits_per_byte = evaluate(self.trainable, self.tokenizer, rows, self.micro_batch_size)
        better = loss < self.best
        self.worse = 0 if better else self.worse + 1
        self.report.say(
            f"step {self.step}: validation {loss:.4f} nats per token, {bits_per_byte:.4f} bits per "
            f"byte{', the best so far' * better}"
        )
        if better:
            self.best = loss
            self._write(self.path)
        for prompt, answer in samples(self.trainable, self.tokenizer, rows.documents):
            self.report.say(f"  {prompt!r} -> {answer!r}")
        return {"valid_loss": loss, "bits_per_byte": bits_per_byte}

    def _save(self) -> None:
        best = self.best if math.isfinite(self.best) else None
        run = {"best": best, "worse": self.worse, "steps": self.steps, "identity": self.identity}
        model, optimizers = self.trainable.model, self.trainable.optimizers
        save_state(self.path / STATES, self.step, model, optimizers, run)
        if not self.held_out:
            self._write(self.path)

    def _write(self, folder: Path) -> None:
        """Writes the model, or the adapter, as it is now."""
        model, dtype = self.trainable.model, self.trainable.dtype
        is_first = distributed.data_parallel_rank() == 0
        if not self.config.lora:
            weights = self.trainable.whole_weights(dtype)  # a collective
            if is_first:
                save_model(model, folder, self.tokenizer.model_path, dtype, weights)
        elif is_first:
            assert self.base is not None
            save_adapter(model, folder, self.base.folder.path)

    def _finish(self) -> None:
        self.report.close()
        if self.held_out and self.worse:
            self._write(self.path / "last")
        if console.is_main():
            states = self.path / STATES
            try:
                draw_curve(states / METRICS, states / "curve.png")
            except ImportError:
                self.report.say("no curve without matplotlib: pip install matplotlib")
        kind = "the adapter" if self.config.lora else "the model"
        best = f", its best at {self.best:.4f} nats per token" if self.held_out else ""
        self.report.say(f"{kind} is in {self.path}{best}")


def _matrix_parameters(args: ModelArgs) -> int:
    """Parameters that each token is multiplied by."""
    return sum(math.prod(s) for name, s in weight_shapes(args).items() if is_linear(name, s))


@contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C and SIGTERM wait for the end of a step; a second one interrupts at once."""
    first = math.inf

    def handle(*_: object) -> None:
        nonlocal first
        # torchrun forwards the Ctrl-C that the terminal has sent to its processes already.
        if time.monotonic() - first > 1:
            raise KeyboardInterrupt
        first = min(first, time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread gets signals
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in signals]
    try:
        yield lambda: first < math.inf
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
