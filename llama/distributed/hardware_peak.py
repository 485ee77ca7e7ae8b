"""The hardware peak: how fast this machine reads memory and multiplies matrices."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

_SUMMED = 2**30  # bytes
_SIDE = 4096  # of the matrices


def read_rate(device: torch.device) -> float:
    """Bytes a second that torch sums."""
    numbers = torch.ones(_SUMMED // 4, device=device)
    return numbers.nbytes / _best(numbers.sum, device, 5)


def matrix_rate(
    device: torch.device, dtype: torch.dtype = torch.bfloat16, side: int | None = None
) -> float:
    """Operations a second of the product of two square matrices: multiplications and additions."""
    side = side or _SIDE
    numbers = torch.Generator(device)  # of its own: the global one is the caller's
    x, weight = torch.randn(2, side, side, device=device, generator=numbers).to(dtype)
    return 2 * side**3 / _best(lambda: F.linear(x, weight), device, 3)


def _best(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Seconds, the least of several."""
    seconds = []
    for _ in range(times + 1):  # the first one warms up
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
