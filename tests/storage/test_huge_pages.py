"""Memory for weights in large pages."""

import re
from pathlib import Path

import pytest
import torch

from llama.checkpoint.bundled import bundled_model
from llama.storage import huge_pages
from llama.storage.files import Folder
from llama.storage.tensor_files import open_tensors

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _flags(address: int) -> str:
    """What Linux says of the mapping at an address: `hg` stands for large pages asked for."""
    is_here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_here = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_here and line.startswith("VmFlags:"):
            return line
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("shape", [(3, 5), (1 << 10, 1 << 11), (1, 4_000_001)])
def test_empty_memory_holds_what_is_written(shape: tuple[int, ...]) -> None:
    memory = huge_pages.empty(shape, torch.uint8)
    numbers = torch.randint(0, 256, shape, dtype=torch.uint8)
    memory.copy_(numbers)
    part = memory[-1:]
    del memory
    assert torch.equal(part, numbers[-1:])


@pytest.mark.skipif(
    not _ENABLED.exists() or "[never]" in _ENABLED.read_text(), reason="no large pages here"
)
def test_weights_ask_for_large_pages() -> None:
    memory = huge_pages.empty((4 << 20,), torch.uint8)
    file = open_tensors(Folder(bundled_model()), "consolidated.00.pth")
    mapped = file.tensors["norm.weight"].map(keep=True)
    assert " hg" in _flags(memory.data_ptr() + (1 << 20))
    assert " hg" in _flags(mapped.data_ptr())
    assert " hg" not in _flags(torch.zeros(1 << 20).data_ptr())
