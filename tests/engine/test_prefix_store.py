"""A folder of chunks that several processes share, and that one is killed in."""

import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch

from llama.engine.prefix_store import PrefixStore

SIZE = 4


def chunk(prompt: list[int], index: int) -> tuple[torch.Tensor, ...]:
    """What a model would compute: other numbers for other tokens."""
    number = sum(prompt[: (index + 1) * SIZE]) + 1000 * index
    return torch.full((2, 3, SIZE, 8), float(number)), torch.full((2, 3, SIZE, 8), -float(number))


def prompts() -> list[list[int]]:
    return [[i % 7, i, i // 3, 5, *range(i, i + 9)] for i in range(60)]


def check(store: PrefixStore, prompt: list[int]) -> int:
    found = store.find(prompt)
    for index, tensors in enumerate(found):
        for ours, right in zip(tensors, chunk(prompt, index), strict=True):
            assert torch.equal(ours, right)
    return len(found)


def write_for_ever(folder: Path, budget: int) -> None:
    while True:
        store = PrefixStore(10**6, SIZE, "x", folder, folder_budget=budget)
        for prompt in prompts():
            for index in range(len(prompt) // SIZE):
                check(store, prompt)
                store.put(prompt, index, functools.partial(chunk, prompt, index))


def test_processes_share_a_folder_and_one_is_killed_while_it_writes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=write_for_ever, args=(tmp_path, budget), daemon=True)
        for budget in (10**7, 60_000)  # one of them deletes what the other writes
    ]
    for writer in writers:
        writer.start()
    try:
        for _ in range(4):
            time.sleep(0.2)
            assert writers[0].pid is not None
            os.kill(writers[0].pid, signal.SIGKILL)
            writers[0].join()
            fresh = PrefixStore(10**7, SIZE, "x", tmp_path)
            for prompt in prompts():
                check(fresh, prompt)
            writers[0] = context.Process(target=write_for_ever, args=(tmp_path, 10**7), daemon=True)
            writers[0].start()
        assert writers[1].is_alive()
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    store = PrefixStore(10**7, SIZE, "x", tmp_path)
    store.put(prompts()[0], 0, lambda: chunk(prompts()[0], 0))
    assert check(PrefixStore(10**7, SIZE, "x", tmp_path), prompts()[0]) >= 1
    assert PrefixStore(10**7, SIZE, "y", tmp_path).find(prompts()[0]) == []  # another model
