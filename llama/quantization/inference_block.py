"""A transformer block whose few rows go through native kernels, for inference on a CPU.

Decoding multiplies one row, or one for each request, by every weight. What lies between the
products is little work, but dozens of operators; `InferenceBlock` runs attention and feed-forward
layer as one kernel each. A prompt of many rows, another dtype, another cache or a machine without a
compiler takes the forward pass of `TransformerBlock`, which computes the same.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llama import distributed, kernels
from llama.cache import KVCache, RaggedKVCache
from llama.kernels import AttentionBlock, FeedForwardBlock
from llama.model import DocumentMask, TransformerBlock

# Intermediate results take 16 MB or less: allocators reuse so much, while the system hands out
# larger memory anew, and zeroes it first.
_MICRO_BATCH_ROWS = 1024


class InferenceBlock(TransformerBlock):
    """Takes the place of a block, whose layers (an `InferenceLinear` each) and names it keeps."""

    def __init__(self, block: TransformerBlock) -> None:
        nn.Module.__init__(self)
        self.layer_id = block.layer_id
        self.attention, self.attention_norm = block.attention, block.attention_norm
        self.feed_forward, self.ffn_norm = block.feed_forward, block.ffn_norm
        self.is_adapted = (
            False  # whether layers have LoRA adapters, which these kernels do not know
        )
        self._native: tuple[AttentionBlock, FeedForwardBlock] | None = None
        self._weights_of_native: list[object] = []

    def forward(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        mask: Tensor | DocumentMask | None,
        cache: KVCache | RaggedKVCache | None = None,
    ) -> Tensor:
        """As `TransformerBlock.forward`."""
        if cache is None or not self._is_native(x, cache):
            assert not isinstance(cache, RaggedKVCache)  # the engine asks `takes_ragged_rows`
            return super().forward(x, start_pos, freqs_cis, mask, cache)
        is_few = x.shape[0] * x.shape[1] <= kernels.MAX_ROWS and not self.is_adapted
        if is_few and (native := self._native_blocks()):
            return self._few_rows(*native, x, start_pos, freqs_cis, cache)
        if kernels.supports_head_dim(self.attention.head_dim):
            return self._many_rows(x, start_pos, freqs_cis, cache)
        assert not isinstance(cache, RaggedKVCache)
        return super().forward(x, start_pos, freqs_cis, mask, cache)

    def _is_native(self, x: Tensor, cache: KVCache | RaggedKVCache) -> bool:
        return (
            x.dtype == torch.bfloat16
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and cache.suits(x)
            and (isinstance(cache, RaggedKVCache) or _is_contiguous(cache))
            and kernels.available()
        )

    @property
    def takes_ragged_rows(self) -> bool:
        """Whether a `RaggedKVCache` may be handed in, for at most `kernels.MAX_ROWS` rows."""
        if self.attention_norm.weight.dtype != torch.bfloat16 or not kernels.available():
            return False
        if self.is_adapted:
            return kernels.supports_head_dim(self.attention.head_dim)
        return self._native_blocks() is not None

    def _few_rows(
        self,
        attention: AttentionBlock,
        feed_forward: FeedForwardBlock,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        cache: KVCache | RaggedKVCache,
    ) -> Tensor:
        if distributed.model_parallel_size() == 1:
            return feed_forward(attention(x, start_pos, freqs_cis, cache, False), False)
        y = attention(x, start_pos, freqs_cis, cache, True)
        h = (x + distributed.sum_over_ranks(y)).bfloat16()
        return (h + distributed.sum_over_ranks(feed_forward(h, True))).bfloat16()

    def _many_rows(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        cache: KVCache | RaggedKVCache,
    ) -> Tensor:
        a, f, norm = self.attention, self.feed_forward, self.attention_norm
        n = kernels.rms_norm(x, norm.weight, norm.eps)
        q, k, v = (layer(n) for layer in (a.wq, a.wk, a.wv))
        h = x + a.wo(kernels.attend(q, k, v, start_pos, freqs_cis, cache, a.head_dim))
        norm = self.ffn_norm
        for rows in h.flatten(0, 1).split(_MICRO_BATCH_ROWS):
            n = kernels.rms_norm(rows, norm.weight, norm.eps)
            rows += f.w2(kernels.silu_mul(f.w1(n), f.w3(n)))
        return h

    def _native_blocks(self) -> tuple[AttentionBlock, FeedForwardBlock] | None:
        """Kernels that hold the addresses of the layers' weights; None where these do not fit.

        Weights may have moved since the last call, or be others: each call compares all addresses.
        The dictionaries of modules are read directly, since attributes of modules take ten times
        as long.
        """
        modules = self._modules
        layers = [
            modules["attention_norm"],
            modules["ffn_norm"],
            *modules["attention"]._modules.values(),  # type: ignore[union-attr]
            *modules["feed_forward"]._modules.values(),  # type: ignore[union-attr]
        ]
        weights: list[object] = [
            weight.data_ptr() if weight.is_contiguous() else None
            for layer in layers
            for weight in layer._parameters.values()
        ]
        weights += layers
        if weights != self._weights_of_native:
            self._native, self._weights_of_native = self._make_native(), weights
        return self._native

    def _make_native(self) -> tuple[AttentionBlock, FeedForwardBlock] | None:
        a, f = self.attention, self.feed_forward
        norm_a, norm_f = (
            (norm.weight.detach(), norm.eps) for norm in (self.attention_norm, self.ffn_norm)
        )
        wq, wk, wv, wo, w1, w2, w3 = matrices = [
            layer.matrix for layer in (a.wq, a.wk, a.wv, a.wo, f.w1, f.w2, f.w3)
        ]
        dim, q, kv, hidden = len(norm_a[0]), wq.shape[0], wk.shape[0], w1.shape[0]
        shapes = (
            (q, dim),
            (kv, dim),
            (kv, dim),
            (dim, q),
            (hidden, dim),
            (dim, hidden),
            (hidden, dim),
        )
        tensors = [norm_a[0], norm_f[0], *(m for m in matrices if isinstance(m, Tensor))]
        if (
            any(m.shape != shape for m, shape in zip(matrices, shapes, strict=True))
            or len(norm_f[0]) != dim
            or not all(t.dtype == torch.bfloat16 and t.is_contiguous() for t in tensors)
        ):
            return None  # the layers say what is wrong, or compute it
        return (
            AttentionBlock(*norm_a, a.head_dim, (wq, wk, wv, wo), a.wo.partial_sums),
            FeedForwardBlock(*norm_f, (w1, w2, w3), f.w2.partial_sums),
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies, by `copy` or `pickle`: their weights have other addresses."""
        return {**self.__dict__, "_native": None, "_weights_of_native": []}

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        self._native = None  # it would keep the memory of parameters that move
        self._weights_of_native = []
        return super()._apply(fn, recurse)


def _is_contiguous(cache: KVCache) -> bool:
    """Whether a head's positions in a layer's cache follow each other."""
    return isinstance(cache, KVCache) and cache.k.stride()[2:] == (cache.k.shape[3], 1)
