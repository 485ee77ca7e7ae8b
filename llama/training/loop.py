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

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama import console, distributed
from llama.args import ModelArgs, weight_shapes
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
from llama.training.packing import IGNORED, PackedRows, Row, local_batches
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


@dataclass
class _Progress:
    """A run's state besides the weights."""

    step: int = 0
    best: float = math.inf
    worse: int = 0  # evaluations since the best one


class _Run:
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
        self.seq_len = config.sequence_length(args)
        self.micro_batch_size = config.local_micro_batch_size(
            self.seq_len, distributed.data_parallel_size()
        )
        self.documents, self.rows = documents, PackedRows(documents, self.seq_len, config.seed)
        self.held_out, self.held_out_rows = held_out, PackedRows(held_out, self.seq_len, 0)
        self.rows_in_epoch = self.rows.rows_in_epoch(0)
        if not self.rows_in_epoch or (held_out and not self.held_out_rows.rows_in_epoch(0)):
            which = "validation documents" if self.rows_in_epoch else "documents"
            raise InputError(f"the {which} have no tokens to train on: give some with text")
        self.steps = config.steps or math.ceil(
            config.epochs * self.rows_in_epoch / config.batch_size
        )
        config.check_warmup(self.steps)
        self.rate = config.learning_rate or default_learning_rate(
            args, base is not None, config.lora is not None
        )
        self.identity = self._identity(device)
        self.progress, self.former_steps = _Progress(), self.steps
        state = latest_state(path / STATES)
        if state is not None:
            self._resume(state)
        self.trainable = TrainableModel(args, base, config, device)
        if state is not None:
            load_state(state, self.trainable.model, self.trainable.optimizers)

    def _identity(self, device: torch.device) -> dict[str, Any]:
        """What has to be the same for a run to resume."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in _MAY_CHANGE}
        packed = bool(self.base and self.base.quantize)
        lengths = self.rows.lengths
        identity = {
            **asdict(self.args),
            **settings,
            "dtype": self.config.compute_dtype(device, packed),
            "base": self.base and _fingerprint(self.base),
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
        self.progress = _Progress(saved["step"], saved["best"] or math.inf, saved["worse"])
        self.former_steps = saved["steps"]
        if self.steps < self.progress.step:
            raise InputError(
                f"{state} has made {self.progress.step} steps, more than the {self.steps} asked "
                "for; give more steps, or another folder"
            )

    def go(self, interrupted: Callable[[], bool]) -> None:
        """Makes all steps that are left."""
        config, progress = self.config, self.progress
        eval_every = config.eval_every or min(max(self.steps // 20, 1), 250)
        save_every = config.save_every or eval_every
        report = Report(self.path / STATES, progress.step, self.steps)
        self._summarize(report)
        rows = self.rows.rows(progress.step * config.batch_size)
        per_token = 6 * _matrix_parameters(self.args)
        device, dtype = self.trainable.device, self.trainable.dtype
        peak = matrix_rate(device, dtype, 2048) * dist.get_world_size()
        stops = progress.step >= self.steps
        while not stops:
            started = time.perf_counter()
            loss, norm, stops = self._step(
                [next(rows) for _ in range(config.batch_size)], interrupted
            )
            progress.step += 1
            ended = progress.step == self.steps
            speed = config.batch_size * self.seq_len / (time.perf_counter() - started)
            mfu = speed * per_token / peak
            values = {"loss": loss, "lr": self._rate(progress.step - 1), "grad_norm": norm}
            values |= {"tokens_per_second": speed, "mfu": mfu}
            if self.held_out and (progress.step % eval_every == 0 or ended):
                values |= self._validate(report)
            rates = {"speed": f"{speed:,.0f} tokens/s", "mfu": f"{100 * mfu:.0f} % MFU"}
            report.step(progress.step, values, rates)
            patient = config.patience is None or progress.worse < config.patience
            if progress.step % save_every == 0 or ended or stops or not patient:
                self._save()
            if stops and not ended:
                report.close()
                report.say(f"stopped after step {progress.step}; the same call resumes there")
                raise KeyboardInterrupt
            if not patient:
                report.say(
                    f"stopped early: no better in {progress.worse} evaluations, best "
                    f"{progress.best:.4f}"
                )
            stops = ended or not patient
        self._finish(report)

    def _summarize(self, report: Report) -> None:
        """Prints what is about to be trained, on what, for how long and in how much memory."""
        config, steps, trainable = self.config, self.steps, self.trainable
        processes, device = dist.get_world_size(), trainable.device
        tokens = config.batch_size * self.seq_len
        trained = sum(math.prod(p.shape) for p in trainable.parameters)
        if config.lora:
            what = f"an adapter of {trained:,} parameters"
        else:
            shared = distributed.model_parallel_size()
            what = f"a model of {trained * shared / 1e6:,.2f}M parameters"
        name = str(trainable.dtype).removeprefix("torch.")
        where = f"{processes} processes on {device.type}" if processes > 1 else device.type
        memory = short_size(trainable.memory(self.micro_batch_size * self.seq_len))
        kinds = [("train on", self.rows.lengths)]
        kinds += [("validate on", self.held_out_rows.lengths)] if self.held_out else []
        for kind, lengths in kinds:
            report.say(f"{kind} {len(lengths):,} documents, {lengths.sum():,} tokens")
        report.say(f"{what}, matrix products in {name}, on {where}, about {memory} of memory each")
        epochs = steps * config.batch_size / self.rows_in_epoch
        report.say(
            f"{steps:,} steps, {epochs:.3g} epochs, of {config.batch_size} sequences of "
            f"{self.seq_len} tokens: {tokens:,} tokens a step, learning rate {self.rate:.2g}"
        )
        if self.progress.step:
            report.say(f"{self.path}: resumes after step {self.progress.step}")
        if self.former_steps != steps:
            report.say(
                f"it was set to {self.former_steps:,} steps; from here the {config.schedule} "
                f"schedule is that of a run of {steps:,}, at {self._rate(self.progress.step):.2g}"
            )

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, self.rate, step, self.steps)

    def _step(
        self, rows: Sequence[Row], interrupted: Callable[[], bool]
    ) -> tuple[float, float, bool]:
        """Loss, norm of the gradient, and whether any process was asked to stop."""
        step = self.progress.step
        batches = list(local_batches(self.documents, rows, self.seq_len, self.micro_batch_size))
        loss_tokens = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        counts = torch.tensor([loss_tokens, interrupted()], device=self.trainable.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        loss_tokens, stops = counts.tolist()
        # Ranks that share a model count the same tokens.
        loss_tokens //= distributed.model_parallel_size()
        loss, norm = self.trainable.step(batches, self._rate(step), max(loss_tokens, 1))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            saved = latest_state(self.path / STATES)
            raise DivergenceError(
                f"step {step + 1}: the loss is {loss} and its gradient's norm {norm}, at learning "
                f"rate {self._rate(step):.2e}; try a lower learning_rate or a longer warm-up. "
                + (f"The last good state is {saved}" if saved else "No state had been saved yet")
            )
        return loss, norm, bool(stops)

    def _validate(self, report: Report) -> dict[str, float]:
        """Evaluates, keeps the model if it is the best so far, and prints samples."""
        progress, trainable = self.progress, self.trainable
        found = evaluate(
            trainable, self.tokenizer, self.held_out, self.held_out_rows, self.micro_batch_size
        )
        better = found.loss < progress.best
        progress.worse = 0 if better else progress.worse + 1
        report.say(
            f"step {progress.step}: validation {found.loss:.4f} nats per token, "
            f"{found.bits_per_byte:.4f} bits per byte{', the best so far' * better}"
        )
        if better:
            progress.best = found.loss
            self._write(self.path)
        for prompt, answer in samples(trainable, self.tokenizer, self.held_out):
            report.say(f"  {prompt!r} -> {answer!r}")
        return {"valid_loss": found.loss, "bits_per_byte": found.bits_per_byte}

    def _save(self) -> None:
        progress = self.progress
        best = progress.best if math.isfinite(progress.best) else None
        run = {"best": best, "worse": progress.worse, "steps": self.steps}
        save_state(
            self.path / STATES,
            progress.step,
            self.trainable.model,
            self.trainable.optimizers,
            {**run, "identity": self.identity},
        )
        if not self.held_out:
            self._write(self.path)

    def _write(self, folder: Path) -> None:
        """Writes the model, or the adapter, as it is now."""
        if self.config.lora:
            if distributed.data_parallel_rank() == 0:
                assert self.base is not None
                save_adapter(self.trainable.model, folder, self.base.folder.path)
            return
        dtype = self.trainable.dtype
        weights = self.trainable.whole_weights(dtype)
        if distributed.data_parallel_rank() == 0:
            save_model(self.trainable.model, folder, self.tokenizer.model_path, dtype, weights)

    def _finish(self, report: Report) -> None:
        report.close()
        if self.held_out and self.progress.worse:
            self._write(self.path / "last")
        if console.is_main():
            states = self.path / STATES
            try:
                draw_curve(states / METRICS, states / "curve.png")
            except ImportError:
                report.say("no curve without matplotlib: pip install matplotlib")
        kind = "the adapter" if self.config.lora else "the model"
        best = f", its best at {self.progress.best:.4f} nats per token" if self.held_out else ""
        report.say(f"{kind} is in {self.path}{best}")


def _matrix_parameters(args: ModelArgs) -> int:
    """Parameters that each token is multiplied by."""
    shapes = weight_shapes(args).items()
    return sum(math.prod(s) for name, s in shapes if len(s) > 1 and name != "tok_embeddings.weight")


def _fingerprint(base: Checkpoint) -> str:
    """A hash of the first rows of each weight: the model's identity, wherever its folder is."""
    digest = hashlib.sha256()
    for weight in base.weights.values():
        region = (slice(0, weight.head_dim or 1), *(slice(0, n) for n in weight.shape[1:]))
        rows = weight.read(region, torch.device("cpu"), weight.dtype)
        digest.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
