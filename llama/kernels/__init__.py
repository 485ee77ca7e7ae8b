"""Native CPU kernels for the few rows that decoding multiplies, each with its twin in plain torch.

The C sources lie beside this file. They are compiled at first use, by the compiler that is there
and for the processor that is there, in three seconds, and are kept (see `compiler.py`); without a
compiler one line says so and the twins compute the same, slower. LLAMA_KERNELS in the environment
names another architecture to compile for (`x86-64-v3`: no AVX-512), or is `off`.

    y = linear(x, weight)                  # x (rows, k) and weight (n, k) in bfloat16
    y = linear(x, pack(weight, bits=4))    # int8 or int4 in groups of 32 inputs

The halves of a transformer block, `AttentionHalf` and `FeedForwardHalf`, do all that lies between
such products too. Their twin is `TransformerBlock` itself.
"""

import ctypes
import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llama import console
from llama.cache import KVCache
from llama.errors import InputError
from llama.kernels.compiler import compiled

TILE, GROUP = 16, 32  # outputs side by side, and inputs that share a scale; linear.h has them too
PARTS = 8  # of the sums of a row parallel layer, in all: for 1, 2, 4 or 8 ranks
MOST_ROWS = 16  # of a block's half: more are a matter for matrix products
# What it costs to have none.
_COST = {
    "inference": "decoding takes 2.5 times as long, of int8 and int4 weights over 100 times",
    "training": "training takes longer",
}


class Packed(NamedTuple):
    """A matrix (n, k) in int8 or int4, as `linear.c` describes it.

    `data` is uint8 (n / 16, k / 32, 512 or 256), `scales` float16 (n / 16, k / 32, 16).
    """

    data: Tensor
    scales: Tensor

    @property
    def bits(self) -> int:
        return self.data.shape[-1] // (GROUP * TILE // 8)

    @property
    def shape(self) -> tuple[int, int]:
        return self.data.shape[0] * TILE, self.data.shape[1] * GROUP


def linear(x: Tensor, weight: Tensor | Packed, as_float: bool = False, parts: int = 1) -> Tensor:
    """x (rows, k) in bfloat16 times weight (n, k), bfloat16 or packed: (rows, n).

    Sums are float32, the result bfloat16, or with `as_float` float32. A row's result depends on no
    other row. For packed weights inputs are rounded to int8, in groups of 32 too, and sums are made
    in `parts`, 1, 2, 4 or 8 of equal length, that are added up in pairs, (0 + 1) + (2 + 3): where
    ranks divide the inputs, N of them with `PARTS` / N each get the last bit that one gets.
    """
    native = library("inference")
    if native is None:
        if isinstance(weight, Packed):
            y = F.linear(_rounded(x), unpack(weight, torch.float32))
            return y if as_float else y.bfloat16()
        return F.linear(x.float(), weight.float()) if as_float else F.linear(x, weight)
    if isinstance(weight, Tensor):
        weight = weight.contiguous()
    x, n = x.contiguous(), weight.shape[0]
    y = x.new_empty(len(x), n, dtype=torch.float32 if as_float else torch.bfloat16)
    matrix = _Matrix.of(weight, parts)
    _check(native.linear(ctypes.byref(matrix), x.data_ptr(), y.data_ptr(), len(x), as_float))
    return y


def attends(head_dim: int) -> bool:
    """Whether `attend`, `normalize` and `gate` are there, for a prompt's many rows."""
    native = library("inference")
    return native is not None and bool(native.attends(head_dim))


