"""Native CPU kernels for training: what lies between matrix products, forward and backward.

The products of a small model run near the processor's limit, and what lies between them takes
longer than they do: a dozen operators, each with its own pass through memory, and an attention that
knows packed documents only as a mask over all that they have nothing to do with. Here each is one
pass, which keeps for the way back no more than it was given:

    n = rms_norm(x, weight, eps, dtype)
    y = attend(q, k, v, positions, freqs_cis, 64)          # rotary, causal within each document
    h, n1, n2 = add_rms_norm(x, y, weight, eps, dtype, 2)  # x + y, and its norm for two uses
    z = gate(w1(n1), w3(n2))                               # silu(a) * b
    losses = loss_rows_(logits, targets, scale)            # logits become their gradient

What products are made of is bfloat16, as under autocast, or float32. Sums are float32, and results,
gradients too, do not depend on the number of threads. The twins are
`TransformerBlock` and `cross_entropy`. `training.c` and `documents.c` say how it is done.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llama import kernels
from llama.errors import InputError, InputTypeError

_MOST_HEAD_DIM = 128  # in documents.c
_MOST_USES = 3  # of a norm, in training.c
_ENDINGS = {torch.bfloat16: "bfloat16", torch.float32: "float32"}  # of the functions' names
_PARTS = 64  # in which a weight's gradient is summed, on any number of threads


def available() -> bool:
    """Whether there are native kernels; the first call compiles them."""
    return kernels.library("training") is not None


def trains(head_dim: int) -> bool:
    """Whether `attend` takes heads of that size (up to 128, in steps of 16), and the others run."""
    return head_dim % 16 == 0 and head_dim <= _MOST_HEAD_DIM and available()


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """RMSNorm of x (..., dim) by weight (dim,), in `dtype`.

    Both are float32 or bfloat16, `dtype` no wider than x, whose gradient has its own. Raises
    TypeError for other dtypes, ValueError for shapes that do not fit.
    """
    return add_rms_norm(x, None, weight, eps, dtype, 1)[1]


def add_rms_norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, eps: float, dtype: torch.dtype, uses: int
) -> tuple[Tensor, ...]:
    """x + branch in the dtype of x, and `uses` times, up to 3, its RMSNorm in `dtype`.

    `branch` has that dtype; without it the sum is x. Where each use has a tensor of its own, and
    what comes after takes the sum from here, all their gradients meet in the kernel instead of in
    passes through memory. Errors as for `rms_norm`.
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
    if not 1 <= uses <= _MOST_USES:
        raise InputError(f"uses={uses} should be from 1 to {_MOST_USES}")
    return _AddRMSNorm.apply(x, branch, weight.float(), eps, dtype, uses)


def gate(gates: Tensor, ups: Tensor) -> Tensor:
    """silu(gates) * ups, of two tensors of one shape and dtype, float32 or bfloat16.

    Raises TypeError for another dtype, ValueError for two shapes.
    """
    _check_dtype(gates.dtype, gates=gates, ups=ups)
    if gates.shape != ups.shape:
        raise InputError(f"gates {tuple(gates.shape)} and ups {tuple(ups.shape)} differ in shape")
    return _Gate.apply(gates, ups)


def attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor | None, freqs_cis: Tensor, head_dim: int
) -> Tensor:
    """Rotary attention of packed documents, each token to its document's past and itself.

    `q` is (batch, seq, n_heads * head_dim), `k` and `v` (batch, seq, n_kv_heads * head_dim), not
    turned yet, and the result like `q`, all in float32 or in bfloat16. `positions` (batch, seq) are
    0 where a document begins; without them each row is one. `freqs_cis` are the rotations,
    complex64 (seq, head_dim / 2), or (batch, seq, head_dim / 2) where rows differ. Raises TypeError
    for another dtype, ValueError for shapes that do not fit or a `head_dim` that `trains` does not
    know.
    """
    _check_dtype(q.dtype, q=q, k=k, v=v)
    if not trains(head_dim):
        raise InputError(f"no kernel for heads of {head_dim}: `trains` says for which there is")
    batch, seq, width = q.shape
    turns = (seq, head_dim // 2)
    if (
        k.shape != v.shape
        or k.shape[:2] != q.shape[:2]
        or k.shape[2] % head_dim
        or width % k.shape[2]
        or freqs_cis.shape not in (turns, (batch, *turns))
        or freqs_cis.dtype != torch.complex64
        or (positions is not None and positions.shape != (batch, seq))
    ):
        places = "none" if positions is None else tuple(positions.shape)
        raise InputError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} with heads of "
            f"{head_dim} do not fit together, or not with rotations {tuple(freqs_cis.shape)} in "
            f"{freqs_cis.dtype} or positions {places}"
        )
    if positions is not None:
        positions = positions.long()
    return _Attention.apply(q, k, v, positions, freqs_cis, head_dim)


