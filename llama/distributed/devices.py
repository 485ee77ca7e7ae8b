"""Which device and which dtype a process computes with."""

import os

import torch

from llama.errors import InputError

_FEW_PARAMETERS = 2**24  # 64 MB of float32

DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}


def select_device(device: str | torch.device | None = None) -> torch.device:
    """The device of this rank: the one asked for, else the best of `cuda`, `mps` and `cpu`.

    A plain `cuda` becomes the GPU with this rank's number on its host. Raises ValueError for a
    device that this machine does not have, a host with more ranks than GPUs, and a GPU's number
    that would put several ranks on one GPU.
    """
    if device is None:
        if torch.cuda.is_available():
            device = "cuda"
        else:
            device = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cuda", "mps", "cpu"):
        raise InputError(f"device {str(device)!r} is none of cuda, mps and cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' was asked for, but this machine has no Apple GPU; use 'cpu'")
    return _gpu_of_this_rank(chosen) if chosen.type == "cuda" else chosen


def _gpu_of_this_rank(device: torch.device) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    index = local_rank if device.index is None else device.index
    # A launcher may show each rank one GPU of its own, which then is number 0 to all of them.
    alone = count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ
    if index != local_rank and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 and not alone:
        raise InputError(
            f"device={str(device)!r} on local rank {local_rank} of "
            f"{os.environ['LOCAL_WORLD_SIZE']}: ranks would share a GPU; write device='cuda', and "
            "each takes its own"
        )
    if index >= count:
        raise InputError(
            f"this rank needs GPU {index}, but torch sees {count} on this host; "
            "start fewer processes or ask for device='cpu'"
        )
    return torch.device("cuda", index)


def select_dtype(
    device: torch.device, dtype: str | torch.dtype | None = None, parameters: int | None = None
) -> torch.dtype:
    """The dtype to compute in: the one asked for, else bfloat16 where `device` multiplies it.

    Where it does not, a GPU takes float16 and a CPU float32. With `parameters`, their number in a
    model for inference, a CPU takes bfloat16 in any case, since decoding is bound by the bytes
    read; but float32 for a model so small that it stays in the processor's cache: half the bytes
    gain nothing there, and without bfloat16's rounding the answers are the same on any number of
    ranks. Raises ValueError for a dtype that is none of bfloat16, float16 and float32.
    """
    if dtype is not None:
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen is None or chosen not in DTYPES.values():
            raise InputError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        return chosen
    if device.type == "cuda":
        # torch.cuda.is_bf16_supported() is also true where bfloat16 is emulated, as on a V100.
        has_bfloat16 = torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_bfloat16 else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    if parameters is not None:
        return torch.float32 if parameters <= _FEW_PARAMETERS else torch.bfloat16
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch's products of bfloat16 on this CPU are as fast as those of float32.

    Without instructions for it (before AVX-512) they take about eight times as long.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
