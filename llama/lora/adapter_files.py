"""Adapter folders in the format of Hugging Face's `peft`, read and written.

    adapter_config.json          r, lora_alpha, target_modules, ...
    adapter_model.safetensors    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight ...

    adapter = open_adapter("polite", args)                  # reads headers, compares with args
    a, b = adapter.layers["layers.0.attention.wq"]          # two whole weights: wq + scale * B A

Names there are Hugging Face's, and so is the order of B's rows for queries and keys. A config that
asks for something that `llama.lora` does not compute is refused, with the key in the message.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llama.args import ModelArgs, is_linear, weight_shapes
from llama.errors import InputError, MissingFileError
from llama.storage import huggingface_names
from llama.storage.files import expand, read_json, write_json
from llama.storage.pulled import open_folder
from llama.storage.sharding import Weight
from llama.storage.tensor_files import Entry, TensorFile, open_tensors, write_tensors

# `peft` adds the weight of an adapted output layer: that of the model, which was frozen.
_TENSOR_NAMES = ("lora_A", "lora_B", "base_layer")
_CONFIG, _FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
# Keys that are read. Any other is refused unless it is off (null, false, 0, empty), has a value of
# `_COMPUTED`, or does not affect a trained adapter.
_READ = {"r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform"}
_COMPUTED = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal"),  # others change the model's weights
    "layers_pattern": ("layers", ["layers"]),
}
_WITHOUT_EFFECT = set(
    "task_type auto_mapping peft_version base_model_name_or_path revision inference_mode "
    "lora_dropout megatron_core qalora_group_size ensure_weight_tying".split()
)


@dataclass
class Adapter:
    """An adapter that fits a model: scale * B A is added to the weight of each of its layers.

    `layers` has A (r, inputs) and B (outputs, r) by Meta's name of the layer; B is read with its
    rows in Meta's order.
    """

    scale: float
    layers: dict[str, tuple[Weight, Weight]]


def open_adapter(path: str | Path, args: ModelArgs) -> Adapter:
    """Opens the adapter in a folder, here or remote, for a model of that shape.

    Raises FileNotFoundError or ValueError, naming the file and the key, for what is missing,
    damaged, not computed here, of another shape or not finite.
    """
    folder = open_folder(path)
    tensors = next((name for name in _FILES if name in folder.names), None)
    if _CONFIG not in folder.names or tensors is None:
        raise MissingFileError(
            f"no adapter in {folder.path} (it holds {', '.join(folder.names[:8]) or 'nothing'}); "
            f"give a folder with {_CONFIG} and {_FILES[0]}"
        )
    where = folder.where(_CONFIG)
    config = read_json(where)
    r, scale = _read_scale(config, where)
    made_for = f"it was made for {config.get('base_model_name_or_path') or 'an unnamed model'}"
    file = open_tensors(folder, tensors)
    shapes = weight_shapes(args)
    names = {_module(name): name for name, shape in shapes.items() if is_linear(name, shape)}
    adapted = _adapted_modules(config, where, list(names), file)
    expected: dict[str, tuple[int, ...]] = {}
    layers = {}
    for module in adapted:
        n, k = shapes[names[module]]
        for tensor_name, shape in zip(_TENSOR_NAMES, ((r, k), (n, r), (n, k)), strict=True):
            expected[_key(module, tensor_name)] = shape
    needed = {key for key in expected if not key.endswith("base_layer.weight")}
    problems = [f"lacks {key}" for key in sorted(needed - set(file.tensors))[:1]]
    problems += [f"holds {key}" for key in sorted(set(file.tensors) - set(expected))[:1]]
    if problems or not needed:
        raise InputError(
            f"{file.where} {' and '.join(problems) or 'adapts nothing'}, which does not fit "
            f"{where} and a model of {args.n_layers} layers; {made_for}"
        )
    for key, stored in file.tensors.items():
        if stored.shape != expected[key]:
            raise InputError(
                f"{key} in {file.where} has shape {stored.shape}, but r={r} and "
                f"the model ask for {expected[key]}; {made_for}"
            )
        if key in needed and not stored.map().isfinite().all():
            raise InputError(
                f"{key} in {file.where} holds numbers that are not finite: its training went "
                "wrong, or the file is damaged"
            )
    for module in adapted:
        name = names[module]
        a, b = (file.tensors[_key(module, tensor_name)] for tensor_name in _TENSOR_NAMES[:2])
        head_dim = args.head_dim if huggingface_names.has_rotary_rows(name) else None
        layers[name.removesuffix(".weight")] = Weight.whole(a), Weight.whole(b, head_dim)
    return Adapter(scale, layers)


def _module(name: str) -> str:
    """Hugging Face's name of a layer, from Meta's name of its weight."""
    return huggingface_names.weight_name(name).removesuffix(".weight")


def _key(module: str, tensor_name: str) -> str:
    return f"base_model.model.{module}.{tensor_name}.weight"


def _read_scale(config: dict[str, Any], where: str) -> tuple[int, float]:
    """r, and the factor of B A. Raises ValueError for what is not computed here."""
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


def _adapted_modules(
    config: dict[str, Any], where: str, modules: list[str], file: TensorFile
) -> list[str]:
    """The modules of the model that a config names; if it has a pattern, those in the file."""
    names, layers = config.get("target_modules"), config.get("layers_to_transform")
    if isinstance(names, str):
        return [m for m in modules if {_key(m, n) for n in _TENSOR_NAMES[:2]} & set(file.tensors)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{where}: target_modules is {names!r:.80}, not a list of names")
    named = [m for m in modules if any(f".{m}".endswith(f".{name}") for name in names)]
    if layers is None:
        return named
    numbers = layers if isinstance(layers, list) else [layers]
    return [m for m in named if any(m.startswith(f"model.layers.{i}.") for i in numbers)]


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
        for kind, tensor in zip(_TENSOR_NAMES, (a, b), strict=False):
            entries[_key(_module(name), kind)] = Entry(
                tensor.dtype, tuple(tensor.shape), [tensor].copy
            )
    modules = [_module(f"{layer}.weight") for layer in layers]
    # `peft` names layers by the end of their names; where blocks differ it takes whole ones.
    ends = sorted({module.rpartition(".")[2] for module in modules})
    in_all = sum(1 if end == "lm_head" else args.n_layers for end in ends)
    alpha = round(scale * r, 10)  # alpha / r may have been rounded, as 1 / 49 is
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
    write_tensors(target / _FILES[0], entries)
    write_json(target / _CONFIG, config)
