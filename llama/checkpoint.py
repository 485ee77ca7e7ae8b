"""Checkpoints on disk, and how they become a model on any number of ranks.

Two layouts are known by what lies in the folder: Meta's (`params.json`, `consolidated.00.pth` and
so on, each shard holding the same part of every weight) and Hugging Face's (`config.json`,
`.safetensors` or `.bin` files, each holding some whole weights). Opened, both are the same: Meta's
names, and for each whole weight the places where its parts lie.

    checkpoint = open_checkpoint("Llama-3.3-70B-Instruct")        # reads headers only
    model = load_model(checkpoint, torch.device("cpu"), torch.bfloat16, max_batch_size=4)

Each rank reads its part of each weight, no more, from the mapped files; what lies there just as a
CPU wants it is not even copied, so that nothing stands in memory twice. A checkpoint is data, never
code, and nothing in it is skipped: every name, shape and dtype has to be what the model expects.
"""

import dataclasses
import json
import math
import mmap
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from llama import formats, huggingface, parallel
from llama.args import ModelArgs, weight_shapes
from llama.files import Folder, read_json
from llama.meta import check_shards, place, quantize_of, read_params, shards_expected, write_params
from llama.model import Transformer
from llama.storage import Entry, StoredTensor, TensorFile, open_tensors, write_tensors
from llama.tokenizer import Tokenizer
from llama.weights import Weight, share

# Llama 2's checkpoints store the rotary frequencies too; they follow from params.json.
_DERIVED = re.compile(r"rope\.freqs")
_SHARD = re.compile(r"consolidated\.\d+\.pth")


@dataclasses.dataclass(eq=False)
class Checkpoint:
    """A checkpoint whose headers have been read and found complete.

    weights     Meta's names, in the model's order, two for a packed weight (see `formats.py`). An
                output layer that is the embedding is the same object
    quantize    int8 or int4, where linear layers are packed
    tokenizer   the path or address of its tokenizer, None where the folder has none
    stop_ids    tokens that its generation_config.json adds to those that end an answer
    """

    folder: Folder
    layout: str  # meta or hf
    params: str  # where its shape was read
    args: ModelArgs
    files: list[TensorFile]
    weights: dict[str, Weight]
    stop_ids: frozenset[int] = frozenset()
    quantize: str | None = None

    @property
    def tied(self) -> bool:
        return self.weights.get("output.weight") is self.weights["tok_embeddings.weight"]

    @property
    def parameters(self) -> int:
        """How many parameters the model has, an output layer that is the embedding counted once."""
        shapes = weight_shapes(self.args)
        if self.tied:
            del shapes["output.weight"]
        return sum(map(math.prod, shapes.values()))

    @property
    def tokenizer(self) -> str | None:
        name = tokenizer_in(self.folder)
        return self.folder.where(name) if name else None

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError where it can't be this model's: it has other or more tokens."""
        size, n_words = self.args.vocab_size, tokenizer.n_words
        # Others than Meta round the size of the embedding up.
        if n_words != size and not (self.layout == "hf" and n_words < size):
            raise ValueError(
                f"{self.params} says vocab_size {size}, but {tokenizer.model_path} has {n_words} "
                "tokens; give the tokenizer that belongs to the checkpoint"
            )
        if unknown := sorted(i for i in self.stop_ids if i >= n_words):
            raise ValueError(
                f"answers of {self.folder.path} end with token {unknown[0]} (eos_token_id), but "
                f"{tokenizer.model_path} has {n_words} tokens; give the tokenizer that has them all"
            )

    def check_shards(self) -> None:
        """Raises ValueError where Meta's shards do not belong together."""
        if self.layout == "meta":
            check_shards(self.files, self.weights, self.params)


