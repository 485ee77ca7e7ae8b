"""bfloat16 in 12 bits: every bit comes back, and products have the bits of bfloat16."""

import contextlib

import pytest
import torch
from fixtures import kernel_targets, needs_compiler, use_kernels

from llama.errors import InputError
from llama.kernels import Bf12, bindings, linear, pack_bf12, unpack_bf12
from llama.kernels.bf12_packing import check_bf12, cut_bf12, join_bf12

SHAPES = [
    (16, 128),
    (48, 96),
    (1, 1),
    (3, 7),
    (5, 259),
    (18, 64),
    (35, 448),
    (16, 1000),
    (21, 4512),
]
ROWS = [*range(1, 17), 20]


@pytest.fixture(
    params=[pytest.param("native", marks=needs_compiler), "off", *kernel_targets("x86-64-v3")]
)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The library for this processor, those for lesser ones, or none."""
    if request.param != "native":
        use_kernels(request.param, monkeypatch)
    return request.param


def bits_of(*words: int) -> torch.Tensor:
    return torch.tensor(words).to(torch.int32).to(torch.int16).view(torch.bfloat16)


def random_bits(*shape: int, seed: int = 0) -> torch.Tensor:
    """Any bfloat16: NaN with payloads, infinities, denormals and zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**15), 2**15, shape, generator=generator, dtype=torch.int16)
    return words.view(torch.bfloat16)


def trained_like(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers of another spread in each row, some of them far apart from the others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight *= torch.randn(shape[0], 1, generator=generator).exp()
    far, lower = torch.rand(2, *shape, generator=generator)
    far_ones = weight * torch.exp2(-120 * lower)
    return weight.where(far > 0.02, far_ones).where(far < 0.995, -0.0).bfloat16()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    views = (x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32) for x in (a, b))
    return torch.equal(*views)


