"""The training loop: documents in, a checkpoint folder out that `Llama.build` runs.

    from llama.training import TrainConfig, tokenize, train

    tokenizer = Tokenizer("tokenizer.model")
    documents = tokenize("stories/", tokenizer)
    train("my-llama", tokenizer, documents, TrainConfig(epochs=10), args=ModelArgs(...))

In the folder lie the finished model, in Meta's layout; with held-out documents it is the one that
was best on them, and the last one, if it is another, lies in `last`. `training` holds what the run
goes on from (`state.py`), `metrics.jsonl`, TensorBoard's file and the curve. The same call after
Ctrl-C, or after the machine went down, goes on where the last state was saved, and makes the same
steps.
"""

import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from llama import console, distributed
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.checkpoint.saving import save_model
from llama.distributed.hardware_peak import matrix_rate
from llama.engine.sampling import SamplingParams
from llama.engine.scheduler import Engine
from llama.engine.scheduler import Sequence as Prompt
from llama.errors import InputError
from llama.lora.adapter_layers import save_adapter
from llama.tokenizer import Tokenizer
from llama.training.config import TrainConfig, default_learning_rate, learning_rate
from llama.training.documents import Document
from llama.training.packing import IGNORED, Batch, PackedRows, collate
from llama.training.report import METRICS, Report, draw_curve
from llama.training.state import latest_state, load_state, read_run, save_state
from llama.training.trainee import Trainee, keep_freed_memory

STATES = "training"
_BEGINNING = 8  # tokens of a held-out text that a sample goes on from
_CONTINUED = 48  # tokens of a sample


