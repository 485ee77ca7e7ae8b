"""`llama bench`: how fast a model runs on this machine, and which share of the peak that is.

    llama bench Llama-3.2-1B                       # a checkpoint folder
    llama bench params/Llama-3.2-1B                # only a shape: its weights are random numbers
    llama bench params/tiny --formats bfloat16,int8 --batches 1,32 --json

All formats are loaded and then take turns, A B C A B C ..., so that a machine that slows down slows
all of them. A decoding step reads every linear layer's weights and the keys and values so far: its
peak is what torch reads in a second. A prompt's peak is what torch multiplies in a second, at 2
operations a parameter and token; attention's own products are not counted.
"""

import itertools
import json
import math
import os
import platform
import random
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cyclopts
import torch
from cyclopts import Parameter
from cyclopts.types import PositiveInt

from llama import console, distributed
from llama.args import ModelArgs, is_linear, weight_shapes
from llama.checkpoint.info import Facts, read_facts, short_count, this_machine
from llama.distributed.hardware_peak import matrix_rate, read_rate, synchronize
from llama.engine import Engine, SamplingParams
from llama.engine import Sequence as Answer
from llama.errors import InputError
from llama.evaluation.random_checkpoint import prepare
from llama.generation import Llama
from llama.quantization.linear_layers import check_format
from llama.quantization.packed_formats import PACKED
from llama.storage.files import short_size

# Bits of a weight in a linear layer and in the output layer, scales included.
BITS = {
    "float32": (32.0, 32.0),
    "bfloat16": (16.0, 16.0),
    "float16": (16.0, 16.0),
    "bf12": (12.1, 12.1),  # with its tables; an average
    "int8": (8.5, 8.5),
    "int4": (4.5, 8.5),
}
SHORT = 4  # tokens of a prompt where its length does not count


class Request(NamedTuple):
    """`rows` prompts of `prompt` tokens, and `tokens` that are decoded after each first one."""

    rows: int
    prompt: int
    tokens: int
    sampled: bool = False

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Random token ids, others for each seed: no store of prompts knows them."""
        draw = random.Random(f"{seed} {self}")
        return [draw.choices(range(vocab_size), k=self.prompt) for _ in range(self.rows)]

    def shortened(self) -> "Request":
        """One of the same kind, to warm up with."""
        return self._replace(prompt=min(self.prompt, 64), tokens=min(self.tokens, 2))


class Metric(NamedTuple):
    """A rate in tokens a second: of the prompt, or of what is decoded after it."""

    name: str
    request: Request
    is_prefill: bool

    def rate(self, first: float, rest: float) -> float:
        """From the seconds to the first token of each row, and those of the tokens after it."""
        r = self.request
        return r.prompt / first if self.is_prefill else r.rows * r.tokens / rest

    def share(self, rate: float, args: ModelArgs, weights: float, peak: dict[str, Any]) -> float:
        """The share of the peak that `rate` is; `weights` are the bytes of them that a step reads.

        `peak` has bytes a second to `read` and operations a second to `multiply`.
        """
        r = self.request
        if self.is_prefill:
            layers, output = matrix_parameters(args)
            return 2 * (layers + output / r.prompt) * rate / peak["multiply"]
        positions = r.rows * (r.prompt + (r.tokens + 1) / 2)  # on average
        each = 2 * args.n_layers * args.kv_heads * args.head_dim * 2  # bytes, in bfloat16
        return (weights + positions * each) * rate / r.rows / peak["read"]


def metrics_of(prompt: int, context: int, tokens: int, batches: Sequence[int]) -> list[Metric]:
    """All that is measured; prefill of the context and decoding after it are one request."""
    long = Request(1, context, tokens)
    metrics = [Metric(f"prefill {prompt}", Request(1, prompt, 0), True)] * (prompt != context)
    metrics.append(Metric(f"prefill {context}", long, True))
    for rows in dict.fromkeys(batches):
        metrics.append(Metric(f"decode batch {rows}", Request(rows, SHORT, tokens), False))
        if rows == 1:
            metrics.append(Metric("decode sampled", Request(1, SHORT, tokens, True), False))
    return [*metrics, Metric(f"decode at {context}", long, False)]


def lengths_of(requests: Iterable[Request]) -> dict[int, int]:
    """For each number of rows, how many positions its longest request takes."""
    ascending = sorted(requests, key=lambda r: r.prompt + r.tokens)
    return {r.rows: r.prompt + r.tokens + r.rows for r in ascending}


def matrix_parameters(args: ModelArgs) -> tuple[int, int]:
    """How many parameters the layers' matrices have, and the output layer."""
    shapes = weight_shapes(args)
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if is_linear(name, shape)}
    output = sizes.pop("output.weight")
    return sum(sizes.values()), output


