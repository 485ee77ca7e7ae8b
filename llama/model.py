"""The Llama transformer (2, 3, 3.1, 3.2, 3.3), to be read from top to bottom.

A decoder of pre-normalised blocks: RMSNorm (Zhang and Sennrich, 2019), rotary positions (Su et
al., 2021), grouped-query attention (Ainslie et al., 2023) and SwiGLU feed-forward layers (Shazeer,
2020), as in Touvron et al. (2023) and Dubey et al. (2024). Constructors and parameter names are
those of Meta's package, so that its checkpoints fit.

Positions are the single source of truth. A forward pass gets tokens and `start_pos`, the position
of each row's first token; the rotary angles, where keys and values are stored, and the mask all
follow from it. Two prompts of 3 and 5 tokens, padded on the right and run as one batch, then one
more token each:

    cache = model.new_cache(batch_size=2, seq_len=8)
    model(tokens, 0, cache=cache)                       # tokens (2, 5), row 0: a b c . .
    model(next_ids, torch.tensor([3, 5]), cache=cache)  # next_ids (2, 1); row 0 overwrites its
                                                        # padding before anything attends to it
"""

import functools
import math

import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from torch import Tensor, nn

from llama import distributed
from llama.args import ModelArgs, feed_forward_size
from llama.cache import KVCache
from llama.errors import InputError

_init_weight = functools.partial(nn.init.normal_, std=0.02)
# Column then row parallel: the ranks meet once, in the sum that ends the second layer.
_COLUMN = {"bias": False, "gather_output": False, "init_method": _init_weight}
_ROW = {"bias": False, "input_is_parallel": True, "init_method": _init_weight}


class RMSNorm(nn.Module):
    """Scales each vector to a root mean square of one, computed in float32, then by a weight."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


def rotary_frequencies(
    dim: int,
    theta: float,
    use_scaled: bool = False,
    scaling_factor: float = 8.0,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
    original_seq_len: float = 8192,
) -> Tensor:
    """Radians per position for each pair of a head of size `dim`: theta^(-2j / dim), (dim / 2,).

    With `use_scaled`, as in Llama 3.1, frequencies of fewer than `low_freq_factor` periods in the
    original context (`original_seq_len`) are divided by `scaling_factor`, those of more than
    `high_freq_factor` periods are kept, and those in between are interpolated.
    """
    freqs = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)  # Meta's rounding
    if use_scaled:
        periods = original_seq_len * freqs / (2 * math.pi)
        keep = ((periods - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
        freqs = freqs * (keep + (1 - keep) / scaling_factor)
    return freqs


def freqs_cis_at(positions: Tensor, freqs: Tensor) -> Tensor:
    """e^(i position frequency) as complex64: positions (...) -> (..., dim / 2)."""
    angles = positions.unsqueeze(-1).float() * freqs
    return torch.view_as_complex(torch.stack((angles.cos(), angles.sin()), dim=-1))


def precompute_freqs_cis(
    dim: int, end: int, theta: float = 10000.0, use_scaled: bool = False, **scaling: float
) -> Tensor:
    """`freqs_cis_at` positions 0 to `end` - 1, complex64 (end, dim / 2)."""
    return freqs_cis_at(torch.arange(end), rotary_frequencies(dim, theta, use_scaled, **scaling))


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates each pair (x[2j], x[2j + 1]) of every head by its position's angle.

    `xq` and `xk` are (batch, seq, heads, head_dim); `freqs_cis` is complex, (seq, head_dim / 2), or
    (batch, seq, head_dim / 2) where rows differ in their positions.
    """
    # In real arithmetic: Apple GPUs and compilers have little or no support for complex numbers.
    cos, sin = torch.view_as_real(freqs_cis).unsqueeze(-3).unbind(-1)  # (..., seq, 1, head_dim / 2)

    def rotate(x: Tensor) -> Tensor:
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return rotated.flatten(-2).type_as(x)

    return rotate(xq), rotate(xk)


class DocumentMask:
    """Attention within packed documents: each token sees its own document, up to itself.

    `positions` (batch, seq) restart at 0 with each document of a row. Native training kernels go by
    them; `dense` is the mask itself, made when a block first asks for it. 0 1 2 0 1 makes

        x . . . .
        x x . . .
        x x x . .
        . . . x .
        . . . x x
    """

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self._dense: Tensor | None = None

    def dense(self) -> Tensor:
        """bool (batch, 1, seq, seq): whether a query (row) sees a key (column)."""
        if self._dense is None:
            document = (self.positions == 0).cumsum(-1)
            same = document.unsqueeze(-1) == document.unsqueeze(-2)  # (batch, seq, seq)
            self._dense = same.tril().unsqueeze(1)
        return self._dense


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """(batch, seq, n_kv_heads, head_dim) -> (batch, seq, n_kv_heads * n_rep, head_dim).

    The definition of grouped-query attention: query head h reads key head h // n_rep. `Attention`
    gets the same from its kernel without the copy.
    """
    return x.repeat_interleave(n_rep, dim=2)


