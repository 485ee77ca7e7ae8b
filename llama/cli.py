"""The `llama` command, and what all scripts on the command line have in common."""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import fire
import torch

_EXPECTED = (ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError)


# Each command's function and its module: a command loads no more than it needs.
_COMMANDS = {
    "info": ("llama.checkpoint.info", "info"),
    "verify": ("llama.checkpoint.verify", "verify"),
    "convert": ("llama.checkpoint.convert", "convert"),
    "merge": ("llama.checkpoint.merge", "merge"),
    "tokenizer": ("llama.training.bpe", "COMMANDS"),
    "train": ("llama.training.command", "train_command"),
    "eval": ("llama.evaluation.evaluate", "evaluate"),
    "bench": ("llama.bench", "bench"),
}


def main() -> None:
    """What `llama` and `python -m llama` call."""
    asked = [name for name in sys.argv[1:2] if name in _COMMANDS]
    run(
        {
            name: getattr(importlib.import_module(module), function)
            for name, (module, function) in _COMMANDS.items()
            if name in (asked or _COMMANDS)
        },
        name="llama",
    )


def run(command: Callable[..., None] | Mapping[str, Any], name: str | None = None) -> None:
    """Calls `command`, or the one of several that is named, with the flags of the command line.

    Of several, some may be several themselves: `llama tokenizer train`.

    What is wrong with the input is told in one message on standard error, exit status 1;
    LLAMA_TRACEBACK=1 shows where it was found. Ctrl-C ends with status 130.
    """
    calls: list[Callable[[], None]] = []

    def noted(command: Any) -> Any:
        if isinstance(command, Mapping):
            return {key: noted(value) for key, value in command.items()}

        @functools.wraps(command)
        def note(*args: Any, **kwargs: Any) -> None:
            calls.append(functools.partial(command, *args, **kwargs))

        return note

    try:
        # fire finds out that a flag does not exist only after it has called the function.
        fire.Fire(noted(command), name=name)
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