def tokenizer_in(folder: Folder) -> str | None:
    """The name of the tokenizer in a folder: of two, the one that Meta's layout has."""
    names = ("tokenizer.model", "tokenizer.json")
    return next((name for name in names if name in folder.names), None)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens the checkpoint in a folder, here or remote, of whichever layout.

    Raises FileNotFoundError or ValueError, naming the file, for a folder without a checkpoint, a
    damaged file, one that holds anything but tensors, and missing, extra or misshapen weights.
    """
    folder = Folder(path)
    if any(_SHARD.fullmatch(name) for name in folder.names):
        return _open_meta(folder)
    if "config.json" in folder.names:
        return _open_hugging_face(folder)
    raise FileNotFoundError(
        f"no checkpoint in {folder.path} (it holds {', '.join(folder.names[:8]) or 'nothing'}); "
        "give a folder with consolidated.00.pth and params.json (Meta's layout), or with "
        "config.json and .safetensors files (Hugging Face's)"
    )


def _open_meta(folder: Folder) -> Checkpoint:
    params = folder.where("params.json")
    args, quantize = read_params(params), quantize_of(read_json(params), params)
    names = [name for name in folder.names if _SHARD.fullmatch(name)]
    for i, name in enumerate(names):
        if name != f"consolidated.{i:02d}.pth":
            raise FileNotFoundError(
                f"{folder.where(f'consolidated.{i:02d}.pth')} is not there, but {name} is; get all "
                "shards of the checkpoint"
            )
    files = [open_tensors(folder, name) for name in names]
    for file in files:
        saved_as = file.saved_as or ""
        if _SHARD.fullmatch(f"{saved_as}.pth") and f"{saved_as}.pth" != file.name:
            raise ValueError(
                f"{file.where} was written as {saved_as}.pth: shards were renamed or copied over "
                "each other; give each its own name again, or download them again"
            )
    expected = shards_expected(files, args)
    if len(files) != expected:
        raise ValueError(
            f"{folder.path} has {len(files)} shards, but each holds 1/{expected} of a weight of "
            f"{params}; get all {expected} shards of the checkpoint, and no others"
        )
    if args.vocab_size == -1:
        output = files[0].tensors.get("tok_embeddings.weight" if quantize else "output.weight")
        rows = output.shape[0] if output and output.shape else 1  # of Llama 2's 32000
        args = dataclasses.replace(args, vocab_size=max(rows, 1) * len(files))
    shapes = formats.stored_shapes(args, quantize)
    for file in files:
        _check_names(file.where, params, args, set(file.tensors), set(shapes), _DERIVED)
        _check_dtypes(file, quantize)
    weights = {
        name: Weight(shape, place(name, shape, files, args, params))
        for name, shape in shapes.items()
    }
    ends = ("tok_embeddings.weight", "output.weight")
    if not quantize and all(file.tensors[ends[0]] == file.tensors[ends[1]] for file in files):
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return Checkpoint(folder, "meta", params, args, files, weights, quantize=quantize)


def _open_hugging_face(folder: Folder) -> Checkpoint:
    where = folder.where("config.json")
    config = read_json(where)
    args, tied = huggingface.read_config(config, where)
    index, names = _hugging_face_files(folder)
    files = [open_tensors(folder, name) for name in names]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                other = tensors[name].file.where
                raise ValueError(
                    f"{name} is in {file.where} and in {other}; one of them is too many"
                )
            if index.get(name, file.name) != file.name:
                raise ValueError(
                    f"{name} is in {file.where}, where the index has it in {index[name]}: files "
                    "were renamed or are of different checkpoints; download them again"
                )
            tensors[name] = tensor
    shapes = weight_shapes(args)
    expected = {huggingface.weight_name(name) for name in shapes}
    if tied:  # some write the output layer nevertheless
        expected -= {"lm_head.weight"} - set(tensors)
    at = files[0].where if len(files) == 1 else folder.path
    _check_names(at, where, args, set(tensors), expected, huggingface.DERIVED)
    weights: dict[str, Weight] = {}
    for name, shape in shapes.items():
        stored = tensors.get(huggingface.weight_name(name))
        if stored is None:
            weights[name] = weights["tok_embeddings.weight"]
            continue
        if stored.shape != shape:
            raise ValueError(
                f"{huggingface.weight_name(name)} in {stored.file.where} has shape {stored.shape}, "
                f"but {where} asks for {shape}"
            )
        head_dim = args.head_dim if huggingface.has_rotary_rows(name) else None
        weights[name] = Weight(shape, [((0,) * len(shape), stored)], head_dim)
    return Checkpoint(folder, "hf", where, args, files, weights, _stop_ids(folder, config))


def _hugging_face_files(folder: Folder) -> tuple[dict[str, str], list[str]]:
    """The files that hold the weights, and which weight is in which where an index says so."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if f"{stem}{suffix}" in folder.names:
            return {}, [f"{stem}{suffix}"]
        if f"{stem}{suffix}.index.json" in folder.names:
            at = folder.where(f"{stem}{suffix}.index.json")
            index = read_json(at).get("weight_map")
            if not isinstance(index, dict) or not all(isinstance(n, str) for n in index.values()):
                raise ValueError(f"{at} should have a weight_map; download it again")
            names = sorted(set(index.values()))
            if missing := [name for name in names if name not in folder.names]:
                raise FileNotFoundError(
                    f"{folder.where(missing[0])} is not there, and {at} lists it; get all files"
                )
            return index, names
    raise FileNotFoundError(
        f"no weights in {folder.path} (it holds {', '.join(folder.names[:8])}); with config.json "
        "belong model.safetensors, or several files and model.safetensors.index.json"
    )


