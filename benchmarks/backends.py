"""What inference.py measures: this project and others, each in a process that is asked over a pipe.

This file is run by its path and imports nothing but the standard library at its top, so that the
process of llama.cpp holds no second OpenMP runtime. It reads a line of JSON that says what to load,
answers when that is done, and then answers each request with its times, or says why it failed:

    {"kind": "llama", "path": "params/tiny", "format": "int8", "device": "cpu", ...}
    {"load": 0.3}
    {"prompts": [[1, 2, 3, 4]], "tokens": 16, "sampled": false}
    {"first": 0.01, "rest": 0.1, "tokens": [[...]], "peak": 300000000, "device_peak": 0}

`start` runs the prompts and chooses a token for each, `step` one more for each: the clock around
those two calls is the same for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

Spec = dict[str, Any]


class Ours:
    """This project, as `llama bench` runs it."""

    def __init__(self, spec: Spec) -> None:
        import torch

        from llama.evaluation.speed import Runner

        self.spec, self.runner_class = spec, Runner
        torch.set_num_threads(spec["threads"])
        self.sync = _synchronizer(spec["device"])
        self.device_peak = _device_peak(spec["device"])

    def load(self) -> None:
        spec = self.spec
        lengths = {int(rows): length for rows, length in spec["lengths"].items()}
        self.runner = self.runner_class(
            spec["path"], spec["tokenizer"], spec["format"], lengths, spec["device"]
        )
        self.start, self.step = self.runner.start, self.runner.step
        self.end = self.runner.end


class Transformers:
    """Hugging Face's model, its forward called by hand: `generate` does more between two tokens."""

    def __init__(self, spec: Spec) -> None:
        import torch
        from transformers import LlamaForCausalLM

        self.spec, self.torch, self.model_class = spec, torch, LlamaForCausalLM
        torch.set_num_threads(spec["threads"])
        self.sync = _synchronizer(spec["device"])
        self.device_peak = _device_peak(spec["device"])

    def load(self) -> None:
        model = self.model_class.from_pretrained(self.spec["path"], dtype=self.torch.bfloat16)
        self.model: Any = model.to(self.spec["device"]).eval()

    def start(self, prompts: list[list[int]], tokens: int, sampled: bool) -> None:
        assert not sampled, "only this project's sampling is measured"
        self.cache: Any = None
        self.newest = self.torch.tensor(prompts, device=self.spec["device"])
        self.chosen: list[Any] = []
        self.step()

    def step(self) -> None:
        with self.torch.inference_mode():
            # The last position's logits only, as in `generate`.
            out = self.model(
                self.newest, past_key_values=self.cache, use_cache=True, logits_to_keep=1
            )
            self.cache = out.past_key_values
            self.newest = out.logits[:, -1].argmax(-1, keepdim=True)
        self.chosen.append(self.newest)

    def end(self) -> list[list[int]]:
        self.cache = None
        return self.torch.cat(self.chosen, 1).tolist()


