"""Muon beside singular values in float64, and beside torch's own."""

import pytest
import torch
from fixtures import difference
from torch import Tensor

from llama.training.muon import Muon, orthogonal

SHAPES = [(16, 48), (48, 16), (32, 32), (1, 8)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_become_the_polynomials(shape: tuple[int, int]) -> None:
    matrices = noise(3, *shape) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    u, s, v = torch.linalg.svd(matrices.double(), full_matrices=False)
    s = s / s.norm(dim=1, keepdim=True)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert difference(orthogonal(matrices, torch.float32), u * s.unsqueeze(1) @ v) < 1e-4
    assert difference(orthogonal(matrices, torch.bfloat16), u * s.unsqueeze(1) @ v) < 0.1
    assert (s <= 1.21).all()
    if shape[0] != shape[1]:
        assert (s > 0.6).all()


def test_nothing_stays_nothing() -> None:
    assert not orthogonal(torch.zeros(2, 4, 6), torch.float32).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_steps_are_those_of_torch_but_for_its_rounding() -> None:
    ours, theirs = ([noise(*shape).requires_grad_() for shape in SHAPES] for _ in range(2))
    optimizers = (
        Muon(ours, 0.1, torch.float32),
        torch.optim.Muon(theirs, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(4):
        for matrices, optimizer in zip((ours, theirs), optimizers, strict=True):
            for i, matrix in enumerate(matrices):
                matrix.grad = noise(*matrix.shape, seed=10 * step + i)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (step + 1)
            optimizer.step()
    for i, shape in enumerate(SHAPES):
        moved, expected = ours[i] - noise(*shape), theirs[i] - noise(*shape)
        assert difference(moved.detach(), expected.detach()) < 0.02


def test_what_has_no_gradient_stays() -> None:
    matrices = [noise(8, 8).requires_grad_(), noise(8, 8).requires_grad_()]
    optimizer = Muon(matrices, 0.1, torch.float32)
    matrices[0].grad = noise(8, 8, seed=1)
    optimizer.step()
    assert torch.equal(matrices[1], noise(8, 8))
    assert not torch.equal(matrices[0], noise(8, 8))
