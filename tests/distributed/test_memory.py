"""How much memory there is, with and without a container's limit."""

from pathlib import Path

import pytest
import torch
from fixtures import tiny_args

from llama import Engine, Tokenizer, Transformer, distributed
from llama.distributed import memory

CPU = torch.device("cpu")
MB = 10**6


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes what the kernel says of a control group."""
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/\n")

    def write(folder: str, limit: str, used: int, cached: int = 0, version: int = 2) -> None:
        names = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            2: ("memory.max", "memory.current", "inactive_file"),
        }[version]
        path = tmp_path / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / names[0]).write_text(f"{limit}\n")
        (path / names[1]).write_text(f"{used}\n")
        (path / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\nactive_file 7\n")

    return write


def own(tmp_path: Path, text: str) -> None:
    (tmp_path / "own").write_text(text)


def test_without_a_limit_it_is_the_machines(group) -> None:
    whole = distributed.main_memory()
    assert whole > distributed.free_memory(CPU) > 10 * MB
    group(".", "max", 900)
    assert distributed.main_memory() == whole
    group(".", str(10**18), 900)  # of version 1 without a limit, or more than there is
    assert distributed.main_memory() == whole
    assert distributed.free_memory(CPU) > 10 * MB


def test_a_containers_limit_counts_without_files_that_are_only_cached(group) -> None:
    group(".", str(123 * MB), 50 * MB, 20 * MB)
    assert distributed.main_memory() == 123 * MB
    assert distributed.free_memory(CPU) == 93 * MB
    group(".", str(40 * MB), 50 * MB)
    assert distributed.free_memory(CPU) == 0


def test_the_least_of_the_limits_of_a_group_and_those_around_it(group, tmp_path: Path) -> None:
    own(tmp_path, "0::/user/session\n")
    group("user/session", str(200 * MB), 10 * MB)
    group("user", str(100 * MB), 60 * MB)
    assert (distributed.main_memory(), distributed.free_memory(CPU)) == (100 * MB, 40 * MB)
    group("user/session", str(30 * MB), 10 * MB)
    assert (distributed.main_memory(), distributed.free_memory(CPU)) == (30 * MB, 20 * MB)
    own(tmp_path, "0::/of/the/host\n")  # not to be seen from within a container
    group(".", str(25 * MB), 10 * MB)
    assert (distributed.main_memory(), distributed.free_memory(CPU)) == (25 * MB, 15 * MB)


def test_groups_of_version_1(group, tmp_path: Path) -> None:
    own(tmp_path, "9:name=systemd:/\n4:cpu,memory:/docker/12ab\n0::/\n")
    group("memory/docker/12ab", str(100 * MB), 60 * MB, 10 * MB, version=1)
    assert (distributed.main_memory(), distributed.free_memory(CPU)) == (100 * MB, 50 * MB)


def test_an_engines_memory_is_a_share_of_what_its_container_has_left(
    group, tokenizer: Tokenizer
) -> None:
    group(".", str(123 * MB), 43 * MB)
    engine = Engine(Transformer(tiny_args(vocab_size=tokenizer.n_words)), tokenizer, 1, 32)
    assert engine.memory.budget == 40 * MB
    assert engine._runner.store is not None
    assert engine._runner.store.budget == 10 * MB
