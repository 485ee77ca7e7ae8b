"""Hugging Face's `config.json` of a Llama, read and written.

    args, tied = read_config(json.loads(text), where="config.json")

A config that asks for something that `model.py` does not compute is refused, with the key in the
message.
"""

import re
from typing import Any

import torch

from llama.args import ModelArgs, feed_forward_size
from llama.errors import InputError

# Keys that are read; those that may be missing have the defaults of transformers' LlamaConfig.
_SHAPE = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "vocab_size": "vocab_size",
}
_OPTIONAL = {
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "max_position_embeddings": "max_seq_len",
}
_ROPE_SCALING = {
    "factor": "rope_scaling_factor",
    "low_freq_factor": "rope_low_freq_factor",
    "high_freq_factor": "rope_high_freq_factor",
    "original_max_position_embeddings": "rope_original_seq_len",
}
# Any other key is refused unless it is off (null, false, 0, empty), has a value of `_COMPUTED`, or
# does not affect what a trained model computes.
_COMPUTED = {
    "architectures": (["LlamaForCausalLM"],),
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1, 1.0),
    "is_llama_config": (True,),
}
_WITHOUT_EFFECT = set(
    # of training, storage and implementations
    "attention_dropout initializer_range pretraining_tp torch_dtype dtype use_cache "
    "cache_implementation transformers_version _name_or_path name_or_path _commit_hash "
    "_attn_implementation _attn_implementation_autoset attn_implementation unsloth_version "
    "unsloth_fixed unsloth_tied_embeddings transformers.js_config "
    # tokens, read from generation_config.json or by the tokenizer
    "bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id "
    # of other tasks and of sampling, in every config of transformers
    "return_dict id2label label2id problem_type num_labels chunk_size_feed_forward max_length "
    "task_specific_params min_length num_beams num_beam_groups num_return_sequences temperature "
    "top_k top_p typical_p repetition_penalty length_penalty diversity_penalty do_sample "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size early_stopping bad_words_ids".split()
)

# Tensors in old files, which follow from the config.
DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def read_config(config: dict[str, Any], where: str) -> tuple[ModelArgs, bool]:
    """The shape that a `config.json` describes, and whether the output layer is the embedding.

    `where` is its path, for messages. Raises ValueError for what is missing, wrong, or asks for
    something that this model does not compute.
    """
    found = [config.get("architectures"), config.get("model_type")]
    if found != [["LlamaForCausalLM"], "llama"]:
        raise InputError(
            f"{where} has architectures={found[0]!r:.80} and model_type={found[1]!r:.40}; only "
            "LlamaForCausalLM (model_type llama) can be run"
        )
    if missing := [key for key in (*_SHAPE, "intermediate_size") if key not in config]:
        raise InputError(f"{where} lacks {', '.join(missing)}")
    read = {*_SHAPE, *_OPTIONAL, "intermediate_size", "tie_word_embeddings"}
    read |= {"rope_theta", "rope_scaling", "rope_parameters"}
    for key, value in config.items():
        computed = value in _COMPUTED.get(key, ()) or not value
        if not computed and key not in read | _WITHOUT_EFFECT:
            raise InputError(
                f"{where} has {key}={value!r:.80}, which this model does not compute; if it "
                "changes nothing in the model's function, take it out of the file"
            )
    fields = {field: _number(config, key, where) for key, field in _SHAPE.items()}
    settings = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
    settings |= {key: value for key, value in config.items() if value is not None}
    for key in _OPTIONAL.keys() & settings.keys():
        fields[_OPTIONAL[key]] = _number(settings, key, where)
    fields |= _feed_forward(config["hidden_size"], _number(config, "intermediate_size", where))
    fields |= _rope(config, where)
    try:
        args = ModelArgs(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    return args, bool(config.get("tie_word_embeddings"))


_FRACTIONS = {"rms_norm_eps", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"}


def _number(config: dict[str, Any], key: str, where: str) -> Any:
    value = config[key]
    wanted = (int, float) if key in _FRACTIONS else int
    if isinstance(value, bool) or not isinstance(value, wanted) or not 0 < value < 2**53:
        raise InputError(f"{where}: {key} is {value!r:.40}, which is not a number of its kind")
    return value


def _rope(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The rotary settings: transformers 5 has one dictionary of them, 4 has theta apart."""
    rope: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        settings = config.get(name) or {}
        if not isinstance(settings, dict):
            raise InputError(f"{where}: {name} is {settings!r}, which is not a JSON object")
        if settings:
            settings = {"rope_type": settings.get("type", "default")} | settings
            settings.pop("type", None)
        if rope and settings and rope != settings:
            raise InputError(f"{where}: rope_scaling and rope_parameters differ; keep one of them")
        rope |= settings
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "llama3"):
        raise InputError(
            f"{where} asks for the rotary scaling {kind!r}, which this model does not compute; it "
            "knows llama3, and none"
        )
    scaling = _ROPE_SCALING if kind == "llama3" else {}
    known = {"rope_type", "rope_theta", *scaling}
    for key, value in rope.items():
        if key not in known and value and (key, value) != ("partial_rotary_factor", 1):
            raise InputError(
                f"{where}: the rotary setting {key}={value!r} is not computed by this model"
            )
    if missing := [key for key in scaling if key not in rope]:
        raise InputError(f"{where}: the rotary scaling lacks {', '.join(missing)}")
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    fields = {"rope_theta": "rope_theta"} | scaling
    numbers = {field: _number(rope, key, where) for key, field in fields.items()}
    return numbers | {"use_scaled_rope": bool(scaling)}


def _feed_forward(dim: int, hidden: int) -> dict[str, Any]:
    """`multiple_of` and `ffn_dim_multiplier` for a hidden size: a released model's if one fits."""
    released = (256, None), (256, 1.5), (1024, 1.3), (4096, 1.3), (4096, 1.2)
    exact = (1, (hidden + 0.5) / int(8 * dim / 3))
    for multiple_of, multiplier in (*released, exact):
        if feed_forward_size(4 * dim, multiple_of, multiplier) == hidden:
            break
    return {"multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}


def write_config(args: ModelArgs, tied: bool, dtype: torch.dtype) -> dict[str, Any]:
    """The `config.json` that describes a model; transformers 4 and 5 read it."""
    config: dict[str, Any] = {
        key: getattr(args, field) for key, field in (_SHAPE | _OPTIONAL).items()
    }
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "intermediate_size": args.hidden_dim,
        "rope_theta": args.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if args.use_scaled_rope:
        scaling = {key: getattr(args, field) for key, field in _ROPE_SCALING.items()}
        config["rope_scaling"] = {"rope_type": "llama3", **scaling}
    return dict(sorted(config.items()))
