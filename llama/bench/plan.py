"""What `llama bench` is asked to measure, checked before anything is made or loaded."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from llama import distributed
from llama.bench.report import (
    BITS,
    LLAMA_CPP,
    SHORT,
    TRANSFORMERS,
    Metric,
    Request,
    metrics_of,
)
from llama.checkpoint.info import read_facts
from llama.checkpoint.memory import Facts
from llama.errors import InputError
from llama.quantization.linear_layers import check_format

_PACKAGES = {TRANSFORMERS: ("transformers",), "llama.cpp": ("llama_cpp", "gguf")}
_INSTALL = "pip install 'llama[bench]'"


@dataclasses.dataclass
class Plan:
    """What is asked for, checked."""

    facts: Facts
    formats: list[str]
    peers: list[str]
    rounds: int
    metrics: list[Metric]
    prompt: int
    device: torch.device
    threads: int
    notes: list[str]

    @property
    def requests(self) -> list[Request]:
        return list(dict.fromkeys(metric.request for metric in self.metrics))

    @property
    def lengths(self) -> dict[int, int]:
        """For each number of rows, how many positions its longest request takes."""
        found: dict[int, int] = {}
        for r in self.requests:
            found[r.rows] = max(found.get(r.rows, 0), r.prompt + r.tokens + 1)
        return found

    @property
    def contenders(self) -> dict[str, dict[str, Any]]:
        """What each process is to be, by name; where it reads comes later."""
        found: dict[str, dict[str, Any]] = {f: {"kind": "llama", "format": f} for f in self.formats}
        if TRANSFORMERS in self.peers:
            found[TRANSFORMERS] = {"kind": "transformers", "format": "bfloat16"}
        if "llama.cpp" in self.peers:
            for name in (LLAMA_CPP[f] for f in self.formats):
                found[name] = {"kind": "llama.cpp", "format": name.split()[1]}
        return found


def make_plan(
    path: str,
    quantize: Any,
    peers: Any,
    rounds: int,
    prompt: int,
    context: int,
    tokens: int,
    batches: Any,
    threads: int | None,
    device: str | None,
) -> Plan:
    """Checks what is asked for. Raises ValueError or FileNotFoundError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("llama bench is one process; start it without torchrun")
    sizes = {"rounds": rounds, "prompt": prompt, "context": context, "tokens": tokens}
    rows = batches if isinstance(batches, (tuple, list)) else (batches,)
    for name, value in (*sizes.items(), *(("batches", n) for n in rows)):
        if type(value) is not int or value < 1:
            raise InputError(f"{name}={value!r} should be a whole number greater than 0")
    count = torch.get_num_threads() if threads is None else threads
    if type(count) is not int or not 0 < count <= (os.cpu_count() or count):
        raise InputError(f"threads={count!r} should be 1 to {os.cpu_count()}, this machine's cores")
    chosen, notes = distributed.select_device(device), []
    facts = read_facts(str(path))
    if facts.checkpoint and facts.checkpoint.quantize:
        raise InputError(
            f"{path} holds {facts.checkpoint.quantize} weights; give the model they were made from"
        )
    longest = facts.args.max_seq_len - tokens - 1
    if longest < SHORT:
        raise InputError(
            f"tokens={tokens} are too many for {facts.name}, whose context is "
            f"{facts.args.max_seq_len}"
        )
    for name in ("prompt", "context"):
        if sizes[name] > longest:
            notes.append(f"{name} {longest} in place of {sizes[name]}: the model has no more")
            sizes[name] = longest
    formats = _formats(_names("quantize", quantize, tuple(BITS)), chosen, notes)
    return Plan(
        facts,
        formats,
        _peers(_names("peers", peers, tuple(_PACKAGES)), chosen, notes),
        rounds,
        metrics_of(sizes["prompt"], sizes["context"], tokens, list(dict.fromkeys(rows))),
        sizes["prompt"],
        chosen,
        count,
        notes,
    )


def _names(flag: str, given: Any, known: tuple[str, ...]) -> list[str] | None:
    """What a flag names, in the usual order; fire makes a tuple of some lists, a string of others.

    None where it is not given.
    """
    if given is None:
        return None
    names = given.split(",") if isinstance(given, str) else list(given)
    if flag == "peers" and names == ["none"]:
        return []
    if not names or (unknown := [name for name in names if name not in known]):
        what = unknown[0] if names else ""
        raise InputError(f"{flag}={what!r} is none of {', '.join(known)}")
    return [name for name in known if name in names]


def _formats(asked: list[str] | None, device: torch.device, notes: list[str]) -> list[str]:
    """Which formats of ours: a device that has not all is an error only for those asked for."""
    found = []
    for name in BITS if asked is None else asked:
        try:
            if name != "bfloat16":
                check_format(name, device, torch.bfloat16)
        except ValueError as error:
            if asked is not None:
                raise
            notes.append(f"without {name}: {error}")
        else:
            found.append(name)
    return found


def _peers(asked: list[str] | None, device: torch.device, notes: list[str]) -> list[str]:
    """Which peers: one that is not installed is an error only if it is asked for."""
    found = []
    for name in _PACKAGES if asked is None else asked:
        missing = [p for p in _PACKAGES[name] if importlib.util.find_spec(p) is None]
        why = f"{missing[0]} is not installed ({_INSTALL})" if missing else None
        if not missing and name == "llama.cpp" and device.type != "cpu":
            why = _llama_cpp_without_gpu()
        if why and asked is not None:
            raise InputError(f"peers={name}: {why}")
        if why:
            notes.append(f"without {name}: {why}")
        else:
            found.append(name)
    return found


def _llama_cpp_without_gpu() -> str | None:
    script = "import llama_cpp, sys; sys.exit(not llama_cpp.llama_supports_gpu_offload())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    return "llama-cpp-python was built without support of this GPU" if done.returncode else None


def check_plot(path: str) -> None:
    """Raises ValueError for a figure that can't be drawn."""
    if Path(path).suffix not in (".png", ".svg"):
        raise InputError(f"plot={path} should end with .png or .svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(f"--plot draws with matplotlib, which is not installed: {_INSTALL}")