def _stop_ids(folder: Folder, config: dict[str, Any]) -> frozenset[int]:
    name = "generation_config.json" if "generation_config.json" in folder.names else "config.json"
    found = read_json(folder.where(name)).get("eos_token_id", config.get("eos_token_id"))
    ids = [found] if isinstance(found, int) else found or []
    if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ValueError(f"{folder.where(name)}: eos_token_id is {found!r}, not token ids")
    return frozenset(ids)


def _check_names(
    where: str,
    params: str,
    args: ModelArgs,
    found: set[str],
    expected: set[str],
    derived: re.Pattern[str],
) -> None:
    missing = sorted(expected - found)
    extra = sorted(name for name in found - expected if not derived.fullmatch(name))
    if missing or extra:
        raise ValueError(
            f"{where} does not fit {params} (n_layers={args.n_layers}): "
            + "; ".join(
                f"{word} {len(names)} weight(s): {', '.join(names[:4])}{' ...' * (len(names) > 4)}"
                for word, names in (("lacks", missing), ("has unexpected", extra))
                if names
            )
        )


def _check_dtypes(file: TensorFile, quantize: str | None) -> None:
    """Only packed weights are bytes, and they and their scales nothing else."""
    for name, tensor in file.tensors.items():
        expected = formats.DTYPES.get(name.rpartition(".")[2]) if quantize else None
        if tensor.dtype != expected and (expected or tensor.dtype == torch.uint8):
            raise ValueError(
                f"{file.where} holds {name} in {tensor.dtype}, which should be "
                f"{expected or 'bfloat16, float16, float32 or float64'}"
            )


