"""`llama info`: what a model is and what it takes, before anything is loaded.

    llama info Llama-3.2-1B                         # a checkpoint folder of either layout
    llama info params/Llama-3.1-405B --max_seq_len 8192 --max_batch_size 4
    llama info downloads/config.json

It all follows from the shape, so that a `params.json` or a `config.json` is enough; of a checkpoint
the headers are read too. A rank needs memory for its part of the weights and for its KV cache:

    2 (keys, values) x layers x batch x its KV heads x head_dim x positions x bytes of a number
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama import huggingface, parallel
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint import Checkpoint, open_checkpoint, tokenizer_in
from llama.files import Folder, read_json, short_size
from llama.meta import read_params
from llama.tokenizer import Tokenizer

# What Llama.build can run a model in: bytes of a weight, and of a number in the KV cache.
FORMATS = {"bfloat16": (2, 2), "float16": (2, 2), "float32": (4, 4)}
# Weights that `quantize` packs, on a CPU: bits of one in a linear layer, and in the output layer.
# The embedding, the norms and the cache stay in bfloat16.
_PACKED = {"int8": (8.5, 8.5), "int4": (4.5, 8.5)}
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
_RANKS = (1, 2, 4, 8, 16)
_SHORT = 8192  # a context that is enough for most, of models that could have more
_SHORTEST = 512  # the least context that is worth proposing


@dataclass(frozen=True)
class Facts:
    """What a model is.

    source      the params.json or config.json that says so, and `stated` what it says
    folder      where more may lie; None for the path of such a file
    checkpoint  None where there are no weights
    """

    name: str
    source: str
    stated: dict[str, Any]
    args: ModelArgs
    tied: bool
    folder: Folder | None = None
    checkpoint: Checkpoint | None = None

    @property
    def family(self) -> str:
        args = self.args
        factor = args.rope_scaling_factor if args.use_scaled_rope else None
        released = _FAMILIES.get((args.rope_theta, factor, args.vocab_size), {})
        return released.get((args.dim, args.n_layers, args.hidden_dim), "Llama-shaped")

    @property
    def ranks(self) -> list[int]:
        """The numbers of ranks that can share it."""
        return [ranks for ranks in _RANKS if self.args.misfit(ranks) is None]

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

    Ranks on a CPU share its memory, where one takes less than several do: it is one device.
    """

    name: str
    memory: float
    dtype: str  # what Llama.build takes there
    devices: int = 1


# Looked at where nothing fits on this machine.
_ELSEWHERE = (Place("24 GB", 24e9, "bfloat16"), Place("80 GB", 80e9, "bfloat16", devices=16))


class Setting(NamedTuple):
    """A way to run a model, and what each rank needs then."""

    dtype: str
    ranks: int
    batch: int
    context: int
    need: Need


def info(path: str, max_batch_size: int = 1, max_seq_len: int | None = None) -> None:
    """Tells what a model is, what memory it takes, and whether this machine has that.

    Args:
        path: a checkpoint folder of either layout, here or remote, or one with only a params.json
            or a config.json, or the path of such a file.
        max_batch_size: how many prompts the KV cache is for.
        max_seq_len: how many positions it is for; the model's own context if not given.
    """
    for name, value in (("max_batch_size", max_batch_size), ("max_seq_len", max_seq_len)):
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r} should be a whole number greater than 0")
    facts = read_facts(str(path))
    batch, context = max_batch_size, max_seq_len or facts.args.max_seq_len
    lines = [*_describe(facts), "", *_table(facts, batch, context), ""]
    lines += ["With 10 % and 0.5 GB more for activations and torch itself:"]
    lines += verdict(facts, this_machine(facts.parameters()), batch, context)
    parallel.say("\n".join(lines))


def read_facts(path: str) -> Facts:
    """Reads what says the shape, and the headers of the weights where there are any.

    Raises FileNotFoundError or ValueError, naming the file, where something is missing or wrong.
    """
    whole = path if "://" in path else os.path.abspath(path)
    *_, parent, name = "", *whole.rstrip("/").split("/")
    if path.endswith(".json"):
        return _read_json(path, parent, None)
    folder = Folder(path)
    lone = [file for file in ("params.json", "config.json") if file in folder.names]
    weights = (".pth", ".safetensors", ".bin", ".index.json")
    if lone and not any(file.endswith(weights) for file in folder.names):
        return _read_json(folder.where(lone[0]), name, folder)
    found = open_checkpoint(path)
    stated = read_json(found.params)
    return Facts(name, found.params, stated, found.args, found.tied, folder, found)


def _read_json(path: str, name: str, folder: Folder | None) -> Facts:
    stated = read_json(path)
    if "model_type" in stated or "architectures" in stated:
        args, tied = huggingface.read_config(stated, path)
        return Facts(name, path, stated, args, tied, folder)
    args = read_params(path)
    if args.vocab_size == -1:
        args = replace(args, vocab_size=32000)
    return Facts(name, path, stated, args, args.has_llama32_shape, folder)


