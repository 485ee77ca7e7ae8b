"""Writing a model as a checkpoint folder in Meta's layout."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from llama import distributed
from llama.args import weight_shapes
from llama.checkpoint.meta_layout import write_params
from llama.errors import InputError
from llama.model import Transformer
from llama.storage.files import expand, write_json
from llama.storage.tensor_files import Entry, write_tensors


def save_model(
    model: Transformer,
    folder: str | Path,
    tokenizer_path: str | Path,
    dtype: torch.dtype,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model in `dtype` and its tokenizer into a folder, which is made if it is missing.

    Each rank that shares the model writes its shard. `weights` are this rank's, if the model does
    not hold them whole (FSDP). An output layer equal to the embedding (tied) is stored once. Raises
    ValueError for a quantized or adapted model.
    """
    folder = Path(expand(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if weights is None:
        weights = model.state_dict()
    if missing := set(weight_shapes(model.params)) - set(weights):
        raise InputError(
            f"{sorted(missing)[0]} is quantized or has an adapter; save the model that it was made "
            "from"
        )
    entries = {
        name: Entry(dtype, tuple(weight.shape), lambda w=weight: [w.to("cpu", dtype)])  # type: ignore[misc]
        for name, weight in weights.items()
    }
    embedding, output_layer = "tok_embeddings.weight", "output.weight"
    # By value: weights gathered from several processes or cast to a dtype are copies.
    if torch.equal(weights[embedding], weights[output_layer]):
        entries[output_layer] = entries[embedding]
    write_tensors(folder / f"consolidated.{distributed.model_parallel_rank():02d}.pth", entries)
    if distributed.model_parallel_rank() == 0:
        write_json(folder / "params.json", write_params(model.params))
        tokenizer = Path(expand(tokenizer_path))
        target = folder / f"tokenizer.{'json' if tokenizer.suffix == '.json' else 'model'}"
        if tokenizer.resolve() != target.resolve():
            shutil.copyfile(tokenizer, target)
