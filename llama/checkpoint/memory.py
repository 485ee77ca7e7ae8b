"""What a model takes in memory, and whether a machine has that; nothing is loaded for it.

    facts = read_facts("Llama-3.2-1B")                            # in info.py
    need(facts, "bfloat16", ranks=1, batch=4, context=8192).both  # bytes
    verdict(facts, this_machine(facts.parameters()), 4, 8192)     # lines of text

A rank needs memory for its part of the weights and for its KV cache:

    2 (keys, values) x layers x batch x its KV heads x head_dim x positions x bytes of a number
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama import distributed
from llama.args import ModelArgs, is_linear, weight_shapes
from llama.checkpoint.opening import Checkpoint
from llama.quantization import packed_formats
from llama.quantization.cuda_packed import OLDEST
from llama.storage.files import Folder, short_size

# What Llama.build can run a model in: bytes of a weight, and of a number in the KV cache.
FORMATS = {"bfloat16": (2, 2), "float16": (2, 2), "float32": (4, 4)}
# The released models: (rotary theta, its factor, vocabulary), then (dim, layers, feed-forward).
_FAMILIES = {
    (10000.0, None, 32000): {
        (4096, 32, 11008): "Llama 2",
        (5120, 40, 13824): "Llama 2",
        (8192, 80, 28672): "Llama 2",
    },
    (500000.0, None, 128256): {
        (4096, 32, 14336): "Llama 3",
        (8192, 80, 28672): "Llama 3",
    },
    (500000.0, 8.0, 128256): {
        (4096, 32, 14336): "Llama 3.1",
        (8192, 80, 28672): "Llama 3.1 or 3.3",
        (16384, 126, 53248): "Llama 3.1",
    },
    (500000.0, 32.0, 128256): {
        (2048, 16, 8192): "Llama 3.2",
        (3072, 28, 8192): "Llama 3.2",
    },
}
RANKS = (1, 2, 4, 8, 16)
_SHORTEST = 512  # the least context that is worth proposing


@dataclass(frozen=True)
class Facts:
    """What a model is.

    source      the params.json or config.json that says so, and `stated` what it says
    folder      where more may lie; None for the path of such a file
    checkpoint  None where there are no weights
    quantize    int8 or int4, where its weights are packed already
    """

    name: str
    source: str
    stated: dict[str, Any]
    args: ModelArgs
    tied: bool
    folder: Folder | None = None
    checkpoint: Checkpoint | None = None
    quantize: str | None = None

    @property
    def family(self) -> str:
        args = self.args
        factor = args.rope_scaling_factor if args.use_scaled_rope else None
        released = _FAMILIES.get((args.rope_theta, factor, args.vocab_size), {})
        return released.get((args.dim, args.n_layers, args.hidden_dim), "Llama-shaped")

    @property
    def ranks(self) -> list[int]:
        """The numbers of ranks that can share it."""
        return [ranks for ranks in RANKS if self.misfit(ranks, self.quantize) is None]

    def misfit(self, ranks: int, quantize: str | None = None) -> str | None:
        """What keeps `ranks` from sharing it, also in a format; None where they can."""
        try:
            packed_formats.stored_shapes(self.args, quantize, ranks)
        except ValueError as error:
            return str(error)
        return None

    def parameters(self, ranks: int = 1) -> int:
        """How many parameters each of `ranks` holds; a tied output layer is counted once."""
        shapes = weight_shapes(self.args, ranks)
        return sum(
            math.prod(shape)
            for name, shape in shapes.items()
            if not (self.tied and name == "output.weight")
        )


class Need(NamedTuple):
    """Bytes that one rank needs."""

    weights: int
    cache: int

    @property
    def both(self) -> int:
        return self.weights + self.cache

    @property
    def with_room(self) -> float:
        """With room for activations, rotary tables, torch and its libraries, by rule of thumb."""
        return 1.1 * self.both + 0.5e9


class Place(NamedTuple):
    """Where ranks can run: each on one of `devices`, which have so many bytes of `memory` each.

    Ranks on a CPU share its memory, where one takes less than several do: it is one device. Weights
    can be packed there, and with `is_cuda` on GPUs that have torch's kernel for it.
    """

    name: str
    memory: float
    dtype: str  # what Llama.build takes there
    devices: int = 1
    is_cpu: bool = False
    is_cuda: bool = False


# Looked at where nothing fits on this machine.
_ELSEWHERE = (Place("24 GB", 24e9, "bfloat16"), Place("80 GB", 80e9, "bfloat16", devices=16))


class Setting(NamedTuple):
    """A way to run a model, and what each rank needs then."""

    dtype: str
    ranks: int
    batch: int
    context: int
    need: Need


def need(
    facts: Facts, dtype: str, ranks: int, batch: int, context: int, is_cuda: bool = False
) -> Need:
    """What each of `ranks` needs for its weights and for a KV cache of that size."""
    args, (weight_bytes, cache_bytes) = facts.args, FORMATS.get(dtype, FORMATS["bfloat16"])
    numbers = _cached_heads(args, ranks, batch, context) * args.head_dim
    packed = dtype in packed_formats.PACKED
    weights = packed_weights(facts, dtype, ranks, is_cuda) if packed else facts.parameters(ranks)
    return Need(weights * (1 if packed else weight_bytes), numbers * cache_bytes)


def int8_cache(facts: Facts, ranks: int, batch: int, context: int) -> int:
    """Bytes of each rank's KV cache with kv_cache_dtype=int8: a number a byte, a head a scale."""
    return _cached_heads(facts.args, ranks, batch, context) * (facts.args.head_dim + 4)


