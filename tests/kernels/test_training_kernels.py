"""Training's native kernels beside plain torch in float64, with gradients by autograd."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from fixtures import difference, kernel_targets, needs_compiler, use_kernels
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llama.kernels.compiler import processor
from llama.kernels.training_ops import (
    add_rms_norm,
    available,
    cross_entropy_,
    packed_attention,
    rms_norm,
    silu_mul,
    trains_head_dim,
)
from llama.model import DocumentMask, freqs_cis_at, rotary_frequencies

# heads, KV heads, size of a head
HEADS = [(2, 2, 16), (8, 4, 32), (6, 2, 64), (3, 1, 128), (4, 1, 48), (1, 1, 112)]
# The lengths of the documents of each row; a block is 64 tokens.
DOCUMENTS = {
    "one token": [[1]],
    "a few": [[5], [5]],
    "a block": [[64], [64]],
    "more": [[130], [130], [130]],
    "edges": [[3, 61, 1, 15, 17, 33], [130], [65, 65]],
    "padding": [[200, 7, 1, 1, 1], [16, 32, 48, 64, 50]],
    "a row of padding": [[1] * 70, [70]],
    "long": [[400, 11]],
}
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-23}  # half of the last bit
# The errors that attention may have, of y and of gradients, as a whole and at the worst token:
# where pairs of bfloat16 are multiplied, and elsewhere, and in float32. Gradients are made from the
# rounded y.
ERRORS = {
    "pairs": ((5e-3, 1.2e-2), (1e-2, 4e-2)),
    "bfloat16": ((2e-3, 2.5e-3), (8e-3, 4e-2)),
    "float32": ((1e-6, 2e-6), (2e-6, 2e-5)),
}
# Of what a norm is made, and what it is made in.
NORMS = [
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.float32),
]

Function = Callable[..., Tensor]


@pytest.fixture(params=["native", *kernel_targets()])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library for this processor, or those for lesser ones."""
    if request.param != "native":
        use_kernels(request.param, monkeypatch)
    elif not available():
        pytest.skip("needs a C compiler")
    return request.param


