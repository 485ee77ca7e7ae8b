"""Meta's way of writing a Llama down: `params.json`, and shards that each hold a part of a weight.

    args = read_params("params/Llama-3.2-1B/params.json", max_batch_size=4)

Shard i of a checkpoint in 8 holds the i-th eighth of every matrix, along whichever dimension its
shape says, and a copy of every norm.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llama.args import ModelArgs
from llama.errors import InputError
from llama.quantization import packed_formats
from llama.storage.files import read_json
from llama.storage.sharding import Weight, share
from llama.storage.tensor_files import StoredTensor, TensorFile


def read_params(path: str | Path, **overrides: Any) -> ModelArgs:
    """Reads a `params.json`, here or remote; `overrides` win over what it says.

    A file without `max_seq_len`, as Meta's are, gets the context its generation was trained with:
    4096 (Llama 2), 8192 (3) or 131072 (3.1 and later, known by their scaled rotary). Raises
    FileNotFoundError, or ValueError for a file that is no JSON object, an unknown or missing key,
    or a value that does not fit.
    """
    params = read_json(str(path))
    quantize_of(params, path)
    params.pop("quantize", None)
    fields = {field.name: field for field in dataclasses.fields(ModelArgs)}
    if unknown := sorted(set(params) - set(fields)):
        raise InputError(
            f"{path} has unknown key(s) {', '.join(unknown)}; known are {', '.join(fields)}"
        )
    if missing := [key for key in ("dim", "n_layers", "n_heads") if key not in params]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    for key, value in params.items():
        wanted = fields[key].type
        fits = isinstance(value, wanted) or (isinstance(value, int) and "float" in str(wanted))  # type: ignore[arg-type]
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise InputError(f"{path}: {key} is {value!r}, which is not of type {wanted}")
    try:
        return ModelArgs(**{"max_seq_len": _context(params), **params, **overrides})
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def quantize_of(params: dict[str, Any], path: str | Path) -> str | None:
    """The format of the weights that belong to a `params.json`, None where they are not packed."""
    quantize = params.get("quantize")
    if "quantize" in params and quantize not in packed_formats.PACKED:
        raise InputError(
            f"{path}: quantize is {quantize!r}, which is none of {', '.join(packed_formats.PACKED)}"
        )
    return quantize


def _context(params: dict[str, Any]) -> int:
    """The context that a generation was trained with, which Meta's files do not state."""
    if params.get("use_scaled_rope"):
        return 131072
    return 8192 if "rope_theta" in params else 4096


def write_params(args: ModelArgs) -> dict[str, Any]:
    """The `params.json` of a model: Meta's keys, and others only where they say something new."""
    derived = dataclasses.replace(args, rope_scaling_factor=None).rope_scaling_factor
    defaults = {field.name: field.default for field in dataclasses.fields(ModelArgs)}
    if args.head_dim * args.n_heads == args.dim:
        defaults["head_dim"] = args.head_dim
    if not args.use_scaled_rope or args.rope_scaling_factor == derived:
        defaults["rope_scaling_factor"] = args.rope_scaling_factor
    always = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps")
    params = {
        key: value
        for key, value in dataclasses.asdict(args).items()
        if key in always or (not key.startswith("max_") and value != defaults[key])
    }
    # Meta's package takes the context as an argument, and then no file may state it as well.
    if args.max_seq_len != _context(params):
        params["max_seq_len"] = args.max_seq_len
    return params


def shards_expected(files: list[TensorFile], args: ModelArgs) -> int:
    """How many shards there should be, by the part of a feed-forward layer that one holds."""
    name = "layers.0.feed_forward.w1.weight"
    rows = 0
    for key, unit in ((name, 1), (packed_formats.tensor_names(name)[0], packed_formats.TILE)):
        stored = files[0].tensors.get(key)
        if stored and stored.shape:
            rows = stored.shape[0] * unit
    # Where the sizes make no sense, another message will say so.
    return args.hidden_dim // rows if rows and args.hidden_dim % rows == 0 else len(files)


def place(
    name: str, whole: tuple[int, ...], files: list[TensorFile], args: ModelArgs, params: str
) -> list[tuple[tuple[int, ...], StoredTensor]]:
    """Where the parts that Meta's shards hold lie in the whole weight, or the packed tensor."""
    count, stored = len(files), [file.tensors[name] for file in files]
    local, dtype = stored[0].shape, stored[0].dtype
    for tensor in stored:
        if (tensor.shape, tensor.dtype) != (local, dtype):
            raise InputError(
                f"{name} in {tensor.file.where} is {tensor.dtype} of shape {tensor.shape}, but in "
                f"{files[0].name} {dtype} of shape {local}: these are not shards of one checkpoint"
            )
    fits = len(local) == len(whole) and all(local)
    if fits and not any(n % m for n, m in zip(whole, local, strict=True)):
        parts = [n // m for n, m in zip(whole, local, strict=True)]
        cut = math.prod(parts)
        repeated = len(whole) == 1 and cut == 1
        kv_rows = args.kv_heads * args.head_dim // (packed_formats.TILE if len(whole) == 3 else 1)
        shared_heads = whole[0] == kv_rows and cut == parts[0] == args.kv_heads < count
        if max(parts) == cut and (cut == count or repeated or shared_heads):
            regions = [share(whole, local, i, count) for i in range(count)]
            starts = [tuple(part.start for part in region) for region in regions]
            return list({s: t for s, t in zip(starts[::-1], stored[::-1], strict=True)}.items())
    raise InputError(
        f"{name} in {files[0].where} has shape {local}, but {params} asks for {whole}"
        + (f" in {count} parts" if count > 1 else "")
    )


def check_shards(files: list[TensorFile], weights: Mapping[str, Weight], params: str) -> None:
    """Raises ValueError where shards do not belong together, as only their numbers can tell.

    Norms are the same in all shards, and so are KV heads that shards share (nearly: in released
    ones they may differ by rounding during training); the parts of a matrix are not.
    """
    for name, weight in weights.items():
        pieces = sorted(weight.pieces, key=lambda piece: piece[0])
        for i, file in enumerate(files):
            _, stored = pieces[i * len(pieces) // len(files)]
            if stored.file is not file:
                rows = slice(None) if len(stored.shape) == 1 else slice(8)
                a, b = stored.map()[rows].float(), file.tensors[name].map()[rows].float()
                if not (a - b).norm() <= 0.1 * a.norm():
                    raise InputError(
                        f"{file.where} is not of the same checkpoint as {stored.file.where}, "
                        f"or {params} of another: their {name} differ; copy all of them "
                        "again from one place"
                    )
    for i, file in enumerate(files):
        for other in files[:i]:
            names = [n for n in weights if n.startswith(("layers.0.attention.wq.", "output."))]
            pairs = [(file.tensors[n].map()[:8], other.tensors[n].map()[:8]) for n in names]
            if all(torch.equal(a, b) and a.any() for a, b in pairs):
                raise InputError(
                    f"{file.where} holds the same weights as {other.where}: one shard is there "
                    "twice and another is missing; copy it again"
                )
