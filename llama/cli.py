"""The `llama` command, and what all scripts on the command line have in common."""

import functools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import fire
import torch

_EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError)


def main() -> None:
    """What `llama` and `python -m llama` call."""
    from llama.bench import bench
    from llama.convert import convert
    from llama.info import info
    from llama.verify import verify

    run({"info": info, "convert": convert, "verify": verify, "bench": bench}, name="llama")


def run(
    command: Callable[..., None] | Mapping[str, Callable[..., None]], name: str | None = None
) -> None:
    """Calls `command`, or the one of several that is named, with the flags of the command line.

    What is wrong with the input is told in one message on standard error, exit status 1;
    LLAMA_TRACEBACK=1 shows where it was found. Ctrl-C ends with status 130.
    """
    calls: list[Callable[[], None]] = []

    def noted(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def note(*args: Any, **kwargs: Any) -> None:
            calls.append(functools.partial(function, *args, **kwargs))

        return note

    # fire finds out that a flag does not exist only after it has called the function.
    if isinstance(command, Mapping):
        noting: Any = {key: noted(function) for key, function in command.items()}
    else:
        noting = noted(command)
    try:
        fire.Fire(noting, name=name)
        for call in calls:
            call()
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except _EXPECTED as error:
        if os.environ.get("LLAMA_TRACEBACK"):
            raise
        rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        print(f"{rank}error: {error}", file=sys.stderr)
        sys.exit(1)
