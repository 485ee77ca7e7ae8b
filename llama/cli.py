"""The `llama` command, and what all scripts on the command line have in common."""

import os
import sys
from collections.abc import Callable, Mapping

import fire
import torch

_EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError)


def main() -> None:
    """What `llama` and `python -m llama` call."""
    from llama.convert import convert
    from llama.info import info
    from llama.verify import verify

    run({"info": info, "convert": convert, "verify": verify})


def run(command: Callable[..., None] | Mapping[str, Callable[..., None]]) -> None:
    """Calls `command`, or the one of several that is named, with the flags of the command line.

    What is wrong with the input is told in one message on standard error, exit status 1;
    LLAMA_TRACEBACK=1 shows where it was found. Ctrl-C ends with status 130.
    """
    try:
        fire.Fire(command)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except _EXPECTED as error:
        if os.environ.get("LLAMA_TRACEBACK"):
            raise
        rank = f"rank {os.environ['RANK']}: " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
        print(f"{rank}error: {error}", file=sys.stderr)
        sys.exit(1)
