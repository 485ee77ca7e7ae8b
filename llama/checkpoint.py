"""Checkpoints on disk, and how they become a model.

Meta's layout: `params.json`, `consolidated.00.pth` (a pickled dictionary of tensors) and
`tokenizer.model` in one folder. Weights are mapped from the file, each rank takes its part of
each one, and they are assigned to a model that was made without memory, so that nothing stands in
memory twice. A checkpoint is data: pickles are opened with `weights_only`, and every key and shape
has to be what the model expects.

    args = read_params("params/tiny/params.json", max_batch_size=4)
    model = load_model("params/tiny", args, torch.device("cpu"), torch.bfloat16)
"""

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama import parallel
from llama.model import ModelArgs, Transformer

# Llama 2's checkpoints store the rotary frequencies too; they follow from params.json.
_DERIVED = ("rope.freqs",)


def read_params(path: str | Path, **overrides: Any) -> ModelArgs:
    """Reads a `params.json`; `overrides` win over what it says.

    A file without `max_seq_len`, as Meta's are, gets the context its generation was trained with:
    4096 (Llama 2), 8192 (3) or 131072 (3.1 and later, known by their scaled rotary). Raises
    FileNotFoundError, or ValueError for a file that is no JSON object, an unknown or missing key,
    or a value that does not fit.
    """
    path = Path(path)
    try:
        params = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there; a checkpoint needs it") from None
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(params, dict):
        raise ValueError(f"{path} should hold a JSON object, not a {type(params).__name__}")
    fields = {field.name: field for field in dataclasses.fields(ModelArgs)}
    if unknown := sorted(set(params) - set(fields)):
        raise ValueError(
            f"{path} has unknown key(s) {', '.join(unknown)}; known are {', '.join(fields)}"
        )
    if missing := [key for key in ("dim", "n_layers", "n_heads") if key not in params]:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    for key, value in params.items():
        wanted = fields[key].type
        fits = isinstance(value, wanted) or (isinstance(value, int) and "float" in str(wanted))  # type: ignore[arg-type]
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"{path}: {key} is {value!r}, which is not of type {wanted}")
    if "max_seq_len" not in params:
        llama3 = 8192 if "rope_theta" in params else 4096
        params["max_seq_len"] = 131072 if params.get("use_scaled_rope") else llama3
    try:
        return ModelArgs(**{**params, **overrides})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def find_shard(ckpt_dir: str | Path) -> Path:
    """The one `consolidated.00.pth` of a checkpoint folder in Meta's layout.

    Raises FileNotFoundError for a folder that is not there or has none, ValueError for several.
    """
    folder = Path(ckpt_dir)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise FileNotFoundError(f"checkpoint folder {folder} {what}; give the folder that holds it")
    shards = sorted(folder.glob("consolidated.*.pth"))
    if not shards:
        lies_there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"no consolidated.00.pth in {folder} (it holds {lies_there}); "
            "give the folder of a checkpoint in Meta's layout"
        )
    if len(shards) > 1:
        raise ValueError(
            f"{folder} holds {len(shards)} shards ({shards[0].name} to {shards[-1].name}); "
            "only checkpoints of one shard can be read so far"
        )
    return shards[0]


def load_model(
    ckpt_dir: str | Path, args: ModelArgs, device: torch.device, dtype: torch.dtype
) -> Transformer:
    """The model of a checkpoint folder, this rank's part of it, on `device` in `dtype`.

    Weights that are already in `dtype` stay mapped from the file on a CPU. Raises
    FileNotFoundError or ValueError, naming the file, for a folder without a checkpoint, a damaged
    file, one that holds anything but tensors, and missing, extra or misshapen weights.
    """
    shard = find_shard(ckpt_dir)
    weights = _read_shard(shard)
    with _ParallelLayersOnMeta():
        model = Transformer(args)
    expected = model.state_dict()
    missing = sorted(set(expected) - set(weights))
    extra = sorted(set(weights) - set(expected) - set(_DERIVED))
    if missing or extra:
        raise ValueError(
            f"{shard} does not fit params.json (n_layers={args.n_layers}): "
            + "; ".join(
                f"{word} {len(keys)} weight(s): {', '.join(keys[:4])}{' ...' * (len(keys) > 4)}"
                for word, keys in (("lacks", missing), ("has unexpected", extra))
                if keys
            )
        )
    mine = {}
    for key, local in expected.items():
        part = _part(weights[key], local.shape, f"{key} in {shard}")
        mine[key] = part.to(device=device, dtype=dtype)
    model.load_state_dict(mine, strict=True, assign=True)
    return model.eval()


def save_model(
    model: Transformer, folder: str | Path, tokenizer_path: str | Path, dtype: torch.dtype
) -> None:
    """Writes a one-rank model as a checkpoint folder in Meta's layout, its tokenizer with it.

    Weights that share memory (an output layer tied to the embedding) are stored once.
    """
    assert parallel.model_parallel_size() == 1, "only a whole model can be written"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[int, Tensor] = {}
    weights = {}
    for key, weight in model.state_dict().items():
        cast = weight.detach().to(device="cpu", dtype=dtype)
        weights[key] = stored.setdefault(weight.data_ptr(), cast)
    defaults = {field.name: field.default for field in dataclasses.fields(ModelArgs)}
    params = {
        key: value
        for key, value in dataclasses.asdict(model.params).items()
        if key == "max_seq_len" or (key != "max_batch_size" and value != defaults[key])
    }
    if not model.params.use_scaled_rope:
        params.pop("rope_scaling_factor", None)
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n")
    torch.save(weights, folder / "consolidated.00.pth")
    if Path(tokenizer_path) != folder / "tokenizer.model":
        shutil.copyfile(tokenizer_path, folder / "tokenizer.model")


def _read_shard(path: Path) -> dict[str, Tensor]:
    advice = "download or copy it again"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{path} holds {found.group(1) if found else 'something'} beside tensors, and opening "
            "that could run code, so it was not opened; use a checkpoint from a source you trust"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is no complete .pth file: it was cut off or "
            f"is something else; {advice}"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path} should hold a dictionary of tensors; {advice}")
    return weights


def _part(weight: Tensor, shape: torch.Size, name: str) -> Tensor:
    """This rank's part of a whole weight: cut in the dimension in which it and `shape` differ."""
    if weight.shape == shape:
        return weight
    ranks, rank = parallel.model_parallel_size(), parallel.model_parallel_rank()
    cuts = [
        d for d in range(len(shape)) if weight.dim() == len(shape) and weight.shape[d] != shape[d]
    ]
    if len(cuts) == 1 and weight.shape[cuts[0]] == shape[cuts[0]] * ranks:
        return weight.chunk(ranks, dim=cuts[0])[rank].contiguous()
    raise ValueError(
        f"{name} has shape {tuple(weight.shape)}, but params.json asks for {tuple(shape)}"
        + (f" on each of {ranks} ranks" if ranks > 1 else "")
    )


class _ParallelLayersOnMeta(TorchDispatchMode):
    """Makes fairscale's layers without memory; what else a module makes is real.

    They ignore torch's meta device, so their allocations are caught one level below, at the
    dispatcher.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.empty.memory_format:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
