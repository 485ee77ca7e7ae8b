"""What the project promises of its own files."""

import re
import subprocess
import sys
from collections import Counter
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


def test_file_names_are_unique() -> None:
    """A C source and its header are one; a package's __init__ and __main__ have no choice."""
    files = [f for f in (ROOT / "llama").rglob("*.*") if f.suffix in (".py", ".c", ".h")]
    kinds = {(file.stem, file.parent) for file in files if not file.stem.startswith("__")}
    counts = Counter(name for name, _ in kinds)
    assert len(counts) > 50
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_readme_and_the_packaging_name_the_same_python() -> None:
    (needed,) = re.findall(r'python_requires=">=(\S+)"', (ROOT / "setup.py").read_text())
    named = re.findall(r"Python (\d+\.\d+)", (ROOT / "README.md").read_text())
    assert {*named} == {needed}


def test_importing_changes_nothing() -> None:
    """No dtype, device, thread count or random state is touched, and nothing is printed."""
    script = """
import importlib, os, pkgutil, random, signal, sys, warnings
import numpy, torch
import rich.style  # which draws a random number
def state():
    return (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.distributed.is_initialized(), torch.initial_seed(),
            torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr, sys.excepthook,
            dict(os.environ), os.getcwd())
before = state()
import llama
for module in pkgutil.walk_packages(llama.__path__, "llama."):
    if not module.name.endswith((".__main__", ".lm_eval_model")):  # these run, or need lm-eval
        importlib.import_module(module.name)
assert len([name for name in sys.modules if name.startswith("llama.")]) > 40
for was, now in zip(before, state(), strict=True):
    assert was == now, (was, now)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
