"""Kernels for training: what lies between matrix products, forward and backward.

The products of a small model run near the processor's limit, and what lies between them takes
longer than they do: a dozen operators, each with its own pass through memory, and an attention
that knows packed documents only by a mask over all pairs of positions. Here each is one pass, which
keeps nothing for the backward pass but its inputs and outputs:

    n = rms_norm(x, weight, eps, dtype)
    y = packed_attention(q, k, v, positions, freqs_cis, 64)  # rotary, causal within each document
    h, n1, n2 = add_rms_norm(x, y, weight, eps, dtype, 2)    # x + y, and its norm for two uses
    z = silu_mul(w1(n1), w3(n2))                             # silu(a) * b
    losses = cross_entropy_(logits, targets, scale)          # logits become their gradient

Inputs and outputs of products are bfloat16, as under autocast, or float32. Sums are float32, and
results, gradients too, do not depend on the number of threads. The reference implementations are
`TransformerBlock` and `torch.nn.functional.cross_entropy`.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llama.errors import InputError, InputTypeError
from llama.kernels import bindings
from llama.kernels.bindings import SUFFIXES, address, check, fields

_MAX_HEAD_DIM = 128  # as in csrc/packed_attention.c
_MAX_USES = 3  # of a norm, as in csrc/norm_gate_loss.c
_PARTIAL_SUMS = 64  # of a weight's gradient, on any number of threads


def available() -> bool:
    """Whether there are native kernels for training; the first call compiles them."""
    return bindings.available("training")


def trains_head_dim(head_dim: int) -> bool:
    """Whether `packed_attention` takes heads of that size: up to 128, in steps of 16."""
    return head_dim % 16 == 0 and head_dim <= _MAX_HEAD_DIM and available()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm of x (..., dim) with weight (dim,), in `dtype`.

    Both are float32 or bfloat16, `dtype` no wider than that of x. Raises TypeError for other
    dtypes, ValueError for shapes that do not fit.
    """
    return add_rms_norm(x, None, weight, eps, dtype, 1)[1]


def add_rms_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype, uses: int
) -> tuple[Tensor, ...]:
    """x + branch in the dtype of x, and `uses` times, up to 3, its RMSNorm in `dtype`.

    `branch` has that dtype; without it the sum is x. With a tensor for each use, the kernel adds up
    the gradients of all uses and of the sum, in one pass instead of one for each. Errors as for
    `rms_norm`.
    """
    _check_dtype(x.dtype, x=x)
    if dtype not in (x.dtype, torch.bfloat16):
        raise InputTypeError(
            f"the norm of x in {x.dtype} is made in that or bfloat16, not in {dtype}"
        )
    if branch is not None:
        _check_dtype(dtype, branch=branch)
    if weight.shape != x.shape[-1:] or (branch is not None and branch.shape != x.shape):
        added = "none" if branch is None else tuple(branch.shape)
        raise InputError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and branch {added} do not fit"
        )
    if not 1 <= uses <= _MAX_USES:
        raise InputError(f"uses={uses} should be from 1 to {_MAX_USES}")
    return _AddRMSNorm.apply(x, branch, weight.float(), eps, dtype, uses)


