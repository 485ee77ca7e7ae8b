"""Native CPU kernels for the few rows that decoding multiplies, each with its twin in plain torch.

The C sources lie beside this file. They are compiled at first use, by the compiler that is there
and for the processor that is there, in about a second, and kept for the next time; without a
compiler one line says so and the twins compute the same, slower. Threads are torch's own: the
library is bound to the OpenMP that torch has loaded, so `torch.set_num_threads` holds for it.

    y = linear(x, weight)                       # x (rows, k) and weight (n, k) in bfloat16
    y = linear_packed(x, pack(weight, bits=4))  # int8 or int4 in groups of 32 inputs
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama import files, parallel

GROUP = 32  # inputs that share a scale
_TILE = 16  # outputs that lie side by side in packed weights
_SOURCE = Path(__file__).with_name("linear.c")


class Packed(NamedTuple):
    """A matrix (n, k) in int8 or int4, as `linear.c` describes it.

    `data` is uint8 (n / 16, k / 32, 512 or 256), `scales` float16 (n / 16, k / 32, 16).
    """

    data: Tensor
    scales: Tensor

    @property
    def bits(self) -> int:
        return self.data.shape[-1] // (GROUP * _TILE // 8)

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0] * _TILE, self.data.shape[1] * GROUP


def linear(x: Tensor, weight: Tensor, as_float: bool = False) -> Tensor:
    """x (rows, k) times weight (n, k), both bfloat16, to (rows, n); sums in float32.

    The result is bfloat16, or with `as_float` float32. A row's result depends on no other row.
    """
    library = _library()
    if library is None:
        if as_float:
            return F.linear(x.float(), weight.float())
        return F.linear(x, weight)
    x, weight, (n, k) = x.contiguous(), weight.contiguous(), weight.shape
    y = x.new_empty(len(x), n, dtype=torch.float32 if as_float else torch.bfloat16)
    library.linear_bf16(x.data_ptr(), weight.data_ptr(), y.data_ptr(), len(x), n, k, as_float)
    return y


def linear_packed(x: Tensor, weight: Packed, as_float: bool = False) -> Tensor:
    """As `linear`, by packed weights. Inputs are rounded to int8, in groups of 32 too."""
    library = _library()
    if library is None:
        y = F.linear(_rounded(x), unpack(weight, torch.float32))
        return y if as_float else y.bfloat16()
    x, (n, k) = x.contiguous(), weight.shape
    y = x.new_empty(len(x), n, dtype=torch.float32 if as_float else torch.bfloat16)
    pointers = (t.data_ptr() for t in (x, weight.data, weight.scales, y))
    if library.linear_packed(*pointers, len(x), n, k, weight.bits, as_float):
        raise MemoryError(f"no memory for {len(x)} rows of {k} inputs")
    return y


def pack(weight: Tensor, bits: int) -> Packed:
    """Rounds a bfloat16 matrix (n, k) to int8 or int4, in groups of 32 inputs with a scale each.

    n is a multiple of 16 and k of 32, else ValueError. An int8 group is scaled by its largest size;
    int4 reaches from -8 to 7 and takes the scale, of some, with the least squared error.
    """
    n, k = weight.shape
    if n % _TILE or k % GROUP:
        raise ValueError(f"a matrix of {n} x {k} can't be packed in tiles of {_TILE} x {GROUP}")
    library = _library()
    if library is not None:
        data = torch.empty(n // _TILE, k // GROUP, GROUP * _TILE * bits // 8, dtype=torch.uint8)
        scales = torch.empty(n // _TILE, k // GROUP, _TILE, dtype=torch.float16)
        pointers = (t.data_ptr() for t in (weight.contiguous(), data, scales))
        library.pack_linear(*pointers, n, k, bits)
        return Packed(data, scales)
    groups = weight.float().view(n, k // GROUP, GROUP)
    highest = 2 ** (bits - 1) - 1
    scales = (groups.abs().amax(-1) / 127).half() if bits == 8 else _best_scales(groups)
    values = _divided(groups, scales).round_().clamp_(-highest - (bits == 4), highest)
    shifted = (values + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 8:
        tiles = shifted.view(n // _TILE, _TILE, k // GROUP, 8, 4)
    else:
        halves = shifted.view(n // _TILE, _TILE, k // GROUP, 2, 4, 4)
        tiles = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    data = tiles.permute(0, 2, 3, 1, 4).flatten(2).contiguous()
    return Packed(data, scales.view(n // _TILE, _TILE, -1).transpose(1, 2).contiguous())


def unpack(weight: Packed, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The matrix (n, k) that packed weights stand for."""
    (n, k), bits = weight.shape, weight.bits
    tiles = weight.data.view(n // _TILE, k // GROUP, -1, _TILE, 4).permute(0, 3, 1, 2, 4)
    if bits == 4:
        tiles = torch.stack((tiles & 15, tiles >> 4), dim=3)
    values = tiles.reshape(n, k // GROUP, GROUP).float().sub_(2 ** (bits - 1))
    scales = weight.scales.transpose(1, 2).reshape(n, k // GROUP, 1)
    return values.mul_(scales.float()).to(dtype).view(n, k)


def _best_scales(groups: Tensor) -> Tensor:
    """float16 (n, groups): the number of largest size stands at -8, or a little nearer."""
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    best, least = (largest / -8).half(), None
    for reach in (8.0, 7.6, 7.2, 6.8):
        scales = (largest / -reach).half()
        found = _divided(groups, scales).round_().clamp_(-8, 7)
        error = (found * scales.unsqueeze(-1) - groups).square_().sum(-1)
        if least is None:
            least = error
        else:
            best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def _divided(groups: Tensor, scales: Tensor) -> Tensor:
    return groups / scales.float().masked_fill(scales == 0, 1).unsqueeze(-1)


def _rounded(x: Tensor) -> Tensor:
    """Inputs (rows, k) as the kernel rounds them: to int8 in groups, and back to float32."""
    groups = x.float().unflatten(-1, (-1, GROUP))
    most = groups.abs().amax(-1, keepdim=True)
    inverse = torch.tensor(127.0) / most.masked_fill(most == 0, 1)  # 127 / most rounds twice
    return ((groups * inverse).round() * (most / 127)).flatten(-2)


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        path = compiled()
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        if parallel.is_main():
            reason = output.strip().splitlines()[-1:] or [""]
            print(f"no native kernels, decoding is slower: {reason[0]:.200}", file=sys.stderr)
        return None
    return bind(path)


def bind(path: Path) -> ctypes.CDLL:
    """A compiled library, its functions declared."""
    library = ctypes.CDLL(str(path))
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.linear_bf16.argtypes = [*[pointer] * 3, *[size] * 3, flag]
    library.linear_bf16.restype = None
    library.linear_packed.argtypes = [*[pointer] * 4, *[size] * 3, flag, flag]
    library.pack_linear.argtypes = [*[pointer] * 3, *[size] * 2, flag]
    library.pack_linear.restype = None
    return library


def compiled(target: str = "native") -> Path:
    """The compiled library, made if it is not there for this source, compiler and processor.

    `target` is an architecture that the compiler knows. Raises OSError or CalledProcessError.
    """
    found = (os.environ.get("CC"), *map(shutil.which, ("cc", "gcc", "clang")))
    compiler = next(filter(None, found), None)
    if compiler is None:
        raise OSError("there is no C compiler (cc, gcc or clang; $CC)")
    is_arm = platform.machine() in ("arm64", "aarch64")
    # The two about math leave numbers as they are, and let loops with rintf become vectors.
    flags = ["-O3", f"-m{'cpu' if is_arm else 'arch'}={target}", "-fno-math-errno"]
    flags += ["-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
    # torch's own OpenMP, by its file: another copy would bring threads of its own.
    libraries = sorted(Path(torch.__file__).parent.glob("lib*/lib*omp*.so*"))[:1]
    command = [compiler, *flags, str(_SOURCE), *map(str, libraries)]
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    made_from = [_SOURCE.read_text(), version.stdout, " ".join(command), _processor()]
    name = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    path = files.cache_root() / "kernels" / f"linear-{name}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder, path.name)
            command += ["-o", str(made), "-lm"]
            subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(path)
    return path


def _processor() -> str:
    """What the processor can do: a library for another one may stop this process."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
