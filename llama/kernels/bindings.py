"""The C functions as Python calls them: which there are, and their arguments."""

import ctypes
import functools
import os
import subprocess

import torch
from torch import Tensor

from llama import console
from llama.kernels import compiler

# Of each function's arguments: a pointer, an int64, an int, a double, a float.
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_int64,
    "i": ctypes.c_int,
    "d": ctypes.c_double,
    "f": ctypes.c_float,
}
_ARGUMENTS = {
    "inference": {
        "linear *": "pppni",
        "attention_block *": "pppppi",
        "feed_forward_block *": "pppni",
        "supports_head_dim": "n",
        "rms_norm_rows": "ppdpnn",
        "silu_mul_rows": "ppn",
        "rope_and_store": "pppppnnn",
        "attend_rows": "ppppnnn",
        "pack_weight": "pppnni",
        "find_bf12_tables": "pnnpp",
        "pack_bf12": "pnnpppp",
        "unpack_bf12": "ppppnpnnp",
    },
    "training": {
        "rms_norm_forward *": "p",
        "rms_norm_backward *": "p",
        "silu_mul_forward *": "pppn",
        "silu_mul_backward *": "pppppn",
        "cross_entropy *": "ppfpnn",
        "packed_attention *": "p",
    },
}
# The dtypes that kernels are compiled for, and what the names of those with a star end in.
SUFFIXES = {torch.bfloat16: "_bfloat16", torch.float32: "_float32"}
DTYPES = frozenset(SUFFIXES)
# What it costs to have none.
_COST = {
    "inference": "decoding takes 2.5 times as long, of int8, int4 and bf12 weights over 100 times",
    "training": "training takes longer",
}


@functools.cache
def library(part: str) -> ctypes.CDLL | None:
    """The functions for `part`, "inference" or "training"; without them None, and a notice."""
    target = os.environ.get("LLAMA_KERNELS", "native")
    try:
        if target == "off":
            raise OSError("LLAMA_KERNELS=off")
        native = load(part, target)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        console.notice(f"no native kernels, {_COST[part]}: {lines[-1]:.200}")
        return None
    if target != "native":
        console.notice(
            f"native kernels for {target}, where this processor may be faster (LLAMA_KERNELS)"
        )
    return native


def load(part: str, target: str) -> ctypes.CDLL:
    """The library of `part` for an architecture, its functions declared; errors of the compiler."""
    native = compiler.load(part, target)
    for key, arguments in _ARGUMENTS[part].items():
        name, star, _ = key.partition(" *")
        for suffix in SUFFIXES.values() if star else ("",):
            getattr(native, name + suffix).argtypes = [_TYPES[each] for each in arguments]
    return native


def available(part: str = "inference") -> bool:
    """Whether there are native kernels; the first call compiles them."""
    return library(part) is not None


def check(status: int) -> None:
    """Raises the exception that a function's result stands for."""
    if status == 1:
        raise MemoryError("no memory for the working space of a native kernel")
    if status == 2:
        raise IndexError("a position lies outside of the KV cache")


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers lie; None is the NULL of C."""
    return None if tensor is None else tensor.data_ptr()


def fields(types: str, names: str) -> list[tuple[str, type]]:
    """What a `ctypes.Structure` is declared by: names, and a letter of `_TYPES` for each."""
    return [(name, _TYPES[each]) for each, name in zip(types, names.split(), strict=True)]
