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
import math
import re
from pathlib import Path
from typing import Any

import torch

from llama.args import ModelArgs, weight_shapes
from llama.checkpoint import huggingface_config
from llama.checkpoint.meta_layout import (
    check_shards,
    place,
    quantize_of,
    read_params,
    shards_expected,
)
from llama.errors import InputError, MissingFileError
from llama.quantization import packed_formats
from llama.storage import huggingface_names
from llama.storage.files import Folder, read_json
from llama.storage.sharding import Weight
from llama.storage.tensor_files import StoredTensor, TensorFile, open_tensors
from llama.tokenizer import Tokenizer

# Llama 2's checkpoints store the rotary frequencies too; they follow from params.json.
_DERIVED = re.compile(r"rope\.freqs")
_SHARD = re.compile(r"consolidated\.\d+\.pth")


@dataclasses.dataclass(eq=False)
class Checkpoint:
    """A checkpoint whose headers have been read and found complete.

    weights     Meta's names, in the model's order, two for a packed weight (`packed_formats.py`).
                An output layer that is the embedding is the same object
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
            raise InputError(
                f"{self.params} says vocab_size {size}, but {tokenizer.model_path} has {n_words} "
                "tokens; give the tokenizer that belongs to the checkpoint"
            )
        if unknown := sorted(i for i in self.stop_ids if i >= n_words):
            raise InputError(
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
    raise MissingFileError(
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
            raise MissingFileError(
                f"{folder.where(f'consolidated.{i:02d}.pth')} is not there, but {name} is; get all "
                "shards of the checkpoint"
            )
    files = [open_tensors(folder, name) for name in names]
    for file in files:
        saved_as = file.saved_as or ""
        if _SHARD.fullmatch(f"{saved_as}.pth") and f"{saved_as}.pth" != file.name:
            raise InputError(
                f"{file.where} was written as {saved_as}.pth: shards were renamed or copied over "
                "each other; give each its own name again, or download them again"
            )
    expected = shards_expected(files, args)
    if len(files) != expected:
        raise InputError(
            f"{folder.path} has {len(files)} shards, but each holds 1/{expected} of a weight of "
            f"{params}; get all {expected} shards of the checkpoint, and no others"
        )
    if args.vocab_size == -1:
        output = files[0].tensors.get("tok_embeddings.weight" if quantize else "output.weight")
        rows = output.shape[0] if output and output.shape else 1  # of Llama 2's 32000
        args = dataclasses.replace(args, vocab_size=max(rows, 1) * len(files))
    shapes = packed_formats.stored_shapes(args, quantize)
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
    args, tied = huggingface_config.read_config(config, where)
    index, names = _hugging_face_files(folder)
    files = [open_tensors(folder, name) for name in names]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                other = tensors[name].file.where
                raise InputError(
                    f"{name} is in {file.where} and in {other}; one of them is too many"
                )
            if index.get(name, file.name) != file.name:
                raise InputError(
                    f"{name} is in {file.where}, where the index has it in {index[name]}: files "
                    "were renamed or are of different checkpoints; download them again"
                )
            tensors[name] = tensor
    shapes = weight_shapes(args)
    expected = {huggingface_names.weight_name(name) for name in shapes}
    if tied:  # some write the output layer nevertheless
        expected -= {"lm_head.weight"} - set(tensors)
    at = files[0].where if len(files) == 1 else folder.path
    _check_names(at, where, args, set(tensors), expected, huggingface_config.DERIVED)
    weights: dict[str, Weight] = {}
    for name, shape in shapes.items():
        stored = tensors.get(huggingface_names.weight_name(name))
        if stored is None:
            weights[name] = weights["tok_embeddings.weight"]
            continue
        if stored.shape != shape:
            raise InputError(
                f"{huggingface_names.weight_name(name)} in {stored.file.where} has shape "
                f"{stored.shape}, but {where} asks for {shape}"
            )
        head_dim = args.head_dim if huggingface_names.has_rotary_rows(name) else None
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
                raise InputError(f"{at} should have a weight_map; download it again")
            names = sorted(set(index.values()))
            if missing := [name for name in names if name not in folder.names]:
                raise MissingFileError(
                    f"{folder.where(missing[0])} is not there, and {at} lists it; get all files"
                )
            return index, names
    raise MissingFileError(
        f"no weights in {folder.path} (it holds {', '.join(folder.names[:8])}); with config.json "
        "belong model.safetensors, or several files and model.safetensors.index.json"
    )


def _stop_ids(folder: Folder, config: dict[str, Any]) -> frozenset[int]:
    name = "generation_config.json" if "generation_config.json" in folder.names else "config.json"
    found = read_json(folder.where(name)).get("eos_token_id", config.get("eos_token_id"))
    ids = [found] if isinstance(found, int) else found or []
    if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise InputError(f"{folder.where(name)}: eos_token_id is {found!r}, not token ids")
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
        raise InputError(
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
        expected = packed_formats.DTYPES.get(name.rpartition(".")[2]) if quantize else None
        if tensor.dtype != expected and (expected or tensor.dtype == torch.uint8):
            raise InputError(
                f"{file.where} holds {name} in {tensor.dtype}, which should be "
                f"{expected or 'bfloat16, float16, float32 or float64'}"
            )
