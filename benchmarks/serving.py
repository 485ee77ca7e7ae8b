"""This project's server beside llama-server: the same weights, one server at a time, in turns.

    python -m benchmarks.serving params/Llama-3.2-1B --llama_server /usr/bin/llama-server
    python -m benchmarks.serving params/tiny --formats bfloat16 --workloads soak

The workloads, of token ids as prompts, temperature 0, `ignore_eos`, prompts that differ:

throughput: 1, 2, 4 and 8 clients, 128 tokens in and 64 out each: generated tokens per second.
shared: eight prompts that share 1,500 tokens, one after the other: seconds to the first token of
    the first one and the median of the others.
chat: eight turns of 48 new tokens and 24 generated ones: seconds to the first token of the last.
pause: a stream of tokens while a prompt of 2,000 arrives: its longest pause and its median one.
cancels: 32 clients that go away at their first token: seconds to the first token of the next one.
schema: an answer of 64 tokens that a JSON schema constrains: tokens per second.
overhead: one stream over HTTP and one in this process, in turns: what the server adds to a token.
soak: thousands of short requests, eight at a time: the server's memory while they run.

The last line is one JSON object.
"""

import asyncio
import json
import os
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import cyclopts
import httpx
import torch
from cyclopts.types import NonNegativeInt, PositiveInt

from benchmarks.gguf_files import write_gguf
from llama import Llama, Tokenizer
from llama.checkpoint.info import read_facts
from llama.checkpoint.opening import open_checkpoint
from llama.cli import one_line_errors
from llama.console import notice, table
from llama.errors import InputError
from llama.evaluation.random_checkpoint import prepare
from llama.evaluation.speed import COMMAS

ROOT = Path(__file__).parents[1]
GGUF_FORMATS = {"bfloat16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
CLIENTS = (1, 2, 4, 8)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "ages": {"type": "array", "items": {"type": "integer"}, "minItems": 20, "maxItems": 40},
    },
    "required": ["name", "ages"],
    "additionalProperties": False,
}
Workload = Literal["throughput", "shared", "chat", "pause", "cancels", "schema", "overhead", "soak"]
COMPARED: tuple[Workload, ...] = ("throughput", "shared", "chat", "pause", "cancels", "schema")


@dataclass
class Stream:
    """One answer as its client sees it: when it was asked for, when its chunks came."""

    start: float
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    cached: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.arrivals[0] - self.start

    @property
    def pauses(self) -> list[float]:
        """Seconds between tokens."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


@dataclass
class Client:
    """Asks a server for completions of token ids."""

    http: httpx.AsyncClient
    model: str
    vocab_size: int
    random: random.Random

    def prompt(self, size: int) -> list[int]:
        """Random tokens that are neither bytes nor special."""
        return self.random.choices(range(256, self.vocab_size), k=size)

    async def complete(
        self, prompt: list[int], tokens: int, until: int | None = None, **more: Any
    ) -> Stream:
        """Streams an answer; goes away after `until` chunks."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        stream = Stream(time.perf_counter())
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise InputError(f"{response.status_code}: {(await response.aread()).decode()}")
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                now, event = time.perf_counter(), json.loads(line[6:])
                if "error" in event:
                    raise InputError(f"the stream ended with {event['error']}")
                if any(c["text"] or not c["finish_reason"] for c in event["choices"]):
                    stream.arrivals.append(now)
                if usage := event.get("usage"):
                    stream.tokens = usage["completion_tokens"]
                    stream.cached = (usage.get("prompt_tokens_details") or {}).get(
                        "cached_tokens", 0
                    )
                if until is not None and len(stream.arrivals) >= until:
                    break
        return stream


async def throughput(client: Client) -> dict[str, float]:
    results = {}
    for count in CLIENTS:
        prompts = [client.prompt(128) for _ in range(count)]
        start = time.perf_counter()
        streams = await asyncio.gather(*(client.complete(p, 64) for p in prompts))
        seconds = time.perf_counter() - start
        results[f"{count} clients, tokens/s"] = sum(s.tokens for s in streams) / seconds
    return results


async def shared(client: Client) -> dict[str, float]:
    common = client.prompt(1500)
    firsts = [(await client.complete(common + client.prompt(20), 4)).first for _ in range(8)]
    warm = median(firsts[1:])
    return {
        "cold first token, s": firsts[0],
        "warm first token, s": warm,
        "cold / warm": firsts[0] / warm,
    }


