"""The embedding with weights in 12 bits (`kernels.Bf12`), on a CPU."""

from torch import Tensor, nn

from llama import kernels
from llama.distributed import reduce_from_model_parallel_region
from llama.model import VocabParallelEmbedding


class Bf12Embedding(nn.Module):
    """Takes the place of fairscale's embedding: unpacks the rows of the tokens it is given."""

    def __init__(self, layer: VocabParallelEmbedding, packed: kernels.Bf12) -> None:
        super().__init__()
        self.packed = packed
        self.vocab_start_index = layer.vocab_start_index

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) -> (..., dim) in bfloat16; tokens of other ranks are summed over the ranks."""
        rows = tokens.flatten() - self.vocab_start_index
        is_elsewhere = (rows < 0) | (rows >= self.packed.shape[0])
        y = kernels.unpack_bf12(self.packed, rows.masked_fill(is_elsewhere, 0))
        y[is_elsewhere] = 0
        return reduce_from_model_parallel_region(y.unflatten(0, tokens.shape))
