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
    device that this machine does not have, or where a host has more ranks than GPUs.
    """
    if device is None:
        best = "cpu"
        if torch.cuda.is_available():
            best = "cuda"
        elif torch.backends.mps.is_available():
            best = "mps"
        chosen = torch.device(best)
    else:
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"device {device!r} is none of cuda, mps and cpu") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(os.environ.get("LOCAL_RANK", "0")) if chosen.index is None else chosen.index
        if index >= count:
            raise InputError(
                f"this rank needs GPU {index}, but torch sees {count} on this host; "
                "start fewer processes or ask for device='cpu'"
            )
        return torch.device("cuda", index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' was asked for, but this machine has no Apple GPU; use 'cpu'")
    if chosen.type not in ("cpu", "mps"):
        raise InputError(f"device {str(chosen)!r} is none of cuda, mps and cpu")
    return chosen


def select_dtype(
    device: torch.device, dtype: str | torch.dtype | None = None, parameters: int | None = None
) -> torch.dtype:
    """The dtype to compute in: the one asked for, else bfloat16 where `device` multiplies it.

    Where it does not, a GPU takes float16 and a CPU float32. A model that is to run on a CPU, of so
    many `parameters`, is bfloat16 all the same, for decoding is a matter of bytes that are read;
    but float32 where it is so small that it stays in the cache: half as many bytes gain nothing
    there, and without bfloat16's rounding the answers are the same on any number of ranks. Raises
    ValueError for a dtype that is none of bfloat16, float16 and float32.
    """
    if dtype is not None:
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen is None or chosen not in DTYPES.values():
            raise InputError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    if parameters is not None:
        return torch.float32 if parameters <= _FEW_PARAMETERS else torch.bfloat16
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch's products of bfloat16 on this CPU are as fast as those of float32.

    Where the processor has nothing for it (before AVX-512), they take about eight times as long.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