def loss_rows_(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """The cross-entropy of each row, float32 (rows,); logits become its gradient times `scale`.

    `logits` (rows, vocab) are float32 or bfloat16 and contiguous, `targets` (rows,) ids, or -100
    for rows that count for nothing: their loss and gradient are 0. Raises TypeError for another
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
    if _native("loss_rows", logits.dtype)(*pointers, *logits.shape):
        raise IndexError(f"a target is none of the {logits.shape[1]} tokens, nor -100")
    return losses


class _NormPass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "dim", "is_wide")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("weight", "x", "branch", "sum", "y")),
        ("dy", ctypes.c_void_p * _MOST_USES),
        *((name, ctypes.c_void_p) for name in ("d_sum", "dx", "d_branch", "d_weight")),
        ("parts", ctypes.c_int64),
    )

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, eps: float) -> "_NormPass":
        dim, is_wide = x.shape[-1], x.dtype == torch.float32
        return cls(x.numel() // dim, dim, is_wide, eps, weight.data_ptr())


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
        norm.x, norm.branch, norm.sum, norm.y = map(_pointer, (x, branch, total, y))
        _native("norm_rows", dtype)(ctypes.byref(norm))
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
        norm.sum, norm.dx, norm.d_sum = map(_pointer, (total, dx, d_total))
        norm.dy[: len(uses)] = [_pointer(d) for d in uses]
        if ctx.adds:
            d_branch = torch.empty_like(dx, dtype=ctx.dtype)
            norm.d_branch = d_branch.data_ptr()
        if ctx.needs_input_grad[2]:
            d_weight = weight.new_empty(_PARTS, total.shape[-1])
            norm.d_weight = d_weight.data_ptr()
        norm.parts = _PARTS
        _native("norm_rows_back", ctx.dtype)(ctypes.byref(norm))
        d_weight = None if d_weight is None else d_weight[0].clone()
        return dx, d_branch, d_weight, None, None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, ups: Tensor) -> Tensor:
        gates, ups = gates.contiguous(), ups.contiguous()
        ctx.save_for_backward(gates, ups)
        y = torch.empty_like(gates)
        pointers = (t.data_ptr() for t in (gates, ups, y))
        _native("gate_numbers", y.dtype)(*pointers, y.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gates, ups = ctx.saved_tensors
        dy, d_gates, d_ups = dy.contiguous(), torch.empty_like(gates), torch.empty_like(ups)
        pointers = (t.data_ptr() for t in (gates, ups, dy, d_gates, d_ups))
        _native("gate_numbers_back", dy.dtype)(*pointers, dy.numel())
        return d_gates, d_ups


class _AttentionPass(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "seq", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_void_p) for name in ("positions", "turns")),
        ("turns_row", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "y", "sums", "dy", "dq", "dk", "dv")),
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
        sums = q.new_empty(heads, *q.shape[:2], dtype=torch.float32)
        _attend(head_dim, positions, freqs_cis, q, k, v, y, sums)
        ctx.save_for_backward(positions, freqs_cis, q, k, v, y, sums)
        ctx.head_dim = head_dim
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: where they are recomputed, a second time is an error
        gradients = [torch.empty_like(t) for t in saved[2:5]]
        _attend(ctx.head_dim, *saved, dy.contiguous(), *gradients)
        return *gradients, None, None, None


def _attend(
    head_dim: int,
    positions: Tensor | None,
    freqs_cis: Tensor,
    q: Tensor,
    k: Tensor,
    *others: Tensor,
) -> None:
    turns_row = freqs_cis[0].numel() * 2 if freqs_cis.dim() == 3 else 0
    heads, kv_heads = q.shape[2] // head_dim, k.shape[2] // head_dim
    sizes = *q.shape[:2], heads, kv_heads, head_dim
    pointers = (t.data_ptr() for t in (q, k, *others))
    attention = _AttentionPass(
        *sizes, _pointer(positions), freqs_cis.data_ptr(), turns_row, *pointers
    )
    kernels._check(_native("attend_documents", q.dtype)(ctypes.byref(attention)))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _native(name: str, dtype: torch.dtype) -> Any:
    """The function of that name, as it is compiled for a dtype."""
    return getattr(kernels.library("training"), f"{name}_{_ENDINGS[dtype]}")


def _check_dtype(dtype: torch.dtype, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.device.type != "cpu" or tensor.dtype not in _ENDINGS:
            raise InputTypeError(
                f"{name} is {tensor.dtype} on {tensor.device}; the kernel takes float32 or "
                "bfloat16 on a CPU"
            )
        if tensor.dtype != dtype:
            raise InputTypeError(f"{name} is {tensor.dtype} where {dtype} is expected")
