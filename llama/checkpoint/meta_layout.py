"""Meta's layout: `params.json`, and files (shards) that each hold a shard of every weight.

    args = read_params("params/Llama-3.2-1B/params.json", max_batch_size=4)

File i of 8 holds the i-th eighth of each matrix, cut along the dimension that its shape says, and a
copy of each norm.
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
    """Reads a `params.json`, here or remote; `overrides` replace its values.

    Raises FileNotFoundError, and what `parse_params` raises.
    """
    return parse_params(read_json(str(path)), path, **overrides)[0]


def parse_params(
    content: Mapping[str, Any], path: str | Path, **overrides: Any
) -> tuple[ModelArgs, str | None]:
    """The shape that a `params.json` describes, and the format of packed weights (else None).

    A file without `max_seq_len`, as Meta's are, gets the context its generation was trained with:
    4096 (Llama 2), 8192 (3) or 131072 (3.1 and later, known by their scaled rotary). `path` is for
    messages. Raises ValueError for an unknown or missing key, or a value that does not fit.
    """
    params = dict(content)
    quantize = params.pop("quantize", None)
    if "quantize" in content and quantize not in packed_formats.PACKED:
        raise InputError(
            f"{path}: quantize is {quantize!r}, which is none of {', '.join(packed_formats.PACKED)}"
        )
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
            kind = getattr(wanted, "__name__", wanted)  # int, or int | None
            raise InputError(f"{path}: {key} is {value!r}; it should be of type {kind}")
    try:
        args = ModelArgs(**{"max_seq_len": _context(params), **params, **overrides})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return args, quantize


def _context(params: Mapping[str, Any]) -> int:
    """The context that a generation was trained with, which is not in Meta's files."""
    if params.get("use_scaled_rope"):
        return 131072
    return 8192 if "rope_theta" in params else 4096


def write_params(args: ModelArgs) -> dict[str, Any]:
    """The `params.json` of a model: Meta's keys, and others where they differ from the default."""
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
    # Meta's package takes the context as an argument and refuses a file that has it as well.
    if args.max_seq_len != _context(params):
        params["max_seq_len"] = args.max_seq_len
    return params


def shards_expected(files: list[TensorFile], args: ModelArgs) -> int:
    """How many shards there should be, from the rows of a feed-forward layer that one holds."""
    name = "layers.0.feed_forward.w1.weight"
    rows = 0
    packed = packed_formats.tensor_names(name)[0]
    for key, unit in ((name, 1), (packed, packed_formats.TILE), (f"{name}.blocks", 1)):
        stored = files[0].tensors.get(key)
        if stored and stored.shape:
            rows = stored.shape[0] * unit
    # Sizes that make no sense get another message.
    return args.hidden_dim // rows if rows and args.hidden_dim % rows == 0 else len(files)


def shards_of(
    name: str, whole: tuple[int, ...], files: list[TensorFile], args: ModelArgs, params: str
) -> list[tuple[tuple[int, ...], StoredTensor]]:
    """The shards of a weight, or of a packed tensor, each with the indices of its first element."""
    count, stored = len(files), [file.tensors[name] for file in files]
    first, local = stored[0], stored[0].shape
    for tensor in stored:
        if (tensor.shape, tensor.dtype) != (local, first.dtype):
            raise InputError(
                f"{name} in {tensor.file.where} is {tensor.dtype} of shape {tensor.shape}, but in "
                f"{first.file.where} {first.dtype} of shape {local}: these are not shards of one "
                "checkpoint"
            )
    fits = len(local) == len(whole) and all(local)
    if fits and not any(n % m for n, m in zip(whole, local, strict=True)):
        cuts = [n // m for n, m in zip(whole, local, strict=True)]  # of each dimension
        total = math.prod(cuts)
        is_copied = len(whole) == 1 and total == 1
        kv_rows = args.kv_heads * args.head_dim // (packed_formats.TILE if len(whole) == 3 else 1)
        has_shared_heads = whole[0] == kv_rows and total == cuts[0] == args.kv_heads < count
        if max(cuts) == total and (total == count or is_copied or has_shared_heads):
            regions = [share(whole, local, i, count) for i in range(count)]
            starts = [tuple(cut.start for cut in region) for region in regions]
            return list({s: t for s, t in zip(starts[::-1], stored[::-1], strict=True)}.items())
    raise InputError(
        f"{name} in {first.file.where} has shape {local}, but {params} asks for {whole}"
        + (f" in {count} shards" if count > 1 else "")
    )


def check_shards(files: list[TensorFile], weights: Mapping[str, Weight], params: str) -> None:
    """Raises ValueError for shards of different checkpoints, which only their values can show.

    Norms are the same in all shards, and so are KV heads that shards share (nearly: in released
    ones they may differ by rounding during training); shards of a matrix are not.
    """
    for name, weight in weights.items():
        shards = [stored for _, stored in sorted(weight.shards, key=lambda shard: shard[0])]
        for i, file in enumerate(files):
            one, other = shards[i * len(shards) // len(files)], file.tensors[name]
            if one is not other:
                rows = slice(None) if len(one.shape) == 1 else slice(8)
                a, b = one.region((rows,)).float(), other.region((rows,)).float()
                if not (a - b).norm() <= 0.1 * a.norm():
                    raise InputError(
                        f"{other.file.where} is not of the same checkpoint as {one.file.where}, "
                        f"or {params} of another: their {name} differ; copy all of them "
                        "again from one place"
                    )
    for i, file in enumerate(files):
        for earlier in files[:i]:
            names = [n for n in weights if n.startswith(("layers.0.attention.wq.", "output."))]
            pairs = [[f.tensors[n].region((slice(8),)) for f in (file, earlier)] for n in names]
            if all(torch.equal(a, b) and a.any() for a, b in pairs):
                raise InputError(
                    f"{file.where} holds the same weights as {earlier.where}: one shard is there "
                    "twice and another is missing; copy it again"
                )