def bytes_read(args: ModelArgs, format_: str) -> float:
    """Bytes of weights that a step reads; of the embedding it reads only a row, left out here."""
    layers, output = matrix_parameters(args)
    return (layers * BITS[format_][0] + output * BITS[format_][1]) / 8


class Runner:
    """A model in one format, with an engine for each number of rows of the requests."""

    def __init__(
        self, path: str, tokenizer: str | None, format_: str, lengths: dict[int, int], device: str
    ) -> None:
        packed = format_ if format_ in PACKED else None
        dtype = "bfloat16" if packed else format_
        length = max(lengths.values())
        llama = Llama.build(path, tokenizer, length, device=device, dtype=dtype, quantize=packed)
        llama.tokenizer.stop_tokens = set()  # answers are as long as they are asked for
        self.model = llama.model
        self.engines = {n: Engine(llama.model, llama.tokenizer, n, lengths[n]) for n in lengths}

    def start(self, prompts: list[list[int]], tokens: int, sampled: bool) -> None:
        """Runs the prompts, up to the first token of each answer."""
        greedy = SamplingParams(temperature=0)
        params = SamplingParams(temperature=0.6, top_p=0.9, seed=1) if sampled else greedy
        self.engine, self.tokens = self.engines[len(prompts)], tokens
        # The engine runs a few prompts in a step, and answers that have begun go on meanwhile.
        length = tokens + len(prompts)
        # Random prompts do not show how often guessed tokens are right.
        answers = [Answer(prompt, length, params, speculate=False) for prompt in prompts]
        self.answers = [self.engine.add(answer) for answer in answers]
        while not all(answer.tokens for answer in self.answers):
            self.step()

    def step(self) -> None:
        """Decodes the next token of each answer. Raises the error that ended one."""
        for answer in self.engine.step():
            if answer.error is not None:
                raise answer.error

    def end(self) -> list[list[int]]:
        """Ends the answers; of each the ids that were asked for."""
        for answer in self.answers:
            self.engine.cancel(answer)
        assert self.engine.idle
        return [answer.tokens[: self.tokens + 1] for answer in self.answers]

    def measure(self, request: Request, seed: int) -> tuple[float, float]:
        """Seconds to the first token of each row, and of the tokens after it."""
        prompts = request.prompts(self.model.vocab_size, seed)
        begin = self._now()
        self.start(prompts, request.tokens, request.sampled)
        first = self._now()
        for _ in range(request.tokens):
            self.step()
        rest = self._now() - first
        self.end()
        return first - begin, rest

    def _now(self) -> float:
        synchronize(self.model.norm.weight.device)
        return time.perf_counter()


def _split(type_: Any, tokens: Sequence[cyclopts.Token]) -> Any:
    return cyclopts.convert(type_, [part for token in tokens for part in token.value.split(",")])


# Of a flag: 1,8 is a list.
COMMAS = Parameter(converter=_split, n_tokens=1, negative=())
Format = Literal["float32", "bfloat16", "float16", "bf12", "int8", "int4"]


