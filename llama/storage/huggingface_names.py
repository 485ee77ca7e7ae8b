"""Names of weights and order of rows in Hugging Face's files.

    weight_name("layers.0.attention.wq.weight")     # model.layers.0.self_attn.q_proj.weight

The rotary embedding rotates pairs of rows of wq and wk: neighbours in Meta's checkpoints, row j and
row j + head_dim / 2 of a head in Hugging Face's. So the rows of each head are in another order:

    Meta's           0  1  2  3  4  5  6  7        pairs (0 1) (2 3) (4 5) (6 7)
    Hugging Face's   0  2  4  6  1  3  5  7
"""

from torch import Tensor

_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
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


def weight_name(name: str) -> str:
    """Hugging Face's name of a weight, from Meta's."""
    if name in _NAMES:
        return _NAMES[name]
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_NAMES[rest.removesuffix('.weight')]}.weight"


def has_rotary_rows(name: str) -> bool:
    """Whether the rows of a weight (Meta's name) are those of query or key heads."""
    return name.endswith((".attention.wq.weight", ".attention.wk.weight"))


def rows_to_meta(rows: Tensor, head_dim: int) -> Tensor:
    """The rows of wq or wk in Meta's order, as a view (heads, head_dim / 2, 2, dim).

    `rows` are those of whole heads, (heads * head_dim, dim), in Hugging Face's order.
    """
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2)


def rows_from_meta(rows: Tensor, head_dim: int) -> Tensor:
    """The inverse: a view (heads, 2, head_dim / 2, dim) in Hugging Face's order."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2)
