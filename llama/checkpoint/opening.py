"""Opening a checkpoint: which layout a folder has, what model it holds, and where each weight is.

The files in the folder show the layout: Meta's (`params.json`, `consolidated.00.pth` and so on) or
Hugging Face's (`config.json`, `.safetensors` or `.bin` files, each with some whole weights). Once
opened both are the same: Meta's names, and a `Weight` for each, which knows its shards.

    checkpoint = open_checkpoint("Llama-3.3-70B-Instruct")        # reads headers only
    checkpoint.weights["norm.weight"].shape                       # (8192,)

A checkpoint is data, never code, and nothing in it is ignored: every name, shape and dtype has to
be what the model expects.
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

import torch

from llama.args import ModelArgs, weight_shapes
from llama.checkpoint import huggingface_config
from llama.checkpoint.meta_layout import check_shards, parse_params, shards_expected, shards_of
from llama.errors import InputError, MissingFileError
from llama.quantization import bf12_files, packed_formats
from llama.storage import huggingface_names
from llama.storage.files import Folder, read_json
from llama.storage.pulled import open_folder
from llama.storage.sharding import Weight
from llama.storage.tensor_files import StoredTensor, TensorFile, open_tensors
from llama.tokenizer import Tokenizer

# Llama 2's checkpoints hold the rotary frequencies too, which follow from params.json.
_DERIVED = re.compile(r"rope\.freqs")
_SHARD = re.compile(r"consolidated\.\d+\.pth")


@dataclasses.dataclass(eq=False)
class Checkpoint:
    """A checkpoint: its headers have been read, and nothing is missing.

    layout      meta or hf
    params      the path of its params.json or config.json, for messages
    config      the content of that file
    weights     by Meta's names, in the model's order, two for a packed weight
                (`packed_formats.py`). A tied output layer is the same object as the embedding
    stop_ids    tokens that its generation_config.json adds to those that end an answer
    quantize    int8 or int4, where linear layers are packed
    is_bf12     whether matrices are stored in bf12; they are read as bfloat16
    """

    folder: Folder
    layout: str
    params: str
    config: dict[str, Any]
    args: ModelArgs
    files: list[TensorFile]
    weights: dict[str, Weight]
    stop_ids: frozenset[int] = frozenset()
    quantize: str | None = None
    is_bf12: bool = False

    @property
    def tied(self) -> bool:
        return self.weights.get("output.weight") is self.weights["tok_embeddings.weight"]

    @property
    def parameters(self) -> int:
        """How many parameters the model has; a tied output layer counts once."""
        return self.args.num_parameters(self.tied)

    @property
    def tokenizer(self) -> str | None:
        """The path or address of its tokenizer, None where the folder has none."""
        name = tokenizer_in(self.folder)
        return self.folder.where(name) if name else None

    @property
    def fingerprint(self) -> str:
        """A hash of the first rows of each weight: the model's identity, wherever its folder is."""
        digest = hashlib.sha256()
        for weight in self.weights.values():
            region = (slice(0, weight.head_dim or 1), *(slice(0, n) for n in weight.shape[1:]))
            rows = weight.read(region, torch.device("cpu"), weight.dtype)
            digest.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def open_tokenizer(self, path: str | Path | None = None) -> Tokenizer:
        """The tokenizer at `path`, else the folder's own, with all tokens that end an answer.

        Raises FileNotFoundError where there is none, ValueError for one of another model.
        """
        if path is None and self.tokenizer is None:
            raise MissingFileError(f"no tokenizer.model in {self.folder.path}; give tokenizer_path")
        tokenizer = Tokenizer(str(path or self.tokenizer))
        self.check_tokenizer(tokenizer)
        tokenizer.stop_tokens = tokenizer.stop_tokens | self.stop_ids
        return tokenizer

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError for another model's tokenizer: it has other or more tokens."""
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
    """The name of the tokenizer in a folder, of two that of Meta's layout; None without one."""
    names = ("tokenizer.model", "tokenizer.json")
    return next((name for name in names if name in folder.names), None)


