"""`llama info`: what a model is and what it takes, before anything is loaded.

    llama info Llama-3.2-1B                         # a checkpoint folder of either layout
    llama info params/Llama-3.1-405B --max_seq_len 8192 --max_batch_size 4
    llama info downloads/config.json

It all follows from the shape, so that a `params.json` or a `config.json` is enough; of a checkpoint
the headers are read too.
"""

import os
from collections.abc import Iterable
from dataclasses import replace

from llama import console
from llama.checkpoint import huggingface_config
from llama.checkpoint.memory import (
    FORMATS,
    RANKS,
    Facts,
    int8_cache,
    need,
    packed_weights,
    this_machine,
    verdict,
)
from llama.checkpoint.meta_layout import quantize_of, read_params
from llama.checkpoint.opening import open_checkpoint, tokenizer_in
from llama.errors import InputError
from llama.quantization import packed_formats
from llama.storage.files import Folder, read_json, short_size
from llama.tokenizer import Tokenizer

_SHORT = 8192  # a context that is enough for most, of models that could have more


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
            raise InputError(f"{name}={value!r} should be a whole number greater than 0")
    facts = read_facts(str(path))
    batch, context = max_batch_size, max_seq_len or facts.args.max_seq_len
    lines = [*_describe(facts), "", *_table(facts, batch, context), ""]
    lines += ["With 10 % and 0.5 GB more for activations and torch itself:"]
    lines += verdict(facts, this_machine(facts.parameters()), batch, context)
    console.say("\n".join(lines))


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
    args, tied, quantize = found.args, found.tied, found.quantize
    return Facts(name, found.params, stated, args, tied, folder, found, quantize)


def _read_json(path: str, name: str, folder: Folder | None) -> Facts:
    stated = read_json(path)
    if "model_type" in stated or "architectures" in stated:
        args, tied = huggingface_config.read_config(stated, path)
        return Facts(name, path, stated, args, tied, folder)
    args, quantize = read_params(path), quantize_of(stated, path)
    if args.vocab_size == -1:
        args = replace(args, vocab_size=32000)
    packed_formats.stored_shapes(args, quantize)
    tied = args.has_llama32_shape and not quantize  # an output layer is packed on its own
    return Facts(name, path, stated, args, tied, folder, quantize=quantize)


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
        kind = f", for {facts.quantize} weights" if facts.quantize else ""
        return f"none here, only {os.path.basename(facts.source)}{kind}"
    files, in_order = facts.checkpoint.files, facts.checkpoint.weights.values()
    dtypes = dict.fromkeys(str(weight.dtype).removeprefix("torch.") for weight in in_order)
    if facts.quantize:
        dtypes = dict.fromkeys([facts.quantize])
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
    sizes = dict.fromkeys(FORMATS.values())
    groups = [[name for name in FORMATS if FORMATS[name] == size] for size in sizes]
    for names in [[facts.quantize]] if facts.quantize else groups:
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
    for name in packed_formats.PACKED if not facts.quantize else ():
        cells = (
            "-" if facts.misfit(ranks, name) else short_size(packed_weights(facts, name, ranks))
            for ranks in facts.ranks
        )
        lines.append(_row(f"quantize={name}", "weights", cells))
    caches = (int8_cache(facts, ranks, batch, context) for ranks in facts.ranks)
    lines.append(_row("kv_cache_dtype=int8", "KV cache", map(short_size, caches)))
    if others := [ranks for ranks in RANKS if ranks not in facts.ranks]:
        which = " or ".join(str(ranks) for ranks in others)
        lines += ["", f"Not on {which} ranks: {facts.misfit(others[0], facts.quantize)}."]
    return lines


def _row(first: str, second: str, cells: Iterable[object]) -> str:
    return f"  {first:<20}{second:<19}" + "".join(f"{cell:>11}" for cell in cells)


def short_count(count: int) -> str:
    """Three digits, as in 6.74B and 70.6B, and above that one after the point: 405.9B."""
    unit, letter = (1e9, "B") if count >= 0.9995e9 else (1e6, "M")
    return f"{count / unit:.{2 if count / unit < 9.995 else 1}f}{letter}"
