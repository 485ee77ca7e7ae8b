"""The training loop: one process, AdamW, warm-up and cosine, evaluated, saved and resumable."""

import ctypes
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.checkpoint import load_model, open_checkpoint, save_model
from llama.model import ModelArgs, Transformer
from llama.tokenizer import Tokenizer
from llama.training.data import Document, collate, epoch, epochs, fit
from llama.training.evaluate import bits_per_byte


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. The defaults suit a few million parameters."""

    steps: int | None = None  # None: one pass over the documents
    batch_tokens: int = 2048  # of a padded batch, at most
    learning_rate: float = 2e-3
    final_learning_rate: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.1  # of matrices; norms have none
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # of the gradient's norm
    dtype: torch.dtype = torch.bfloat16  # of matrix products; weights are kept in float32
    tie_embeddings: bool = True
    eval_every: int = 500  # steps
    save_every: int = 500  # steps
    seed: int = 1


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to `final_learning_rate` after `steps` steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * (1 + math.cos(math.pi * min(done, 1))) / 2


def train(
    args: ModelArgs,
    tokenizer_path: str | Path,
    documents: Sequence[Document],
    held_out: Sequence[str],
    out_dir: str | Path,
    config: TrainConfig | None = None,
    start_from: str | Path | None = None,
) -> Transformer:
    """Trains a model on `documents` and writes it to `out_dir` as a checkpoint folder.

    It begins as the model in the checkpoint folder `start_from`, else with random weights.
    `held_out` are texts whose bits per byte are measured every `eval_every` steps. Progress goes
    to standard error and, a JSON object a line, to `out_dir`/metrics.jsonl. The state is kept in
    `out_dir`/training.pt: call it again with the same arguments to go on where it stopped, at
    Ctrl-C too. Raises ValueError for no documents, or for a state that other settings made.
    """
    config = config or TrainConfig()
    if not documents:
        raise ValueError("no documents to train on")
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    _keep_freed_memory()
    documents = fit(documents, args.max_seq_len)
    steps = config.steps or len(epoch(documents, config.batch_tokens, config.seed))
    run = _Run(args, config, len(documents), out / "training.pt", start_from)
    tokenizer = Tokenizer(str(tokenizer_path))
    batches = islice(epochs(documents, config.batch_tokens, config.seed), run.step, None)
    start, first, seen = time.monotonic(), run.step, 0
    with _interrupts_noted() as interrupted:
        while run.step < steps:
            inputs, targets = collate([documents[i] for i in next(batches)])
            rate = learning_rate(config, run.step, steps)
            loss, norm = run.update(inputs, targets, rate)
            seen += inputs.numel()
            spent = time.monotonic() - start
            _report(
                f"step {run.step}/{steps}  loss {loss:.3f}  lr {rate:.1e}  "
                f"{seen / spent:,.0f} tokens/s  "
                f"{spent / (run.step - first) * (steps - run.step) / 60:.0f} min left",
                last=run.step == steps,
            )
            line: dict[str, Any] = {"step": run.step, "loss": loss, "lr": rate, "grad_norm": norm}
            if held_out and (run.step % config.eval_every == 0 or run.step == steps):
                line["bits_per_byte"] = bits_per_byte(run.model, tokenizer, held_out)
                _report(f"step {run.step}: {line['bits_per_byte']:.4f} bits per byte", last=True)
            with (out / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps(line) + "\n")
            if run.step % config.save_every == 0 or run.step == steps or interrupted():
                run.save()
            if interrupted():
                _report(f"stopped after step {run.step}; the same call goes on there", last=True)
                raise KeyboardInterrupt
    save_model(run.model, out, tokenizer_path, torch.bfloat16)
    return run.model


class _Run:
    """Model, optimizer and step: what is saved and resumed."""

    def __init__(
        self,
        args: ModelArgs,
        config: TrainConfig,
        documents: int,
        path: Path,
        start_from: str | Path | None,
    ) -> None:
        self.path, self.config, self.step = path, config, 0
        self.made_by = f"{asdict(args)} {asdict(replace(config, save_every=0))} {documents}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model = Transformer(args)
        for name, weight in self.model.named_parameters():
            if name.endswith(("wo.weight", "w2.weight")):  # what is added to the residual stream
                weight.data /= math.sqrt(2 * args.n_layers)
        if start_from is not None:
            start = load_model(open_checkpoint(start_from), torch.device("cpu"), torch.float32)
            self.model.load_state_dict(start.state_dict())
        if config.tie_embeddings:
            self.model.output.weight = self.model.tok_embeddings.weight
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=config.betas, fused=True)
        if path.exists():
            self._load()

    def update(self, inputs: Tensor, targets: Tensor, rate: float) -> tuple[float, float]:
        """One optimizer step; the loss before it and the norm of its gradient."""
        with torch.autocast("cpu", self.config.dtype, self.config.dtype != torch.float32):
            logits = self.model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item(), norm.item()

    def save(self) -> None:
        state = {
            "made_by": self.made_by,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        # Renamed when complete: a process killed while it writes leaves the state before.
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        if state["made_by"] != self.made_by:
            raise ValueError(
                f"{self.path} is the state of a run with other settings or data; "
                "delete it to start anew, or choose another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


@contextmanager
def _interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C wait for the end of a step; a second one does not wait."""
    noted = False

    def note(*_: object) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
        noted = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals reach the main thread only
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: noted
    finally:
        signal.signal(signal.SIGINT, before)


def _report(text: str, last: bool) -> None:
    """A line on standard error that, on a terminal, the next one writes over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


def _keep_freed_memory() -> None:
    """Lets glibc keep large blocks that are freed instead of handing them back to the kernel.

    Activations are freed and wanted again at every step; faulting their pages in anew took a third
    of the time. Elsewhere than on glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