def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x (..., dim), all in bfloat16."""
    native = library("inference")
    assert native is not None
    x = x.contiguous()
    y, dim = torch.empty_like(x), x.shape[-1]
    pointers = x.data_ptr(), weight.data_ptr(), eps, y.data_ptr()
    native.normalize_rows(*pointers, x.numel() // dim, dim)
    return y


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """silu(gates) * ups, in the place of `gates`; both bfloat16 and contiguous."""
    native = library("inference")
    assert native is not None
    native.gate_rows(gates.data_ptr(), ups.data_ptr(), gates.numel())
    return gates


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: int | Tensor,
    turns: Tensor,
    cache: KVCache,
) -> Tensor:
    """Rotary attention of many rows, (batch, seq, n_heads * head_dim) as `q`.

    `q` (batch, seq, n_heads * head_dim) is rotated in place; `k` and `v` (batch, seq, n_kv_heads *
    head_dim) go to the cache, `k` rotated. The others and what it raises as in `AttentionHalf`.
    """
    native = library("inference")
    assert native is not None
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    layer, places = _CacheLayer.of(cache), _places(q, start, turns)
    where = ctypes.byref(layer), ctypes.byref(places)
    head_dim = cache.k.shape[-1]
    sizes = q.shape[-1] // head_dim, k.shape[-1] // head_dim, head_dim
    y = torch.empty_like(q)
    _check(native.store_rows(*where, q.data_ptr(), k.data_ptr(), v.data_ptr(), *sizes))
    _check(native.attend_rows(*where, q.data_ptr(), y.data_ptr(), *sizes))
    return y


def pack(weight: Tensor, bits: int) -> Packed:
    """Rounds a bfloat16 matrix (n, k) to int8 or int4, in groups of 32 inputs with a scale each.

    n is a multiple of 16 and k of 32, else ValueError. An int8 group is scaled by its largest size;
    int4 reaches from -8 to 7 and takes the scale, of some, with the least squared error.
    """
    n, k = weight.shape
    if n % TILE or k % GROUP:
        raise InputError(f"a matrix of {n} x {k} can't be packed in tiles of {TILE} x {GROUP}")
    native = library("inference")
    if native is not None:
        data = torch.empty(n // TILE, k // GROUP, GROUP * TILE * bits // 8, dtype=torch.uint8)
        scales = torch.empty(n // TILE, k // GROUP, TILE, dtype=torch.float16)
        weight = weight.contiguous()
        pointers = (t.data_ptr() for t in (weight, data, scales))
        native.pack_linear(*pointers, n, k, bits)
        return Packed(data, scales)
    groups = weight.float().view(n, k // GROUP, GROUP)
    highest = 2 ** (bits - 1) - 1
    scales = (groups.abs().amax(-1) / 127).half() if bits == 8 else _best_scales(groups)
    values = _divided(groups, scales).round_().clamp_(-highest - (bits == 4), highest)
    shifted = (values + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 8:
        tiles = shifted.view(n // TILE, TILE, k // GROUP, 8, 4)
    else:
        halves = shifted.view(n // TILE, TILE, k // GROUP, 2, 4, 4)
        tiles = halves[:, :, :, 0] | halves[:, :, :, 1] << 4
    data = tiles.permute(0, 2, 3, 1, 4).flatten(2).contiguous()
    return Packed(data, scales.view(n // TILE, TILE, -1).transpose(1, 2).contiguous())


def unpack(weight: Packed, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """The matrix (n, k) that packed weights stand for."""
    (n, k), bits = weight.shape, weight.bits
    tiles = weight.data.view(n // TILE, k // GROUP, -1, TILE, 4).permute(0, 3, 1, 2, 4)
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


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("n", "k", "bits", "parts")),
    )

    @classmethod
    def of(cls, weight: Tensor | Packed, parts: int = 1) -> "_Matrix":
        if isinstance(weight, Packed):
            pointers = weight.data.data_ptr(), weight.scales.data_ptr()
            return cls(*pointers, *weight.shape, weight.bits, parts)
        return cls(weight.data_ptr(), None, *weight.shape, 16, parts)


class _AttentionLayer(ctypes.Structure):
    _fields_ = (
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("heads", "kv_heads", "head_dim")),
        *((name, _Matrix) for name in ("wq", "wk", "wv", "wo")),
    )


class _FeedForwardLayer(ctypes.Structure):
    _fields_ = (
        ("norm", ctypes.c_void_p),
        ("eps", ctypes.c_double),
        *((name, _Matrix) for name in ("w1", "w2", "w3")),
    )


class _CacheLayer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales")),
        *((name, ctypes.c_int64) for name in ("row", "head", "positions")),
    )

    @classmethod
    def of(cls, cache: KVCache) -> "_CacheLayer":
        """Of a layer's part of a cache, in bfloat16 or int8."""
        assert cache.k.stride() == cache.v.stride()
        pointers = [part.data_ptr() for part in cache.parts]
        scales = pointers[2:] or [0, 0]
        return cls(*pointers[:2], *scales, *cache.k.stride()[:2], cache.seq_len)


class _Places(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "seq", "start")),
        *((name, ctypes.c_void_p) for name in ("starts", "turns")),
    )


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError("no memory for a native kernel's rows")
    if status == 2:
        raise IndexError("a position lies outside of the KV cache")


def available() -> bool:
    """Whether there are native kernels; the first call compiles them."""
    return library("inference") is not None


def _places(x: Tensor, start: int | Tensor, turns: Tensor) -> _Places:
    """Of x (batch, seq, ...). What it points to is kept alive by its attribute."""
    batch, seq = x.shape[:2]
    turns = turns.contiguous()
    starts = start.contiguous() if isinstance(start, Tensor) else None
    first = 0 if isinstance(start, Tensor) else start
    pointer = None if starts is None else starts.data_ptr()
    places = _Places(batch * seq, seq, first, pointer, turns.data_ptr())
    places.kept = starts, turns
    return places


