"""Makes reference.pt: what Hugging Face's Llama computes, for our modules to be compared with.

    python tests/reference/make_reference.py

Made with transformers 5.23.0 and torch 2.13.0. Each model's weights are random, under Meta's names
and in Meta's layout. They are rounded to bfloat16 and stored so, which is small and loses nothing:
both sides compute with the very same numbers. transformers computes in float64, save the rotary
table and the norms, which it always does in float32; outputs are stored as float32.
"""

import math
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

FILE = Path(__file__).with_name("reference.pt")

# As in a params.json, and beside it the feed-forward size that it leads to.
SHAPES = {
    "llama2": (dict(dim=32, n_heads=4, vocab_size=97, multiple_of=32, norm_eps=1e-5), 96),
    "llama3": (
        dict(dim=48, n_heads=6, n_kv_heads=2, vocab_size=64, multiple_of=16, norm_eps=1e-5)
        | dict(ffn_dim_multiplier=1.3, rope_theta=500000.0),
        176,
    ),
    "llama3.1": (
        dict(dim=48, n_heads=4, n_kv_heads=2, vocab_size=80, multiple_of=64, norm_eps=1e-6)
        | dict(rope_theta=500000.0, use_scaled_rope=True, rope_scaling_factor=8.0),
        128,
    ),
}
LAYERS = 2
ROTARY = {  # theta, factor of Llama 3.1's scaling
    "theta 10000": (10000.0, None),
    "theta 500000": (500000.0, None),
    "factor 8": (500000.0, 8.0),
    "factor 32": (500000.0, 32.0),
}
# Layers are compared at positions far apart, so that slowly turning pairs count too.
POSITIONS = torch.tensor([0, 1, 17, 300, 2047, 5000, 8000])
LONG = 400  # tokens of a row whose last logits are kept, for the same reason


