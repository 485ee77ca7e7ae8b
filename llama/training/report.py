"""What a run tells: a line on the terminal, metrics in files, and the curve at last."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from llama import console

METRICS = "metrics.jsonl"
_SECONDS = 30  # between two lines where standard error is no terminal


class Report:
    """Of a run that goes into `folder`, on the process that speaks for all; silent on the others.

    Each step is a JSON object a line of `metrics.jsonl`, and a point of TensorBoard's file where
    that package is installed. What stands there beyond `step`, of a run that was killed, goes.
    """

    def __init__(self, folder: Path, step: int, steps: int) -> None:
        self.steps, self._first = steps, step
        self._begun = self._told = time.monotonic()
        self._speaks = console.is_main()
        self._open_line = False
        self.path = folder / METRICS
        self._board: Any = None
        if not self._speaks:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(self.path)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def step(self, step: int, values: dict[str, float], rates: dict[str, str]) -> None:
        """Notes the numbers of a step, and tells them with `rates` where it is time to."""
        if not self._speaks:
            return
        with self.path.open("a") as metrics:
            metrics.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, step)
        now = time.monotonic()
        left = (now - self._begun) / (step - self._first) * (self.steps - step)
        shown = f"loss {values['loss']:.3f}  lr {values['lr']:.1e}"
        text = f"step {step}/{self.steps}  {shown}  {'  '.join(rates.values())}  {_time(left)} left"
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._open_line = True
        elif now - self._told > _SECONDS or step == self.steps:
            self.say(text)
            self._told = now

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._speaks:
            print("\n" * self._open_line + text, file=sys.stderr, flush=True)
            self._open_line = False

    def close(self) -> None:
        """Ends the terminal's line and the files."""
        if self._open_line:
            self.say("")
        if self._board:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, without one that was cut off; none where there is no file."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def draw_curve(metrics: Path, path: Path) -> None:
    """The loss of each step, smoothed, and of held-out documents, as a picture.

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
        smooth.append(mean / (1 - kept**i))  # as Adam's: the first ones count in full
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, smooth, color="tab:blue", label="training")
    held_out = [(line["step"], line["valid_loss"]) for line in lines if "valid_loss" in line]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.set_ylim(top=min(max(losses), 2 * max(smooth[len(smooth) // 10 :])))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
