"""Compiles the C sources in `csrc`, once for each machine, and loads them.

Libraries are kept in `cache_root()`, in a folder that only this user can write to: what lies there
runs as this user. Threads are torch's own: a library is linked to the OpenMP that torch has loaded,
so that `torch.set_num_threads` holds for it.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from filelock import FileLock

from llama import console
from llama.storage import files

_SOURCES = Path(__file__).parent / "csrc"
# What each library is made of, and with which flags.
_FLOAT32 = "-DIN_FLOAT32"  # see element_types.h
_CODE: dict[str, list[tuple[str, ...]]] = {
    "inference": [
        *(("matmul.c",), ("matmul.c", _FLOAT32), ("packed_matmul.c",), ("bf12_matmul.c",)),
        *(("decode_block.c",), ("decode_block.c", _FLOAT32), ("prefill.c",)),
    ],
    "training": [
        *(("norm_gate_loss.c",), ("norm_gate_loss.c", _FLOAT32)),
        *(("packed_attention.c",), ("packed_attention.c", _FLOAT32)),
    ],
}


def load(part: str, target: str = "native") -> ctypes.CDLL:
    """The library for `part`, from the cache or compiled.

    `target` is an architecture that the compiler knows. A cache that another user can change is
    not used: one line says so, and the library is compiled for this process alone. Raises OSError
    or CalledProcessError where it can't be compiled.
    """
    compiler = _compiler()
    flags, libraries = _flags(target), _openmp()
    command = [*compiler, *flags]
    try:
        return ctypes.CDLL(str(_cached(part, command, libraries)))
    except PermissionError as error:
        console.notice(f"{error}; native kernels are compiled for this process alone")
    with tempfile.TemporaryDirectory() as folder:
        return ctypes.CDLL(str(_compile(part, command, libraries, Path(folder))))


def _compiler() -> list[str]:
    """The command in $CC, which may have options, else cc, gcc or clang."""
    try:
        command = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise OSError(f"CC={os.environ['CC']}: {error}") from error
    found = command or [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path][:1]
    if not found:
        raise OSError("there is no C compiler (cc, gcc or clang; $CC)")
    return found


def _flags(target: str) -> list[str]:
    is_arm = platform.machine() in ("arm64", "aarch64")
    # The two about math leave numbers as they are, and let loops with rintf become vectors.
    flags = ["-O3", f"-m{'cpu' if is_arm else 'arch'}={target}", "-fno-math-errno"]
    return [*flags, "-fno-trapping-math", "-fopenmp", "-fPIC"]


def _openmp() -> list[Path]:
    """torch's own OpenMP, by its file: another copy would bring threads of its own."""
    return sorted(Path(torch.__file__).parent.glob("lib*/l*[!c]omp*.so*"))[:1]  # no compiler


def _cached(part: str, command: Sequence[str], libraries: Sequence[Path]) -> Path:
    """The library in the cache; made if none is there for this source, compiler and processor.

    Of several processes one compiles and the others wait. Raises PermissionError for a cache that
    another user can change.
    """
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    sources = [source.read_text() for source in sorted(_SOURCES.glob("*.[ch]"))]
    made_from = [part, version.stdout, *command, *map(str, libraries), processor(), *sources]
    name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    root = files.cache_root()
    folder = root / "native"
    root.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_owner(root, stat.S_IWOTH)
    _check_owner(folder)
    library = folder / f"{part}-{name}.so"
    if not _is_intact(library):
        with FileLock(library.with_suffix(".lock")):
            if not _is_intact(library):
                with tempfile.TemporaryDirectory(dir=folder) as space:
                    made = _compile(part, command, libraries, Path(space))
                    made.chmod(0o700)
                    digest = hashlib.sha256(made.read_bytes()).hexdigest()
                    made.replace(library)
                with files.atomic_write(library.with_suffix(".sha256")) as file:
                    file.write(digest.encode())
    return library


def _check_owner(path: Path, shared: int = stat.S_IWGRP | stat.S_IWOTH) -> None:
    """Raises PermissionError for a path of another user, or with any of the mode bits `shared`."""
    if os.name != "posix":
        return
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & shared and not status.st_mode & stat.S_ISVTX:
        raise PermissionError(f"other users can write to {path} (mend it with chmod go-w)")


def _is_intact(library: Path) -> bool:
    """Whether a library is there and whole: loading a truncated one ends the process."""
    try:
        _check_owner(library)
        digest = library.with_suffix(".sha256").read_text()
    except FileNotFoundError:
        return False
    return hashlib.sha256(library.read_bytes()).hexdigest() == digest


def _compile(part: str, command: Sequence[str], libraries: Sequence[Path], folder: Path) -> Path:
    """Compiles and links in `folder`; the path of the library."""
    library, code = folder / f"{part}.so", _CODE[part]
    objects = [folder / f"{i}.o" for i in range(len(code))]
    _run_all(
        [*command, *flags, "-c", _SOURCES / source, "-o", made]
        for (source, *flags), made in zip(code, objects, strict=True)
    )
    _run_all([[*command, "-shared", *objects, *libraries, "-o", library, "-lm"]])
    return library


def _run_all(commands: Iterable[list[str | Path]]) -> None:
    """Runs commands side by side. Raises CalledProcessError with the error output of the first."""
    started = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True) for c in commands]
    outputs = [process.communicate()[1] for process in started]
    for process, output in zip(started, outputs, strict=True):
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, stderr=output)


def processor() -> str:
    """What the processor can do: a library for another one may stop this process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
