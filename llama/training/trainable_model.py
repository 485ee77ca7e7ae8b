"""A model with its loss and optimizer, on one process or many, and one training step.

Initial weights do not depend on the number of processes: each is drawn whole by a generator of its
own and then sharded. Data parallel processes hold all weights (DDP), or shards of weights and
optimizer state (FSDP2); model parallel ranks hold fairscale's shards. Both combine, and the same
sequences give the same loss, in float32 to 7 digits; in bfloat16 the rounding differs.
"""

import contextlib
import ctypes
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recomputed

from llama import distributed
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.loading import empty_model, load
from llama.checkpoint.opening import Checkpoint
from llama.errors import InputError
from llama.lora.adapter_layers import LoRALinear, add_lora
from llama.model import Transformer
from llama.storage.sharding import share
from llama.training.block import use_training_blocks
from llama.training.config import TrainConfig
from llama.training.loss import LanguageModelLoss
from llama.training.muon import Muon
from llama.training.packing import IGNORED, Batch

_TARGETS_MULTIPLE = 256  # loss tokens are padded to it: few sizes, few kernels


class TrainableModel:
    """A model, the module that computes its loss, and its optimizer.

    The weights are those of the checkpoint `base`, or random in the shape `args`.
    """

    def __init__(
        self,
        args: ModelArgs,
        base: Checkpoint | None,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        if base is not None and base.quantize and not config.lora:
            raise InputError(
                f"{base.folder.path} holds {base.quantize} weights, which can't be trained: train "
                "an adapter beside them (--lora), or the model that they were made from"
            )
        self.config, self.device = config, device
        quantize = config.quantize or (base.quantize if base else None)
        self.dtype = config.compute_dtype(device, bool(quantize))
        if not config.lora:
            self.model = empty_model(args)
        elif base is None:
            raise InputError("an adapter is trained on a model: give the checkpoint to start from")
        else:
            context: dict[str, Any] = {"max_seq_len": args.max_seq_len, "trainable": True}
            self.model = load(base, device=device, dtype=self.dtype, quantize=quantize, **context)
            add_lora(self.model, config.lora)
        if not config.compile:
            use_training_blocks(self.model)
        for block in self.model.layers:
            if config.activation_checkpointing:
                block.forward = functools.partial(recomputed, block.forward, use_reentrant=False)
            if config.compile:
                block.compile()
        self.module: nn.Module = LanguageModelLoss(self.model)
        processes = distributed.data_parallel_size()
        whole = config.lora or config.optimizer == "muon"
        default = "fsdp" if device.type == "cuda" and not whole else "ddp"
        self._sharded = processes > 1 and (config.data_parallel or default) == "fsdp"
        if not config.lora:
            self._initialize(args, base)
        self.module.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = _optimizers(self.model, config, self.dtype)
        self._model_parallel = _model_parallel_parameters(self.model)
        self._threads = (
            distributed.adaptive_threads() if device.type == "cpu" else contextlib.nullcontext()
        )
        if processes > 1 and not self._sharded:
            group = distributed.data_parallel_group()
            self.module = DistributedDataParallel(self.module, process_group=group)

    def _initialize(self, args: ModelArgs, base: Checkpoint | None) -> None:
        """Shards the model and copies its first weights, or this rank's shard, into it."""
        tied = self.config.tie_embeddings
        if tied is None:
            tied = base is None or base.tied
        if tied:
            self.model.output.weight = self.model.tok_embeddings.weight
        if self._sharded:
            self._apply_fsdp()
        self.module.to_empty(device=self.device)
        if tied:
            self.model.output.weight = self.model.tok_embeddings.weight
        ranks, rank = distributed.model_parallel_size(), distributed.model_parallel_rank()
        whole, local = weight_shapes(args), weight_shapes(args, ranks)
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.model.named_parameters()):
                region = share(whole[name], local[name], rank, ranks)
                if base is not None:
                    weight = base.weights[name].read(region, torch.device("cpu"), torch.float32)
                else:
                    seed = self.config.seed + i * 10007
                    weight = _first_weight(name, whole[name], args, seed)[region]
                if isinstance(parameter, DTensor):
                    shards = weight.chunk(distributed.data_parallel_size())
                    index = distributed.data_parallel_rank()
                    weight = shards[index] if index < len(shards) else weight[:0]
                _local(parameter).copy_(weight)

    def _apply_fsdp(self) -> None:
        mesh = DeviceMesh.from_group(distributed.data_parallel_group(), self.device.type)
        policy = MixedPrecisionPolicy()
        if self.dtype != torch.float32:
            policy = MixedPrecisionPolicy(self.dtype, torch.float32, cast_forward_inputs=False)
        for module in (*self.model.layers, self.module):
            fully_shard(module, mesh=mesh, mp_policy=policy)

    def computing(self) -> contextlib.AbstractContextManager[object]:
        """Autocast to the run's dtype of matrix products."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss of a batch, the loss of each target, and the targets (some -100).

        All are on the model's device.
        """
        flat = batch.targets.flatten()
        loss_tokens = (flat != IGNORED).nonzero().squeeze(1)
        count = len(loss_tokens)
        loss_at = torch.cat((loss_tokens, loss_tokens.new_zeros(-count % _TARGETS_MULTIPLE)))
        targets = flat[loss_at]
        targets[count:] = IGNORED
        tensors = batch.tokens, batch.positions, loss_at, targets
        inputs = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        with self.computing():
            total, each = self.module(*inputs)
        return total, each, inputs[-1]

    def step(
        self, batches: Sequence[Batch], rate: float, num_loss_tokens: int
    ) -> tuple[float, float]:
        """One update from this process's micro-batches.

        `num_loss_tokens` counts those of the step on all processes. Returns the mean loss before
        the update and the norm of the gradient; where either is not finite, nothing is changed.
        """
        processes = distributed.data_parallel_size()
        nats = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            with self._threads, self._synchronized(i == len(batches) - 1):
                total, _, _ = self.losses(batch)
                # DDP and FSDP average the processes' gradients; each loss token should count alike.
                (total * (processes / num_loss_tokens)).backward()
                nats += total.detach()
        if processes > 1:
            dist.all_reduce(nats, group=distributed.data_parallel_group())
        norm = self._clip_gradient()
        loss = nats.item() / num_loss_tokens
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return loss, norm

    def memory(self, tokens: int) -> int:
        """About how many bytes this process needs for micro-batches of `tokens` tokens.

        Counted are weights, gradients, optimizer state and activations.
        """
        a, ranks, width = self.model.params, distributed.model_parallel_size(), self.dtype.itemsize
        heads = a.n_heads // ranks + a.kv_heads_on_each_of(ranks)
        inner = 2 * heads * a.head_dim + 3 * a.hidden_dim // ranks
        layer = 2 * 4 * a.dim + width * (2 * a.dim + inner)
        num_layers = 1 if self.config.activation_checkpointing else a.n_layers
        activations = tokens * (num_layers * layer + 4 * a.dim * a.n_layers)
        kept = [*self.model.parameters(), *self.model.buffers(), *self.parameters]  # and gradients
        for optimizer in self.optimizers:
            moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
            kept += [p for group in optimizer.param_groups for p in group["params"]] * moments
        return activations + sum(_local(tensor).nbytes for tensor in kept)

    @contextlib.contextmanager
    def _synchronized(self, last: bool) -> Iterator[None]:
        """Exchanges gradients only after the last micro-batch of a step."""
        if isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
            yield
        elif isinstance(self.module, DistributedDataParallel) and not last:
            with self.module.no_sync():
                yield
        else:
            yield

    def _clip_gradient(self) -> float:
        """Scales the gradient to a norm of at most `clip`; returns its norm before that."""
        gradients = {p: _local(p.grad) for p in self.parameters if p.grad is not None}
        local = list(gradients.values())
        squares = torch.stack(torch._foreach_norm(local)).square()
        cut = torch.tensor([p in self._model_parallel for p in gradients], device=squares.device)
        sums = torch.stack((squares.where(cut, 0.0).sum(), squares.where(~cut, 0.0).sum()))
        if self._sharded:
            dist.all_reduce(sums, group=distributed.data_parallel_group())
        of_shards, of_whole = sums.unbind()
        if distributed.model_parallel_size() > 1:
            dist.all_reduce(of_shards, group=distributed.model_parallel_group())
        norm = (of_shards + of_whole).sqrt().item()
        if norm > self.config.clip:
            torch._foreach_mul_(local, self.config.clip / norm)
        return norm

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """Allows calls of the model itself, on all processes alike."""
        if isinstance(self.module, FSDPModule):
            self.module.unshard()
        with self.computing(), torch.no_grad():
            yield
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def whole_weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """This model parallel rank's weights on the CPU, gathered from data parallel processes.

        All of them call it; on all but the first the result is empty.
        """
        found: dict[str, Tensor] = {}
        for name, weight in self.model.state_dict().items():
            if isinstance(weight, DTensor):
                weight = weight.full_tensor()
            if distributed.data_parallel_rank() == 0:
                found[name] = weight.to("cpu", dtype)
        return found


