"""What the scripts on the command line have in common."""

import os
import sys
from collections.abc import Callable

import fire
import torch

_EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError)


def run(command: Callable[..., None]) -> None:
    """Calls `command` with the flags of the command line, and ends the process when it fails.

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
