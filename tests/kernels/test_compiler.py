"""Compiling the kernels, keeping the libraries, and doing without them."""

import ctypes
import functools
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from fixtures import difference, needs_compiler

from llama import kernels
from llama.kernels import bindings, compiler, linear

NO_KERNELS = (
    "no native kernels, decoding takes 2.5 times as long, "
    "of int8, int4 and bf12 weights over 100 times: "
)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@needs_compiler
@pytest.mark.parametrize("part", ["inference", "training"])
def test_there_is_a_library_where_there_is_a_compiler(part: str) -> None:
    assert isinstance(bindings.library(part), ctypes.CDLL)


@pytest.mark.parametrize("compiler", ["", "false", "no-such-compiler", "cc '-m64"])
def test_without_a_compiler_one_line_says_so(
    compiler: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(bindings, "library", functools.cache(bindings.library.__wrapped__))
    x, weight = numbers(2, 32), numbers(16, 32)
    for _ in range(2):
        assert difference(linear(x, weight), x.double() @ weight.double().T) < 4e-3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(NO_KERNELS)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "notice"),
    [
        ("off", NO_KERNELS + "LLAMA_KERNELS=off"),
        pytest.param(
            "x86-64-v3",
            "native kernels for x86-64-v3, where this processor may be faster (LLAMA_KERNELS)",
            marks=pytest.mark.skipif("avx2" not in compiler.processor(), reason="needs AVX2"),
        ),
        ("no-such-processor", NO_KERNELS),
    ],
)
def test_kernels_can_be_chosen(
    target: str, notice: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("LLAMA_KERNELS", target)
    monkeypatch.setattr(bindings, "library", functools.cache(bindings.library.__wrapped__))
    x, weight = numbers(2, 32), numbers(16, 32)
    assert difference(linear(x, weight), x.double() @ weight.double().T) < 4e-3
    assert kernels.available() == (target == "x86-64-v3")
    assert capfd.readouterr().err.startswith(notice)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library, compiled without optimization."""
    command = [*compiler._compiler(), *compiler._flags("native"), "-O0"]
    folder = tmp_path_factory.mktemp("compiled")
    return compiler._compile("inference", command, compiler._openmp(), folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are kept, in a cache of the test's own."""
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path))
    return tmp_path / "native"


@pytest.fixture
def compilations(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a library is compiled in, which here means copied to."""
    folders = []

    def copy(part: str, command: list[str], libraries: list[Path], folder: Path) -> Path:
        folders.append(folder)
        return Path(shutil.copy(compiled, folder))

    monkeypatch.setattr(compiler, "_compile", copy)
    return folders


def library_in(folder: Path) -> Path:
    (library,) = folder.glob("*.so")
    return library


@needs_compiler
def test_a_library_is_compiled_once(
    folder: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        assert bindings.load("inference", "native").supports_head_dim(48) == 0
    assert len(compilations) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(path.suffix for path in folder.iterdir()) == [".lock", ".sha256", ".so"]
    monkeypatch.setattr(compiler, "processor", lambda: "another one")
    compiler.load("inference")
    assert len(compilations) == 2


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "other bytes", "no checksum"])
def test_a_damaged_library_is_compiled_again(
    damage: str, folder: Path, compilations: list[Path]
) -> None:
    command = [*compiler._compiler(), *compiler._flags("native")]
    library = compiler._cached("inference", command, compiler._openmp())  # not loaded
    whole = library.read_bytes()
    half = whole[: len(whole) // 2]
    if damage == "no checksum":
        library.with_suffix(".sha256").unlink()
    else:
        library.write_bytes({"truncated": half, "empty": b"", "other bytes": half * 2}[damage])
    assert compiler.load("inference").supports_head_dim
    assert len(compilations) == 2
    assert library_in(folder).read_bytes() == whole
    assert compiler.load("inference").supports_head_dim
    assert len(compilations) == 2


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="needs owners of files")
@pytest.mark.parametrize("what", ["cache", "folder", "library"])
@pytest.mark.parametrize("wrong", ["owner", "mode"])
def test_what_others_can_write_to_is_not_loaded(
    what: str,
    wrong: str,
    folder: Path,
    compilations: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    compiler.load("inference")
    path = {"cache": folder.parent, "folder": folder, "library": library_in(folder)}[what]
    if wrong == "mode":
        path.chmod(0o777)
        reason = f"other users can write to {path} (mend it with chmod go-w)"
    else:
        os_stat, other = Path.stat, 1 + os.geteuid()

        def stat_as_of_another(self: Path, **settings: bool) -> os.stat_result:
            found = os_stat(self, **settings)
            return os.stat_result((*found[:4], other, *found[5:])) if self == path else found

        monkeypatch.setattr(Path, "stat", stat_as_of_another)
        reason = f"{path} belongs to another user"
    assert compiler.load("inference").supports_head_dim
    cached, private = compilations
    assert cached.is_relative_to(folder)
    assert not private.is_relative_to(folder.parent)
    assert not private.exists()
    expected = f"{reason}; native kernels are compiled for this process alone\n"
    assert capfd.readouterr().err == expected


@needs_compiler
@pytest.mark.parametrize("part", ["inference", "training"])
def test_a_compiler_may_have_options(
    part: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", f"{shutil.which('cc')} -DA='1 + 1'")
    flags = compiler._flags
    monkeypatch.setattr(compiler, "_flags", lambda target: [*flags(target), "-O0"])
    assert isinstance(compiler.load(part), ctypes.CDLL)