# Makes what takes a linear layer's place, of its name, the layer, and its weight.
ConvertLayer = Callable[[str, nn.Module, Iterator[Tensor]], nn.Module]


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    convert_layer: ConvertLayer | None = None,
    **overrides: Any,
) -> Transformer:
    """The model of a checkpoint, this rank's part of it, on `device` in `dtype`.

    `overrides` replace values of the checkpoint's ModelArgs, such as max_batch_size. On a CPU what
    is in `dtype` already stays mapped from the file. With `convert_layer` no linear layer's weight
    is there whole: what it is given are blocks of its rows, each a multiple of a tile, or of a
    quantized checkpoint, which needs it, the two packed tensors. Raises ValueError where the ranks
    can't share the model or Meta's shards do not belong together.
    """
    if checkpoint.quantize and convert_layer is None:
        raise ValueError(
            f"{checkpoint.folder.path} holds {checkpoint.quantize} weights, which only "
            "Llama.build can use; take the model that it was made from"
        )
    with _ParallelLayersOnMeta():
        model = Transformer(dataclasses.replace(checkpoint.args, **overrides))
    checkpoint.check_shards()
    ranks, rank = parallel.model_parallel_size(), parallel.model_parallel_rank()
    stored = formats.stored_shapes(model.params, checkpoint.quantize, ranks)
    regions = {
        name: share(weight.shape, stored[name], rank, ranks)
        for name, weight in checkpoint.weights.items()
    }
    dtypes = {name: formats.DTYPES.get(name.rpartition(".")[2], dtype) for name in stored}
    total = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in stored.items())
    read: dict[Weight, Tensor] = {}

    def whole(name: str) -> Tensor:
        weight = checkpoint.weights[name]
        if weight not in read:
            part = weight.read(regions[name], device, dtypes[name])
            if device.type == "cpu":
                # Mapped, it would come from the disk at its first use: a byte of each page now.
                part.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()
            read[weight] = part
        return read[weight]

    def pieces(name: str) -> Iterator[Tensor]:
        if checkpoint.quantize:
            # For a GPU they are mapped here and leave nothing behind: there they are repacked.
            cpu, parts = torch.device("cpu"), formats.parts(name)
            if device.type != "cpu":
                return (checkpoint.weights[p].read(regions[p], cpu, dtypes[p]) for p in parts)
            return map(whole, parts)
        return checkpoint.weights[name].blocks(regions[name], dtype, formats.TILE)

    def counted(tensors: Iterator[Tensor]) -> Iterator[Tensor]:
        for tensor in tensors:
            yield tensor
            bar.update(tensor.nbytes)

    mine: dict[str, Tensor] = {}
    with parallel.progress(total, f"Loading {checkpoint.folder.path}") as bar:
        for name, weight in model.state_dict().items():
            if convert_layer and formats.is_linear(name, tuple(weight.shape)):
                layer_name = name.removesuffix(".weight")
                layer = model.get_submodule(layer_name)
                made = convert_layer(layer_name, layer, counted(pieces(name)))
                model.set_submodule(layer_name, made)
            else:
                (mine[name],) = counted(iter([whole(name)]))
    model.load_state_dict(mine, strict=True, assign=True)
    return model.eval()


def save_model(
    model: Transformer,
    folder: str | Path,
    tokenizer_path: str | Path,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model as a checkpoint folder in Meta's layout, its tokenizer with it.

    Each rank that shares the model writes its shard. `weights` are this rank's, where the model's
    own are not whole. Weights that share memory (an output layer tied to the embedding) are stored
    once. Raises ValueError for a quantized or adapted model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        weights = model.state_dict()
    if missing := set(weight_shapes(model.params)) - set(weights):
        raise ValueError(
            f"{sorted(missing)[0]} is quantized or has an adapter; save the model that it was made "
            "from"
        )
    stored: dict[int, Entry] = {}
    entries = {}
    for name, weight in weights.items():
        entry = Entry(dtype, tuple(weight.shape), lambda w=weight: [w.to("cpu", dtype)])  # type: ignore[misc]
        entries[name] = stored.setdefault(weight.data_ptr(), entry)
    write_tensors(folder / f"consolidated.{parallel.model_parallel_rank():02d}.pth", entries)
    if parallel.model_parallel_rank() == 0:
        params = json.dumps(write_params(model.params), indent=2) + "\n"
        (folder / "params.json").write_text(params)
        name = "tokenizer.json" if str(tokenizer_path).endswith(".json") else "tokenizer.model"
        if Path(tokenizer_path).resolve() != (folder / name).resolve():
            shutil.copyfile(tokenizer_path, folder / name)


def empty_model(args: ModelArgs) -> Transformer:
    """A model whose parameters have shapes but no memory; `to_empty` gives them some."""
    with _ParallelLayersOnMeta():
        model = Transformer(args)
    return model.to("meta")  # norms are made by plain torch


class _ParallelLayersOnMeta(TorchDispatchMode):
    """Makes fairscale's layers without memory; what else a module makes is real.

    They ignore torch's meta device, so their allocations are caught one level below, at the
    dispatcher.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it, torch would import its compiler, for a second

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        # First values, and this rank's part of them: there is nothing to fill.
        if func is torch.ops.aten.normal_.default:
            return args[0]
        if func is torch.ops.aten.cat.out:
            return kwargs["out"]
        if func is torch.ops.aten.empty.memory_format:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
