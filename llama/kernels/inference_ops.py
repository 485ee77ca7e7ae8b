"""Kernels for inference: products of a few rows, and what a block computes around its products.

    y = linear(x, weight)                  # x (rows, k) and weight (n, k), bfloat16 or float32
    y = linear(x, pack(weight, bits=4))    # int8 or int4 in groups of 32 inputs
    y = linear(x, pack_bf12(weight))       # the bits of bfloat16

For up to `MAX_ROWS` rows `AttentionBlock` and `FeedForwardBlock` compute the whole of a transformer
block, products included; for a prompt's many rows `rms_norm`, `attend` and `silu_mul` stand between
products by torch. The reference implementation is `TransformerBlock`.
"""

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.cache import KVCache, RaggedKVCache
from llama.errors import InputError, InputTypeError
from llama.kernels import bindings
from llama.kernels.bf12_packing import Bf12, unpack_bf12
from llama.kernels.bindings import SUFFIXES, check, fields
from llama.kernels.weight_packing import Packed, round_inputs, unpack

PARTIAL_SUMS = 8  # of a row-parallel layer on all ranks together: for 1, 2, 4 or 8 of them
MAX_ROWS = 16  # for the kernels of a whole block, as in csrc/matmul.h


def linear(
    x: Tensor, weight: Tensor | Packed | Bf12, as_float: bool = False, partial_sums: int = 1
) -> Tensor:
    """x (rows, k) times weight (n, k), both bfloat16 or float32, or weight packed: (rows, n).

    Sums are float32, the result in the dtype of x, which is bfloat16 for packed weights, or with
    `as_float` float32. A row's result depends on no other row. With bf12 it has the bits that it
    has with bfloat16. For int8 and int4 inputs are
    rounded to int8, in groups of 32 too, and sums are made as 1, 2, 4 or 8 `partial_sums` of equal
    length that are added in pairs, (0 + 1) + (2 + 3): N ranks that divide the inputs, with
    `PARTIAL_SUMS` / N each, get the bits that one rank gets.
    Raises ValueError and TypeError for shapes and dtypes that do not fit.
    """
    if x.shape[1] != weight.shape[1]:
        raise InputError(f"x {tuple(x.shape)} does not fit a weight of {tuple(weight.shape)}")
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.bfloat16
    if x.dtype != dtype or dtype not in SUFFIXES:
        raise InputTypeError(
            f"x and weight should both be bfloat16 or both float32, not {x.dtype} and {dtype}"
        )
    native = bindings.library("inference")
    if native is None:
        if isinstance(weight, Packed):
            y = F.linear(round_inputs(x), unpack(weight, torch.float32))
            return y if as_float else y.bfloat16()
        if isinstance(weight, Bf12):
            weight = unpack_bf12(weight)
        return F.linear(x.float(), weight.float()) if as_float else F.linear(x, weight)
    if isinstance(weight, Tensor):
        weight = weight.contiguous()
    x, n = x.contiguous(), weight.shape[0]
    y = x.new_empty(len(x), n, dtype=torch.float32 if as_float else dtype)
    matrix = _Matrix.of(weight, partial_sums)
    product = getattr(native, "linear" + SUFFIXES[dtype])
    check(product(ctypes.byref(matrix), x.data_ptr(), y.data_ptr(), len(x), as_float))
    return y