class LlamaCpp:
    """llama.cpp by its C interface, with its own defaults and a context for each number of rows."""

    def __init__(self, spec: Spec) -> None:
        import llama_cpp
        import numpy

        self.spec, self.api, self.numpy = spec, llama_cpp, numpy
        self.sync = lambda: None  # `llama_get_logits_ith` waits for them
        self.device_peak = lambda: 0  # unknown

    def load(self) -> None:
        api, path = self.api, self.spec["path"]
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0 if self.spec["device"] == "cpu" else 999
        self.model = api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        self.contexts: dict[int, Any] = {}

    def _context(self, rows: int) -> Any:
        if rows not in self.contexts:
            params = self.api.llama_context_default_params()
            length = -(-self.spec["lengths"][str(rows)] // 256) * 256  # it takes whole blocks
            params.n_ctx, params.n_seq_max = rows * length, rows
            params.n_threads = params.n_threads_batch = self.spec["threads"]
            context = self.api.llama_init_from_model(self.model, params)
            if not context:
                raise MemoryError(f"llama.cpp makes no context for {rows} x {length} positions")
            self.most = self.api.llama_n_batch(context)
            self.contexts[rows] = context, self.api.llama_batch_init(self.most, 0, 1)
        return self.contexts[rows]

    def start(self, prompts: list[list[int]], tokens: int, sampled: bool) -> None:
        assert not sampled, "only this project's sampling is measured"
        self.context, self.batch = self._context(len(prompts))
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        self.chosen: list[list[int]] = [[] for _ in prompts]
        self.length = len(prompts[0])
        entries = [
            (token, position, row)
            for row, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for start in range(0, len(entries), self.most):
            self._decode(entries[start : start + self.most], self.length - 1)

    def step(self) -> None:
        self._decode([(row[-1], self.length, i) for i, row in enumerate(self.chosen)], self.length)
        self.length += 1

    def _decode(self, entries: list[tuple[int, int, int]], wanted: int) -> None:
        """Runs (token, position, row)s, and takes the likeliest token where the last stands."""
        batch = self.batch
        batch.n_tokens = len(entries)
        for i, (token, position, row) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = position == wanted
        if code := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        for i, (_, position, row) in enumerate(entries):
            if position == wanted:
                self.chosen[row].append(int(self.logits(i).argmax()))

    def logits(self, i: int) -> Any:
        """The logits of entry number `i` of the last batch, as a numpy array (vocab,)."""
        pointer = self.api.llama_get_logits_ith(self.context, i)
        return self.numpy.ctypeslib.as_array(pointer, shape=(self.vocab_size,))

    def end(self) -> list[list[int]]:
        return self.chosen


class Quantizing:
    """No backend: makes a GGUF file of another by llama.cpp's defaults, apart from all clocks."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec

    def load(self) -> None:
        import llama_cpp as api

        params = api.llama_model_quantize_default_params()
        params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{self.spec['format']}")
        params.nthread = self.spec["threads"]
        source, target = self.spec["source"], self.spec["path"]
        if api.llama_model_quantize(source.encode(), target.encode(), params):
            raise RuntimeError(f"llama.cpp does not make {self.spec['format']} of {source}")


KINDS: dict[str, Any] = {
    "llama": Ours,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "quantizing": Quantizing,
}


def measure(backend: Any, prompts: list[list[int]], tokens: int, sampled: bool) -> Spec:
    """Seconds to the first token of each prompt, and of the `tokens` that follow it."""
    backend.sync()
    begin = time.perf_counter()
    backend.start(prompts, tokens, sampled)
    backend.sync()
    first = time.perf_counter()
    for _ in range(tokens):
        backend.step()
    backend.sync()
    rest = time.perf_counter() - first
    chosen = backend.end()
    if [len(row) for row in chosen] != [tokens + 1] * len(prompts):
        raise RuntimeError(f"wrote {[len(row) for row in chosen]} tokens, not {tokens + 1} each")
    return {"first": first - begin, "rest": rest, "tokens": chosen}


def peak() -> int:
    """The most memory that this process has held so far, in bytes, mapped files with it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


def _synchronizer(device: str) -> Any:
    import torch

    if device == "cpu":
        return lambda: None
    return torch.cuda.synchronize if device.startswith("cuda") else torch.mps.synchronize


def _device_peak(device: str) -> Any:
    import torch

    return torch.cuda.max_memory_allocated if device.startswith("cuda") else lambda: 0


def main() -> None:
    """Loads, then answers until its input ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a traceback would be the last thing on screen
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        spec = json.loads(sys.stdin.readline())
        backend = KINDS[spec["kind"]](spec)
        begin = time.perf_counter()
        backend.load()
        print(json.dumps({"load": time.perf_counter() - begin}), file=answers)
        for line in sys.stdin:
            answer = measure(backend, **json.loads(line))
            answer |= {"peak": peak(), "device_peak": backend.device_peak()}
            print(json.dumps(answer), file=answers)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())  # in one line
        print(json.dumps({"failed": why}), file=answers)
        raise


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # this folder's files are no top-level modules
    main()