def need(facts: Facts, dtype: str, ranks: int, batch: int, context: int) -> Need:
    """What each of `ranks` needs for its weights and for a KV cache of that size."""
    args, (weight_bytes, cache_bytes) = facts.args, FORMATS[dtype]
    numbers = 2 * args.n_layers * batch * args.kv_heads_on_each_of(ranks) * args.head_dim * context
    return Need(facts.parameters(ranks) * weight_bytes, numbers * cache_bytes)


def packed_weights(facts: Facts, name: str, ranks: int) -> int:
    """Bytes of the weights of each of `ranks` in int8 or int4."""
    bits = 0.0
    for key, shape in weight_shapes(facts.args, ranks).items():
        is_matrix = len(shape) > 1 and key != "tok_embeddings.weight"
        each = _PACKED[name][key == "output.weight"] if is_matrix else 16
        bits += math.prod(shape) * each
    return int(bits / 8)


def this_machine(parameters: int) -> list[Place]:
    """Where this machine can run a model of so many, the place that Llama.build takes first."""

    def place(device: str, name: str, memory: float, devices: int = 1) -> Place:
        taken = parallel.select_dtype(torch.device(device), parameters=parameters)
        dtype = str(taken).removeprefix("torch.")
        return Place(f"this machine's {name}", memory, dtype, devices)

    places = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        least = min(gpus, key=lambda gpu: gpu.total_memory)
        name = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
        places.append(place("cuda", f"{name} ({least.name})", least.total_memory, len(gpus)))
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


def best_setting(facts: Facts, place: Place, batch: int, context: int) -> Setting | None:
    """What fits the place and is nearest to what is asked for; None if nothing fits.

    The dtype, the context and at last the batch may differ, and there may be any number of ranks.
    """
    found = []
    for rows, dtype, ranks in product({batch, 1}, FORMATS, facts.ranks):
        weights, position = need(facts, dtype, ranks, rows, 1)
        longest = int((place.memory - 0.5e9) / 1.1 - weights) // position
        positions = context if longest >= context else longest - longest % 256
        if ranks <= place.devices and positions >= min(context, _SHORTEST):
            needed = need(facts, dtype, ranks, rows, positions)
            found.append(Setting(dtype, ranks, rows, positions, needed))
    usual = place.dtype
    return max(found, key=lambda s: (s.batch, s.context, s.dtype == usual, -s.ranks), default=None)


def verdict(facts: Facts, places: list[Place], batch: int, context: int) -> list[str]:
    """A line for each place: whether the model fits, and if not, with which changes it would."""
    lines, settings = [], [best_setting(facts, place, batch, context) for place in places]
    for place, best in zip(places, settings, strict=True):
        most = max(ranks for ranks in facts.ranks if ranks <= place.devices)
        needed = need(facts, place.dtype, most, batch, context)
        asked = Setting(place.dtype, most, batch, context, needed)
        changes = []
        if best:
            changes += [f"dtype={best.dtype}"] * (best.dtype != asked.dtype)
            changes += [f"max_batch_size={best.batch}"] * (best.batch != batch)
            changes += [f"max_seq_len={best.context}"] * (best.context != context)
        where = f"{place.name} of {short_size(place.memory)}" + " each" * (place.devices > 1)
        if best and not changes:
            lines.append(f"Fits {where}: it takes {_in_words(best)}.")
            continue
        lines.append(f"Does not fit {where}: it takes {_in_words(asked)}.")
        if best:
            lines.append(f"With {' and '.join(changes)} it fits: {_in_words(best)}.")
    for elsewhere in _ELSEWHERE if not any(settings) else ():
        best = best_setting(facts, elsewhere, batch, context)
        if best and (best.batch, best.context) == (batch, context):
            gpus = "a GPU" if best.ranks == 1 else f"{best.ranks} GPUs"
            return [*lines, f"It fits {gpus} of {elsewhere.name}: {_in_words(best)}."]
    return lines


def _in_words(setting: Setting) -> str:
    ranks = "1 rank" if setting.ranks == 1 else f"each of {setting.ranks} ranks"
    return f"{short_size(setting.need.with_room)} in {setting.dtype} on {ranks}"