async def chat(client: Client) -> dict[str, float]:
    dialog, stream = client.prompt(48), Stream(0)
    for _ in range(8):
        stream = await client.complete(dialog, 24)
        dialog = dialog + client.prompt(24 + 48)  # the answer, as another tokenizer wrote it
    return {"first token of turn 8, s": stream.first, "of it from the store": stream.cached}


async def pause(client: Client) -> dict[str, float]:
    alone = await client.complete(client.prompt(64), 48)
    running = asyncio.create_task(client.complete(client.prompt(64), 400))
    await asyncio.sleep(1)
    prompt = await client.complete(client.prompt(2000), 1)
    arrived, begun = prompt.arrivals[0], prompt.start
    stream = await running
    beside = [
        b - a
        for a, b in zip(stream.arrivals, stream.arrivals[1:], strict=False)
        if begun < b and a < arrived
    ]
    typical = median(alone.pauses)
    return {
        "alone, median ms": typical * 1e3,
        "beside a prompt, median ms": median(beside) * 1e3,
        "longest ms": max(beside) * 1e3,
        "longest / alone": max(beside) / typical,
        "prompt's first token, s": prompt.first,
    }


async def cancels(client: Client) -> dict[str, float]:
    await asyncio.gather(*(client.complete(client.prompt(16), 512, until=1) for _ in range(32)))
    return {"first token after 32 cancels, s": (await client.complete(client.prompt(16), 4)).first}


async def schema(client: Client) -> dict[str, float]:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    more: dict[str, Any] = {"ignore_eos": False}
    more |= {"json_schema": SCHEMA} if client.model == "llama-server" else {"response_format": form}
    stream = await client.complete(client.prompt(64), 64, **more)
    return {"tokens/s": (stream.tokens - 1) / (stream.arrivals[-1] - stream.arrivals[0])}


WORKLOADS: dict[str, Callable[[Client], Awaitable[dict[str, float]]]] = {
    "throughput": throughput,
    "shared": shared,
    "chat": chat,
    "pause": pause,
    "cancels": cancels,
    "schema": schema,
}


@contextmanager
def serving(name: str, command: list[str], vocab_size: int, log: Path, seed: int):  # type: ignore[no-untyped-def]
    """A server's process and a function that runs a coroutine of a client of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            try:
                if httpx.get(f"{url}/health", timeout=60).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None:
                lines = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise InputError(f"{name} ended: {' '.join(lines)}")
            time.sleep(0.25)

        def run(work: Callable[[Client], Awaitable[Any]]) -> Any:
            async def task() -> Any:
                limits = httpx.Limits(max_connections=64, max_keepalive_connections=0)
                async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as http:
                    client = Client(http, name, vocab_size, random.Random(seed))
                    return await work(client)

            return asyncio.run(task())

        run(lambda client: client.complete(client.prompt(16), 8))  # threads, caches
        yield process, run
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def our_command(path: str, format_: str) -> list[str]:
    """The command line of this project's server; its model is called "ours"."""
    command = [sys.executable, "-m", "llama", "serve", path, "--name", "ours", "--dtype=bfloat16"]
    return [*command, *([] if format_ == "bfloat16" else ["--quantize", format_])]


