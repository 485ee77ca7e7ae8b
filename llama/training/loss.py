"""The loss of next-token prediction, without ever holding the logits of a whole batch.

Logits are the largest thing in training: 8192 tokens of a vocabulary of 128,256 are 4 GB in
float32, and their gradient as much again. A row of logits is needed only for the loss of its token
and the gradient of its row, so `token_losses` computes both chunk by chunk of rows.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from llama import distributed
from llama.kernels.training_ops import available, cross_entropy_
from llama.model import ColumnParallelLinear, Transformer
from llama.training.packing import IGNORED

_CHUNK_ROWS = 256  # on a CPU, where a chunk's logits then stay in the cache
_CHUNK_LOGITS = 2**27  # at most, on a GPU


class LanguageModelLoss(nn.Module):
    """A model and its loss as one module, so that what wraps it (DDP, FSDP) sees all of it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, positions: Tensor, loss_at: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The summed loss in nats, and the loss of each target (n,), which has no gradient.

        `tokens` and `positions` are (rows, seq) of packed documents; `loss_at` (n,) are the indices
        into the flattened rows whose next token, `targets` (n,), counts in the loss; -100 is
        padding.
        """
        h = self.model.hidden(tokens, positions=positions)
        h = self.model.norm(h.flatten(0, 1).index_select(0, loss_at))  # (n, dim)
        output = self.model.output
        if isinstance(output, ColumnParallelLinear):
            return token_losses(h, output.weight, targets)
        losses = F.cross_entropy(output(h).float(), targets, ignore_index=IGNORED, reduction="none")
        return losses.sum(), losses.detach()


def token_losses(h: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of `h @ weight.T` with `targets`, and each one's, without gradient.

    `h` is (n, dim), `weight` this rank's rows of the output layer (vocab / ranks, dim), `targets`
    (n,) ids of the whole vocabulary, or -100. Matrix products are in the dtype of autocast where it
    is on, else in that of `h`; losses are float32.
    """
    device = h.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else h.dtype
    return _TokenLosses.apply(h, weight, targets, dtype, torch.is_grad_enabled())


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, weight, targets, dtype, needs_gradient):  # type: ignore[no-untyped-def]
        rows = _CHUNK_ROWS
        if h.device.type != "cpu":
            rows = max(_CHUNK_LOGITS // len(weight), 1)
        cast = weight.to(dtype)
        losses = torch.empty(len(h), dtype=torch.float32, device=h.device)
        dh = torch.empty_like(h, dtype=dtype) if needs_gradient else None
        dweight = None
        for start in range(0, len(h), rows):
            chunk = slice(start, start + rows)
            inputs = h[chunk].to(dtype)
            logits = inputs @ cast.T
            losses[chunk] = _losses_to_gradients(logits, targets[chunk])
            if not needs_gradient:
                continue
            dh[chunk] = logits @ cast
            if ctx.needs_input_grad[1]:
                added = logits.T @ inputs
                dweight = added.float() if dweight is None else dweight.add_(added)
        if needs_gradient:
            if distributed.model_parallel_size() > 1:
                dist.all_reduce(dh, group=distributed.model_parallel_group())
            ctx.save_for_backward(
                dh.to(h.dtype), dweight if dweight is None else dweight.to(weight.dtype)
            )
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, gradient, _):  # type: ignore[no-untyped-def]
        dh, dweight = ctx.saved_tensors
        return dh * gradient, None if dweight is None else dweight * gradient, None, None, None


def _losses_to_gradients(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each row of `logits`, which become its gradient: softmax, minus 1 at the target.

    Each model parallel rank holds the logits of its shard of the vocabulary.
    """
    ranks = distributed.model_parallel_size()
    is_plain = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.bfloat16)
    if ranks == 1 and is_plain and available():
        return cross_entropy_(logits, targets, 1.0)
    counted = targets != IGNORED
    local = targets - distributed.model_parallel_rank() * logits.shape[1]
    mine = counted & (local >= 0) & (local < logits.shape[1])
    index = local.where(mine, 0).unsqueeze(1)
    wide = logits.float()
    total = wide.logsumexp(-1)
    picked = wide.gather(1, index).squeeze(1).where(mine, 0.0)
    if ranks > 1:
        group = distributed.model_parallel_group()
        totals = [torch.empty_like(total) for _ in range(ranks)]
        dist.all_gather(totals, total, group=group)
        total = torch.stack(totals).logsumexp(0)
        dist.all_reduce(picked, group=group)
    gradient = (wide - total.unsqueeze(1)).exp_()
    gradient.scatter_add_(1, index, -mine.to(gradient.dtype).unsqueeze(1))
    logits.copy_(gradient.mul_(counted.unsqueeze(1)))
    return (total - picked).where(counted, 0.0)