class AttentionHalf:
    """x + wo(attention(rms_norm(x))) for a few rows, over a KV cache in bfloat16 or int8.

    `weights` are wq, wk, wv and wo, as this rank has them; wo is summed in `parts`, as in `linear`.
    They and the norm's weight (dim,) must stay where they are.
    """

    def __init__(
        self,
        norm: Tensor,
        eps: float,
        head_dim: int,
        weights: Sequence[Tensor | Packed],
        parts: int,
    ) -> None:
        self._kept = norm, weights
        heads, kv_heads = (weight.shape[0] // head_dim for weight in weights[:2])
        matrices = *map(_Matrix.of, weights[:3]), _Matrix.of(weights[3], parts)
        self._layer = _AttentionLayer(norm.data_ptr(), eps, heads, kv_heads, head_dim, *matrices)

    def __call__(
        self,
        x: Tensor,
        start: int | Tensor,
        turns: Tensor,
        cache: KVCache,
        partial: bool,
    ) -> Tensor:
        """x (batch, seq, dim) in bfloat16, at most `MOST_ROWS` rows, to the same shape.

        `start` is the position of each row's first token, one or (batch,); `turns` the complex
        rotations (seq, head_dim / 2), with (batch,) before them where starts differ. `cache` is a
        layer's part and takes the keys and values of x. With `partial` the result
        is float32 and lacks x: other ranks' parts are to be added. Raises IndexError for a position
        that the cache does not have.
        """
        native = library("inference")
        assert native is not None
        x = x.contiguous()
        y = torch.empty_like(x, dtype=torch.float32 if partial else None)
        places, layer = _places(x, start, turns), _CacheLayer.of(cache)
        parts = (ctypes.byref(part) for part in (self._layer, layer, places))
        _check(native.attention(*parts, x.data_ptr(), y.data_ptr(), partial))
        return y


class FeedForwardHalf:
    """x + w2(silu(w1 n) * w3 n) with n = rms_norm(x), for a few rows.

    `weights` are w1, w2 and w3; w2 is summed in `parts`.
    """

    def __init__(
        self, norm: Tensor, eps: float, weights: Sequence[Tensor | Packed], parts: int
    ) -> None:
        self._kept = norm, weights
        w1, w2, w3 = weights
        matrices = _Matrix.of(w1), _Matrix.of(w2, parts), _Matrix.of(w3)
        self._layer = _FeedForwardLayer(norm.data_ptr(), eps, *matrices)

    def __call__(self, x: Tensor, partial: bool) -> Tensor:
        """x (..., dim) and the result as in `AttentionHalf`."""
        native = library("inference")
        assert native is not None
        x = x.contiguous()
        y = torch.empty_like(x, dtype=torch.float32 if partial else None)
        rows = x.numel() // x.shape[-1]
        layer = ctypes.byref(self._layer)
        _check(native.feed_forward(layer, x.data_ptr(), y.data_ptr(), rows, partial))
        return y


@functools.cache
def library(part: str) -> ctypes.CDLL | None:
    """The functions for `part`, "inference" or "training"; None, with a notice, without them."""
    target = os.environ.get("LLAMA_KERNELS", "native")
    try:
        if target == "off":
            raise OSError("LLAMA_KERNELS=off")
        path = compiled(part, target)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        console.notice(f"no native kernels, {_COST[part]}: {lines[-1]:.200}")
        return None
    if target != "native":
        console.notice(
            f"native kernels for {target}, where this processor may be faster (LLAMA_KERNELS)"
        )
    return bind(part, path)


def bind(part: str, path: Path) -> ctypes.CDLL:
    """A compiled library, its functions declared."""
    native = ctypes.CDLL(str(path))
    pointer, size, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    if part == "inference":
        native.linear.argtypes = [*[pointer] * 3, size, flag]
        native.attention.argtypes = [*[pointer] * 5, flag]
        native.feed_forward.argtypes = [*[pointer] * 3, size, flag]
        native.attends.argtypes = [size]
        native.normalize_rows.argtypes = [*[pointer] * 2, ctypes.c_double, pointer, size, size]
        native.normalize_rows.restype = None
        native.gate_rows.argtypes = [pointer, pointer, size]
        native.gate_rows.restype = None
        native.store_rows.argtypes = [*[pointer] * 5, *[size] * 3]
        native.attend_rows.argtypes = [*[pointer] * 4, *[size] * 3]
        native.pack_linear.argtypes = [*[pointer] * 3, *[size] * 2, flag]
        native.pack_linear.restype = None
        return native
    for dtype in ("bfloat16", "float32"):
        for name, arguments, result in (
            ("norm_rows", [pointer], None),
            ("norm_rows_back", [pointer], None),
            ("gate_numbers", [*[pointer] * 3, size], None),
            ("gate_numbers_back", [*[pointer] * 5, size], None),
            ("loss_rows", [pointer, pointer, ctypes.c_float, pointer, size, size], flag),
            ("attend_documents", [pointer], flag),
        ):
            function = getattr(native, f"{name}_{dtype}")
            function.argtypes, function.restype = arguments, result
    return native
