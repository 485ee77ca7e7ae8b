"""What reaches the terminal: lines, notices and progress bars, of one process for all ranks."""

import os
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch.distributed as dist
import tqdm


def is_main() -> bool:
    """True in the one process that speaks for all, under torchrun also before `initialize`."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "", end: str = "\n") -> None:
    """Prints, at once, in the process that speaks for all; the others stay silent."""
    if is_main():
        print(text, end=end, flush=True)


def notice(text: str) -> None:
    """A line on standard error, in the process that speaks for all."""
    if is_main():
        print(text, file=sys.stderr)


def table(rows: Iterable[Sequence[object]]) -> str:
    """The lines of a table whose columns are two spaces apart, the first one aligned to the left.

    The other columns are aligned to the right. A row may be shorter than others; an empty one is
    an empty line.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip_longest(*texts, fillvalue="")]
    return "\n".join(
        "  ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in texts
    )


def progress(
    total: int, description: str, *, done: int = 0, any_rank: bool = False, unit: str = "B"
) -> tqdm.tqdm:
    """A bar for work on `total` bytes, of which `done` were there before: `with` it, `update` it.

    It is for someone who waits, so it shows after a second and leaves nothing behind, on standard
    error and only where that is a terminal: a log or a pipe gets no bars. As with `say`, one
    process draws; `any_rank` is for work that a single process does, whichever it is. Where it is
    not bytes, `unit` says what it is.
    """
    return tqdm.tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=True,
        unit_divisor=1000,
        delay=1,
        leave=False,
        disable=None if any_rank or is_main() else True,
    )
