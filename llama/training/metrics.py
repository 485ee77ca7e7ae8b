"""What a run reports: a line on the terminal, metrics in files, and the loss curve."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from llama import console
from llama.storage.files import atomic_write

METRICS = "metrics.jsonl"
_SECONDS = 30  # between two lines where standard error is not a terminal


class Report:
    """Reports on the first process the run whose files go to `folder`; silent on the others.

    Each step is a line of JSON in `metrics.jsonl`, and a point in TensorBoard's file where that
    package is installed. Lines after `step`, of a run that was killed, are removed.
    """

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        self.steps, self._first = steps, step
        self._started = self._printed = time.monotonic()
        self._is_main = console.is_main()
        self._open_line = False  # whether the line of a step may be written over
        self.path = folder / METRICS
        self._board: Any = None
        if not self._is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        with atomic_write(self.path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def step(self, step: int, values: dict[str, float]) -> None:
        """Writes the numbers of a step, and from time to time a line with some of them."""
        if not self._is_main:
            return
        with self.path.open("a") as metrics:
            metrics.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, step)
        now = time.monotonic()
        left = (now - self._started) / (step - self._first) * (self.steps - step)
        text = (
            f"step {step}/{self.steps}  loss {values['loss']:.3f}  lr {values['lr']:.1e}  "
            f"{values['tokens_per_second']:,.0f} tokens/s  {100 * values['mfu']:.0f} % MFU  "
            f"{_time(left)} left"
        )
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._open_line = True
        elif now - self._printed > _SECONDS or step == self.steps:
            self.say(text)
            self._printed = now

    def say(self, text: str) -> None:
        """Prints a separate line."""
        if self._is_main:
            print("\n" * self._open_line + text, file=sys.stderr, flush=True)
            self._open_line = False

    def close(self) -> None:
        """Ends the open line and closes the files."""
        if self._open_line:
            self.say("")
        if self._board:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, except one that was cut off; [] where there is no file."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def draw_curve(metrics: Path, path: Path) -> None:
    """The loss of each step, smoothed, and of validation documents, as a picture.

    Raises ImportError without matplotlib.
    """
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    smooth, mean = [], 0.0
    kept = min(max(1 - 20 / len(losses), 0), 0.98)
    for i, loss in enumerate(losses, start=1):
        mean = kept * mean + (1 - kept) * loss
        smooth.append(mean / (1 - kept**i))  # bias-corrected, as Adam's
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color="tab:blue", label="training")
    validation = [(line["step"], line["valid_loss"]) for line in lines if "valid_loss" in line]
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="tab:orange", label="validation")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.set_ylim(top=min(max(losses), 2 * max(smooth[len(smooth) // 10 :])))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
