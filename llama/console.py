"""Output to the terminal: lines, notices, tables and progress bars, printed by rank 0 only."""

import os
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import torch.distributed as dist
import tqdm


def is_main() -> bool:
    """Whether this is rank 0, under torchrun also before process groups exist."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "", end: str = "\n") -> None:
    """Prints on rank 0, unbuffered."""
    if is_main():
        print(text, end=end, flush=True)


def notice(text: str) -> None:
    """Prints a line on standard error, above the progress bars there, on rank 0."""
    if is_main():
        tqdm.tqdm.write(text, file=sys.stderr)


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
    """A progress bar for `total` bytes (or `unit`), of which `done` are done: a context manager.

    It appears on standard error after a second, disappears at the end, and only if that is a
    terminal. Rank 0 draws it; `any_rank` is for work that one process does, whichever that is.
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