def supports_head_dim(head_dim: int) -> bool:
    """Whether `attend`, `rms_norm` and `silu_mul` are there for heads of that size."""
    native = bindings.library("inference")
    return native is not None and bool(native.supports_head_dim(head_dim))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x (..., dim), all in bfloat16."""
    x = x.contiguous()
    y, dim = torch.empty_like(x), x.shape[-1]
    pointers = x.data_ptr(), weight.data_ptr(), eps, y.data_ptr()
    _native().rms_norm_rows(*pointers, x.numel() // dim, dim)
    return y


def silu_mul(gates: Tensor, ups: Tensor) -> Tensor:
    """silu(gates) * ups, written to `gates`; both bfloat16 and contiguous."""
    _native().silu_mul_rows(gates.data_ptr(), ups.data_ptr(), gates.numel())
    return gates


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start_pos: int | Tensor,
    freqs_cis: Tensor,
    cache: KVCache | RaggedKVCache,
    head_dim: int,
) -> Tensor:
    """Rotary attention of many rows, (batch, seq, n_heads * head_dim) as `q`.

    `q` (batch, seq, n_heads * head_dim) is rotated in place; `k` and `v` (batch, seq, n_kv_heads *
    head_dim) go to the cache, `k` rotated. The others and what it raises as in `AttentionBlock`.
    """
    native = _native()
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    layer, positions = _CacheLayer.of(cache), _Positions.of(q, start_pos, freqs_cis)
    where = ctypes.byref(layer), ctypes.byref(positions)
    sizes = q.shape[-1] // head_dim, k.shape[-1] // head_dim, head_dim
    y = torch.empty_like(q)
    check(native.rope_and_store(*where, q.data_ptr(), k.data_ptr(), v.data_ptr(), *sizes))
    check(native.attend_rows(*where, q.data_ptr(), y.data_ptr(), *sizes))
    return y


class _Matrix(ctypes.Structure):
    _fields_ = fields("pppppnnnn", "data scales tables starts escapes n k bits partial_sums")

    @classmethod
    def of(cls, weight: Tensor | Packed | Bf12, partial_sums: int = 1) -> "_Matrix":
        (n, k), bits = weight.shape, 16
        if isinstance(weight, Packed):
            bits, tensors = weight.bits, {"data": weight.data, "scales": weight.scales}
        elif isinstance(weight, Bf12):
            bits, tensors = 12, dict(zip(cls._of_bf12, weight.tensors, strict=True))
        else:
            tensors = {"data": weight}
        pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        return cls(**pointers, n=n, k=k, bits=bits, partial_sums=partial_sums)

    _of_bf12 = ("data", "tables", "starts", "escapes")


class _AttentionWeights(ctypes.Structure):
    _fields_ = (
        *fields("pdnnn", "norm eps heads kv_heads head_dim"),
        *((name, _Matrix) for name in ("wq", "wk", "wv", "wo")),
    )


class _FeedForwardWeights(ctypes.Structure):
    _fields_ = (*fields("pd", "norm eps"), *((name, _Matrix) for name in ("w1", "w2", "w3")))


class _CacheLayer(ctypes.Structure):
    _fields_ = fields(
        "ppppnnnpn",
        "keys values key_scales value_scales row_stride head_stride seq_len rows layer",
    )

    @classmethod
    def of(cls, cache: KVCache | RaggedKVCache) -> "_CacheLayer":
        """Of one layer's cache."""
        if isinstance(cache, RaggedKVCache):
            if "native" not in cache.shared:
                rows = [cls._of(row.tensors, row.k.stride(0)) for row in cache.rows]
                cache.shared["native"] = (cls * len(rows))(*rows)
            layer = cls(rows=ctypes.addressof(cache.shared["native"]), layer=cache.index)
            layer.kept = cache.shared
            return layer
        return cls._of(cache.tensors, cache.k.stride(0))

    @classmethod
    def _of(cls, tensors: tuple[Tensor, ...], row_stride: int) -> "_CacheLayer":
        keys, values, *scales = tensors
        assert keys.stride() == values.stride()
        pointers = [tensor.data_ptr() for tensor in scales] or (None, None)
        head_stride, seq_len = keys.stride(-3), keys.shape[-2]
        addresses = keys.data_ptr(), values.data_ptr(), *pointers
        return cls(*addresses, row_stride, head_stride, seq_len, None, 0)