@pytest.fixture(params=list(ROUNDING), ids=["bfloat16", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What products are made of, and rows between them."""
    return request.param


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def results(function: Function, inputs: Sequence[Tensor], dy: Tensor) -> list[Tensor]:
    """y and the gradients of `inputs`."""
    y = function(*inputs)
    return [y.detach(), *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in tensors]


def is_rounded(found: Tensor, expected: Tensor, slack: float = 1e-5) -> bool:
    """Whether each number is the one next to the expected, but for errors of float32."""
    error, half = (found.double() - expected).abs(), ROUNDING[found.dtype] * 1.001
    return bool((error <= expected.abs() * half + slack * expected.abs().mean()).all())


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def plain_attend(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, freqs_cis: Tensor, head_dim: int
) -> Tensor:
    """In the dtype of q, k and v, with a matrix of all scores; of the last tokens, as q has."""
    width, mask = q.shape[2], DocumentMask(positions).dense()[..., -q.shape[1] :, :]
    cos, sin = torch.view_as_real(freqs_cis).to(q.dtype).unsqueeze(-3).unbind(-1)

    def heads(x: Tensor, turned: bool) -> Tensor:
        x = x.unflatten(-1, (-1, head_dim))
        if turned:
            even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
            c, s = cos[:, -x.shape[1] :], sin[:, -x.shape[1] :]
            x = torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)
        return x.repeat_interleave(width // head_dim // x.shape[2], 2).transpose(1, 2)

    scores = heads(q, True) @ heads(k, True).transpose(-1, -2) / math.sqrt(head_dim)
    scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1) @ heads(v, False)).transpose(1, 2).flatten(2)


def packed(documents: Sequence[Sequence[int]]) -> Tensor:
    """Positions (batch, seq) of rows of documents of these lengths."""
    rows = [torch.cat([torch.arange(length) for length in row]) for row in documents]
    return torch.stack(rows)


def projections(
    batch: int,
    seq: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and the gradient of the result, large enough that weights differ."""
    sizes = enumerate((heads, kv_heads, kv_heads, heads))
    q, k, v, dy = (numbers(batch, seq, n * head_dim, seed=i, dtype=dtype) for i, n in sizes)
    return q * 2, k, v, dy


def turns_of(positions: Tensor, head_dim: int) -> Tensor:
    return freqs_cis_at(positions, rotary_frequencies(head_dim, 10000.0))


def worst(found: Tensor, expected: Tensor, head_dim: int) -> float:
    """The largest error of a token's head, relative to its size or that of most."""
    error = (found.double() - expected).unflatten(-1, (-1, head_dim)).norm(dim=-1)
    size = expected.unflatten(-1, (-1, head_dim)).norm(dim=-1)
    return float((error / (size + size.mean())).max())


@pytest.mark.parametrize(("of", "to"), NORMS)
@pytest.mark.parametrize(("rows", "dim"), [(1, 1), (3, 7), (1, 64), (130, 257), (700, 96)])
def test_rms_norm(kind: str, rows: int, dim: int, of: torch.dtype, to: torch.dtype) -> None:
    x = numbers(rows, dim, dtype=of) * torch.arange(1, rows + 1).to(of).unsqueeze(1)
    weight, dy = numbers(dim, seed=1, dtype=torch.float32), numbers(rows, dim, seed=2)
    exact = results(lambda *a: plain_rms_norm(*a, 0.1), leaves(x, weight, dtype=torch.float64), dy)
    y, dx, d_weight = results(lambda *a: rms_norm(*a, 0.1, to), leaves(x, weight), dy)
    assert (y.dtype, y.shape) == (to, x.shape)
    assert (dx.dtype, d_weight.dtype) == (of, torch.float32)
    assert is_rounded(y, exact[0])
    if of == torch.float32:
        # Of one number the gradient is what eps leaves of a difference.
        assert difference(dx, exact[1]) < (1e-6 if dim > 1 else 1e-5)
    else:
        assert is_rounded(dx, exact[1])
    assert difference(d_weight, exact[2]) < 1e-6


@pytest.mark.parametrize(("of", "to"), NORMS)
@pytest.mark.parametrize("uses", [1, 2, 3])
@pytest.mark.parametrize("is_plain", [False, True])
def test_add_rms_norm(
    kind: str, uses: int, of: torch.dtype, to: torch.dtype, is_plain: bool
) -> None:
    x = numbers(70, 96, dtype=of) * 3
    branch = None if is_plain else numbers(70, 96, seed=1, dtype=to)
    weight = numbers(96, seed=2, dtype=torch.float32)
    factors = [numbers(70, 96, seed=3 + i) for i in range(uses + 1)]

    def weighed(function: Function, inputs: list[Tensor]) -> list[Tensor]:
        outputs = function(*inputs)
        # What comes after may leave any of them alone.
        taken = [(y, d) for y, d in zip(outputs, factors, strict=True) if d is not factors[-2]]
        d = torch.autograd.grad([y for y, _ in taken], inputs, [d.to(y.dtype) for y, d in taken])
        return [*(y.detach() for y in outputs), *d]

    def plain(x: Tensor, weight: Tensor, branch: Tensor | None = None) -> list[Tensor]:
        total = x + branch if branch is not None else x
        n = plain_rms_norm(total, weight, 0.1)
        return [total, *[n] * uses]

    inputs = [x, weight] if branch is None else [x, weight, branch]
    exact = weighed(plain, leaves(*inputs, dtype=torch.float64))
    ours = weighed(lambda x, w, b=None: add_rms_norm(x, b, w, 0.1, to, uses), leaves(*inputs))
    assert [t.dtype for t in ours[: uses + 1]] == [of] + [to] * uses
    assert [t.dtype for t in ours[uses + 1 :]] == [t.dtype for t in inputs]
    for found, expected in zip(ours, exact, strict=True):
        is_exact = found.dtype == of == torch.float32
        assert difference(found, expected) < (1e-6 if is_exact else 4e-3)


def test_halves_are_rounded_to_even(kind: str) -> None:
    weight = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 1 + 2**-8 + 2**-20, 1 - 2**-9])
    assert torch.equal(rms_norm(torch.ones(5), weight, 0.0, torch.bfloat16), weight.bfloat16())


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 100, 48), (40, 1000)])
def test_gate(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gates, ups, dy = (numbers(*shape, seed=i, dtype=dtype) for i in range(3))
    inputs = gates * 4, ups
    exact = results(lambda a, b: F.silu(a) * b, leaves(*inputs, dtype=torch.float64), dy)
    for found, expected in zip(results(silu_mul, leaves(*inputs), dy), exact, strict=True):
        assert found.dtype == dtype
        assert is_rounded(found, expected)


def test_a_gate_far_from_zero(kind: str) -> None:
    gates = torch.tensor([-1e30, -3e4, -100.0, 100.0, 3e4]).bfloat16()
    ones = torch.ones_like(gates)
    y, d_gates, d_ups = results(silu_mul, leaves(gates, ones), ones)
    for found, expected in ((y, gates), (d_gates, ones), (d_ups, gates)):
        assert torch.equal(found[3:], expected[3:])
        assert (found[:3].abs() < 1e-6).all()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "documents"),
    [(*HEADS[1], each) for each in DOCUMENTS if each != "edges"]
    + [(*each, "edges") for each in HEADS],
)
def test_attend(
    kind: str, heads: int, kv_heads: int, head_dim: int, documents: str, dtype: torch.dtype
) -> None:
    positions = packed(DOCUMENTS[documents])
    *inputs, dy = projections(*positions.shape, heads, kv_heads, head_dim, dtype)
    places = positions, turns_of(positions, head_dim), head_dim
    exact = results(lambda *a: plain_attend(*a, *places), leaves(*inputs, dtype=torch.float64), dy)
    ours = results(lambda *a: packed_attention(*a, *places), leaves(*inputs), dy)
    in_pairs = kind == "native" and "avx512_bf16" in processor() and dtype == torch.bfloat16
    of_y, of_gradients = ERRORS["pairs" if in_pairs else str(dtype).removeprefix("torch.")]
    for found, expected, errors in zip(ours, exact, (of_y, *[of_gradients] * 3), strict=True):
        assert (found.dtype, found.shape) == (dtype, expected.shape)
        if expected.abs().max() < 1e-9:  # a token alone has no choice
            assert found.abs().max() < 1e-5
        else:
            assert difference(found, expected) < errors[0]
            assert worst(found, expected, head_dim) < errors[1]


