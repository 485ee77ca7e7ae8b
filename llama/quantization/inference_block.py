"""A transformer block whose few rows go through native kernels, for inference on a CPU.

Decoding multiplies one row, or one for each request, by every weight. What lies between the
products is little work, but dozens of operators; `InferenceBlock` runs each half of a block as one
kernel. A prompt of many rows, another dtype, another cache or a machine without a compiler takes
the block's own way, which computes the same.
"""

import torch
from torch import Tensor, nn

from llama import distributed, kernels
from llama.cache import KVCache
from llama.model import DocumentMask, RMSNorm, TransformerBlock

# What lies between two products is made anew for each: 16 MB of it are taken from memory that was
# used before, while larger pieces come from the system, which fills them with zeros first.
_ROWS_AT_ONCE = 1024


class InferenceBlock(TransformerBlock):
    """Takes the place of a block, whose layers (with a `matrix` each) and parameters it keeps."""

    def __init__(self, block: TransformerBlock) -> None:
        nn.Module.__init__(self)
        self.layer_id = block.layer_id
        self.attention, self.attention_norm = block.attention, block.attention_norm
        self.feed_forward, self.ffn_norm = block.feed_forward, block.ffn_norm
        self.is_adapted = False  # where layers are more than a matrix (`llama.lora`)
        self._halves: tuple[kernels.AttentionHalf, kernels.FeedForwardHalf] | None = None

    def forward(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        mask: Tensor | DocumentMask | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """As `TransformerBlock.forward`."""
        if cache is None or not self._is_native(x, cache):
            return super().forward(x, start_pos, freqs_cis, mask, cache)
        if x.shape[0] * x.shape[1] <= kernels.MOST_ROWS and not self.is_adapted:
            return self._few_rows(x, start_pos, freqs_cis, cache)
        if kernels.attends(self.attention.head_dim):
            return self._many_rows(x, start_pos, freqs_cis, cache)
        return super().forward(x, start_pos, freqs_cis, mask, cache)

    def _is_native(self, x: Tensor, cache: KVCache) -> bool:
        return (
            (x.device.type, x.dtype) == ("cpu", torch.bfloat16)
            and not torch.is_grad_enabled()
            and isinstance(cache, KVCache)
            and cache.suits(x)
            and cache.k.stride()[2:] == (cache.k.shape[3], 1)
            and kernels.available()
        )

    def _few_rows(
        self, x: Tensor, start_pos: int | Tensor, freqs_cis: Tensor, cache: KVCache
    ) -> Tensor:
        if self._halves is None:
            self._halves = self._native_halves()
        attention, feed_forward = self._halves
        is_partial = distributed.model_parallel_size() > 1
        y = attention(x, start_pos, freqs_cis, cache, is_partial)
        if is_partial:
            y = x = (x + distributed.add_up(y)).bfloat16()
        z = feed_forward(y, is_partial)
        return (x + distributed.add_up(z)).bfloat16() if is_partial else z

    def _many_rows(
        self, x: Tensor, start_pos: int | Tensor, freqs_cis: Tensor, cache: KVCache
    ) -> Tensor:
        a, f, norm = self.attention, self.feed_forward, self.attention_norm
        n = kernels.normalize(x, norm.weight, norm.eps)
        q, k, v = (layer(n) for layer in (a.wq, a.wk, a.wv))
        h = x + a.wo(kernels.attend(q, k, v, start_pos, freqs_cis, cache))
        rows, norm = h.flatten(0, 1), self.ffn_norm
        for part in rows.split(_ROWS_AT_ONCE):
            n = kernels.normalize(part, norm.weight, norm.eps)
            part += f.w2(kernels.gate(f.w1(n), f.w3(n)))
        return h

    def _native_halves(self) -> tuple[kernels.AttentionHalf, kernels.FeedForwardHalf]:
        def matrices(module: nn.Module, names: str) -> list[Tensor | kernels.Packed]:
            return [getattr(module, name).matrix for name in names.split()]

        def scale(norm: RMSNorm) -> tuple[Tensor, float]:
            return norm.weight.detach(), norm.eps

        head_dim = self.attention.head_dim
        weights, parts = matrices(self.attention, "wq wk wv wo"), self.attention.wo.parts
        attention = kernels.AttentionHalf(*scale(self.attention_norm), head_dim, weights, parts)
        weights, parts = matrices(self.feed_forward, "w1 w2 w3"), self.feed_forward.w2.parts
        return attention, kernels.FeedForwardHalf(*scale(self.ffn_norm), weights, parts)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._halves = None  # the parameters are about to move
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        self._halves = None
        super()._load_from_state_dict(*args, **kwargs)