def _cached_heads(args: ModelArgs, ranks: int, batch: int, context: int) -> int:
    return 2 * args.n_layers * batch * args.kv_heads_on_each_of(ranks) * context


def packed_weights(facts: Facts, name: str, ranks: int, is_cuda: bool = False) -> int:
    """Bytes of the weights of each of `ranks` in int8 or int4; what is not packed is bfloat16."""
    bits = 0.0
    for key, shape in weight_shapes(facts.args, ranks).items():
        each = 16.0
        if is_linear(key, shape):
            each = packed_formats.bits(name, key)
            # A scale a group, and for a GPU with an offset for every four bits (`cuda_packed.py`).
            each += (32 * each / 4 if is_cuda else 16) / packed_formats.GROUP
        bits += math.prod(shape) * each
    return int(bits / 8)


def this_machine(parameters: int) -> list[Place]:
    """Where this machine can run a model of so many, the place that Llama.build takes first."""

    def place(device: str, name: str, memory: float, devices: int = 1, new: bool = False) -> Place:
        taken = distributed.select_dtype(torch.device(device), parameters=parameters)
        dtype = str(taken).removeprefix("torch.")
        return Place(f"this machine's {name}", memory, dtype, devices, device == "cpu", new)

    places = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        least = min(gpus, key=lambda gpu: gpu.total_memory)
        name = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
        new = all((gpu.major, gpu.minor) >= OLDEST for gpu in gpus)
        places.append(place("cuda", f"{name} ({least.name})", least.total_memory, len(gpus), new))
    if torch.backends.mps.is_available():
        places.append(place("mps", "Apple GPU", torch.mps.recommended_max_memory()))
    return [*places, place("cpu", "main memory", _main_memory())]