def silu_mul(gates: Tensor, ups: Tensor) -> Tensor:
    """silu(gates) * ups, of two tensors of one shape and dtype, float32 or bfloat16.

    Raises TypeError for another dtype, ValueError for two shapes.
    """
    _check_dtype(gates.dtype, gates=gates, ups=ups)
    if gates.shape != ups.shape:
        raise InputError(f"gates {tuple(gates.shape)} and ups {tuple(ups.shape)} differ in shape")
    return _SiluMul.apply(gates, ups)


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None, freqs_cis: Tensor, head_dim: int
) -> Tensor:
    """Rotary attention of packed documents, each token to its document's past and itself.

    `q` is (batch, seq, n_heads * head_dim), `k` and `v` (batch, seq, n_kv_heads * head_dim), before
    rotation, and the result like `q`, all in float32 or in bfloat16. `positions` (batch, seq) are 0
    where a document begins; without them each row is one. `freqs_cis` is complex64 (seq, head_dim /
    2), or (batch, seq, head_dim / 2) where rows differ. Raises TypeError for another dtype,
    ValueError for shapes that do not fit or an unsupported `head_dim`.
    """
    _check_dtype(q.dtype, q=q, k=k, v=v)
    if not trains_head_dim(head_dim):
        raise InputError(f"no kernel for heads of {head_dim}: see `trains_head_dim`")
    batch, seq, width = q.shape
    rotations = (seq, head_dim // 2)
    if (
        k.shape != v.shape
        or k.shape[:2] != q.shape[:2]
        or k.shape[2] % head_dim
        or width % k.shape[2]
        or freqs_cis.shape not in (rotations, (batch, *rotations))
        or freqs_cis.dtype != torch.complex64
        or (positions is not None and positions.shape != (batch, seq))
    ):
        shape = "none" if positions is None else tuple(positions.shape)
        raise InputError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} with heads of "
            f"{head_dim} do not fit together, or not with freqs_cis {tuple(freqs_cis.shape)} in "
            f"{freqs_cis.dtype} or positions {shape}"
        )
    if positions is not None:
        positions = positions.long()
    return _Attention.apply(q, k, v, positions, freqs_cis, head_dim)


