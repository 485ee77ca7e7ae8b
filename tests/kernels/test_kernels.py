"""Native kernels beside plain torch, in float64 where that is the judge."""

import pytest
import torch
from fixtures import difference, kernel_targets, needs_compiler, use_kernels

from llama.kernels import Packed, bindings, linear, pack, rms_norm, unpack
from llama.model import RMSNorm

MATRICES = [(16, 32), (48, 96), (256, 768), (4096, 64)]
ROWS = 1, 2, 3, 4, 5, 8, 13, 20
RAGGED = [(1, 1), (3, 7), (5, 33), (18, 100)]


@pytest.fixture(
    params=[pytest.param("native", marks=needs_compiler), "off", *kernel_targets("x86-64-v3")]
)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library for this processor, those for lesser ones, or none."""
    if request.param != "native":
        use_kernels(request.param, monkeypatch)
    return request.param


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Inputs as int8 in groups of 32 leaves them: rounded as float32, for ties, then in float64."""
    groups = x.float().unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.tensor(127.0) / largest  # torch rounds 127 / largest twice
    return ((groups * inverse).round().double() * (largest / 127)).flatten(-2)


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 4e-3), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("n", "k"), MATRICES + RAGGED)
def test_weights_that_are_not_packed(
    kind: str, n: int, k: int, dtype: torch.dtype, most: float
) -> None:
    weight = numbers(n, k, seed=1, dtype=dtype)
    for rows in ROWS:
        x = numbers(rows, k, dtype=dtype)
        expected = x.double() @ weight.double().T
        assert difference(linear(x, weight, as_float=True), expected) < 1e-6
        y = linear(x, weight)
        assert y.dtype == dtype
        assert difference(y, expected) < most


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "k"), MATRICES)
def test_packed(kind: str, n: int, k: int, bits: int) -> None:
    packed = pack(numbers(n, k, seed=1), bits)
    assert (packed.bits, packed.shape) == (bits, (n, k))
    for rows in ROWS:
        x = numbers(rows, k)
        expected = rounded(x) @ unpack(packed, torch.float64).T
        assert difference(linear(x, packed, as_float=True), expected) < 1e-6
        y = linear(x, packed)
        assert y.dtype == torch.bfloat16
        assert difference(y, expected) < 4e-3


def test_shapes_and_dtypes_that_do_not_fit_are_refused(kind: str) -> None:
    x, weight = numbers(2, 64), numbers(32, 64)
    for each in (weight[:, :32], pack(weight[:, :32], 8)):
        with pytest.raises(ValueError, match=r"x \(2, 64\) does not fit a weight of \(32, 32\)"):
            linear(x, each)
    for wrong in ((x.float(), weight), (x, weight.float()), (x.float(), pack(weight, 4))):
        with pytest.raises(TypeError, match=r"x and weight should both be .*, not .*float32"):
            linear(*wrong)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.006), (4, 0.09)])
def test_rounding_errs_by_so_much(kind: str, bits: int, error: float) -> None:
    weight = numbers(64, 512)
    assert 0.5 * error < difference(unpack(pack(weight, bits), torch.float32), weight) < error


@needs_compiler
@pytest.mark.parametrize("bits", [8, 4])
def test_the_reference_implementation_packs_alike(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = numbers(64, 512)
    weight[3, 32:64] = 0
    ours = pack(weight, bits)
    monkeypatch.setattr(bindings, "library", lambda part: None)
    reference = pack(weight, bits)
    # Of two int4 scales that err alike, sums in another order may choose the other.
    same = (ours.scales == reference.scales).float().mean()
    assert same == 1 if bits == 8 else same > 0.999
    assert (ours.data == reference.data).float().mean() > 0.999
    assert torch.equal(unpack(ours)[3, 32:64], torch.zeros(32, dtype=torch.bfloat16))


def test_a_matrix_that_is_not_contiguous(kind: str) -> None:
    x, wide = numbers(3, 64), numbers(64, 128, seed=1)
    for weight in (wide[:, 64:], wide.T[:64]):
        copy = weight.clone(memory_format=torch.contiguous_format)
        assert torch.equal(linear(x, weight), linear(x, copy))
        for ours, theirs in zip(pack(weight, 4), pack(copy, 4), strict=True):
            assert torch.equal(ours, theirs)


def test_int4_uses_all_sixteen_values(kind: str) -> None:
    weight = torch.arange(-8, 8).repeat(16, 2).bfloat16()  # exactly what int4 can say
    assert torch.equal(unpack(pack(weight, 4)), weight)
    assert torch.equal(unpack(pack(-weight, 4)), -weight)


@pytest.mark.parametrize("k", [256, 259])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_a_row_depends_on_no_other(kind: str, bits: int, k: int) -> None:
    if bits < 16 and k % 32:
        pytest.skip("fills no tile")
    if kind == "off" and bits == 16:
        pytest.skip("torch's product of bfloat16 rounds by the number of rows")
    dtype = torch.float32 if bits == 32 else torch.bfloat16
    x, weight = numbers(16, k, dtype=dtype), numbers(64, k, seed=1, dtype=dtype)
    packed = pack(weight, bits) if bits < 16 else None

    def product(rows: torch.Tensor) -> torch.Tensor:
        y = linear(rows, packed, True) if packed else linear(rows, weight, True)
        return y if kind != "off" else y.bfloat16()  # its float32 differs by rounding

    alone = torch.cat([product(x[i : i + 1]) for i in range(16)])
    for rows in range(2, 17):
        together = product(x[:rows])
        if kind == "off":
            assert difference(together, alone[:rows]) < 1e-3
        else:
            assert torch.equal(together, alone[:rows])


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_row(kind: str, bits: int, wrong: float) -> None:
    x, weight = numbers(3, 64), numbers(32, 64, seed=1)
    x[1, 5] = wrong
    y = linear(x, weight) if bits == 16 else linear(x, pack(weight, bits))
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()


def test_zeros(kind: str) -> None:
    zeros = torch.zeros(2, 64, dtype=torch.bfloat16)
    packed = pack(torch.zeros(32, 64, dtype=torch.bfloat16), 8)
    assert not linear(zeros, packed).any()
    assert not linear(numbers(2, 64), packed).any()


@pytest.mark.parametrize(("n", "k"), [(8, 32), (16, 48)])
def test_what_fills_no_tile_is_refused(n: int, k: int) -> None:
    with pytest.raises(ValueError, match=rf"a matrix of {n} x {k} can't be packed"):
        pack(numbers(n, k), 8)


def test_packed_is_made_of_what_it_says() -> None:
    packed = pack(numbers(32, 64), 4)
    assert isinstance(packed, Packed)
    assert packed.data.shape == (2, 2, 256)
    assert packed.scales.shape == (2, 2, 16)
    assert packed.scales.dtype == torch.float16


@needs_compiler
def test_the_norm_of_small_numbers_has_its_epsilon() -> None:
    x = (torch.randn(3, 64, generator=torch.Generator().manual_seed(1)) * 3e-3).bfloat16()
    norm = RMSNorm(64, 1e-5).bfloat16()
    torch.testing.assert_close(rms_norm(x, norm.weight.detach(), 1e-5), norm(x).detach())
