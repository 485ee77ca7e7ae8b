"""`llama bench`: what a model does on this machine, beside its peers and the machine's ceiling.

    llama bench Llama-3.2-1B                             # a checkpoint folder of either layout
    llama bench params/Llama-3.2-1B --plot bench.svg     # a shape: its weights are random numbers
    llama bench params/tiny --peers none --quantize int8

Each contender is loaded in a process of its own, and then they take turns, A B C A B C ..., so that
a machine that slows down slows all of them. The last line is one JSON object.
"""

import importlib.metadata
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from json import dumps
from pathlib import Path
from typing import Any

import torch

from llama import console, distributed
from llama.bench import inputs, report, workers
from llama.bench.plan import Plan, check_plot, make_plan
from llama.checkpoint.info import short_count
from llama.distributed.hardware_peak import matrix_rate, read_rate
from llama.errors import InputError

_DISTRIBUTIONS = {"transformers": "transformers", "llama.cpp": "llama-cpp-python"}


def bench(
    path: str,
    quantize: str | None = None,
    peers: str | None = None,
    rounds: int = 3,
    prompt: int = 512,
    context: int = 4096,
    tokens: int = 16,
    batches: str | int | tuple[int, ...] = (1, 8),
    threads: int | None = None,
    device: str | None = None,
    plot: str | None = None,
    json: str | None = None,
) -> None:
    """Measures loading, prefill and decoding, beside transformers and llama.cpp.

    Args:
        path: a checkpoint folder of either layout, or what only says a shape: a folder with a
            params.json or a config.json, or such a file. A shape gets random weights.
        quantize: which of our weights, such as bfloat16,int4; all that the device has if not given.
        peers: transformers, llama.cpp, both or none; those that are installed if not given.
        rounds: how many times each takes its turn.
        prompt: length of a prompt, for prefill and the time to the first token.
        context: length of a long prompt, for prefill and for decoding after it.
        tokens: how many are decoded after the first.
        batches: at how many rows decoding is measured, such as 1,8.
        threads: of all contenders alike; torch's own number if not given.
        device: cpu, cuda or mps; the best there is if not given.
        plot: a .png or .svg file to draw the results into.
        json: a file to write the last line into as well.
    """
    for file in (plot, json):
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise InputError(f"{file} can't be written: its folder is not there")
    if plot is not None:
        check_plot(str(plot))
    plan = make_plan(
        path, quantize, peers, rounds, prompt, context, tokens, batches, threads, device
    )
    with ExitStack() as stack:
        stack.enter_context(_torch_threads(plan.threads))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llama-bench-")))
        failures: dict[str, str] = {}
        paths, weights = inputs.prepare(plan, str(path), folder, failures)
        what = "random weights" if plan.facts.checkpoint is None else "its own weights"
        title = f"{plan.facts.name} ({short_count(plan.facts.parameters())} parameters, {what})"
        machine = _machine(plan)
        threads_ = "1 thread" if plan.threads == 1 else f"{plan.threads} threads"
        place = f"{machine['processor']}, {threads_}, torch {machine['torch']}"
        console.say(f"{title}\n{place}")
        dtype = distributed.select_dtype(plan.device)
        ceiling = {"read": read_rate(plan.device), "multiply": matrix_rate(plan.device, dtype)}
        console.say(
            f"ceiling: torch reads {ceiling['read'] / 1e9:.1f} GB/s and multiplies "
            f"{ceiling['multiply'] / 1e12:.2f} TFLOP/s in "
            f"{str(dtype).removeprefix('torch.')}"
        )
        for note in plan.notes:
            console.say(note)
        running, loads = workers.start(plan, paths, folder, failures, stack)
        times, peaks = workers.take_turns(plan, running, failures)
    for name, why in failures.items():
        console.say(f"{name} failed: {why}")
    if not times:
        raise InputError("every contender failed")
    rates = report.summary(plan.facts.args, plan.metrics, times, weights, ceiling)
    first = next(metric.request for metric in plan.metrics if metric.is_prefill)
    contenders: dict[str, dict[str, Any]] = {
        name: {
            "load": loads[name],
            **peaks[name],
            "first token": statistics.median(seconds for seconds, _ in times[name][first]),
            "rates": rates[name],
        }
        for name in times
    }
    console.say("\n".join(report.tables(contenders, plan.metrics, plan.prompt)))
    if plot is not None:
        report.draw(str(plot), f"{title}\n{place}", contenders, plan.metrics)
        console.say(f"\n{plot} shows it")
    line = dumps(
        {
            "model": plan.facts.name,
            "parameters": plan.facts.parameters(),
            "machine": machine,
            "ceiling": ceiling,
            "settings": {"rounds": rounds, "tokens": tokens, "lengths": plan.lengths},
            "contenders": contenders,
            "failed": failures,
        }
    )
    if json is not None:
        Path(json).write_text(line + "\n")
    console.say(f"\n{line}")


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _machine(plan: Plan) -> dict[str, Any]:
    packages = {"torch": "torch"} | {peer: _DISTRIBUTIONS[peer] for peer in plan.peers}
    versions = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {
        "processor": _processor(plan.device),
        "threads": plan.threads,
        "device": str(plan.device),
        **versions,
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
