"""A checkpoint as the GGUF file that llama.cpp reads.

The rows of wq and wk stay in Meta's order there, and rotary scaling is a divisor of each frequency.
"""

from pathlib import Path

import torch
from torch import Tensor

from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.opening import Checkpoint
from llama.model import rotary_frequencies
from llama.tokenization.tokenizer_json import token_characters
from llama.tokenizer import Tokenizer

_GGUF_NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight of Meta's."""
    stem = name.removesuffix(".weight")
    if stem in _GGUF_NAMES:
        return f"{_GGUF_NAMES[stem]}.weight"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{_GGUF_NAMES[rest]}.weight"


def write_gguf(
    checkpoint: Checkpoint, path: str | Path, tokenizer: Tokenizer | None = None
) -> None:
    """Writes a checkpoint as llama.cpp reads it: matrices in bfloat16.

    With a `tokenizer` also its tokens, which llama-server needs to write text. Its merges are not
    there: llama.cpp's prompts have to be token ids.
    """
    import gguf

    args = checkpoint.args
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(args.vocab_size)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        _add_vocabulary(writer, tokenizer)
    writer.add_context_length(args.max_seq_len)
    writer.add_embedding_length(args.dim)
    writer.add_block_count(args.n_layers)
    writer.add_feed_forward_length(args.hidden_dim)
    writer.add_head_count(args.n_heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_key_length(args.head_dim)
    writer.add_value_length(args.head_dim)
    writer.add_rope_dimension_count(args.head_dim)
    writer.add_rope_freq_base(args.rope_theta)
    writer.add_layer_norm_rms_eps(args.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = [n for n in weight_shapes(args) if not (n == "output.weight" and checkpoint.tied)]
    divisors = _frequency_divisors(args)
    if divisors is not None:
        _declare(writer, "rope_freqs.weight", divisors.shape)
    for name in names:
        _declare(writer, gguf_name(name), checkpoint.weights[name].shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors.numpy())
    for name in names:
        weight = checkpoint.weights[name]
        whole = tuple(slice(0, size) for size in weight.shape)
        if len(weight.shape) == 1:
            array = weight.read(whole, torch.device("cpu"), torch.float32)
        else:
            array = weight.read(whole, torch.device("cpu"), torch.bfloat16).view(torch.uint16)
        writer.write_tensor_data(array.numpy())
    writer.close()


def _add_vocabulary(writer, tokenizer: Tokenizer) -> None:  # type: ignore[no-untyped-def]
    """The tokens as GPT-2's files have them: each byte is a character that can be printed."""
    import gguf

    special = {token: name for name, token in tokenizer.special_tokens.items()}
    kinds = gguf.TokenType
    pieces, types = [], []
    for token in range(tokenizer.n_words):
        piece = tokenizer.vocabulary.piece(token)
        data = piece.encode() if isinstance(piece, str) else piece
        pieces.append(special.get(token) or token_characters(data))
        types.append(kinds.CONTROL if token in special else kinds.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    writer.add_token_merges([f"{pieces[0]} {pieces[1]}"])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)


def _declare(writer, name: str, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    """Announces a tensor: float32 if it is a vector, bfloat16 (as numpy has it, uint16) if not."""
    import gguf
    import numpy

    count = torch.Size(shape).numel()
    if len(shape) == 1:
        writer.add_tensor_info(name, shape, numpy.dtype("float32"), 4 * count)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor_info(name, shape, numpy.dtype("uint16"), 2 * count, raw_dtype=kind)


def _frequency_divisors(args: ModelArgs) -> Tensor | None:
    """What llama.cpp divides each rotary frequency by; None where they are not scaled."""
    if not args.use_scaled_rope:
        return None
    plain = rotary_frequencies(args.head_dim, args.rope_theta)
    scaled = rotary_frequencies(
        args.head_dim,
        args.rope_theta,
        True,
        args.rope_scaling_factor or 1.0,
        args.rope_low_freq_factor,
        args.rope_high_freq_factor,
        args.rope_original_seq_len,
    )
    return plain / scaled


def gguf_bytes_read(path: str | Path) -> int:
    """Bytes of the matrices that a token multiplies; the embedding only where it is the output."""
    import gguf

    sizes = {str(t.name): int(t.n_bytes) for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]
    return sum(sizes.values())