def cross_entropy_(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """The cross-entropy of each row, float32 (rows,); logits become its gradient times `scale`.

    `logits` (rows, vocab) are float32 or bfloat16 and contiguous, `targets` (rows,) ids, or -100
    to ignore a row: its loss and gradient are 0. Raises TypeError for another
    dtype, ValueError for another shape or layout, and IndexError for a target that is no token.
    """
    _check_dtype(logits.dtype, logits=logits)
    if logits.dim() != 2 or not logits.is_contiguous() or targets.shape != logits.shape[:1]:
        raise InputError(
            f"logits {tuple(logits.shape)} should be (rows, vocab) and contiguous, and targets "
            f"{tuple(targets.shape)} (rows,)"
        )
    targets = targets.long().contiguous()
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    pointers = logits.data_ptr(), targets.data_ptr(), scale, losses.data_ptr()
    if _native("cross_entropy", logits.dtype)(*pointers, *logits.shape):
        raise IndexError(f"a target is none of the {logits.shape[1]} tokens, nor -100")
    return losses


class _NormPass(ctypes.Structure):
    _fields_ = (
        *fields("nnndppppp", "rows dim is_float eps weight x branch sum y"),
        ("dy", ctypes.c_void_p * _MAX_USES),
        *fields("ppppn", "d_sum dx d_branch d_weight partial_sums"),
    )

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, eps: float) -> "_NormPass":
        dim, is_float = x.shape[-1], x.dtype == torch.float32
        return cls(x.numel() // dim, dim, is_float, eps, weight.data_ptr())


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        eps: float,
        dtype: torch.dtype,
        uses: int,
    ) -> tuple[Tensor, ...]:
        x, weight = x.contiguous(), weight.contiguous()
        branch = None if branch is None else branch.contiguous()
        total = x if branch is None else torch.empty_like(x)
        y = torch.empty_like(x, dtype=dtype)
        norm = _NormPass.of(x, weight, eps)
        norm.x, norm.branch, norm.sum, norm.y = map(address, (x, branch, total, y))
        _native("rms_norm_forward", dtype)(ctypes.byref(norm))
        ctx.save_for_backward(total, weight)
        ctx.eps, ctx.dtype, ctx.adds = eps, dtype, branch is not None
        ctx.set_materialize_grads(False)
        return total, y, *(y.detach() for _ in range(uses - 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor | None, *dys: Tensor | None) -> tuple[Any, ...]:
        total, weight = ctx.saved_tensors
        d_total, *uses = (None if d is None else d.contiguous() for d in (d_total, *dys))
        dx, d_branch, d_weight = torch.empty_like(total), None, None
        norm = _NormPass.of(total, weight, ctx.eps)
        norm.sum, norm.dx, norm.d_sum = map(address, (total, dx, d_total))
        norm.dy[: len(uses)] = [address(d) for d in uses]
        if ctx.adds:
            d_branch = torch.empty_like(dx, dtype=ctx.dtype)
            norm.d_branch = d_branch.data_ptr()
        if ctx.needs_input_grad[2]:
            d_weight = weight.new_empty(_PARTIAL_SUMS, total.shape[-1])
            norm.d_weight = d_weight.data_ptr()
        norm.partial_sums = _PARTIAL_SUMS
        _native("rms_norm_backward", ctx.dtype)(ctypes.byref(norm))
        d_weight = None if d_weight is None else d_weight[0].clone()
        return dx, d_branch, d_weight, None, None, None


class _SiluMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, ups: Tensor) -> Tensor:
        gates, ups = gates.contiguous(), ups.contiguous()
        ctx.save_for_backward(gates, ups)
        y = torch.empty_like(gates)
        pointers = (t.data_ptr() for t in (gates, ups, y))
        _native("silu_mul_forward", y.dtype)(*pointers, y.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gates, ups = ctx.saved_tensors
        dy, d_gates, d_ups = dy.contiguous(), torch.empty_like(gates), torch.empty_like(ups)
        pointers = (t.data_ptr() for t in (gates, ups, dy, d_gates, d_ups))
        _native("silu_mul_backward", dy.dtype)(*pointers, dy.numel())
        return d_gates, d_ups


class _AttentionPass(ctypes.Structure):
    _fields_ = fields(
        "nnnnnppnppppppppp",
        "batch seq heads kv_heads head_dim positions freqs_cis freqs_cis_stride "
        "q k v y logsumexp dy dq dk dv",
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor | None,
        freqs_cis: Tensor,
        head_dim: int,
    ) -> Tensor:
        q, k, v, freqs_cis = (t.contiguous() for t in (q, k, v, freqs_cis))
        positions = None if positions is None else positions.contiguous()
        y, heads = torch.empty_like(q), q.shape[-1] // head_dim
        logsumexp = q.new_empty(heads, *q.shape[:2], dtype=torch.float32)
        _run_attention(head_dim, positions, freqs_cis, q, k, v, y, logsumexp)
        ctx.save_for_backward(positions, freqs_cis, q, k, v, y, logsumexp)
        ctx.head_dim = head_dim
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: where they are recomputed, a second time is an error
        gradients = [torch.empty_like(t) for t in saved[2:5]]
        _run_attention(ctx.head_dim, *saved, dy.contiguous(), *gradients)
        return *gradients, None, None, None


def _run_attention(
    head_dim: int,
    positions: Tensor | None,
    freqs_cis: Tensor,
    q: Tensor,
    k: Tensor,
    *others: Tensor,
) -> None:
    stride = freqs_cis[0].numel() * 2 if freqs_cis.dim() == 3 else 0
    sizes = *q.shape[:2], q.shape[2] // head_dim, k.shape[2] // head_dim, head_dim
    pointers = map(address, (q, k, *others))
    attention = _AttentionPass(*sizes, address(positions), freqs_cis.data_ptr(), stride, *pointers)
    check(_native("packed_attention", q.dtype)(ctypes.byref(attention)))


def _native(name: str, dtype: torch.dtype) -> Any:
    """The function of that name, as it is compiled for a dtype."""
    return getattr(bindings.library("training"), name + SUFFIXES[dtype])


def _check_dtype(dtype: torch.dtype, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.dtype not in SUFFIXES:
            raise InputTypeError(
                f"{name} is {tensor.dtype} on {tensor.device}; the kernel takes float32 or "
                "bfloat16 on a CPU"
            )
        if tensor.dtype != dtype:
            raise InputTypeError(f"{name} is {tensor.dtype} where {dtype} is expected")