@pytest.mark.parametrize("seq", [1, 40, 150])
def test_rows_of_one_document_need_no_positions(kind: str, seq: int, dtype: torch.dtype) -> None:
    *inputs, dy = projections(3, seq, 4, 2, 32, dtype)
    positions = torch.arange(seq).repeat(3, 1)
    turns = turns_of(positions, 32)
    expected = results(lambda *a: packed_attention(*a, positions, turns, 32), leaves(*inputs), dy)
    found = results(lambda *a: packed_attention(*a, None, turns[0], 32), leaves(*inputs), dy)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_rows_may_begin_within_a_document(kind: str) -> None:
    positions = torch.tensor([[3, 4, 5, 0, 1, 2, 3], [7, 8, 9, 10, 11, 12, 0]])
    *inputs, dy = projections(2, 7, 4, 2, 32)
    places = positions, turns_of(positions, 32), 32
    exact = results(lambda *a: plain_attend(*a, *places), leaves(*inputs, dtype=torch.float64), dy)
    ours = results(lambda *a: packed_attention(*a, *places), leaves(*inputs), dy)
    for found, expected in zip(ours, exact, strict=True):
        assert difference(found, expected) < 1e-2


def test_a_document_is_what_it_is_alone(kind: str, dtype: torch.dtype) -> None:
    documents = [[30, 100, 1], [70, 60, 1]]
    positions = packed(documents)
    *inputs, dy = projections(2, 131, 4, 2, 32, dtype)
    places = positions, turns_of(positions, 32), 32
    together = results(lambda *a: packed_attention(*a, *places), leaves(*inputs), dy)
    for row, lengths in enumerate(documents):
        for i, length in enumerate(lengths):
            start = sum(lengths[:i])
            here = slice(row, row + 1), slice(start, start + length)
            places = None, turns_of(torch.arange(length), 32), 32
            alone = results(
                lambda *a, p=places: packed_attention(*a, *p),
                leaves(*(t[here] for t in inputs)),
                dy[here],
            )
            for a, b in zip(together, alone, strict=True):
                assert torch.equal(a[here], b)


