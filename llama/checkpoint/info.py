"""`llama info`: the shape of a model and the memory it takes, without loading it.

    llama info Llama-3.2-1B                         # a checkpoint folder of either layout
    llama info params/Llama-3.1-405B --max-seq-len 8192 --max-batch-size 4
    llama info downloads/config.json

Everything follows from the shape, so a `params.json` or a `config.json` is enough. Of a checkpoint
only the headers are read. A rank needs memory for its shard of the weights and for its KV cache:

    2 (keys, values) x layers x batch x its KV heads x head_dim x positions x bytes of a number
"""

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, NamedTuple

import torch
from cyclopts import Parameter
from cyclopts.types import PositiveInt

from llama import console, distributed
from llama.args import ModelArgs, is_linear, weight_shapes
from llama.checkpoint import huggingface_config
from llama.checkpoint.meta_layout import parse_params
from llama.checkpoint.opening import Checkpoint, open_checkpoint, read_tokenizer
from llama.errors import InputError
from llama.kernels.bf12_packing import stored_bytes
from llama.quantization import bf12_files, packed_formats
from llama.quantization.cuda_packed import MIN_CAPABILITY
from llama.storage.files import Folder, expand, read_json, short_size
from llama.storage.pulled import open_folder

# The released models: rotary theta, its factor, vocabulary, dim, layers, feed-forward size.
_FAMILIES = {
    (10000.0, None, 32000, 4096, 32, 11008): "Llama 2",
    (10000.0, None, 32000, 5120, 40, 13824): "Llama 2",
    (10000.0, None, 32000, 8192, 80, 28672): "Llama 2",
    (500000.0, None, 128256, 4096, 32, 14336): "Llama 3",
    (500000.0, None, 128256, 8192, 80, 28672): "Llama 3",
    (500000.0, 8.0, 128256, 4096, 32, 14336): "Llama 3.1",
    (500000.0, 8.0, 128256, 8192, 80, 28672): "Llama 3.1 or 3.3",
    (500000.0, 8.0, 128256, 16384, 126, 53248): "Llama 3.1",
    (500000.0, 32.0, 128256, 2048, 16, 8192): "Llama 3.2",
    (500000.0, 32.0, 128256, 3072, 28, 8192): "Llama 3.2",
}
_RANKS = (1, 2, 4, 8, 16)
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number
# The rows of the table; formats of one size share a row.
_FORMATS = (("float32",), ("bfloat16", "float16"), *((name,) for name in packed_formats.PACKED))


