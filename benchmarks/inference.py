"""This project beside transformers and llama.cpp: loading, prefill and decoding of one model.

    python -m benchmarks.inference params/Llama-3.2-1B --rounds 2 --plot bench.svg
    python -m benchmarks.inference params/tiny --others transformers --formats int8

The hardware's peak comes first. Then each backend loads in a process of its own, and they take
turns, A B A B ..., so that a machine that slows down slows all of them: ratios are taken within a
round, and then their median. The last line is one JSON object.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import torch
import tqdm
from cyclopts.types import PositiveInt

from benchmarks import bars, gguf_files
from llama import distributed
from llama.args import ModelArgs
from llama.checkpoint.convert import convert
from llama.checkpoint.info import Facts, read_facts
from llama.checkpoint.opening import open_checkpoint
from llama.cli import one_line_errors
from llama.console import table
from llama.errors import InputError
from llama.evaluation.random_checkpoint import prepare
from llama.evaluation.speed import (
    BITS,
    COMMAS,
    Metric,
    Request,
    bytes_read,
    check_memory,
    described,
    hardware_peak,
    lengths_of,
    machine,
    metrics_of,
    usable_formats,
)

ROOT = Path(__file__).parents[1]
TRANSFORMERS = "transformers"
LLAMA_CPP = {
    "bfloat16": "llama.cpp BF16",
    "bf12": "llama.cpp BF16",  # of the same values
    "int8": "llama.cpp Q8_0",
    "int4": "llama.cpp Q4_0",
}
MODULES = {TRANSFORMERS: ("transformers",), "llama.cpp": ("llama_cpp", "gguf")}
DISTRIBUTIONS = {TRANSFORMERS: "transformers", "llama.cpp": "llama-cpp-python"}
Times = dict[Request, list[tuple[float, float]]]  # seconds to the first token, and of the others


class Failed(Exception):
    """A backend ended; the message says why."""


class Backend:
    """The process of a backend; `backends.py` says what goes through its pipes."""

    def __init__(self, name: str, folder: Path, **spec: Any) -> None:
        self._log = folder / f"{name}.log"
        env = {**os.environ, "OMP_NUM_THREADS": str(spec["threads"])}
        if spec["device"] == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""  # llama.cpp gives a GPU work even so
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / "benchmarks" / "backends.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
            )
        self._send(spec)

    def ask(self, request: Request, vocab_size: int, seed: int) -> dict[str, Any]:
        """The answer to a request. Raises Failed."""
        prompts = request.prompts(vocab_size, seed)
        self._send({"prompts": prompts, "tokens": request.tokens, "sampled": request.sampled})
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises Failed with the reason, or the last line that was printed."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            answer = json.loads(line)
            if "failed" in answer:
                raise Failed(answer["failed"])
            return answer
        code = self._process.wait()
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines()]
        reason = next(filter(None, reversed(lines)), "no output")
        if code < 0:
            reason = f"ended by signal {-code}" + ", out of memory perhaps" * (code == -9)
        raise Failed(reason)

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; `answer` finds out why


def usable_others(asked: Sequence[str] | None, device: torch.device) -> list[str]:
    """The other programs to measure; one that can't be is an error only if it is asked for."""
    usable = []
    for name in MODULES if asked is None else asked:
        missing = [m for m in MODULES[name] if importlib.util.find_spec(m) is None]
        reason = f"{missing[0]} is not installed (pip install '.[bench]')" if missing else None
        if not missing and name == "llama.cpp" and device.type != "cpu":
            script = "import llama_cpp, sys; sys.exit(not llama_cpp.llama_supports_gpu_offload())"
            if subprocess.run([sys.executable, "-c", script], capture_output=True).returncode:
                reason = "llama-cpp-python was built without support of this GPU"
        if reason and asked is not None:
            raise InputError(f"--others {name}: {reason}")
        if reason:
            print(f"without {name}: {reason}")
        else:
            usable.append(name)
    return usable