@pytest.mark.parametrize("chosen", ["first", "last"])
def test_scores_far_from_each_other(kind: str, chosen: str) -> None:
    q, k, v, dy = projections(1, 200, 2, 1, 32)
    q.zero_()[..., ::32] = 8
    k.zero_()[0, :, 0] = torch.arange(200) * 16.0 if chosen == "last" else 0
    k[0, 0, 0] = 340 if chosen == "first" else 0
    turns = torch.ones(200, 16, dtype=torch.complex64)
    y, dq, dk, dv = results(lambda *a: packed_attention(*a, None, turns, 32), leaves(q, k, v), dy)
    values = v if chosen == "last" else v[:, :1].expand(1, 200, 32)
    assert torch.equal(y, values.repeat(1, 1, 2))
    assert dq.abs().max() < 1e-3
    assert dk.abs().max() < 1e-3
    d_values = dy.double().unflatten(-1, (2, 32)).sum(2)
    if chosen == "last":
        assert difference(dv, d_values) < ROUNDING[torch.bfloat16]
    else:
        assert difference(dv[:, 0], d_values.sum(1)) < ROUNDING[torch.bfloat16]
        assert dv[:, 1:].abs().max() < 1e-20


def test_a_token_alone_attends_to_itself(kind: str) -> None:
    positions = torch.zeros(2, 9, dtype=torch.long)
    *inputs, dy = projections(2, 9, 4, 2, 32)
    places = positions, turns_of(positions, 32), 32
    y, dq, dk, dv = results(lambda *a: packed_attention(*a, *places), leaves(*inputs), dy)
    values = inputs[2].unflatten(-1, (2, 1, 32)).expand(-1, -1, -1, 2, -1).flatten(2)
    assert torch.equal(y, values)
    assert dq.abs().max() < 1e-4
    assert dk.abs().max() < 1e-4
    assert is_rounded(dv, dy.double().unflatten(-1, (2, 2, 32)).sum(3).flatten(2))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_not_finite_stays_in_its_document(kind: str, at: int, wrong: float) -> None:
    positions = packed([[40, 150, 10], [200]])
    *inputs, dy = projections(2, 200, 2, 1, 32)
    inputs[at][0, 140] = wrong  # in the second block of the second document
    places = positions, turns_of(positions, 32), 32
    y, *gradients = results(lambda *a: packed_attention(*a, *places), leaves(*inputs), dy)
    ill = slice(140, 141) if at == 0 else slice(140, 190)
    assert not y[0, ill].isfinite().any()
    assert y[0, :104].isfinite().all()
    for found in (y, *gradients):
        assert found[0, :40].isfinite().all()
        assert found[0, 190:].isfinite().all()
        assert found[1].isfinite().all()


def test_a_long_document(kind: str) -> None:
    seq, last, head_dim = 8192, slice(8188, 8192), 16
    q, k, v, dy = projections(1, seq, 2, 1, head_dim)
    dy[:, : last.start] = 0
    positions = torch.arange(seq).unsqueeze(0)
    places = positions, turns_of(positions, head_dim), head_dim
    y, dq, dk, dv = results(lambda *a: packed_attention(*a, *places), leaves(q, k, v), dy)
    inputs = leaves(q[:, last], k, v, dtype=torch.float64)
    exact = results(lambda *a: plain_attend(*a, *places), inputs, dy[:, last])
    assert not dq[:, : last.start].any()
    for found, expected in zip((y[:, last], dq[:, last], dk, dv), exact, strict=True):
        assert difference(found, expected) < 1e-2