def _optimizers(
    model: Transformer, config: TrainConfig, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """AdamW (Loshchilov and Hutter, 2019), or Muon for the blocks' matrices and AdamW for the rest.

    Norms do not decay. Both take one learning rate.
    """

    def takes_muon(name: str, parameter: Tensor) -> bool:
        is_matrix = parameter.dim() == 2 and name.startswith("layers.")
        return config.optimizer == "muon" and is_matrix

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in trained if takes_muon(name, p)]
    rest = [p for name, p in trained if not takes_muon(name, p)]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    found: list[torch.optim.Optimizer] = []
    if groups:
        found.append(torch.optim.AdamW(groups, betas=config.betas, fused=True))
    if matrices:
        found.append(Muon(matrices, config.weight_decay, dtype))
    return found


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor that FSDP has sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _first_weight(name: str, shape: tuple[int, ...], args: ModelArgs, seed: int) -> Tensor:
    """Norms are 1; matrices are normal, smaller where they add to the residual stream."""
    if len(shape) == 1:
        return torch.ones(shape)
    std = 0.02
    if name.endswith(("wo.weight", "w2.weight")):
        std /= math.sqrt(2 * args.n_layers)  # Radford et al. (2019)
    return torch.empty(shape).normal_(0, std, generator=torch.Generator().manual_seed(seed))


def _model_parallel_parameters(model: Transformer) -> set[Tensor]:
    """Parameters that are sharded over the ranks that share the model."""
    ranks = distributed.model_parallel_size()
    if ranks == 1:
        return set()
    whole, local = weight_shapes(model.params), weight_shapes(model.params, ranks)
    adapters = [layer for layer in model.modules() if isinstance(layer, LoRALinear)]
    return {
        *(p for name, p in model.named_parameters() if whole.get(name) != local.get(name)),
        *(layer.lora_A if layer.input_is_parallel else layer.lora_B for layer in adapters),
    }


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks instead of returning them to the kernel.

    Activations are freed and allocated again at every step; faulting their pages in took a third of
    the time. Without glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
