"""The memory that a model takes, computed from its shape, and the memory of this machine.

    facts = read_facts("Llama-3.2-1B")                             # in info.py
    need(facts, "bfloat16", ranks=1, batch=4, context=8192).total  # bytes

A rank needs memory for its shard of the weights and for its KV cache:

    2 (keys, values) x layers x batch x its KV heads x head_dim x positions x bytes of a number
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama import distributed
from llama.args import ModelArgs, is_linear, weight_shapes
from llama.checkpoint.opening import Checkpoint
from llama.errors import InputError
from llama.quantization import packed_formats
from llama.quantization.cuda_packed import MIN_CAPABILITY
from llama.storage.files import Folder

# Formats that Llama.build runs a model in: bytes of a number, of weights and KV cache alike.
FLOATS = {"float32": 4, "bfloat16": 2, "float16": 2}
_CACHE_BYTES = {**FLOATS, "int8": 2, "int4": 2}


@dataclass(frozen=True)
class Facts:
    """The shape of a model and where it was read.

    source      the params.json or config.json; `stated` is its content
    tied        whether the output layer is the embedding; None if the source does not say
    folder      the folder of the checkpoint; None if only a file was named
    checkpoint  None if there are no weights
    quantize    int8 or int4 if the stored weights are packed
    """

    name: str
    source: str
    stated: dict[str, Any]
    args: ModelArgs
    tied: bool | None
    folder: Folder | None = None
    checkpoint: Checkpoint | None = None
    quantize: str | None = None

    def parameters(self, ranks: int = 1) -> int:
        """How many each of `ranks` holds. A tied output layer counts once."""
        shapes = weight_shapes(self.args, ranks)
        if self.tied:
            del shapes["output.weight"]
        return sum(map(math.prod, shapes.values()))

    def misfit(self, ranks: int, quantize: str | None = None) -> str | None:
        """Why `ranks` can't share the model in a format; None if they can."""
        try:
            packed_formats.stored_shapes(self.args, quantize, ranks)
        except InputError as error:
            return str(error)
        return None


class Need(NamedTuple):
    """Bytes that one rank needs."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """With room for activations, rotary tables, torch and its libraries, by rule of thumb."""
        return int(1.1 * (self.weights + self.cache) + 0.5e9)


def need(
    facts: Facts, dtype: str, ranks: int, batch: int, context: int, is_cuda: bool = False
) -> Need:
    """What each of `ranks` needs, with a dtype or a packed format and a KV cache of that size."""
    args = facts.args
    if dtype in FLOATS:
        weights = facts.parameters(ranks) * FLOATS[dtype]
    else:
        weights = packed_weights(facts, dtype, ranks, is_cuda)
    heads = 2 * args.n_layers * batch * args.kv_heads_on_each_of(ranks) * context
    return Need(weights, heads * args.head_dim * _CACHE_BYTES[dtype])


def int8_cache(facts: Facts, ranks: int, batch: int, context: int) -> int:
    """Bytes of each rank's KV cache with kv_cache_dtype=int8: one per number, 4 per head."""
    cache = need(facts, "bfloat16", ranks, batch, context).cache
    return cache // 2 + cache // 2 // facts.args.head_dim * 4


def packed_weights(facts: Facts, name: str, ranks: int, is_cuda: bool = False) -> int:
    """Bytes of the weights of each of `ranks` in int8 or int4; the unpacked ones are bfloat16."""
    bits = 0.0
    for key, shape in weight_shapes(facts.args, ranks).items():
        each = 16.0
        if is_linear(key, shape):
            each = packed_formats.bits(name, key)
            # One scale per group; on a GPU with an offset, for every four bits (cuda_packed.py).
            each += (32 * each / 4 if is_cuda else 16) / packed_formats.GROUP
        bits += math.prod(shape) * each
    return int(bits / 8)


class Device(NamedTuple):
    """`number` equal devices of `memory` bytes each, one rank on each.

    Ranks on a CPU share its memory, where one takes less than several do: it is one device. Packed
    weights run on a CPU, and with `is_cuda` on GPUs that have torch's kernel for them.
    """

    name: str
    memory: float
    dtype: str  # Llama.build's default there
    number: int = 1
    is_cpu: bool = False
    is_cuda: bool = False


def this_machine(parameters: int) -> list[Device]:
    """The devices here for a model of that size; Llama.build takes the first by default."""

    def device(kind: str, name: str, memory: float, count: int = 1, new: bool = False) -> Device:
        dtype = distributed.select_dtype(torch.device(kind), parameters=parameters)
        return Device(name, memory, str(dtype).removeprefix("torch."), count, kind == "cpu", new)

    devices = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        name = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
        new = all((gpu.major, gpu.minor) >= MIN_CAPABILITY for gpu in gpus)
        least = min(gpu.total_memory for gpu in gpus)
        devices.append(device("cuda", name, least, len(gpus), new))
    if torch.backends.mps.is_available():
        devices.append(device("mps", "Apple GPU", torch.mps.recommended_max_memory()))
    return [*devices, device("cpu", "CPU", _main_memory())]


def _main_memory(cgroup: str = "/sys/fs/cgroup") -> int:
    """The machine's, or the limit of its container if that is less."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in (Path(cgroup, "memory.max"), Path(cgroup, "memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():  # else "max"
            sizes.append(int(text))
    return min(sizes)


def fit(
    facts: Facts, device: Device, dtype: str, ranks: list[int], batch: int, context: int
) -> str:
    """Whether the model fits a device: `yes`, `no`, what makes it fit, or `-` if it can't run.

    It fits with the fewest `ranks` or, with all the devices, in the longest context that does.
    """
    packed = dtype if dtype in packed_formats.PACKED else None
    # Several ranks on a CPU need more of its memory than one does.
    ranks = ranks[:1] if device.is_cpu else [n for n in ranks if n <= device.number]
    ranks = [n for n in ranks if facts.misfit(n, packed) is None]
    if not ranks or (packed and not (device.is_cpu or device.is_cuda)):
        return "-"
    memory = device.memory / (ranks[0] if device.is_cpu else 1)
    for n in ranks:
        if need(facts, dtype, n, batch, context, device.is_cuda).total <= memory:
            return "yes" if n == ranks[0] else f"on {n} ranks"
    weights, position = need(facts, dtype, ranks[-1], batch, 1, device.is_cuda)
    longest = int((memory - 0.5e9) / 1.1 - weights) // position // 256 * 256
    if longest < 512:
        return "no"
    return f"{longest:,} tokens" + (f" on {ranks[-1]} ranks" if ranks[1:] else "")