@pytest.mark.parametrize(("rows", "vocab"), [(1, 2), (7, 33), (40, 1000), (3, 4097)])
def test_loss_rows(kind: str, rows: int, vocab: int, dtype: torch.dtype) -> None:
    logits = numbers(rows, vocab, dtype=dtype) * 5
    targets = torch.arange(rows) * 7 % vocab
    targets[1::3] = -100
    expected, gradient = results(
        lambda x: F.cross_entropy(x, targets, reduction="none"),
        leaves(logits, dtype=torch.float64),
        torch.full((rows,), 0.125),
    )
    losses = cross_entropy_(logits, targets, 0.125)
    assert (losses.dtype, losses.shape) == (torch.float32, (rows,))
    assert (losses - expected).abs().max() < 1e-5
    if dtype == torch.float32:  # of a target that is all but certain it is what 1 leaves
        assert (logits - gradient).abs().max() < 0.125 * 4e-6
    else:
        assert is_rounded(logits, gradient)
    assert not logits[targets == -100].any()


def test_losses_far_from_zero(kind: str) -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0], [-3e4, -3e4, -3e4], [1.0, -math.inf, 1.0]]).bfloat16()
    targets = torch.tensor([1, 2, 0])
    expected = F.cross_entropy(logits.double(), targets, reduction="none")
    losses = cross_entropy_(logits, targets, 1.0)
    assert difference(losses, expected) < 1e-6
    exact = torch.tensor([[1, -1, 0], [1 / 3, 1 / 3, -2 / 3], [-0.5, 0, 0.5]]).double()
    assert is_rounded(logits, exact)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stays_in_its_row(kind: str, wrong: float) -> None:
    logits = numbers(3, 50)
    logits[1, 7] = wrong
    losses = cross_entropy_(logits, torch.tensor([4, 5, 6]), 1.0)
    assert losses.isfinite().tolist() == [True, False, True]
    assert logits[[0, 2]].isfinite().all()
    assert not logits[1].isfinite().all()


@pytest.mark.parametrize("target", [-1, 50, 2**40, -101])
def test_a_target_that_is_no_token_is_an_error_not_a_write(kind: str, target: int) -> None:
    logits = numbers(2, 50)
    before = logits.clone()
    with pytest.raises(IndexError, match="none of the 50 tokens, nor -100"):
        cross_entropy_(logits, torch.tensor([3, target]), 1.0)
    assert torch.equal(logits, before)


def runs(dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], list[Tensor]]]:
    """Each kernel's results and gradients, of one input."""
    positions = packed([[3, 61, 1, 15, 17, 33], [130]])
    *heads, dy = projections(2, 130, 4, 2, 32, dtype)
    turns = turns_of(positions, 32)

    def losses() -> list[Tensor]:
        logits = numbers(77, 333, dtype=dtype)
        return [cross_entropy_(logits, torch.arange(77), 1.0), logits]

    wide, narrow = numbers(777, 96, dtype=torch.float32), numbers(777, 96, seed=1, dtype=dtype)
    weight = numbers(96, seed=2, dtype=torch.float32)
    return {
        "rms_norm": lambda: results(
            lambda *a: rms_norm(*a, 1e-5, dtype), leaves(wide, weight), narrow
        ),
        "silu_mul": lambda: results(silu_mul, leaves(wide.to(dtype), narrow), narrow),
        "packed_attention": lambda: results(
            lambda *a: packed_attention(*a, positions, turns, 32), leaves(*heads), dy
        ),
        "cross_entropy_": losses,
    }


