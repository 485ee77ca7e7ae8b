"""A transformer block whose few rows go through native kernels, for inference on a CPU.

Decoding multiplies one row, or one for each request, by every weight. What lies between the
products is little work, but dozens of operators; `InferenceBlock` runs attention and feed-forward
layer as one kernel each. Many rows in float32, another dtype, another cache or a machine without a
compiler take the forward pass of `TransformerBlock`, which computes the same.
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
        # Whether layers have LoRA adapters, which these kernels do not know.
        self.is_adapted = False
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
        if self._has_native_attention():
            return self._many_rows(x, start_pos, freqs_cis, cache)
        assert not isinstance(cache, RaggedKVCache)
        return super().forward(x, start_pos, freqs_cis, mask, cache)

    def _is_native(self, x: Tensor, cache: KVCache | RaggedKVCache) -> bool:
        norm = self._modules["attention_norm"]._parameters["weight"]  # type: ignore[union-attr]
        return (
            x.dtype in kernels.DTYPES
            and x.dtype == norm.dtype  # type: ignore[union-attr]
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and cache.suits(x)
            and (isinstance(cache, RaggedKVCache) or _is_contiguous(cache))
            and kernels.available()
        )

    @property
    def takes_ragged_rows(self) -> bool:
        """Whether a `RaggedKVCache` may be handed in, for at most `kernels.MAX_ROWS` rows."""
        if not kernels.available():
            return False
        if self.is_adapted:
            return self._has_native_attention()
        return self._native_blocks() is not None

    def _has_native_attention(self) -> bool:
        """Whether `_many_rows` has kernels for the model's dtype and head size."""
        is_bfloat16 = self.attention_norm.weight.dtype == torch.bfloat16
        return is_bfloat16 and kernels.supports_head_dim(self.attention.head_dim)

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
        h = (x + distributed.sum_over_ranks(y)).to(x.dtype)
        return (h + distributed.sum_over_ranks(feed_forward(h, True))).to(x.dtype)

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
        norms = [norm.weight.detach() for norm in (self.attention_norm, self.ffn_norm)]
        matrices = [layer.matrix for layer in (a.wq, a.wk, a.wv, a.wo, f.w1, f.w2, f.w3)]
        (dim,), dtype = norms[0].shape, norms[0].dtype
        q, kv, hidden = (matrices[i].shape[0] for i in (0, 1, 4))
        shapes: list[tuple[int, ...]] = [(q, dim), (kv, dim), (kv, dim), (dim, q)]
        shapes += [(hidden, dim), (dim, hidden), (hidden, dim), (dim,), (dim,)]
        for weight, shape in zip((*matrices, *norms), shapes, strict=True):
            is_packed = not isinstance(weight, Tensor)
            if (
                weight.shape != shape
                or dtype != (torch.bfloat16 if is_packed else weight.dtype)
                or not (is_packed or weight.is_contiguous())
            ):
                return None  # the layers say what is wrong, or compute it
        eps_a, eps_f = self.attention_norm.eps, self.ffn_norm.eps
        return (
            AttentionBlock(norms[0], eps_a, a.head_dim, matrices[:4], a.wo.partial_sums),
            FeedForwardBlock(norms[1], eps_f, matrices[4:], f.w2.partial_sums),
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