def special_rows(k: int) -> dict[str, torch.Tensor]:
    normal = trained_like(1, k)[0]
    huge, tiny = normal.clone() * 1e-20, normal.clone()
    huge[k // 2], tiny[k // 3] = 3e38, 1e-40
    rows = {
        "zeros": torch.zeros(k),
        "negative zeros": -torch.zeros(k),
        "ones": torch.ones(k),
        "infinities": torch.full((k,), -torch.inf),
        "denormals": bits_of(*(torch.arange(k) % 128).tolist()),
        "NaN with payloads": bits_of(*(0x7F81 + torch.arange(k) % 127).tolist()),
        "negative NaN": bits_of(*(0xFF81 + torch.arange(k) % 127).tolist()),
        "every high byte": bits_of(*(torch.arange(k) * 257 % 2**16).tolist()),
        "one huge": huge,
        "one tiny": tiny,
    }
    return {name: row.bfloat16() for name, row in rows.items()}


@pytest.mark.parametrize("k", [1, 63, 64, 65, 127, 128, 129, 1000])
def test_every_special_row_comes_back(kind: str, k: int) -> None:
    rows = special_rows(k)
    weight = torch.stack(list(rows.values()))
    packed = pack_bf12(weight)
    check_bf12(packed)
    found = unpack_bf12(packed)
    for name, row, original in zip(rows, found, weight, strict=True):
        assert same_bits(row, original), name


def test_random_bits_by_the_million_come_back(kind: str) -> None:
    weight = random_bits(1200, 1003)
    packed = pack_bf12(weight)
    assert not packed.gains
    assert len(packed.escapes) > weight.numel() // 2
    check_bf12(packed)
    assert same_bits(unpack_bf12(packed), weight)


@needs_compiler
@pytest.mark.parametrize("make", [trained_like, random_bits])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_reference_implementation_packs_alike(
    n: int, k: int, make, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = make(n, k)
    ours = pack_bf12(weight)
    monkeypatch.setattr(bindings, "library", lambda part: None)
    reference = pack_bf12(weight)
    for one, other in zip(ours.tensors, reference.tensors, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert same_bits(unpack_bf12(ours), weight)


def test_rows_are_unpacked_in_any_order(kind: str) -> None:
    weight = trained_like(50, 200)
    packed = pack_bf12(weight)
    ids = torch.tensor([7, 0, 49, 7, 3])
    assert same_bits(unpack_bf12(packed, ids), weight[ids])
    assert same_bits(unpack_bf12(packed, slice(5, 20)), weight[5:20])
    assert unpack_bf12(packed, ids[:0]).shape == (0, 200)
    for wrong in ([50], [3, -1]):
        with pytest.raises(IndexError, match="outside of the 50 rows"):
            unpack_bf12(packed, torch.tensor(wrong))


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_products_have_the_bits_of_bfloat16(kind: str, n: int, k: int, as_float: bool) -> None:
    weight, x = trained_like(n, k, seed=1), trained_like(max(ROWS), k)
    packed = pack_bf12(weight)
    assert k < 500 or len(packed.escapes) > 0
    for rows in ROWS:
        expected = linear(x[:rows], weight, as_float)
        assert same_bits(linear(x[:rows], packed, as_float), expected), rows


def test_products_with_escapes_everywhere_and_what_is_not_finite(kind: str) -> None:
    weight, x = random_bits(33, 520), trained_like(9, 520)
    weight[:16] = weight[:16].nan_to_num(0.5, 1.0, -1.0) * 1e-20
    weight[3, 5], weight[4, 6] = float("inf"), float("nan")
    packed = pack_bf12(weight)
    for rows in (1, 9):
        found, expected = linear(x[:rows], packed, True), linear(x[:rows], weight, True)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_matrices_are_cut_and_joined() -> None:
    weight = trained_like(40, 520)
    packed = pack_bf12(weight)
    for rows, columns in (
        (slice(0, 40), slice(0, 520)),
        (slice(3, 17), slice(0, 520)),
        (slice(8, 40), slice(128, 384)),
        (slice(0, 0), slice(0, 128)),
        (slice(1, 2), slice(384, 520)),
    ):
        found = cut_bf12(packed, rows, columns)
        assert found is not None
        check_bf12(found)
        assert same_bits(unpack_bf12(found), weight[rows, columns])
    assert cut_bf12(packed, slice(0, 40), slice(64, 192)) is None
    assert cut_bf12(packed, slice(0, 40), slice(0, 130)) is None
    joined = join_bf12([pack_bf12(part) for part in weight.split(7)])
    for one, other in zip(joined.tensors, packed.tensors, strict=True):
        assert torch.equal(one, other)


def test_which_matrices_gain() -> None:
    normal = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert pack_bf12(normal).gains
    assert pack_bf12(normal).nbytes < 0.8 * normal.nbytes
    assert not pack_bf12(normal[:, :32]).gains  # fills a quarter of its blocks
    assert not pack_bf12(random_bits(64, 256)).gains
    normal[0] = random_bits(256)  # one row of escapes of 64
    assert not pack_bf12(normal).gains


def damaged(packed: Bf12, **changes: torch.Tensor) -> Bf12:
    return packed._replace(**changes)


def test_damage_is_found_and_ends_no_kernel(kind: str) -> None:
    packed = pack_bf12(random_bits(32, 300))
    starts, escapes = packed.starts, packed.escapes
    cases = {
        "decreasing": damaged(packed, starts=starts.flip(0)),
        "too far": damaged(packed, starts=starts + 1),
        "negative": damaged(packed, starts=starts - 5),
        "too few": damaged(packed, escapes=escapes[:-1]),
        "beyond the row": damaged(packed, escapes=escapes + (300 << 8)),
        "before the row": damaged(packed, escapes=escapes | -(2**31)),
        "in no order": damaged(packed, escapes=escapes.flip(0)),
    }
    for name, case in cases.items():
        with pytest.raises(InputError, match=r"starts do not divide|escapes do not name"):
            check_bf12(case)
        if name in ("beyond the row", "before the row", "in no order"):
            with contextlib.suppress(IndexError):  # of the reference implementation
                linear(trained_like(2, 300), case)  # wrong numbers, but no other memory
    noise = torch.randint(0, 256, packed.blocks.shape, dtype=torch.uint8)
    assert linear(trained_like(2, 300), packed._replace(blocks=noise)).shape == (2, 32)