@needs_compiler
def test_avx2_computes_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One input; the slow run has all tests for all targets."""
    native = {name: run() for name, run in runs(dtype).items()}
    use_kernels("x86-64-v3", monkeypatch)
    for name, run in runs(dtype).items():
        for found, expected in zip(run(), native[name], strict=True):
            assert difference(found, expected) < (2e-6 if dtype == torch.float32 else 1e-2), name


@pytest.mark.parametrize("name", runs())
@pytest.mark.parametrize("threads", [2, 3, 7])
def test_results_do_not_depend_on_threads(
    kind: str, name: str, threads: int, dtype: torch.dtype
) -> None:
    before, run = torch.get_num_threads(), runs(dtype)[name]
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(threads)
        many = run()
    finally:
        torch.set_num_threads(before)
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_tensors_that_are_not_contiguous() -> None:
    positions = packed([[20, 30], [50]])
    *inputs, dy = projections(2, 50, 4, 2, 32)
    turns, wide = turns_of(positions, 32), inputs[0].float()
    weight = numbers(128, dtype=torch.float32)

    def spread(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, -1)[..., ::2]

    for function, tensors, places in (
        (packed_attention, inputs, (positions, turns, 32)),
        (rms_norm, [wide, weight], (1e-5, torch.bfloat16)),
        (lambda *a: sum(add_rms_norm(*a, 1e-5, dy.dtype, 2)), [wide, dy, weight], ()),
        (silu_mul, [inputs[0], dy], ()),
    ):
        strided = [spread(p) if isinstance(p, Tensor) else p for p in places]
        expected = results(lambda *a, f=function, p=places: f(*a, *p), leaves(*tensors), dy)
        found = results(
            lambda *a, f=function, p=strided: f(*map(spread, a), *p), leaves(*tensors), spread(dy)
        )
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_again_is_the_same(reentrant: bool) -> None:
    positions = packed([[20, 30], [50]])
    *inputs, dy = projections(2, 50, 4, 4, 32)
    weight, turns = numbers(128, dtype=torch.float32), turns_of(positions, 32)

    def layers(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
        y = packed_attention(rms_norm(q, weight, 1e-5, q.dtype), k, v, positions, turns, 32)
        return silu_mul(y, rms_norm(v, weight, 1e-5, v.dtype))

    plain, again = leaves(*inputs, weight), leaves(*inputs, weight)
    y, other = layers(*plain), checkpoint(layers, *again, use_reentrant=reentrant)
    assert torch.equal(y, other)
    y.backward(dy)
    other.backward(dy)
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a.grad, b.grad)


@needs_compiler
@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1), (1, 2), (0, 2)])
def test_some_inputs_may_be_frozen(frozen: tuple[int, ...]) -> None:
    positions = packed([[20, 30], [50]])
    inputs = projections(2, 50, 4, 2, 32)[:3]
    turns, weight = turns_of(positions, 32), numbers(64, dtype=torch.float32)
    for function, tensors in (
        (lambda *a: packed_attention(*a, positions, turns, 32), inputs),
        (lambda *a: rms_norm(*a, 1e-5, torch.bfloat16), [inputs[1], weight]),
        (silu_mul, [inputs[1], inputs[2]]),
    ):
        all_learn, some_learn = leaves(*tensors), leaves(*tensors)
        for i in frozen:
            if i < len(tensors):
                some_learn[i].requires_grad_(False)
        if not any(t.requires_grad for t in some_learn):
            continue
        function(*all_learn).sum().backward()
        function(*some_learn).sum().backward()
        for a, b in zip(all_learn, some_learn, strict=True):
            assert (b.grad is None) == (not b.requires_grad)
            assert b.grad is None or torch.equal(a.grad, b.grad)


@needs_compiler
def test_nothing_is_kept_without_gradients() -> None:
    x = numbers(4, 32)
    assert rms_norm(x, torch.ones(32), 1e-5, x.dtype).grad_fn is None
    with torch.no_grad():
        assert not silu_mul(*leaves(x, x)).requires_grad


@needs_compiler
def test_a_gradient_of_a_gradient_is_refused() -> None:
    (x,) = leaves(numbers(4, 32))
    (dx,) = torch.autograd.grad(silu_mul(x, x).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@needs_compiler
def test_a_weight_in_bfloat16_gets_its_gradient_so() -> None:
    x, weight = leaves(numbers(9, 32), numbers(32, seed=1))
    wide_x, wide = leaves(x, weight, dtype=torch.float32)
    rms_norm(x, weight, 1e-5, x.dtype).sum().backward()
    rms_norm(wide_x, wide, 1e-5, x.dtype).sum().backward()
    assert torch.equal(weight.grad, wide.grad.bfloat16())


@needs_compiler
@pytest.mark.parametrize("changed", range(9))
def test_what_does_not_fit_is_refused(changed: int) -> None:
    seq, head_dim = 6, 32
    q, k, v, _ = projections(2, seq, 4, 2, head_dim)
    positions = torch.arange(seq).repeat(2, 1)
    turns = turns_of(positions, head_dim)
    wrong = [
        (q[..., :-1], k, v, positions, turns, head_dim),
        (q[..., :96], k, v, positions, turns, head_dim),  # 3 heads over 2
        (q, k, v[:, :5], positions, turns, head_dim),
        (q, k[:, :5], v[:, :5], positions, turns, head_dim),
        (q, k, v, positions[:, :5], turns, head_dim),
        (q, k, v, positions, turns[:, :5], head_dim),
        (q, k, v, positions, turns[..., :8], head_dim),
        (q, k, v, positions, turns[:1], head_dim),
        (q, k, v, positions, turns, 24),
    ]
    with pytest.raises(ValueError, match=r"do not fit together|no kernel for heads of 24"):
        packed_attention(*wrong[changed])


@needs_compiler
def test_other_dtypes_and_shapes_are_refused() -> None:
    x = numbers(4, 32)
    with pytest.raises(TypeError, match=r"ups is torch\.float32 where torch\.bfloat16"):
        silu_mul(x, x.float())
    with pytest.raises(TypeError, match=r"v is torch\.float16"):
        packed_attention(x, x, x.half(), None, turns_of(torch.arange(4), 32), 32)
    with pytest.raises(TypeError, match=r"x is torch\.float16"):
        rms_norm(x.half(), torch.ones(32), 1e-5, torch.float16)
    with pytest.raises(TypeError, match="on meta"):
        rms_norm(x.to("meta"), torch.ones(32), 1e-5, x.dtype)
    with pytest.raises(TypeError, match=r"norm of x in torch\.bfloat16 .* not in torch\.float32"):
        rms_norm(x, torch.ones(32), 1e-5, torch.float32)
    with pytest.raises(TypeError, match=r"norm of x in torch\.float32 .* not in torch\.float16"):
        rms_norm(x.float(), torch.ones(32), 1e-5, torch.float16)
    with pytest.raises(TypeError, match=r"logits is torch\.float64"):
        cross_entropy_(x.double(), torch.zeros(4, dtype=torch.long), 1.0)
    with pytest.raises(ValueError, match=r"gates \(4, 32\) and ups \(4, 16\)"):
        silu_mul(x, x[:, :16])
    with pytest.raises(TypeError, match=r"branch is torch\.float32"):
        add_rms_norm(x, x.float(), torch.ones(32), 1e-5, x.dtype, 1)
    for weight, branch in ((16, None), (32, x[:3])):
        with pytest.raises(
            ValueError, match=rf"x \(4, 32\), weight \({weight},\) and branch .*fit"
        ):
            add_rms_norm(x, branch, torch.ones(weight), 1e-5, x.dtype, 1)
    for uses in (0, 4):
        with pytest.raises(ValueError, match=f"uses={uses} should be from 1 to 3"):
            add_rms_norm(x, None, torch.ones(32), 1e-5, x.dtype, uses)
    for logits, rows in ((x, 3), (x[:, ::2], 4), (x[0], 4)):
        with pytest.raises(ValueError, match="should be"):
            cross_entropy_(logits, torch.zeros(rows, dtype=torch.long), 1.0)


@needs_compiler
def test_which_heads_it_trains() -> None:
    assert [n for n in range(1, 300) if trains_head_dim(n)] == [16, 32, 48, 64, 80, 96, 112, 128]


def test_without_kernels_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    use_kernels("off", monkeypatch)
    assert not available()
    assert not trains_head_dim(64)
