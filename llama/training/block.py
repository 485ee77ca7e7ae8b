"""A transformer block whose norm, attention and gate are native kernels, for training on a CPU.

Matrix products stay with the block's own layers, called as modules: parallel, packed, or with an
adapter around them. In float16, with a cache, on another device, under torch.compile or without a C
compiler it is a plain `TransformerBlock`, which computes the same.
"""

import torch
from torch import Tensor, nn

from llama.cache import KVCache
from llama.kernels.training_ops import add_rms_norm, packed_attention, silu_mul, trains_head_dim
from llama.model import DocumentMask, Transformer, TransformerBlock


class TrainingBlock(TransformerBlock):
    """Replaces a block and keeps its layers and parameters under their names."""

    def __init__(self, block: TransformerBlock) -> None:
        nn.Module.__init__(self)
        self.layer_id = block.layer_id
        self.attention, self.feed_forward = block.attention, block.feed_forward
        self.attention_norm, self.ffn_norm = block.attention_norm, block.ffn_norm

    def forward(
        self,
        x: Tensor,
        start_pos: int | Tensor,
        freqs_cis: Tensor,
        mask: Tensor | DocumentMask | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """As `TransformerBlock.forward`."""
        positions = mask.positions if isinstance(mask, DocumentMask) else None
        is_plain = mask is None or positions is not None
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if cache is not None or not is_plain or not self._is_native(x, dtype):
            return super().forward(x, start_pos, freqs_cis, mask, cache)
        a, f, norm = self.attention, self.feed_forward, self.attention_norm
        x, *n = add_rms_norm(x, None, norm.weight, norm.eps, dtype, 3)
        q, k, v = a.wq(n[0]), a.wk(n[1]), a.wv(n[2])
        y = packed_attention(q, k, v, positions, freqs_cis, a.head_dim)
        norm = self.ffn_norm
        h, *n = add_rms_norm(x, a.wo(y), norm.weight, norm.eps, dtype, 2)
        return h + f.w2(silu_mul(f.w1(n[0]), f.w3(n[1])))

    def _is_native(self, x: Tensor, dtype: torch.dtype) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, dtype)
            and dtype in (torch.float32, torch.bfloat16)
            and not torch.compiler.is_compiling()
            and trains_head_dim(self.attention.head_dim)
        )


def use_training_blocks(model: Transformer) -> None:
    """Replaces each block by a `TrainingBlock`; the model keeps its parameters."""
    for i, block in enumerate(model.layers):
        if isinstance(block, TransformerBlock) and not isinstance(block, TrainingBlock):
            model.layers[i] = TrainingBlock(block)