def _main_memory(cgroup: str = "/sys/fs/cgroup") -> int:
    """What the machine has, or what its container may have where that is less."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in (Path(cgroup, "memory.max"), Path(cgroup, "memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdecimal():  # else "max"
            sizes.append(int(text))
    return min(sizes)


def best_setting(
    facts: Facts, place: Place, batch: int, context: int, names: Iterable[str] = FORMATS
) -> Setting | None:
    """What fits the place and is nearest to what is asked for; None if nothing fits.

    The dtype (one of `names`, the first is best), the context and at last the batch may differ, and
    there may be any number of ranks.
    """
    found = []
    for rows, dtype, ranks in product({batch, 1}, names, facts.ranks):
        if dtype in packed_formats.PACKED and facts.misfit(ranks, dtype):
            continue
        weights, position = need(facts, dtype, ranks, rows, 1, place.is_cuda)
        longest = int((place.memory - 0.5e9) / 1.1 - weights) // position
        positions = context if longest >= context else longest - longest % 256
        if ranks <= place.devices and positions >= min(context, _SHORTEST):
            needed = need(facts, dtype, ranks, rows, positions, place.is_cuda)
            found.append(Setting(dtype, ranks, rows, positions, needed))
    usual = place.dtype
    order = [*names][::-1]

    def quality(s: Setting) -> tuple[int, int, bool, int, int]:
        return s.batch, s.context, s.dtype == usual, order.index(s.dtype), -s.ranks

    return max(found, key=quality, default=None)


def verdict(facts: Facts, places: list[Place], batch: int, context: int) -> list[str]:
    """A line for each place: whether the model fits, and if not, with which changes it would."""
    lines, fits_somewhere = [], False
    for place in places:
        where = f"{place.name} of {short_size(place.memory)}" + " each" * (place.devices > 1)
        packs = place.is_cpu or place.is_cuda
        if facts.quantize and not packs:
            why = f"{facts.quantize} weights need a CPU or an NVIDIA GPU, Ampere or newer"
            lines.append(f"Not on {where}: {why}.")
            continue
        names = (facts.quantize,) if facts.quantize else FORMATS
        best = best_setting(facts, place, batch, context, names)
        most = max(ranks for ranks in facts.ranks if ranks <= place.devices)
        dtype = facts.quantize or place.dtype
        needed = need(facts, dtype, most, batch, context, place.is_cuda)
        asked = Setting(dtype, most, batch, context, needed)
        changes = _changes(asked, best) if best else []
        if best and not changes:
            fits_somewhere = True
            lines.append(f"Fits {where}: it takes {_in_words(best)}.")
            continue
        lines.append(f"Does not fit {where}: it takes {_in_words(asked)}.")
        packed = None
        if packs and not facts.quantize:
            packed = best_setting(facts, place, batch, context, packed_formats.PACKED)
            if best and packed and packed[2:4] <= best[2:4]:
                packed = None  # another dtype is enough, and exact
        for setting in filter(None, (best, packed)):
            fits_somewhere = True
            how = " and ".join(_changes(asked, setting))
            lines.append(f"With {how} it fits: {_in_words(setting)}.")
    for elsewhere in _ELSEWHERE if not fits_somewhere and not facts.quantize else ():
        best = best_setting(facts, elsewhere, batch, context)
        if best and (best.batch, best.context) == (batch, context):
            gpus = "a GPU" if best.ranks == 1 else f"{best.ranks} GPUs"
            return [*lines, f"It fits {gpus} of {elsewhere.name}: {_in_words(best)}."]
    return lines


def _changes(asked: Setting, other: Setting) -> list[str]:
    """What has to be said to `Llama.build` to get the other one."""
    key = "quantize" if other.dtype in packed_formats.PACKED else "dtype"
    changes = [f"{key}={other.dtype}"] * (other.dtype != asked.dtype)
    changes += [f"max_batch_size={other.batch}"] * (other.batch != asked.batch)
    changes += [f"max_seq_len={other.context}"] * (other.context != asked.context)
    return changes


def _in_words(setting: Setting) -> str:
    ranks = "1 rank" if setting.ranks == 1 else f"each of {setting.ranks} ranks"
    return f"{short_size(setting.need.with_room)} in {setting.dtype} on {ranks}"