class Attention(nn.Module):
    """Grouped-query attention: n_heads query heads share n_kv_heads heads of keys and values."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        distributed.initialize()
        self.head_dim = args.head_dim
        ranks = distributed.model_parallel_size()
        args.check_ranks(ranks)
        q_dim = args.n_heads * args.head_dim
        kv_dim = ranks * args.kv_heads_on_each_of(ranks) * args.head_dim
        self.wq = ColumnParallelLinear(args.dim, q_dim, **_COLUMN)
        self.wk = ColumnParallelLinear(args.dim, kv_dim, **_COLUMN)
        self.wv = ColumnParallelLinear(args.dim, kv_dim, **_COLUMN)
        self.wo = RowParallelLinear(q_dim, args.dim, **_ROW)

    def forward(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        mask: Tensor | DocumentMask | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """(batch, seq, dim) -> (batch, seq, dim), for tokens from `start_pos` on.

        `start_pos`, an int or (batch,), is the position of each row's first token, and counts only
        with a `cache`, this layer's part. `mask` is what `scaled_dot_product_attention` takes, over
        the keys of the cache (without one, over those of `x`). None means causal over `x` alone, or
        where seq is 1 every key; a `DocumentMask` is for packed documents without a cache.
        """
        batch, seq, _ = x.shape
        xq = self.wq(x).view(batch, seq, -1, self.head_dim)  # (batch, seq, heads, head_dim)
        xk = self.wk(x).view(batch, seq, -1, self.head_dim)
        xv = self.wv(x).view(batch, seq, -1, self.head_dim)
        xq, xk = apply_rotary_emb(xq, xk, freqs_cis)
        if cache is None:
            keys, values = xk.transpose(1, 2), xv.transpose(1, 2)
        else:
            keys, values = cache.update(start_pos, xk, xv)  # (batch, kv_heads, positions, head_dim)
        if isinstance(mask, DocumentMask):
            mask = mask.dense()
        queries = xq.transpose(1, 2)
        if seq == 1:
            # Heads that share keys take the sequence's dimension: no kernel has to repeat keys.
            queries = queries.reshape(batch, keys.shape[1], -1, self.head_dim)
        is_causal = mask is None and seq > 1
        out = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=is_causal, enable_gqa=seq > 1
        )
        if seq > 1:
            out = out.transpose(1, 2)
        return self.wo(out.reshape(batch, seq, -1))  # (batch, seq, dim)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(
        self, dim: int, hidden_dim: int, multiple_of: int, ffn_dim_multiplier: float | None = None
    ) -> None:
        super().__init__()
        distributed.initialize()
        hidden = feed_forward_size(hidden_dim, multiple_of, ffn_dim_multiplier)
        if hidden % (ranks := distributed.model_parallel_size()):
            raise InputError(f"hidden size {hidden} is not divisible by the {ranks} ranks")
        self.w1 = ColumnParallelLinear(dim, hidden, **_COLUMN)
        self.w2 = RowParallelLinear(hidden, dim, **_ROW)
        self.w3 = ColumnParallelLinear(dim, hidden, **_COLUMN)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    """Attention, then the feed-forward layer, each normalised before and added to its input."""

    def __init__(self, layer_id: int, args: ModelArgs) -> None:
        super().__init__()
        self.layer_id = layer_id
        self.attention = Attention(args)
        self.feed_forward = FeedForward(
            args.dim, 4 * args.dim, args.multiple_of, args.ffn_dim_multiplier
        )
        self.attention_norm = RMSNorm(args.dim, args.norm_eps)
        self.ffn_norm = RMSNorm(args.dim, args.norm_eps)

    def forward(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        mask: Tensor | DocumentMask | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Arguments and shapes as for `Attention.forward`."""
        h = x + self.attention(self.attention_norm(x), start_pos, freqs_cis, mask, cache)
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    """The whole model, from token ids to logits."""

    def __init__(self, params: ModelArgs) -> None:
        super().__init__()
        if params.vocab_size < 1:
            raise InputError("vocab_size=-1: set it to the tokenizer's n_words before building")
        distributed.initialize()
        params.check_ranks(distributed.model_parallel_size())
        self.params = p = params
        self.vocab_size = p.vocab_size
        self.n_layers = p.n_layers
        self.tok_embeddings = VocabParallelEmbedding(p.vocab_size, p.dim, init_method=_init_weight)
        self.layers = nn.ModuleList(TransformerBlock(i, p) for i in range(p.n_layers))
        self.norm = RMSNorm(p.dim, p.norm_eps)
        self.output = ColumnParallelLinear(
            p.dim, p.vocab_size, bias=False, init_method=_init_weight
        )
        # No buffer, so that .to(dtype) and checkpoints leave the frequencies alone.
        scaling = p.rope_scaling_factor or 1.0, p.rope_low_freq_factor, p.rope_high_freq_factor
        rope = p.rope_theta, p.use_scaled_rope, *scaling, p.rope_original_seq_len
        self.freqs = rotary_frequencies(p.head_dim, *rope)
        self.cache_type: type[KVCache] = KVCache
        self.cache: KVCache | None = None

    def new_cache(self, batch_size: int, seq_len: int) -> KVCache:
        """An empty `cache_type` of this rank's heads, in the model's dtype and on its device."""
        p, like = self.params, self.norm.weight
        heads = p.kv_heads_on_each_of(distributed.model_parallel_size())
        shape = (p.n_layers, batch_size, heads, seq_len, p.head_dim)
        return self.cache_type.zeros(shape, like.dtype, like.device)

    def forward(
        self,
        tokens: Tensor,
        start_pos: int | Tensor | None = None,
        *,
        cache: KVCache | None = None,
        logits_at: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """float32 logits (batch, seq, vocab_size) for `tokens` (batch, seq).

        Without `start_pos` nothing is cached and gradients flow; rows may then hold packed
        documents, with `positions` (batch, seq) that restart at 0 with each. With `start_pos`, an
        int for all rows or a tensor (batch,), earlier positions are read from `cache`, new ones are
        stored there, and there are no gradients; without a `cache` the model makes its own, for
        `max_batch_size` rows of `max_seq_len`. `logits_at` (batch, n) picks the columns of `tokens`
        whose logits are wanted, (batch, n, vocab_size). Raises ValueError for tokens that are not
        (batch, seq) and a cache with too few rows or positions (IndexError where only a row of a
        tensor `start_pos` runs over its end).
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and start_pos is None):
            h = self.hidden(tokens, start_pos, cache, positions)
            if logits_at is not None:
                h = h.gather(1, logits_at.unsqueeze(-1).expand(-1, -1, h.shape[-1]))
            return self.output(self.norm(h)).float()

    def hidden(
        self,
        tokens: Tensor,
        start_pos: int | Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        layers: range | None = None,
        h: Tensor | None = None,
    ) -> Tensor:
        """The last block's output, (batch, seq, dim); arguments and errors as for `forward`.

        `layers` picks the blocks to run, on `h`, the output of the block before them.
        """
        if tokens.dim() != 2:
            raise InputError(f"tokens should be (batch, seq), not {tuple(tokens.shape)}")
        (batch, seq), p = tokens.shape, self.params
        shape = start_pos.shape if isinstance(start_pos, Tensor) else None
        if shape not in (None, (batch,)) or (isinstance(start_pos, int) and start_pos < 0):
            raise InputError(f"start_pos should be 0 or more, or ({batch},) such: {start_pos}")
        if positions is not None and (start_pos is not None or positions.shape != tokens.shape):
            raise InputError("positions are those of each token, (batch, seq), without start_pos")
        mask: Tensor | DocumentMask | None = None if positions is None else DocumentMask(positions)
        if start_pos is None:
            if cache is not None:
                raise InputError("a cache needs start_pos, the position of each row's first token")
            start_pos = 0
        else:
            if cache is None:
                # The model may have been moved or cast since it was last used.
                if self.cache is None or not self.cache.suits(self.norm.weight):
                    self.cache = self.new_cache(p.max_batch_size, p.max_seq_len)
                cache = self.cache
            length = start_pos + seq if isinstance(start_pos, int) else cache.seq_len
            cache = cache.view(0, batch, length)
        if positions is None:
            start = start_pos.unsqueeze(1) if isinstance(start_pos, Tensor) else start_pos
            positions = start + torch.arange(seq, device=tokens.device)  # (seq,) or (batch, seq)
            # No mask where a prompt starts at position 0 (plainly causal) and where one token at a
            # common position sees all of its past: without one the fast kernels run.
            if isinstance(start, Tensor) or (start > 0 and seq > 1):
                keys = torch.arange(length, device=tokens.device)
                mask = keys <= positions.unsqueeze(-1)  # (seq, keys) or (batch, seq, keys)
                mask = mask.unsqueeze(1) if mask.dim() == 3 else mask  # torch is slow with three
        freqs_cis = freqs_cis_at(positions, self.freqs.to(tokens.device))
        h = self.tok_embeddings(tokens) if h is None else h  # (batch, seq, dim)
        for i in range(p.n_layers) if layers is None else layers:
            h = self.layers[i](h, start_pos, freqs_cis, mask, cache.layer(i) if cache else None)
        return h