def info(
    path: str,
    /,
    *,
    max_batch_size: PositiveInt = 1,
    max_seq_len: PositiveInt | None = None,
    ranks: PositiveInt | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Describes a model, the memory it takes in each format, and whether that is here.

    Args:
        path: Checkpoint folder, here or remote; or a params.json or config.json.
        max_batch_size: Sequences in the KV cache.
        max_seq_len: Positions of each in the KV cache; default: the model's context.
        ranks: Processes that share the model; default: as few as possible.
        as_json: Print one JSON object.
    """
    facts = read_facts(path)
    batch, context = max_batch_size, max_seq_len or facts.args.max_seq_len
    possible = [n for n in _RANKS if facts.misfit(n, facts.quantize) is None]
    if ranks and (misfit := facts.misfit(ranks, facts.quantize)):
        raise InputError(f"--ranks {ranks}: {misfit}")
    devices = this_machine(facts.parameters())
    rows: list[dict[str, Any]] = []
    for names in ((facts.quantize,),) if facts.quantize else _FORMATS:
        name, among = names[0], [ranks] if ranks else possible
        if facts.misfit(among[0], _packed(name)):
            continue
        found = need(facts, name, among[0], batch, context, devices[0].is_cuda)
        sizes = {"weights": found.weights, "kv_cache": found.cache, "total": found.total}
        fits = {d.name: fit(facts, d, name, among, batch, context) for d in devices}
        rows.append({"format": ", ".join(names), **sizes, "fits": fits})
    token = {
        "bfloat16": need(facts, "bfloat16", ranks or 1, 1, 1).cache,
        "int8": int8_cache(facts, ranks or 1, 1, 1),
    }
    if as_json:
        shape = {"name": facts.name, "family": _family(facts.args), "args": asdict(facts.args)}
        stored = {"tied": facts.tied, "quantize": facts.quantize, "ranks": possible}
        memory = {"kv_cache_bytes_per_token": token, "memory": rows}
        console.say(json.dumps(shape | {"parameters": facts.parameters()} | stored | memory))
        return
    beyond = " (beyond the model's context)" * (context > facts.args.max_seq_len)
    who = f"each of {ranks} ranks" if ranks else "one process"
    default = facts.default_format(devices[0].is_cpu, devices[0].dtype)
    table: list[list[Any]] = [["", "weights", "KV cache", "total"]]
    table[0] += [f"{device.name} {short_size(device.memory)}" for device in devices]
    for row in rows:
        in_short = [short_size(row[key]) for key in ("weights", "kv_cache", "total")]
        table.append([f"  {row['format']}", *in_short, *row["fits"].values()])
    console.say(
        f"{describe(facts)}\n\n"
        f"Memory of {who} at max_batch_size={batch}, max_seq_len={context}{beyond};\n"
        "the total has 10 % and 0.5 GB for activations and torch. Does it fit here?\n\n"
        f"{console.table(table)}\n\n"
        f"KV cache of one token: {token['bfloat16']:,} bytes; {token['int8']:,} with "
        "kv_cache_dtype=int8.\n"
        f"Llama.build takes {default} here by default.\n"
        f"Ranks that can share it: {', '.join(map(str, possible))} (see --ranks)."
    )


@dataclass(frozen=True)
class Facts:
    """The shape of a model and where it was read.

    source      the params.json or config.json; `stated` is its content
    tied        whether the output layer is the embedding; None if the source does not say
    folder      the folder of the checkpoint; None if only a file was named
    checkpoint  None if there are no weights
    quantize    int8 or int4 if the stored weights are packed in that
    """

    name: str
    source: str
    stated: dict[str, Any]
    args: ModelArgs
    tied: bool | None
    folder: Folder | None = None
    checkpoint: Checkpoint | None = None
    quantize: str | None = None

    @property
    def is_bf12(self) -> bool:
        """Whether matrices are stored in bf12."""
        return self.checkpoint is not None and self.checkpoint.is_bf12

    def default_format(self, is_cpu: bool, dtype: str) -> str:
        """The format that Llama.build takes on a device whose default dtype is that."""
        return self.quantize or ("bf12" if self.is_bf12 and is_cpu else dtype)

    def parameters(self, ranks: int = 1) -> int:
        """How many each of `ranks` holds. A tied output layer counts once."""
        return self.args.num_parameters(bool(self.tied), ranks)

    def misfit(self, ranks: int, quantize: str | None = None) -> str | None:
        """Why `ranks` can't share the model in a format; None if they can."""
        try:
            packed_formats.stored_shapes(self.args, quantize, ranks)
        except InputError as error:
            return str(error)
        return None


def read_facts(path: str) -> Facts:
    """Reads the shape, and the headers of the weights if there are any.

    Raises MissingFileError or InputError, naming the file.
    """
    path = expand(path)
    whole = path if "://" in path else os.path.abspath(path)
    *_, parent, name = "", *whole.rstrip("/").split("/")
    if path.endswith(".json"):
        return _read_shape(path, parent, None)
    folder = open_folder(path)
    if folder.path != path:  # of a pulled model
        name = path
    lone = [file for file in ("params.json", "config.json") if file in folder.names]
    weights = (".pth", ".safetensors", ".bin", ".index.json")
    if lone and not any(file.endswith(weights) for file in folder.names):
        return _read_shape(folder.where(lone[0]), name, folder)
    found = open_checkpoint(path)
    tied = None if found.quantize else found.tied  # packed, the output layer is stored separately
    return Facts(name, found.params, found.config, found.args, tied, folder, found, found.quantize)


def _read_shape(path: str, name: str, folder: Folder | None) -> Facts:
    stated = read_json(path)
    if "model_type" in stated or "architectures" in stated:
        args, tied = huggingface_config.read_config(stated, path)
        return Facts(name, path, stated, args, tied, folder)
    args, quantize = parse_params(stated, path)
    if args.vocab_size == -1:
        args = replace(args, vocab_size=32000)
    packed_formats.stored_shapes(args, quantize)
    # Meta's file does not say whether the output layer is the embedding: of its models, 3.2's is.
    is_released = _family(args) is not None and not quantize
    is_tied = args.has_llama32_shape if is_released else None
    return Facts(name, path, stated, args, is_tied, folder, quantize=quantize)


def _family(args: ModelArgs) -> str | None:
    """The name of a released family with this shape."""
    factor = args.rope_scaling_factor if args.use_scaled_rope else None
    shape = (args.vocab_size, args.dim, args.n_layers, args.hidden_dim)
    return _FAMILIES.get((args.rope_theta, factor, *shape))


def describe(facts: Facts) -> str:
    """The lines about a model's shape, weights and tokenizer."""
    args, file = facts.args, os.path.basename(facts.source)
    counts = [facts.parameters()]
    count, vocabulary = f"{counts[0]:,}", f"{args.vocab_size:,} tokens"
    if facts.tied is None:
        counts = [args.num_parameters(tied=True), *counts]
        count = f"{counts[0]:,} if the output layer is the embedding, else {count}"
    elif facts.tied:
        count += ", output layer tied to the embedding"
    if facts.stated.get("vocab_size", -1) == -1:
        vocabulary += f" ({'from the weights' if facts.checkpoint else 'Llama 2'}; not in {file})"
    context = f"{args.max_seq_len:,} tokens"
    if not {"max_seq_len", "max_position_embeddings"} & set(facts.stated):
        context += f" ({'as trained' if 'dim' in facts.stated else 'default'}; not in {file})"
    rotary = f"theta {args.rope_theta:,.0f}"
    if args.use_scaled_rope:
        rotary += f", scaling factor {args.rope_scaling_factor:g}"
        if "use_scaled_rope" in facts.stated and "rope_scaling_factor" not in facts.stated:
            rotary += f" (by shape; not in {file})"
    rows = {
        "parameters": count,
        "layers": f"{args.n_layers} of dim {args.dim}, feed-forward {args.hidden_dim}",
        "heads": f"{args.n_heads} of size {args.head_dim}, {args.kv_heads} for keys and values",
        "vocabulary": vocabulary,
        "rotary": rotary,
        "context": context,
        "weights": _weights(facts),
        "tokenizer": _tokenizer(facts),
    }
    short = " or ".join(map(short_count, counts))
    head = f"{facts.name}: {_family(args) or 'Llama-shaped'}, {short} parameters"
    return "\n".join([head, "", *(f"  {key:<12}{text}" for key, text in rows.items())])


def _weights(facts: Facts) -> str:
    if facts.checkpoint is None:
        return f"none here; {facts.quantize} expected" if facts.quantize else "none here"
    files, weights = facts.checkpoint.files, facts.checkpoint.weights.values()
    dtypes = dict.fromkeys(str(weight.dtype).removeprefix("torch.") for weight in weights)
    formats = facts.quantize or " and ".join(dtypes)
    if facts.is_bf12:
        formats = "bf12"
    layout = "Meta's" if facts.checkpoint.layout == "meta" else "Hugging Face's"
    size = short_size(sum(file.size for file in files))
    text = f"{formats}, {size} in {len(files)} file{'s' * (len(files) > 1)}, {layout} layout"
    if facts.is_bf12:
        text += f"\n{'':14}{bf12_files.summary(files)}"
    return text


def _tokenizer(facts: Facts) -> str:
    try:
        tokenizer = read_tokenizer(facts.folder, facts.checkpoint) if facts.folder else None
    except InputError as error:
        return f"unusable: {error}"
    if tokenizer is None:
        return "none here"
    name = os.path.basename(tokenizer.model_path)
    kind = "SentencePiece" if tokenizer.is_sentencepiece else "tiktoken"
    beyond = ", more than the model has" * (tokenizer.n_words > facts.args.vocab_size)
    return f"{name}, {kind}, {tokenizer.n_words:,} tokens{beyond}"


def short_count(count: int) -> str:
    """Three digits, as in 6.74B and 70.6B, and above that one after the point: 405.9B."""
    unit, letter = (1e9, "B") if count >= 0.9995e9 else (1e6, "M")
    return f"{count / unit:.{2 if count / unit < 9.995 else 1}f}{letter}"


def _packed(dtype: str) -> str | None:
    return dtype if dtype in packed_formats.PACKED else None


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
    if _packed(dtype):
        weights = packed_weights(facts, dtype, ranks, is_cuda)
    else:
        weights = facts.parameters(ranks) * _BYTES[dtype]
    args = facts.args
    heads = 2 * args.n_layers * batch * args.kv_heads_on_each_of(ranks) * context
    return Need(weights, heads * args.head_dim * _BYTES.get(dtype, 2))


def int8_cache(facts: Facts, ranks: int, batch: int, context: int) -> int:
    """Bytes of each rank's KV cache with kv_cache_dtype=int8: one per number, 4 per head."""
    numbers = need(facts, "bfloat16", ranks, batch, context).cache // 2
    return numbers + numbers // facts.args.head_dim * 4


def packed_weights(facts: Facts, name: str, ranks: int, is_cuda: bool = False) -> int:
    """Bytes of the weights of each of `ranks` in a packed format; the rest are bfloat16.

    Of bf12 without its escapes: in trained weights they are a few thousandths of a percent.
    """
    bits = 0.0
    for key, shape in weight_shapes(facts.args, ranks).items():
        each = 16.0
        if name == "bf12" and len(shape) == 2:
            if key == "output.weight" and facts.tied:
                continue
            each = 8 * stored_bytes((shape[0], shape[1])) / math.prod(shape)
        elif name != "bf12" and is_linear(key, shape):
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

    def dtype(kind: str) -> str:
        chosen = distributed.select_dtype(torch.device(kind), parameters=parameters)
        return str(chosen).removeprefix("torch.")

    devices = []
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        name = f"{len(gpus)} GPUs" if len(gpus) > 1 else "GPU"
        has_kernel = all((gpu.major, gpu.minor) >= MIN_CAPABILITY for gpu in gpus)
        least = min(gpu.total_memory for gpu in gpus)
        devices.append(Device(name, least, dtype("cuda"), len(gpus), is_cuda=has_kernel))
    if torch.backends.mps.is_available():
        devices.append(Device("Apple GPU", torch.mps.recommended_max_memory(), dtype("mps")))
    return [*devices, Device("CPU", distributed.main_memory(), dtype("cpu"), is_cpu=True)]


def fit(
    facts: Facts, device: Device, dtype: str, ranks: list[int], batch: int, context: int
) -> str:
    """Whether the model fits a device: `yes`, `no`, what makes it fit, or `-` if it can't run.

    It fits with the fewest `ranks` or, with all the devices, in the longest context that does.
    """
    # Several ranks on a CPU need more of its memory than one does.
    ranks = ranks[:1] if device.is_cpu else [n for n in ranks if n <= device.number]
    ranks = [n for n in ranks if facts.misfit(n, _packed(dtype)) is None]
    has_kernel = device.is_cpu or (device.is_cuda and dtype != "bf12")
    if not ranks or (_packed(dtype) and not has_kernel):
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
