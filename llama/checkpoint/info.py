"""`llama info`: the shape of a model and the memory it takes, without loading it.

    llama info Llama-3.2-1B                         # a checkpoint folder of either layout
    llama info params/Llama-3.1-405B --max-seq-len 8192 --max-batch-size 4
    llama info downloads/config.json

Everything follows from the shape, so a `params.json` or a `config.json` is enough. Of a checkpoint
only the headers are read.
"""

import json
import os
from dataclasses import asdict, replace
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import PositiveInt

from llama import console
from llama.args import ModelArgs
from llama.checkpoint import huggingface_config
from llama.checkpoint.memory import Device, Facts, fit, int8_cache, need, this_machine
from llama.checkpoint.meta_layout import parse_params
from llama.checkpoint.opening import open_checkpoint, tokenizer_in
from llama.errors import InputError
from llama.quantization import packed_formats
from llama.storage.files import Folder, expand, read_json, short_size
from llama.tokenizer import Tokenizer

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
    rows = _memory(facts, devices, [ranks] if ranks else possible, batch, context)
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
    header = ["", "weights", "KV cache", "total"]
    header += [f"{device.name} {short_size(device.memory)}" for device in devices]
    table = [
        [
            "  " + row["format"],
            *(short_size(row[key]) for key in ("weights", "kv_cache", "total")),
            *row["fits"].values(),
        ]
        for row in rows
    ]
    console.say(
        f"{_describe(facts)}\n\n"
        f"Memory of {who} at max_batch_size={batch}, max_seq_len={context}{beyond};\n"
        "the total has 10 % and 0.5 GB for activations and torch. Does it fit here?\n\n"
        f"{console.table([header, *table])}\n\n"
        f"KV cache of one token: {token['bfloat16']:,} bytes; {token['int8']:,} with "
        "kv_cache_dtype=int8.\n"
        f"Llama.build takes {facts.quantize or devices[0].dtype} here by default.\n"
        f"Ranks that can share it: {', '.join(map(str, possible))} (see --ranks)."
    )


def _memory(
    facts: Facts, devices: list[Device], ranks: list[int], batch: int, context: int
) -> list[dict[str, Any]]:
    """For each format the bytes on the fewest of `ranks`, and on which devices that fits."""
    rows = []
    for names in ((facts.quantize,),) if facts.quantize else _FORMATS:
        name = names[0]
        if facts.misfit(ranks[0], name if name in packed_formats.PACKED else None):
            continue
        found = need(facts, name, ranks[0], batch, context, devices[0].is_cuda)
        sizes = {"weights": found.weights, "kv_cache": found.cache, "total": found.total}
        fits = {d.name: fit(facts, d, name, ranks, batch, context) for d in devices}
        rows.append({"format": ", ".join(names), **sizes, "fits": fits})
    return rows


def read_facts(path: str) -> Facts:
    """Reads the shape, and the headers of the weights if there are any.

    Raises MissingFileError or InputError, naming the file.
    """
    path = expand(path)
    whole = path if "://" in path else os.path.abspath(path)
    *_, parent, name = "", *whole.rstrip("/").split("/")
    if path.endswith(".json"):
        return _read_shape(path, parent, None)
    folder = Folder(path)
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
    return Facts(
        name,
        path,
        stated,
        args,
        args.has_llama32_shape if is_released else None,
        folder,
        quantize=quantize,
    )


def _family(args: ModelArgs) -> str | None:
    """The name of a released family with this shape."""
    factor = args.rope_scaling_factor if args.use_scaled_rope else None
    shape = (args.vocab_size, args.dim, args.n_layers, args.hidden_dim)
    return _FAMILIES.get((args.rope_theta, factor, *shape))


def _describe(facts: Facts) -> str:
    args, file, checkpoint = facts.args, os.path.basename(facts.source), facts.checkpoint
    counts = [facts.parameters()]
    count, vocabulary = f"{counts[0]:,}", f"{args.vocab_size:,} tokens"
    if facts.tied is None:
        counts = [replace(facts, tied=True).parameters(), *counts]
        count = f"{counts[0]:,} if the output layer is the embedding, else {count}"
    elif facts.tied:
        count += ", output layer tied to the embedding"
    if facts.stated.get("vocab_size", -1) == -1:
        vocabulary += f" ({'from the weights' if checkpoint else 'Llama 2'}; not in {file})"
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
    layout = "Meta's" if facts.checkpoint.layout == "meta" else "Hugging Face's"
    size = short_size(sum(file.size for file in files))
    return f"{formats}, {size} in {len(files)} file{'s' * (len(files) > 1)}, {layout} layout"


def _tokenizer(facts: Facts) -> str:
    name = tokenizer_in(facts.folder) if facts.folder else None
    if not facts.folder or not name:
        return "none here"
    try:
        tokenizer = Tokenizer(facts.folder.where(name))
        if facts.checkpoint:
            facts.checkpoint.check_tokenizer(tokenizer)
    except InputError as error:
        return f"unusable: {error}"
    kind = "SentencePiece" if tokenizer.is_sentencepiece else "tiktoken"
    beyond = ", more than the model has" * (tokenizer.n_words > facts.args.vocab_size)
    return f"{name}, {kind}, {tokenizer.n_words:,} tokens{beyond}"


def short_count(count: int) -> str:
    """Three digits, as in 6.74B and 70.6B, and above that one after the point: 405.9B."""
    unit, letter = (1e9, "B") if count >= 0.9995e9 else (1e6, "M")
    return f"{count / unit:.{2 if count / unit < 9.995 else 1}f}{letter}"
