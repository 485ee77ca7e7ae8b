"""Native CPU kernels in C, for inference and training, each with a reference implementation.

They are compiled at first use, for this machine's processor, in three seconds, and kept. Without a
compiler one line says so, and torch computes the same, slower. LLAMA_KERNELS in the environment
names another architecture to compile for (`x86-64-v3`: no AVX-512), or is `off`.

    compiler.py        compiles csrc/ and loads the libraries
    bindings.py        their functions, declared for ctypes
    weight_packing.py  int8 and int4 matrices: `pack`, `unpack`
    bf12_packing.py    bfloat16 matrices in 12 bits, without loss: `pack_bf12`, `unpack_bf12`
    inference_ops.py   products of few rows, blocks for decoding, attention for prompts
    training_ops.py    norm, attention, gate and loss with gradients; imported from there
"""

from llama.kernels.bf12_packing import Bf12, pack_bf12, unpack_bf12
from llama.kernels.bindings import DTYPES, available
from llama.kernels.inference_ops import (
    MAX_ROWS,
    PARTIAL_SUMS,
    AttentionBlock,
    FeedForwardBlock,
    attend,
    linear,
    rms_norm,
    silu_mul,
    supports_head_dim,
)
from llama.kernels.weight_packing import GROUP, TILE, Packed, pack, unpack

__all__ = [
    "DTYPES",
    "GROUP",
    "MAX_ROWS",
    "PARTIAL_SUMS",
    "TILE",
    "AttentionBlock",
    "Bf12",
    "FeedForwardBlock",
    "Packed",
    "attend",
    "available",
    "linear",
    "pack",
    "pack_bf12",
    "rms_norm",
    "silu_mul",
    "supports_head_dim",
    "unpack",
    "unpack_bf12",
]