def read_tokenizer(folder: Folder, checkpoint: Checkpoint | None) -> Tokenizer | None:
    """The tokenizer in a folder, None without one. Raises ValueError for another model's."""
    name = tokenizer_in(folder)
    if name is None:
        return None
    tokenizer = Tokenizer(folder.where(name))
    if checkpoint:
        checkpoint.check_tokenizer(tokenizer)
    return tokenizer


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens the checkpoint in a folder of either layout, here or remote, or that of a pulled model.

    A folder of a pulled model's name wins. Raises FileNotFoundError or ValueError, naming the file,
    for a folder without a checkpoint, a damaged file, one that holds anything but tensors, and
    missing, extra or misshapen weights.
    """
    folder = open_folder(path)
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
    config = read_json(params)
    args, quantize = parse_params(config, params)
    files = _meta_files(folder, args, params)
    if args.vocab_size == -1:
        output = files[0].tensors.get("tok_embeddings.weight" if quantize else "output.weight")
        rows = output.shape[0] if output and output.shape else 1  # of Llama 2's 32000
        args = dataclasses.replace(args, vocab_size=max(rows, 1) * len(files))
    is_bf12 = quantize == "bf12"
    quantize = None if is_bf12 else quantize
    shapes = packed_formats.stored_shapes(args, quantize)
    for file in files:
        if is_bf12:
            bf12_files.find_matrices(file, shapes, len(files))
        _check_names(file.where, params, args, set(file.tensors), set(shapes), _DERIVED)
        _check_dtypes(file, quantize)
    weights = {
        name: Weight(shape, shards_of(name, shape, files, args, params))
        for name, shape in shapes.items()
    }
    embedding, output_layer = "tok_embeddings.weight", "output.weight"
    if not quantize and all(f.tensors[embedding] == f.tensors[output_layer] for f in files):
        weights[output_layer] = weights[embedding]
    formats: Any = {"quantize": quantize, "is_bf12": is_bf12}
    return Checkpoint(folder, "meta", params, config, args, files, weights, **formats)


def _meta_files(folder: Folder, args: ModelArgs, params: str) -> list[TensorFile]:
    """The shards of a folder, from the first to the last."""
    names = [name for name in folder.names if _SHARD.fullmatch(name)]
    for i, name in enumerate(names):
        if name != f"consolidated.{i:02d}.pth":
            raise MissingFileError(
                f"{folder.where(f'consolidated.{i:02d}.pth')} is not there, but {name} is; get all "
                "shards of the checkpoint"
            )
    files = [open_tensors(folder, name) for name in names]
    for file in files:
        saved_as = f"{file.saved_as}.pth"
        if _SHARD.fullmatch(saved_as) and saved_as != file.name:
            raise InputError(
                f"{file.where} was written as {saved_as}: shards were renamed or copied over "
                "each other; give each its own name again, or download them again"
            )
    expected = shards_expected(files, args)
    if len(files) != expected:
        raise InputError(
            f"{folder.path} has {len(files)} shards, but each holds 1/{expected} of a weight of "
            f"{params}; get all {expected} shards of the checkpoint, and no others"
        )
    return files


def _open_hugging_face(folder: Folder) -> Checkpoint:
    params = folder.where("config.json")
    config = read_json(params)
    args, tied = huggingface_config.read_config(config, params)
    index, names = _hugging_face_files(folder)
    files = [open_tensors(folder, name) for name in names]
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise InputError(
                    f"{name} is in {file.where} and in {tensors[name].file.where}; one of them is "
                    "too many"
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
    _check_names(at, params, args, set(tensors), expected, huggingface_config.DERIVED)
    weights: dict[str, Weight] = {}
    for name, shape in shapes.items():
        stored = tensors.get(huggingface_names.weight_name(name))
        if stored is None:
            weights[name] = weights["tok_embeddings.weight"]
            continue
        if stored.shape != shape:
            raise InputError(
                f"{huggingface_names.weight_name(name)} in {stored.file.where} has shape "
                f"{stored.shape}, but {params} asks for {shape}"
            )
        has_rotary_rows = huggingface_names.has_rotary_rows(name)
        weights[name] = Weight.whole(stored, args.head_dim if has_rotary_rows else None)
    stop_ids = _stop_ids(folder, config)
    return Checkpoint(folder, "hf", params, config, args, files, weights, stop_ids)


def _hugging_face_files(folder: Folder) -> tuple[dict[str, str], list[str]]:
    """The index, which file each weight is in (empty for a single file), and the files' names."""
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
    """Raises ValueError unless packed weights, and only they, have the dtypes of their format."""
    for name, tensor in file.tensors.items():
        expected = packed_formats.DTYPES.get(name.rpartition(".")[2]) if quantize else None
        if tensor.dtype != expected and (expected or not tensor.dtype.is_floating_point):
            raise InputError(
                f"{file.where} holds {name} in {tensor.dtype}, which should be "
                f"{expected or 'bfloat16, float16, float32 or float64'}"
            )