def bench(
    path: str,
    /,
    *,
    formats: Annotated[list[Format] | None, COMMAS] = None,
    batches: Annotated[Sequence[PositiveInt], COMMAS] = (1, 8),
    prompt: PositiveInt = 512,
    context: PositiveInt = 4096,
    tokens: PositiveInt = 16,
    rounds: PositiveInt = 3,
    threads: PositiveInt | None = None,
    device: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Measures the hardware's peak, then loading, prefill and decoding of a model.

    Args:
        path: Checkpoint folder, here or remote; or a params.json or config.json, or its folder:
            such a shape gets random weights.
        formats: Dtypes and packed formats to run the model in, such as bfloat16,int4; default:
            bfloat16 and the packed formats of the device.
        batches: Numbers of rows that decoding is measured at, such as 1,8.
        prompt: Tokens of a prompt.
        context: Tokens of a long prompt, for prefill and for decoding after it.
        tokens: How many are decoded after the first.
        rounds: How many times each format takes its turn.
        threads: CPU threads; default: torch's own number.
        device: cuda, mps or cpu; default: the best there is.
        as_json: Print one JSON object.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("llama bench is one process; start it without torchrun")
    if threads is not None and threads > (os.cpu_count() or threads):
        raise InputError(f"threads={threads} is more than the {os.cpu_count()} cores that are here")
    chosen = distributed.select_device(device)
    facts = read_facts(path)
    longest = facts.args.max_seq_len - tokens - max(batches)
    if longest < SHORT:
        raise InputError(f"tokens={tokens}: {facts.name} has a context of {facts.args.max_seq_len}")
    if longest < max(prompt, context):
        console.notice(f"no prompt is longer than {longest}: the model's context ends there")
    prompt, context = min(prompt, longest), min(context, longest)
    names = usable_formats(facts, formats, chosen)
    check_memory(facts, sum(BITS[name][0] for name in names) / 8, chosen)
    metrics = metrics_of(prompt, context, tokens, batches)
    requests = list(dict.fromkeys(metric.request for metric in metrics))
    lengths = lengths_of(requests)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads or torch.get_num_threads())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="llama-bench-"))
        path, tokenizer = prepare(facts, path, folder)
        where, peak = machine(chosen), hardware_peak(chosen)
        weights = "random" if facts.checkpoint is None else "its own"
        if not as_json:
            console.say(
                f"{facts.name}: {short_count(facts.parameters())} parameters, {weights} weights\n"
                f"{where['processor']}, {where['threads']} thread(s), torch {where['torch']}\n"
                f"{described(peak)}"
            )
        runners: dict[str, Runner] = {}
        results: dict[str, dict[str, Any]] = {}
        for name in names:
            start = time.perf_counter()
            runners[name] = Runner(path, tokenizer, name, lengths, str(chosen))
            results[name] = {"load": time.perf_counter() - start}
            for r in requests:
                runners[name].measure(r.shortened(), seed=0)
        times: dict[tuple[str, Request], list[tuple[float, float]]] = defaultdict(list)
        turns = list(itertools.product(range(1, rounds + 1), requests, names))
        with console.progress(len(turns), "Measuring", unit=" runs") as bar:
            for seed, r, name in turns:
                times[name, r].append(runners[name].measure(r, seed))
                bar.update()
    rows = [["tokens per second"], ["load, s"], *([metric.name] for metric in metrics)]
    for name in names:
        rows[0] += [name, "of peak"]
        rows[1] += [f"{results[name]['load']:.2f}", ""]
        for row, metric in zip(rows[2:], metrics, strict=True):
            rates = [metric.rate(*pair) for pair in times[name, metric.request]]
            median = statistics.median(rates)
            share = metric.share(median, facts.args, bytes_read(facts.args, name), peak)
            results[name][metric.name] = {"median": median, "share": share, "rounds": rates}
            row += [f"{median:,.{0 if median >= 100 else 1}f}", f"{share:.0%}"]
    is_busy = distributed.adaptive_threads().was_busy
    if is_busy:
        console.notice("other processes competed for the cores; on a quiet machine it is faster")
    if not as_json:
        console.say(console.table(rows))
        return
    report = {
        "model": facts.name,
        "parameters": facts.parameters(),
        "weights": weights,
        "machine": where,
        "peak": peak,
        "settings": {"prompt": prompt, "context": context, "tokens": tokens, "rounds": rounds},
        "formats": results,
        "busy": is_busy,
    }
    console.say(json.dumps(report))


def usable_formats(
    facts: Facts, asked: Sequence[str] | None, device: torch.device
) -> Sequence[str]:
    """The formats to measure: those asked for, else bfloat16 and the packed ones of the device.

    Weights that are packed already have only their own. Raises InputError for a format that is
    asked for and that the device does not have.
    """
    if facts.quantize:
        return asked or [facts.quantize]
    dtype = distributed.select_dtype(device, parameters=2**40)
    found = []
    for name in dict.fromkeys(asked or [str(dtype).removeprefix("torch."), *PACKED]):
        try:
            if name in PACKED:
                check_format(name, device, torch.bfloat16)
            found.append(name)
        except InputError as error:
            if asked:
                raise
            console.notice(f"without {name}: {error}")
    return found


def check_memory(facts: Facts, bytes_per_weight: float, device: torch.device) -> None:
    """Raises InputError where the device has no memory for so many bytes a weight."""
    needed = bytes_per_weight * facts.parameters()
    devices = this_machine(facts.parameters())
    memory = next(d.memory for d in devices if d.is_cpu == (device.type == "cpu"))
    if needed > memory:
        raise InputError(
            f"the model takes {short_size(needed)} in these formats, and {device} has "
            f"{short_size(memory)}; take fewer or smaller ones, such as --formats int4"
        )


def machine(device: torch.device) -> dict[str, Any]:
    """The processor, how many threads compute, and torch's version."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text() if info.exists() else "")
    processor = named[1] if named else platform.processor() or platform.machine()
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    versions = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"processor": processor, "device": str(device), **versions}


def hardware_peak(device: torch.device) -> dict[str, Any]:
    """Bytes a second that torch reads and operations a second that it multiplies in a dtype."""
    dtype = distributed.select_dtype(device)
    rates = {"read": read_rate(device), "multiply": matrix_rate(device, dtype)}
    return {**rates, "dtype": str(dtype).removeprefix("torch.")}


def described(peak: dict[str, Any]) -> str:
    """The line of a hardware peak."""
    return (
        f"hardware peak: torch reads {peak['read'] / 1e9:.1f} GB/s and multiplies "
        f"{peak['multiply'] / 1e12:.2f} TFLOP/s in {peak['dtype']}\n"
    )