def _describe(facts: Facts) -> list[str]:
    args, file = facts.args, os.path.basename(facts.source)
    count, vocabulary = f"{facts.parameters():,}", f"{args.vocab_size:,} tokens"
    if facts.tied:
        count += ", embedding and output in one"
        if not facts.checkpoint and "tie_word_embeddings" not in facts.stated:
            count += f" (Llama 3.2's: {file} does not say)"
    if facts.stated.get("vocab_size", -1) == -1:
        whose = "seen in the weights" if facts.checkpoint else "Llama 2's"
        vocabulary += f" ({whose}: {file} says -1)"
    context = f"{args.max_seq_len:,} positions"
    if not {"max_seq_len", "max_position_embeddings"} & set(facts.stated):
        whose = "its generation's" if "dim" in facts.stated else "transformers' default"
        context += f" ({whose}: {file} does not say)"
    rows = {
        "parameters": count,
        "layers": f"{args.n_layers} of dim {args.dim}, feed-forward {args.hidden_dim}",
        "heads": f"{args.n_heads} of size {args.head_dim}, {args.kv_heads} for keys and values",
        "vocabulary": vocabulary,
        "rotary": _rotary(facts, file),
        "context": context,
        "weights": _weights(facts),
        "tokenizer": _tokenizer(facts),
    }
    head = f"{facts.name}: {facts.family}, {short_count(facts.parameters())} parameters"
    return [head, "", *(f"  {key:<12}{text}" for key, text in rows.items())]


def _rotary(facts: Facts, file: str) -> str:
    args = facts.args
    theta = f"theta {args.rope_theta:,.0f}"
    if not args.use_scaled_rope:
        return f"{theta}, not scaled"
    source = f"as {file} says"
    if "use_scaled_rope" in facts.stated and "rope_scaling_factor" not in facts.stated:
        known = "by the shape" if args.has_llama32_shape else "Llama 3.1's"
        source = f"{known}: {file} has only use_scaled_rope"
    return f"{theta}, scaling factor {args.rope_scaling_factor:g} ({source})"


def _weights(facts: Facts) -> str:
    if facts.checkpoint is None:
        return f"none here, only {os.path.basename(facts.source)}"
    files, in_order = facts.checkpoint.files, facts.checkpoint.weights.values()
    dtypes = dict.fromkeys(str(weight.dtype).removeprefix("torch.") for weight in in_order)
    meta = facts.checkpoint.layout == "meta"
    layout, kind = ("Meta's", "shard") if meta else ("Hugging Face's", "file")
    count = f"{len(files)} {kind}" + "s" * (len(files) > 1)
    size = short_size(sum(file.size for file in files))
    return f"{' and '.join(dtypes)} in {count}, {size}, in {layout} layout"


def _tokenizer(facts: Facts) -> str:
    name = tokenizer_in(facts.folder) if facts.folder else None
    if not facts.folder or not name:
        return "none here"
    try:
        tokenizer = Tokenizer(facts.folder.where(name))
        if facts.checkpoint:
            facts.checkpoint.check_tokenizer(tokenizer)
    except ValueError as error:
        return f"cannot be used: {error}"
    kind = "SentencePiece" if tokenizer.is_sentencepiece else "tiktoken"
    beyond = ", more than the model has" * (tokenizer.n_words > facts.args.vocab_size)
    return f"{name}, {kind}, {tokenizer.n_words:,} tokens{beyond}"


def _table(facts: Facts, batch: int, context: int) -> list[str]:
    beyond = " (more than it was trained on)" * (context > facts.args.max_seq_len)
    lines = [
        f"Memory of each rank at max_batch_size={batch}, max_seq_len={context}{beyond};",
        "a GPU holds one rank, main memory all of them:",
        "",
        _row("ranks", "", facts.ranks),
    ]
    for size in dict.fromkeys(FORMATS.values()):
        names = [name for name in FORMATS if FORMATS[name] == size]
        needs = [need(facts, names[0], ranks, batch, context) for ranks in facts.ranks]
        lines.append(
            _row(", ".join(names), "weights", (short_size(each.weights) for each in needs))
        )
        lines.append(_row("", "KV cache", (short_size(each.cache) for each in needs)))
        lines.append(_row("", "both", (short_size(each.both) for each in needs)))
        if context > _SHORT:
            needs = [need(facts, names[0], ranks, batch, _SHORT) for ranks in facts.ranks]
            label = f"at max_seq_len={_SHORT}"
            lines.append(_row("", label, (short_size(each.both) for each in needs)))
    for name in _PACKED:
        sizes = (short_size(packed_weights(facts, name, ranks)) for ranks in facts.ranks)
        lines.append(_row(f"quantize={name}", "weights", sizes))
    if others := [ranks for ranks in _RANKS if ranks not in facts.ranks]:
        which = " or ".join(str(ranks) for ranks in others)
        lines += ["", f"Not on {which} ranks: {facts.args.misfit(others[0])}."]
    return lines


def _row(first: str, second: str, cells: Iterable[object]) -> str:
    return f"  {first:<19}{second:<20}" + "".join(f"{cell:>11}" for cell in cells)


def short_count(count: int) -> str:
    """Three digits, as in 6.74B and 70.6B, and above that one after the point: 405.9B."""
    unit, letter = (1e9, "B") if count >= 0.9995e9 else (1e6, "M")
    return f"{count / unit:.{2 if count / unit < 9.995 else 1}f}{letter}"