class Evaluation(NamedTuple):
    """Of held-out documents: nats a token that is learned, and bits a byte of their text."""

    loss: float
    bits_per_byte: float


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

    It begins with random weights in the shape `args`, or as the checkpoint in the folder `base`
    (whose context `args` may shorten). With `config.lora` what is written is an adapter. Progress
    goes to standard error. Raises ValueError for documents with nothing to learn, settings that do
    not fit, or a folder that holds another run or another model, FloatingPointError where the loss
    is no number any more, and KeyboardInterrupt at Ctrl-C, when the state has been saved.
    """
    chosen = distributed.select_device(device)
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
    keep_freed_memory()
    run = _Run(Path(model_path), tokenizer, documents, held_out, config, args, checkpoint, chosen)
    with _interrupts_noted() as interrupted:
        run.go(interrupted)


@dataclass
class _Progress:
    """What a run remembers besides its weights."""

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
        self.seq_len = config.sequence(args)
        self.at_once = config.rows_at_once(self.seq_len, distributed.data_parallel_size())
        self.documents, self.rows = documents, PackedRows(documents, self.seq_len, config.seed)
        self.held_out, self.held_out_rows = held_out, PackedRows(held_out, self.seq_len, 0)
        in_epoch = self.rows.rows_in_epoch(0)
        if not in_epoch:
            raise InputError("the documents have nothing to learn: give some with text")
        steps = config.steps or math.ceil(config.epochs * in_epoch / config.batch_size)
        self.steps = steps
        self.rate = config.learning_rate or default_learning_rate(
            args, base is not None, config.lora is not None
        )
        self.progress = _Progress()
        made_by = self._made_by(device)
        state = latest_state(path / STATES)
        if state is not None:
            found = read_run(state)
            if found["made_by"] != made_by:
                different = sorted(k for k in made_by if found["made_by"].get(k) != made_by[k])
                raise InputError(
                    f"{state} is the state of another run ({', '.join(different)} differ); give "
                    "what that run had to go on with it, or another folder, or delete this one"
                )
            self.progress = _Progress(found["step"], found["best"] or math.inf, found["worse"])
        elif not (path / STATES).exists() and any(
            (path / name).exists() for name in ("params.json", "config.json")
        ):
            raise InputError(
                f"{path} holds a model that was not trained there; give another folder to write "
                "to, and to train that model further give it as base"
            )
        self.made_by = made_by
        self.trainee = Trainee(args, base, config, device)
        if state is not None:
            load_state(state, self.trainee.model, self.trainee.optimizers)
        sizes = torch.tensor([_text_bytes(tokenizer, i) for i in range(tokenizer.n_words)])
        self.text_bytes = sizes.to(device)

    def _made_by(self, device: torch.device) -> dict[str, Any]:
        """What has to be the same for a run to go on as the same run."""
        free = {"micro_batch_size", "eval_every", "save_every", "patience", "samples"}
        free |= {"data_parallel", "activation_checkpointing", "compile"}
        settings = {k: v for k, v in asdict(self.config).items() if k not in free}
        lengths = self.rows.lengths
        return json.loads(
            json.dumps(
                {
                    **settings,
                    "dtype": self.config.products(device, bool(self.base and self.base.quantize)),
                    "args": asdict(self.args),
                    "base": self.base and self.base.folder.path,
                    "documents": [len(lengths), int(lengths.sum())],
                },
                default=str,
            )
        )

    def go(self, interrupted: Callable[[], bool]) -> None:
        """All steps that are left."""
        config, progress = self.config, self.progress
        eval_every = config.eval_every or min(max(self.steps // 20, 1), 250)
        save_every = config.save_every or eval_every
        report = Report(self.path / STATES, progress.step, self.steps)
        if progress.step:
            report.say(f"{self.path}: going on after step {progress.step}")
        rows = self.rows.rows(progress.step * config.batch_size)
        per_token = 6 * _product_parameters(self.args)
        ceiling = matrix_rate(self.trainee.device, self.trainee.dtype, 2048) * dist.get_world_size()
        stops = progress.step >= self.steps
        while not stops:
            begun = time.perf_counter()
            loss, norm, stops = self._step(
                [next(rows) for _ in range(config.batch_size)], interrupted
            )
            progress.step += 1
            ended = progress.step == self.steps
            seconds = time.perf_counter() - begun
            speed = config.batch_size * self.seq_len / seconds
            values = {"loss": loss, "lr": self._rate(progress.step - 1), "grad_norm": norm}
            values |= {"tokens_per_second": speed, "of_matrix_rate": speed * per_token / ceiling}
            if self.held_out and (progress.step % eval_every == 0 or ended):
                found = self.evaluate()
                values |= {"valid_loss": found.loss, "bits_per_byte": found.bits_per_byte}
                better = found.loss < progress.best
                progress.worse = 0 if better else progress.worse + 1
                report.say(
                    f"step {progress.step}: held out {found.loss:.4f} nats a token, "
                    f"{found.bits_per_byte:.4f} bits per byte{', the best so far' * better}"
                )
                if better:
                    progress.best = found.loss
                    self._write(self.path)
                for prompt, answer in self.samples():
                    report.say(f"  {prompt!r} -> {answer!r}")
            rates = {
                "speed": f"{speed:,.0f} tokens/s",
                "share": f"{100 * values['of_matrix_rate']:.0f} % of the matrix rate",
            }
            report.step(progress.step, values, rates)
            patient = config.patience is None or progress.worse < config.patience
            if progress.step % save_every == 0 or ended or stops or not patient:
                self._save()
            if stops and not ended:
                report.close()
                report.say(f"stopped after step {progress.step}; the same call goes on there")
                raise KeyboardInterrupt
            if not patient:
                report.say(
                    f"stopped early: no better in {progress.worse} evaluations, best "
                    f"{progress.best:.4f}"
                )
            stops = ended or not patient
        self._finish(report)

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, self.rate, step, self.steps)

    def _batches(self, rows: Sequence[Any], documents: Sequence[Document]) -> list[Batch]:
        """This process's share of rows, as many as it computes at a time in each."""
        mine = rows[distributed.data_parallel_rank() :: distributed.data_parallel_size()]
        parts = [mine[i : i + self.at_once] for i in range(0, len(mine), self.at_once)]
        return [collate(documents, part, self.seq_len) for part in parts]

    def _step(
        self, rows: Sequence[Any], interrupted: Callable[[], bool]
    ) -> tuple[float, float, bool]:
        """Loss, norm of the gradient, and whether some process was asked to stop."""
        step = self.progress.step
        batches = self._batches(rows, self.documents)
        targets = sum(int((batch.targets != IGNORED).sum()) for batch in batches)
        counts = torch.tensor([targets, interrupted()], device=self.trainee.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        targets, stops = counts.tolist()
        # Ranks that share a model have the same targets.
        targets //= distributed.model_parallel_size()
        loss, norm = self.trainee.step(batches, self._rate(step), max(targets, 1))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            saved = latest_state(self.path / STATES)
            raise FloatingPointError(
                f"step {step + 1}: the loss is {loss} and its gradient's norm {norm}, at learning "
                f"rate {self._rate(step):.2e}; try a lower learning_rate or a longer warm-up. "
                + (f"The last good state is {saved}" if saved else "No state had been saved yet")
            )
        return loss, norm, bool(stops)

    def evaluate(self) -> Evaluation:
        """Of all held-out documents, packed, each process a share of them."""
        rows = list(self.held_out_rows.epoch(0))
        rows += [[] for _ in range(-len(rows) % distributed.data_parallel_size())]
        sums = torch.zeros(4, dtype=torch.float64)
        with torch.no_grad():
            for batch in self._batches(rows, self.held_out):
                _, losses, targets = self.trainee.losses(batch)
                sizes = self.text_bytes[targets.clamp(min=0)] * (targets >= 0)
                told = losses * (sizes > 0)
                sums += torch.stack([x.sum().cpu() for x in (losses, targets >= 0, told, sizes)])
        if distributed.data_parallel_size() > 1:
            sums = sums.to(self.trainee.device, torch.float32)
            dist.all_reduce(sums, group=distributed.data_parallel_group())
        nats, tokens, told_nats, size = sums.tolist()
        if not tokens:
            raise InputError("the held-out documents have nothing to learn")
        return Evaluation(nats / tokens, told_nats / math.log(2) / max(size, 1))

    def samples(self) -> list[tuple[str, str]]:
        """Beginnings of held-out documents, and how the model goes on from each."""
        sequences = []
        for document in itertools.islice(self.held_out, self.config.samples):
            learned = document.learn.nonzero().squeeze(1)
            first = int(learned[0]) if len(learned) else len(document)
            begin = document.tokens[: max(first, min(_BEGINNING, len(document) // 2), 1)].tolist()
            if len(begin) + _CONTINUED <= self.args.max_seq_len:
                params = SamplingParams(temperature=0.6, top_p=0.9, seed=self.config.seed)
                sequences.append(Prompt(begin, max_gen_len=_CONTINUED, params=params))
        if not sequences:
            return []
        longest = max(len(s.prompt) for s in sequences) + _CONTINUED
        with self.trainee.generating():
            engine = Engine(self.trainee.model, self.tokenizer, len(sequences), longest)
            for sequence in sequences:
                engine.add(sequence)
            while not engine.idle:
                engine.step()
        return [(self.tokenizer.decode(s.prompt), s.text) for s in sequences]

    def _save(self) -> None:
        progress = self.progress
        best = progress.best if math.isfinite(progress.best) else None
        save_state(
            self.path / STATES,
            progress.step,
            self.trainee.model,
            self.trainee.optimizers,
            {"best": best, "worse": progress.worse, "made_by": self.made_by},
        )
        if not self.held_out:
            self._write(self.path)

    def _write(self, folder: Path) -> None:
        """The model, or the adapter, as it is now."""
        if self.config.lora:
            if distributed.data_parallel_rank() == 0:
                assert self.base is not None
                save_adapter(self.trainee.model, folder, self.base.folder.path)
            return
        dtype = self.trainee.dtype
        weights = self.trainee.whole_weights(dtype)
        if distributed.data_parallel_rank() == 0:
            save_model(self.trainee.model, folder, self.tokenizer.model_path, dtype, weights)

    def _finish(self, report: Report) -> None:
        report.close()
        if self.held_out and self.progress.worse:
            self._write(self.path / "last")
        if console.is_main():
            states = self.path / STATES
            try:
                draw_curve(states / METRICS, states / "curve.png")
            except ImportError:
                report.say("no curve without matplotlib: pip install 'llama[train]'")
        kind = "the adapter" if self.config.lora else "the model"
        best = f", its best at {self.progress.best:.4f} nats a token" if self.held_out else ""
        report.say(f"{kind} is in {self.path}{best}")


def _text_bytes(tokenizer: Tokenizer, token: int) -> int:
    """How many bytes of text a token is; none, if it is a special one."""
    if token in tokenizer.special_tokens.values():
        return 0
    piece = tokenizer.vocabulary.piece(token)
    return len(piece.encode() if isinstance(piece, str) else piece)


def _product_parameters(args: ModelArgs) -> int:
    """Parameters that each token is multiplied by."""
    shapes = weight_shapes(args).items()
    return sum(math.prod(s) for name, s in shapes if len(s) > 1 and name != "tok_embeddings.weight")


@contextmanager
def _interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C, or an end that is asked for, wait for the end of a step; a second does not."""
    noted = False

    def note(*_: object) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in signals]
    try:
        yield lambda: noted
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
