"""Compiles the C sources that lie beside this file, once for each machine.

Threads are torch's own: a library is bound to the OpenMP that torch has loaded, so that
`torch.set_num_threads` holds for it.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from llama.storage import files

_HEADERS = ("vectors.h", "linear.h", "block.h", "training.h", "tiles.h")
# What each library is made of, and with which flags.
_CODE: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "inference": [("linear.c", ()), ("block.c", ()), ("prompt.c", ())],
    "training": [
        (source, flags)
        for source in ("training.c", "documents.c")
        for flags in ((), ("-DIN_FLOAT32",))
    ],
}


def compiled(part: str, target: str = "native") -> Path:
    """The library for `part`, made if it is not there for this source, compiler and processor.

    `target` is an architecture that the compiler knows. Raises OSError or CalledProcessError.
    """
    found = (os.environ.get("CC"), *map(shutil.which, ("cc", "gcc", "clang")))
    compiler = next(filter(None, found), None)
    if compiler is None:
        raise OSError("there is no C compiler (cc, gcc or clang; $CC)")
    is_arm = platform.machine() in ("arm64", "aarch64")
    # The two about math leave numbers as they are, and let loops with rintf become vectors.
    flags = ["-O3", f"-m{'cpu' if is_arm else 'arch'}={target}", "-fno-math-errno"]
    flags += ["-fno-trapping-math", "-fopenmp", "-fPIC"]
    # torch's own OpenMP, by its file: another copy would bring threads of its own.
    libraries = sorted(Path(torch.__file__).parent.glob("lib*/l*[!c]omp*.so*"))[:1]  # no compiler
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    folder = Path(__file__).parent / "csrc"
    names = *_HEADERS, *(name for name, _ in _CODE[part])
    made_from = [*((folder / name).read_text() for name in names), version.stdout]
    made_from += [part, compiler, *flags, *map(str, libraries), processor()]
    name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    path = files.cache_root() / "kernels" / f"llama-{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as space:
            objects = [Path(space, f"{i}.o") for i in range(len(_CODE[part]))]
            made = Path(space, path.name)
            _run_all(
                [compiler, *flags, *more, "-c", folder / source, "-o", made_object]
                for (source, more), made_object in zip(_CODE[part], objects, strict=True)
            )
            _run_all([[compiler, *flags, "-shared", *objects, *libraries, "-o", made, "-lm"]])
            made.replace(path)
    return path


def _run_all(commands: Iterable[list[str | Path]]) -> None:
    """Runs commands side by side. Raises CalledProcessError with what the first to fail said."""
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