class _Positions(ctypes.Structure):
    _fields_ = fields("nnnpp", "rows seq start starts freqs_cis")

    @classmethod
    def of(cls, x: Tensor, start_pos: int | Tensor, freqs_cis: Tensor) -> "_Positions":
        """Of x (batch, seq, ...). An attribute keeps alive what it points to."""
        batch, seq, _ = x.shape
        freqs_cis = freqs_cis.contiguous()
        if isinstance(start_pos, Tensor):
            start_pos = start_pos.contiguous()
            start, starts = 0, start_pos.data_ptr()
        else:
            start, starts = start_pos, 0
        positions = cls(batch * seq, seq, start, starts, freqs_cis.data_ptr())
        positions.kept = start_pos, freqs_cis
        return positions


class AttentionBlock:
    """x + wo(attention(rms_norm(x))) for a few rows, over a KV cache.

    `weights` are this rank's wq, wk, wv and wo, contiguous, in the dtype of the norm's weight
    (dim,), bfloat16 or float32, or packed beside bfloat16; wo is multiplied in `partial_sums` as in
    `linear`. All have to stay where they are.
    """

    def __init__(
        self,
        norm: Tensor,
        eps: float,
        head_dim: int,
        weights: Sequence[Tensor | Packed | Bf12],
        partial_sums: int,
    ) -> None:
        self._kept, self._function = (norm, weights), "attention_block" + SUFFIXES[norm.dtype]
        heads, kv_heads = (weight.shape[0] // head_dim for weight in weights[:2])
        matrices = *map(_Matrix.of, weights[:3]), _Matrix.of(weights[3], partial_sums)
        self._weights = _AttentionWeights(
            norm.data_ptr(), eps, heads, kv_heads, head_dim, *matrices
        )

    def __call__(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        cache: KVCache | RaggedKVCache,
        is_partial: bool,
    ) -> Tensor:
        """x (batch, seq, dim) in that dtype, at most `MAX_ROWS` rows, to the same shape.

        `start_pos` is the position of each row's first token, one or (batch,); `freqs_cis` is
        complex64 (seq, head_dim / 2), or (batch, seq, head_dim / 2) where positions differ. `cache`
        is one layer's, in that dtype or int8, and takes the keys and values of x. With `is_partial`
        the result is float32, without x: other ranks' partial sums are to be added. Raises
        IndexError for a position that the cache does not have.
        """
        x = x.contiguous()
        y = torch.empty_like(x, dtype=torch.float32 if is_partial else None)
        positions, layer = _Positions.of(x, start_pos, freqs_cis), _CacheLayer.of(cache)
        structures = (ctypes.byref(each) for each in (self._weights, layer, positions))
        run = getattr(_native(), self._function)
        check(run(*structures, x.data_ptr(), y.data_ptr(), is_partial))
        return y


class FeedForwardBlock:
    """x + w2(silu(w1 n) * w3 n) with n = rms_norm(x), for a few rows.

    `weights` are w1, w2 and w3, as in `AttentionBlock`; w2 is multiplied in `partial_sums`.
    """

    def __init__(
        self, norm: Tensor, eps: float, weights: Sequence[Tensor | Packed | Bf12], partial_sums: int
    ) -> None:
        self._kept, self._function = (norm, weights), "feed_forward_block" + SUFFIXES[norm.dtype]
        w1, w2, w3 = weights
        matrices = _Matrix.of(w1), _Matrix.of(w2, partial_sums), _Matrix.of(w3)
        self._weights = _FeedForwardWeights(norm.data_ptr(), eps, *matrices)

    def __call__(self, x: Tensor, is_partial: bool) -> Tensor:
        """x (..., dim) and the result as in `AttentionBlock`."""
        x = x.contiguous()
        y = torch.empty_like(x, dtype=torch.float32 if is_partial else None)
        rows, weights = x.numel() // x.shape[-1], ctypes.byref(self._weights)
        run = getattr(_native(), self._function)
        check(run(weights, x.data_ptr(), y.data_ptr(), rows, is_partial))
        return y


def _native() -> ctypes.CDLL:
    native = bindings.library("inference")
    assert native is not None
    return native
