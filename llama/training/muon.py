"""Muon (Jordan et al., 2024): momentum whose update of a matrix is made nearly orthogonal.

An update U S V' becomes about U V', by five steps of a polynomial that takes singular values to
near 1 and needs only matrix products (Newton-Schulz). `torch.optim.Muon` does the same one matrix
after the other, where here matrices of one shape are stacked, and always in bfloat16, which takes
fifty times as long on a processor without bfloat16 products.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_POLYNOMIAL = 3.4445, -4.7750, 2.0315  # Jordan et al.: of x, x^3, x^5, steepest at 0
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only. `dtype` is that of the matrix products.

    Updates have the size of AdamW's (Liu et al., 2025: 0.2 root mean square), so the same learning
    rates work; `weight_decay` is decoupled, as AdamW's.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        weight_decay: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(matrices, {"lr": 1e-3, "weight_decay": weight_decay, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates each matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                updates = torch.stack([self._momentum(m, group["momentum"]) for m in matrices])
                size = group["lr"] * 0.2 * math.sqrt(max(shape))
                for matrix, update in zip(matrices, orthogonal(updates, self._dtype), strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-size)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        """Nesterov's: the running mean of gradients, with the newest counted once more."""
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(state["momentum_buffer"], momentum)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (n, rows, columns) with their singular values brought to about 1 (0.7 to 1.2)."""
    a, b, c = _POLYNOMIAL
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(_STEPS):
        squares = x @ x.mT
        x = a * x + (b * squares + c * squares @ squares) @ x
    return x.mT if is_tall else x
