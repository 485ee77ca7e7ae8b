"""Small tokenizer files, models and process groups, made on the fly: tests download nothing."""

from __future__ import annotations

import atexit
import base64
import io
import json
import multiprocessing.forkserver
import multiprocessing.reduction
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

from llama.kernels import bindings, compiler
from llama.model import ModelArgs

MERGES = (
    *(b"th", b"he", b"the", b" the", b" a", b" t", b"er", b"or", b"in", b"ing", b"ll", b"lo"),
    *(b"hello", b" w", b" wor", b" world", b"12", b"123", b"  ", b"    ", b"\n\n", b"\t\t"),
    *(
        b"use",
        b"user",
        b"ass",
        b"ist",
        b"assist",
        b"ant",
        b"assistant",
        b"\xc3\xa9",
        b"\xf0\x9f",
        b"St",
    ),
)

SENTENCES = (
    "Once upon a time there was a little girl named Lily.",
    "She liked to play with her dog in the park, and the dog liked to play with her.",
    'One day they saw a big red ball. "Whose ball is it?" asked Lily.',
    "The dog said nothing. He ran to the ball and gave it to her 123 times.",
    "They played until the sun went down, and then they went home together.",
    "[INST] <<SYS>> You are a helpful assistant. <</SYS>> Hello! [/INST]",
)


def write_tiktoken(path: Path, merges: Sequence[bytes] = MERGES) -> Path:
    """A byte-level ranks file: the 256 bytes, then `merges`. Returns `path`."""
    tokens = [bytes([byte]) for byte in range(256)] + list(merges)
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_sentencepiece(path: Path, vocab_size: int = 400, **settings: object) -> Path:
    """A SentencePiece model of 310 pieces or more, with Llama 2's settings unless others are given.

    Returns `path`.
    """
    model = io.BytesIO()
    llama2 = {
        "model_type": "bpe",
        "byte_fallback": True,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "add_dummy_prefix": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=model,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **(llama2 | settings),
    )
    path.write_bytes(model.getvalue())
    return path


def tiny_args(**overrides: Any) -> ModelArgs:
    """A grouped-query model of 2 layers that is made in milliseconds and splits over two ranks."""
    shape = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=16)
    return ModelArgs(**{**shape, "max_batch_size": 4, "max_seq_len": 32, **overrides})


def write_shards(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    params: Mapping[str, Any],
    count: int = 1,
    llama2: bool = False,
) -> Path:
    """A checkpoint of `count` shards as Meta's training wrote them, one head's rows whole in each.

    Of more shards than KV heads, neighbours hold the same head. `llama2` cuts the embedding along
    its other dimension. Returns `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    heads = params.get("n_kv_heads") or params["n_heads"]
    for i in range(count):
        shard = {}
        for name, weight in weights.items():
            dim, parts, mine = 0, count, i
            if name.endswith(("wo.weight", "w2.weight")) or (llama2 and "tok_" in name):
                dim = 1
            elif name.endswith(("wk.weight", "wv.weight")) and heads < count:
                parts, mine = heads, i * heads // count
            elif weight.dim() == 1:
                parts, mine = 1, 0
            shard[name] = weight.chunk(parts, dim)[mine].clone()
        torch.save(shard, folder / f"consolidated.{i:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    return folder


def is_mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether a tensor's memory is that of a file, by Linux's table of this process's mappings."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if line.endswith(str(file)) and start <= tensor.data_ptr() < end:
            return True
    return False


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the error, relative to that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


HAS_COMPILER = any(map(shutil.which, ("cc", "gcc", "clang")))
needs_compiler = pytest.mark.skipif(
    os.environ.get("LLAMA_KERNELS") == "off" or not HAS_COMPILER,
    reason="needs a C compiler and native kernels",
)

# Architectures to compile native kernels for, and what a processor has to have for each.
KERNEL_TARGETS = {"x86-64-v3": "avx2", "cascadelake": "avx512_vnni", "x86-64": "sse2"}


def kernel_targets(*quick: str) -> list[Any]:
    """Parameters of a test: the targets, of which only the `quick` ones are in the default run."""
    slow = pytest.mark.slow
    return [t if t in quick else pytest.param(t, marks=slow) for t in KERNEL_TARGETS]


def use_kernels(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the native kernels for `target`, or none, in the place of this processor's own."""
    libraries = {}
    if target != "off":
        if not HAS_COMPILER:
            pytest.skip("needs a C compiler")
        if KERNEL_TARGETS[target] not in compiler.processor().split():
            pytest.skip(f"this processor does not run what is compiled for {target}")
        for part in ("inference", "training"):
            libraries[part] = bindings.load(part, target)
    monkeypatch.setattr(bindings, "library", libraries.get)


# What ranks import, some of it in their first step of training. The fork server imports it once.
_PRELOADED = ["fixtures", "llama.generation", "llama.training", "llama.evaluation"]
_PRELOADED += ["torch._dynamo", "torch.distributed.fsdp"]


def run_ranks(count: int, function: Callable[..., Any], *args: Any, timeout: float = 300) -> list:
    """What `function(*args)` returns in each of `count` new processes, started as by torchrun.

    `function` stands at the top level of a module and returns tensors and plain values. An
    exception in one rank ends all of them and is raised here with that rank's traceback; so does
    a rank that takes longer than `timeout` seconds.

    A fork server lives as long as this process. It has imported torch and this package, has no
    threads and runs no code of ours, so that a rank is forked from it in milliseconds and finds
    nothing that an earlier one left.
    """
    _start_fork_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env = {**os.environ, "LOCAL_WORLD_SIZE": str(count), **env}
    with tempfile.TemporaryDirectory() as folder:
        ranks = torch.multiprocessing.start_processes(
            _run_rank,
            (function, args, env, _OutputStreams(), folder),
            count,
            join=False,
            start_method="forkserver",
        )
        deadline = time.monotonic() + timeout
        try:
            while not ranks.join(timeout=1):
                if time.monotonic() > deadline:
                    name = getattr(function, "__name__", function)
                    raise TimeoutError(f"{name} did not end within {timeout} s on {count} ranks")
        finally:
            for process in ranks.processes:
                process.kill()
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]


def _start_fork_server() -> None:
    multiprocessing.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        multiprocessing.forkserver.ensure_running()


class _OutputStreams:
    """The caller's standard output and error: the fork server has those of the first call."""

    def __getstate__(self) -> list[Any]:
        return [multiprocessing.reduction.DupFd(stream) for stream in (1, 2)]

    def __setstate__(self, copies: list[Any]) -> None:
        for stream, copy in zip((1, 2), copies, strict=True):
            os.dup2(copy.detach(), stream)


def _run_rank(
    rank: int,
    function: Callable[..., Any],
    args: tuple,
    env: dict[str, str],
    streams: _OutputStreams,
    folder: str,
) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(env, RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    try:
        found = function(*args)
    except (pytest.fail.Exception, SystemExit) as error:  # torch hands on no BaseException
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    torch.save(found, Path(folder, f"{rank}.pt"))
    atexit._run_exitfuncs()  # a fork server's processes end without it
    sys.stdout.flush()


def _exit_with_parent() -> None:
    """Ends a rank that outlives pytest: nobody else would."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