def overhead(path: str, run: Any, tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of a token over HTTP and in this process, in turns."""
    llama = Llama.build(path, dtype="bfloat16")
    times: dict[str, list[float]] = {"over HTTP": [], "in Python": []}
    for seed in range(rounds):
        time.sleep(3)  # each model uses fewer threads while it sees the other one work
        prompt = random.Random(seed).choices(range(256, llama.tokenizer.n_words - 256), k=64)
        stream = run(lambda client, prompt=prompt: client.complete(prompt, tokens))
        times["over HTTP"].append(median(stream.pauses))
        arrivals = []
        time.sleep(3)
        options: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_gen_len": tokens}
        for _ in llama.generate_stream([prompt], **options):
            arrivals.append(time.perf_counter())
        times["in Python"].append(median(Stream(0, arrivals).pauses))
    http, python = (median(seconds) * 1e3 for seconds in times.values())
    added = median(a - b for a, b in zip(*times.values(), strict=True)) * 1e3
    return {"over HTTP, ms": http, "in Python, ms": python, "added ms": added}


def soak(process: Any, run: Any, requests: int) -> dict[str, float]:
    """The resident memory of the server in MB, before and while requests come, eight at a time."""

    def resident() -> float:
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def some(client: Client) -> None:
        async def one() -> None:
            for _ in range(requests // 80):
                prompt = client.prompt(client.random.randrange(8, 40))
                await client.complete(prompt, 8, until=client.random.choice([None, 1, 3]))

        await asyncio.gather(*(one() for _ in range(8)))

    sizes = {"MB after 0": resident()}
    for part in range(1, 11):
        run(some)
        sizes[f"MB after {part * (requests // 80) * 8:,}"] = resident()
    return sizes


def main(
    path: str,
    /,
    *,
    formats: Annotated[list[Literal["bfloat16", "int8", "int4"]], COMMAS] = ["bfloat16"],  # noqa: B006
    workloads: Annotated[list[Workload], COMMAS] = list(COMPARED),  # noqa: B006
    llama_server: str | None = None,
    rounds: PositiveInt = 2,
    threads: PositiveInt = 2,
    requests: NonNegativeInt = 10_000,
    folder: Path | None = None,
) -> None:
    """Measures servers in turns.

    Args:
        path: Checkpoint folder, or a shape, which gets random weights.
        formats: Weight formats.
        workloads: What to measure.
        llama_server: The command of llama-server; without it only this project is measured.
        rounds: How many times each server takes its turn.
        threads: CPU threads of each server.
        requests: How many requests `soak` makes.
        folder: Where files are made; a temporary folder if not given.
    """
    facts = read_facts(path)
    torch.set_num_threads(threads)
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        made = folder or Path(temporary)
        model, vocabulary = prepare(facts, path, str(made))
        if vocabulary is not None:
            Path(vocabulary).replace(Path(model) / "tokenizer.model")
        tokenizer = Tokenizer(Path(model) / "tokenizer.model")
        size = tokenizer.n_words - 256
        commands: dict[str, list[str]] = {}
        for format_ in formats:
            commands[f"llama {format_}"] = our_command(model, format_)
            if llama_server is not None:
                target = gguf_file(model, tokenizer, GGUF_FORMATS[format_], made, threads)
                options = f"-m {target} -t {threads} -c 24576 -np 8 --no-webui"
                label = f"llama-server {GGUF_FORMATS[format_]}"
                commands[label] = [*shlex.split(llama_server), *options.split()]
        for number in range(rounds):
            for label, command in commands.items():
                name = "llama-server" if "-server" in label else "ours"
                log = made / f"{label}.log"
                with serving(name, command, size, log, number) as (process, run):
                    for workload in workloads:
                        notice(f"round {number + 1}: {label}, {workload}")
                        if workload in WORKLOADS:
                            found = run(WORKLOADS[workload])
                        elif name != "ours":
                            continue
                        elif workload == "soak":
                            found = soak(process, run, requests)
                        else:
                            found = overhead(model, run, tokens=64, rounds=5)
                        for key, value in found.items():
                            row = results.setdefault(f"{workload}: {key}", {})
                            row.setdefault(label, []).append(value)
    labels = list(dict.fromkeys(label for row in results.values() for label in row))
    rows: list[list[str]] = [["", *labels]]
    for key, row in results.items():
        rows.append([key, *(f"{median(row[n]):,.2f}" if n in row else "" for n in labels)])
    print(table(rows))
    print(json.dumps(results))


def gguf_file(model: str, tokenizer: Tokenizer, format_: str, folder: Path, threads: int) -> Path:
    """The checkpoint in llama.cpp's format, made by llama.cpp's own quantization."""
    source, target = folder / "BF16.gguf", folder / f"{format_}.gguf"
    if not source.exists():
        write_gguf(open_checkpoint(model), source, tokenizer)
    if not target.exists():
        import llama_cpp as api

        params = api.llama_model_quantize_default_params()
        params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{format_}")
        params.nthread = threads
        if api.llama_model_quantize(str(source).encode(), str(target).encode(), params):
            raise InputError(f"llama.cpp does not make {format_} of {source}")
    return target


if __name__ == "__main__":
    with one_line_errors():
        cyclopts.run(main)
