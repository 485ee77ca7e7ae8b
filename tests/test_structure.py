"""What the project promises of its own files."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_model_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "llama" / "model.py").read_text().splitlines()) < 350


def test_no_module_imports_one_above_it() -> None:
    pytest.importorskip("importlinter")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_changes_nothing() -> None:
    """No dtype, device, thread count or random state is touched, and nothing is printed."""
    script = """
import torch
def state():
    return (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.distributed.is_initialized(), torch.initial_seed())
before = state()
import llama, llama.cli, llama.training
assert state() == before
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
