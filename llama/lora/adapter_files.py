"""Adapter folders in the format of Hugging Face's `peft`: it reads ours, and we read its.

    adapter_config.json          r, lora_alpha, target_modules, ...
    adapter_model.safetensors    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight ...

    adapter = open_adapter("polite", args)                  # reads headers, checks all against args
    a, b = adapter.layers["layers.0.attention.wq"]          # two whole weights: B A is added to wq

Names are Hugging Face's there, and so is the order of B's rows for queries and keys. Whatever a
config asks for that `llama.lora` does not compute is refused by name.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llama.args import ModelArgs, is_linear, weight_shapes
from llama.errors import InputError, MissingFileError
from llama.storage import huggingface_names
from llama.storage.files import Folder, atomic_write, expand, read_json
from llama.storage.sharding import Weight
from llama.storage.tensor_files import Entry, StoredTensor, TensorFile, open_tensors, write_tensors

# `peft` adds an adapted output layer's own weight; it is the model's, for it was frozen.
_PARTS = ("lora_A", "lora_B", "base_layer")
_CONFIG, _TENSORS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# What is read from a config. Any other key is refused unless it is off (null, false, 0, empty), has
# the one value that we compute, or changes nothing in what a trained adapter computes.
_READ = {"r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform"}
_COMPUTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change the weights below
    "layers_pattern": ("layers", ["layers"]),
}
_WITHOUT_EFFECT = set(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "lora_dropout megatron_core qalora_group_size ensure_weight_tying".split()
)


@dataclass
class Adapter:
    """An adapter that fits a model: scale * B A is added to the weight of each of its layers.

    `layers` has A (r, inputs) and B (outputs, r) by Meta's name of the layer; read, the rows of B
    are in Meta's order.
    """

    scale: float
    layers: dict[str, tuple[Weight, Weight]]


def open_adapter(path: str | Path, args: ModelArgs) -> Adapter:
    """Opens the adapter in a folder, here or remote, for a model of that shape.

    Raises FileNotFoundError or ValueError, naming the file and the key, for what is missing,
    damaged, not computed here, of another shape, or not finite.
    """
    folder = Folder(path)
    tensors = next((name for name in _TENSORS if name in folder.names), None)
    if _CONFIG not in folder.names or tensors is None:
        raise MissingFileError(
            f"no adapter in {folder.path} (it holds {', '.join(folder.names[:8]) or 'nothing'}); "
            f"give a folder with {_CONFIG} and {_TENSORS[0]}"
        )
    where = folder.where(_CONFIG)
    config = read_json(where)
    r, scale = _read_scale(config, where)
    made_for = f"it was made for {config.get('base_model_name_or_path') or 'an unnamed model'}"
    file = open_tensors(folder, tensors)
    shapes = {n: shape for n, shape in weight_shapes(args).items() if is_linear(n, shape)}
    names = {_module(name): name for name in shapes}
    chosen = _chosen(config, where, list(names), file)
    if trouble := _misfit(set(file.tensors), chosen):
        raise InputError(
            f"{file.where} {trouble}, which does not fit {where} and a model of {args.n_layers} "
            f"layers; {made_for}"
        )
    layers = {}
    for module in chosen:
        name, (n, k) = names[module], shapes[names[module]]
        for part, shape in zip(_PARTS, ((r, k), (n, r), (n, k)), strict=True):
            stored = file.tensors.get(_key(module, part))
            if stored and stored.shape != shape:
                raise InputError(
                    f"{_key(module, part)} in {file.where} has shape {stored.shape}, but r={r} and "
                    f"the model ask for {shape}; {made_for}"
                )
        a, b = (
            _finite(file.tensors[_key(module, part)], _key(module, part)) for part in _PARTS[:2]
        )
        head_dim = args.head_dim if huggingface_names.has_rotary_rows(name) else None
        layers[name.removesuffix(".weight")] = (
            Weight(a.shape, [((0, 0), a)]),
            Weight(b.shape, [((0, 0), b)], head_dim),
        )
    return Adapter(scale, layers)


def _misfit(found: set[str], modules: list[str]) -> str | None:
    """What is wrong with the keys of a file that adapts those modules."""
    known = {_key(module, part) for module in modules for part in _PARTS}
    needed = {key for key in known if not key.endswith(f"{_PARTS[2]}.weight")}
    told = [f"lacks {key}" for key in sorted(needed - found)[:1]]
    told += [f"holds {key}" for key in sorted(found - known)[:1]]
    return " and ".join(told) or (None if needed else "adapts nothing")


def _module(name: str) -> str:
    """Hugging Face's name of the layer whose weight has that name in Meta's layout."""
    return huggingface_names.weight_name(name).removesuffix(".weight")


def _key(module: str, part: str) -> str:
    return f"base_model.model.{module}.{part}.weight"


def _finite(stored: StoredTensor, key: str) -> StoredTensor:
    if not stored.map().isfinite().all():
        raise InputError(
            f"{key} in {stored.file.where} holds numbers that are not finite: its training went "
            "wrong, or the file is damaged"
        )
    return stored


def _read_scale(config: dict[str, Any], where: str) -> tuple[int, float]:
    """r, and what B A is multiplied by. Raises ValueError for what is not computed here."""
    if config.get("peft_type") != "LORA":
        raise InputError(
            f"{where} has peft_type={config.get('peft_type')!r:.40}; only LORA can be read"
        )
    for key, value in config.items():
        computed = value in _COMPUTED.get(key, ()) or not value
        if not computed and key not in _READ | _WITHOUT_EFFECT:
            raise InputError(
                f"{where} has {key}={value!r:.80}, which is not computed here; merge it into its "
                "model with peft (merge_and_unload), or train it without that"
            )
    r, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise InputError(f"{where}: r is {r!r:.40}, not a whole number of 1 or more")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{where}: lora_alpha is {alpha!r:.40}, not a number")
    return r, alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _chosen(config: dict[str, Any], where: str, modules: list[str], file: TensorFile) -> list[str]:
    """Which of the model's modules a config names; where it has a pattern, which the file has."""
    names, layers = config.get("target_modules"), config.get("layers_to_transform")
    if isinstance(names, str):
        return [m for m in modules if {_key(m, part) for part in _PARTS[:2]} & set(file.tensors)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: target_modules is {names!r:.80}, not a list of names")
    chosen = [m for m in modules if any(f".{m}".endswith(f".{name}") for name in names)]
    if layers is None:
        return chosen
    numbers = layers if isinstance(layers, list) else [layers]
    return [m for m in chosen if any(m.startswith(f"model.layers.{i}.") for i in numbers)]


def write_adapter(
    folder: str | Path,
    layers: Mapping[str, tuple[Tensor, Tensor]],
    scale: float,
    args: ModelArgs,
    base: str | Path | None,
) -> None:
    """Writes whole A and B of some layers (Meta's names and order of rows), all of the same r.

    `base` is the path or name of their model. Each file appears when it is whole.
    """
    entries = {}
    for layer, (a, b) in layers.items():
        name, r = f"{layer}.weight", len(a)
        if huggingface_names.has_rotary_rows(name):
            b = huggingface_names.rows_from_meta(b, args.head_dim).reshape(b.shape)
        for kind, tensor in zip(_PARTS, (a, b), strict=False):
            entries[_key(_module(name), kind)] = Entry(
                tensor.dtype, tuple(tensor.shape), [tensor].copy
            )
    modules = [_module(f"{layer}.weight") for layer in layers]
    # `peft` names layers by the end of their names; where blocks differ it takes whole ones.
    ends = sorted({module.rpartition(".")[2] for module in modules})
    in_all = sum(1 if end == "lm_head" else args.n_layers for end in ends)
    alpha = round(scale * r, 10)  # where alpha / r was rounded, as 1 / 49 is
    config = {
        "base_model_name_or_path": None if base is None else str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": r,
        "target_modules": ends if len(modules) == in_all else modules,
        "task_type": "CAUSAL_LM",
    }
    target = Path(expand(folder))
    target.mkdir(parents=True, exist_ok=True)
    with atomic_write(target / _CONFIG) as file:
        file.write(f"{json.dumps(config, indent=2)}\n".encode())
        write_tensors(target / _TENSORS[0], entries)