def make_files(
    facts: Facts,
    path: str,
    formats: Sequence[str],
    others: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """What each backend loads, by its name, and the bytes of weights that its steps read."""
    path, tokenizer = prepare(facts, path, str(folder))
    specs = {
        name: {"kind": "llama", "format": name, "path": path, "tokenizer": tokenizer}
        for name in formats
    }
    weights = {name: bytes_read(facts.args, name) for name in formats}
    checkpoint = open_checkpoint(path)
    if TRANSFORMERS in others:
        dtypes = {weight.dtype for weight in checkpoint.weights.values()}
        if checkpoint.layout != "hf" or dtypes != {torch.bfloat16}:
            path = str(folder / "hf")
            with redirect_stdout(StringIO()):
                convert(str(checkpoint.folder.path), path, to="hf", dtype="bfloat16")
        specs[TRANSFORMERS] = {"kind": TRANSFORMERS, "path": path}
        weights[TRANSFORMERS] = bytes_read(facts.args, "bfloat16")
    if "llama.cpp" in others:
        source = str(folder / "BF16.gguf")
        gguf_files.write_gguf(checkpoint, source)
        for name in (LLAMA_CPP[format_] for format_ in formats if format_ in LLAMA_CPP):
            target, format_ = source, name.split()[1]
            if format_ != "BF16":
                target = str(folder / f"{format_}.gguf")
                quantizing = {"kind": "quantizing", "source": source, "format": format_}
                process = Backend(name, folder, **quantizing, path=target, **settings)
                process.answer()
                process.end()
            specs[name] = {"kind": "llama.cpp", "path": target}
            weights[name] = gguf_files.gguf_bytes_read(target)
    return specs, weights


def measure(
    specs: dict[str, dict[str, Any]],
    requests: Sequence[Request],
    rounds: int,
    vocab_size: int,
    folder: Path,
    settings: dict[str, Any],
) -> tuple[dict[str, Times], dict[str, dict[str, float]], dict[str, str]]:
    """Loads all, then lets them take turns: times, load and peak memory of each; who failed, why.

    A backend that fails is out, with the rounds before.
    """
    times: dict[str, Times] = {}
    sizes: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    backends: dict[str, Backend] = {}
    with ExitStack() as stack:

        def attempt(name: str, seed: int, request: Request) -> None:
            if request.sampled and name not in BITS:  # only this project's sampling is measured
                return
            try:
                if name not in backends:
                    backends[name] = Backend(name, folder, **specs[name], **settings)
                    stack.callback(backends[name].end)
                    sizes[name] = {"load": backends[name].answer()["load"]}
                answer = backends[name].ask(request, vocab_size, seed)
            except Failed as error:
                failed[name] = str(error)
                times.pop(name, None)
                return
            if seed:
                pair = (answer["first"], answer["rest"])
                times.setdefault(name, {}).setdefault(request, []).append(pair)
                sizes[name] |= {key: answer[key] for key in ("peak", "device_peak")}

        warm_up = [(name, 0, r.shortened()) for name in specs for r in requests]
        turns = [
            (name, seed, r) for seed in range(1, rounds + 1) for r in requests for name in specs
        ]
        for turn in tqdm.tqdm(warm_up + turns, "Measuring", disable=None, leave=False):
            if turn[0] not in failed:
                attempt(*turn)
    return times, sizes, failed


def paired_ratio(mine: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(mine, base, strict=True))


def summary(
    args: ModelArgs,
    metrics: Sequence[Metric],
    times: dict[str, Times],
    weights: dict[str, float],
    peak: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """For each backend and metric: the median, its share of the peak, ratios, and all rounds."""
    rates = {
        (name, metric.name): [metric.rate(*pair) for pair in found[metric.request]]
        for name, found in times.items()
        for metric in metrics
        if metric.request in found
    }
    results: dict[str, dict[str, Any]] = {name: {} for name in times}
    for metric, name in itertools.product(metrics, times):
        if (name, metric.name) not in rates:
            continue
        rounds = rates[name, metric.name]
        median = statistics.median(rounds)
        share = metric.share(median, args, weights[name], peak)
        entry = {"median": median, "share": share}
        for label, base in {
            "x transformers": (TRANSFORMERS, metric.name),
            "x llama.cpp": (LLAMA_CPP.get(name, ""), metric.name),
            "x bfloat16": ("bfloat16" if name in LLAMA_CPP else "", metric.name),
            "x greedy": (name, "decode batch 1" * metric.request.sampled),
        }.items():
            if base in rates:
                entry[label] = paired_ratio(rounds, rates[base])
        results[name][metric.name] = {**entry, "rounds": rounds}
    return results


def readable(results: dict[str, dict[str, Any]]) -> str:
    """Tables of the results: loading and memory, then each figure of all metrics."""
    rows: list[list[str]] = [["", "load, s", "peak, GB", "GPU, GB"]]
    for name, r in results.items():
        sizes = (f"{r[key] / 1e9:.2f}" for key in ("peak", "device_peak"))
        rows.append([name, f"{r['load']:.2f}", *sizes])
    first, rows = rows, []
    metrics = list(dict.fromkeys(metric for r in results.values() for metric in r["rates"]))
    for key, title, style in (
        ("median", "tokens per second", ",.1f"),
        ("share", "of the peak", ".0%"),
        ("x transformers", "x transformers", ".2f"),
        ("x llama.cpp", "x llama.cpp, same format", ".2f"),
        ("x bfloat16", "x our bfloat16", ".2f"),
        ("x greedy", "sampled x greedy", ".2f"),
    ):
        found = {
            name: {m: e[key] for m, e in r["rates"].items() if key in e}
            for name, r in results.items()
        }
        if any(found.values()):
            rows += [[], [title, *metrics]]
            rows += [
                [name, *(format(entries[m], style) if m in entries else "" for m in metrics)]
                for name, entries in found.items()
                if entries
            ]
    return f"{table(first)}\n{table(rows)}\n"


def main(
    path: str,
    /,
    *,
    formats: Annotated[list[Literal["bfloat16", "bf12", "int8", "int4"]] | None, COMMAS] = None,
    others: Annotated[list[Literal["transformers", "llama.cpp"]] | None, COMMAS] = None,
    batches: Annotated[Sequence[PositiveInt], COMMAS] = (1, 8),
    prompt: PositiveInt = 512,
    context: PositiveInt = 4096,
    tokens: PositiveInt = 16,
    rounds: PositiveInt = 3,
    threads: PositiveInt | None = None,
    device: str | None = None,
    plot: Path | None = None,
) -> None:
    """Measures this project and others on the same weights.

    Args:
        path: Checkpoint folder, or a shape, which gets random weights.
        formats: This project's formats; default: bfloat16 and the packed formats of the device.
        others: transformers, llama.cpp or both; default: those that are installed.
        batches: Numbers of rows that decoding is measured at, such as 1,8.
        prompt: Tokens of a prompt.
        context: Tokens of a long prompt, for prefill and for decoding after it.
        tokens: How many are decoded after the first.
        rounds: How many times each takes its turn.
        threads: CPU threads of each; default: torch's own number.
        device: cuda, mps or cpu; default: the best there is.
        plot: A .png or .svg file to draw the results into.
    """
    if plot is not None and not (
        plot.suffix in (".png", ".svg") and plot.absolute().parent.is_dir()
    ):
        raise InputError(f"--plot {plot} should be a .png or .svg file in a folder that is there")
    chosen = distributed.select_device(device)
    torch.set_num_threads(threads or torch.get_num_threads())
    facts = read_facts(path)
    longest = facts.args.max_seq_len - tokens - max(batches)
    names = usable_formats(facts, formats, chosen)
    programs = usable_others(others, chosen)
    metrics = metrics_of(min(prompt, longest), min(context, longest), tokens, batches)
    requests = list(dict.fromkeys(metric.request for metric in metrics))
    settings = {
        "device": str(chosen),
        "threads": torch.get_num_threads(),
        "lengths": lengths_of(requests),
    }
    bits = sum(BITS[name][0] * (1 + ("llama.cpp" in programs)) for name in names)
    check_memory(facts, (bits + 16 * (TRANSFORMERS in programs)) / 8, chosen)
    with tempfile.TemporaryDirectory(prefix="llama-bench-") as temporary:
        folder = Path(temporary)
        specs, weights = make_files(facts, path, names, programs, folder, settings)
        where = machine(chosen) | {
            p: importlib.metadata.version(DISTRIBUTIONS[p]) for p in programs
        }
        title = f"{facts.name}, " + ", ".join(f"{key} {value}" for key, value in where.items())
        peak = hardware_peak(chosen)
        print(f"{title}\n{described(peak)}", flush=True)
        times, sizes, failed = measure(
            specs, requests, rounds, facts.args.vocab_size, folder, settings
        )
    for name, reason in failed.items():
        print(f"{name} failed: {reason}")
    rates = summary(facts.args, metrics, times, weights, peak)
    results = {name: {**sizes[name], "rates": rates[name]} for name in rates}
    if not results:
        raise InputError("every backend failed")
    print(readable(results))
    if plot is not None:
        bars.draw(str(plot), title, results, metrics)
    print(
        json.dumps(
            {
                "model": facts.name,
                "parameters": facts.parameters(),
                "machine": where,
                "peak": peak,
                "settings": {"rounds": rounds, "tokens": tokens, **settings},
                "backends": results,
                "failed": failed,
            }
        )
    )


if __name__ == "__main__":
    with one_line_errors():
        cyclopts.run(main)