def to_half_split(x: Tensor, dim: int) -> Tensor:
    """Rotary pairs (0, 1), (2, 3), ... of `dim` to Hugging Face's (0, n/2), (1, n/2 + 1), ..."""
    return x.unflatten(dim, (-1, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def to_pairs(x: Tensor) -> Tensor:
    """The inverse of `to_half_split`, for the last dimension."""
    return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def config(args: dict, hidden: int = 1) -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": args.get("rope_theta", 10000.0)}
    if args.get("use_scaled_rope"):
        rope |= {"rope_type": "llama3", "factor": args["rope_scaling_factor"]}
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
    return LlamaConfig(
        hidden_size=args["dim"],
        num_hidden_layers=args.get("n_layers", 1),
        num_attention_heads=args["n_heads"],
        num_key_value_heads=args.get("n_kv_heads", args["n_heads"]),
        intermediate_size=hidden,
        vocab_size=args.get("vocab_size", 1),
        rms_norm_eps=args.get("norm_eps", 1e-5),
        rope_parameters=rope,
        max_position_embeddings=131072,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",  # the eager one takes its softmax in float32
    )


def hugging_face_weights(meta: dict[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Meta's weights under Hugging Face's names, wq and wk with each head's rows reordered."""
    names = {
        "tok_embeddings": "model.embed_tokens",
        "norm": "model.norm",
        "output": "lm_head",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    weights = {}
    for key, weight in meta.items():
        layer, name = "", key.removesuffix(".weight")
        if name.startswith("layers."):
            _, number, name = name.split(".", 2)
            layer = f"model.layers.{number}."
        if name in ("attention.wq", "attention.wk"):
            weight = to_half_split(weight.unflatten(0, (-1, head_dim)), 1).flatten(0, 1)
        weights[f"{layer}{names[name]}.weight"] = weight
    return weights


def hugging_face_model(args: dict, hidden: int, weights: dict[str, Tensor]) -> LlamaForCausalLM:
    """transformers' model in float64 with the given weights of Meta's layout."""
    model = LlamaForCausalLM(config(args, hidden)).double()
    doubles = {key: weight.double() for key, weight in weights.items()}
    model.load_state_dict(hugging_face_weights(doubles, args["dim"] // args["n_heads"]))
    return model.eval()


def random_weights(args: dict, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights that keep vectors near length one, with attention sharper than at the start."""
    dim = args["dim"]
    kv_dim = dim // args["n_heads"] * args.get("n_kv_heads", args["n_heads"])

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        weight = torch.randn(rows, columns, generator=generator) * gain / math.sqrt(columns)
        return weight.bfloat16()

    def norm() -> Tensor:
        return (1 + 0.2 * torch.randn(dim, generator=generator)).bfloat16()

    weights = {"tok_embeddings.weight": matrix(args["vocab_size"], dim, math.sqrt(dim))}
    for i in range(LAYERS):
        layer = {
            "attention.wq": matrix(dim, dim, 1.5),
            "attention.wk": matrix(kv_dim, dim, 1.5),
            "attention.wv": matrix(kv_dim, dim),
            "attention.wo": matrix(dim, dim),
            "feed_forward.w1": matrix(hidden, dim),
            "feed_forward.w2": matrix(dim, hidden),
            "feed_forward.w3": matrix(hidden, dim),
            "attention_norm": norm(),
            "ffn_norm": norm(),
        }
        weights |= {f"layers.{i}.{name}.weight": weight for name, weight in layer.items()}
    return weights | {
        "norm.weight": norm(),
        "output.weight": matrix(args["vocab_size"], dim),
    }


def rotary_reference(generator: torch.Generator) -> dict:
    """Queries and keys of two heads of 64, (1, positions, heads, 64), before and after."""
    xq = torch.randn(1, len(POSITIONS), 2, 64, generator=generator)
    xk = torch.randn(1, len(POSITIONS), 1, 64, generator=generator)
    made = {"xq": xq, "xk": xk, "positions": POSITIONS}
    for name, (theta, factor) in ROTARY.items():
        args = dict(dim=128, n_heads=2, rope_theta=theta)
        if factor is not None:
            args |= dict(use_scaled_rope=True, rope_scaling_factor=factor)
        cos, sin = LlamaRotaryEmbedding(config(args))(xq.double(), POSITIONS.unsqueeze(0))
        halves = [to_half_split(x.double(), 3) for x in (xq, xk)]
        turned = apply_rotary_pos_emb(*halves, cos, sin, unsqueeze_dim=2)
        made[name] = dict(zip(("xq", "xk"), (to_pairs(x).float() for x in turned), strict=True))
    return made


def model_reference(args: dict, hidden: int, generator: torch.Generator) -> dict:
    """A model's weights, its first layer's outputs for vectors, and its logits for tokens."""
    args = args | {"n_layers": LAYERS}
    weights = random_weights(args, hidden, generator)
    model = hugging_face_model(args, hidden, weights)
    layer = model.model.layers[0]
    x = torch.randn(2, len(POSITIONS), args["dim"], generator=generator)
    wide = x.double()
    turns = cos, sin = model.model.rotary_emb(wide, POSITIONS.unsqueeze(0).expand(2, -1))
    tokens = torch.randint(args["vocab_size"], (3, 17), generator=generator)
    long = torch.randint(args["vocab_size"], (1, LONG), generator=generator)
    outputs = {
        "norm": layer.input_layernorm(wide),
        "attention": layer.self_attn(wide, position_embeddings=turns)[0],
        "feed_forward": layer.mlp(wide),
        "block": layer(wide, position_embeddings=turns),
        "logits": model(tokens).logits,
        "long_logits": model(long).logits[:, -4:],
    }
    freqs_cis = torch.complex(cos[0], sin[0]).chunk(2, dim=-1)[0].to(torch.complex64)
    inputs = {"x": x, "freqs_cis": freqs_cis, "tokens": tokens, "long_tokens": long}
    return (
        {"args": args, "hidden": hidden, "weights": weights}
        | inputs
        | {name: out.float() for name, out in outputs.items()}
    )


@torch.no_grad()
def main() -> None:
    generator = torch.Generator().manual_seed(1)
    reference = {"transformers": transformers.__version__, "rotary": rotary_reference(generator)}
    for name, (args, hidden) in SHAPES.items():
        reference[name] = model_reference(args, hidden, generator)
    torch.save(reference, FILE)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
