"""The model that is trained, on one process or many, and one step of its training.

Weights are the same whatever the number of processes: from nothing, each is drawn whole by a
generator of its own and then cut. Data parallel processes hold the same weights (DDP) or a part of
them and of what the optimizer keeps (FSDP2); ranks that share a model hold fairscale's parts. Both
go together, and a step of the same sequences makes the same loss.
"""

import contextlib
import ctypes
import functools
import math
import sys
from collections.abc import Iterator, Sequence

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

_LEARNED = 256  # targets are padded to multiples of it: few sizes, few kernels


class Trainee:
    """A model, the module that computes its loss, and its optimizer.

    Made from nothing for `args`, or from the checkpoint `base`.
    """

    def __init__(
        self,
        args: ModelArgs,
        base: Checkpoint | None,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.config, self.device = config, device
        self._format = config.quantize or (base.quantize if base else None)
        self.dtype = config.products(device, bool(self._format))
        self._narrow = self.dtype != torch.float32
        self.model = self._adapted(args, base) if config.lora else empty_model(args)
        if not config.compile:
            use_training_blocks(self.model)
        for block in self.model.layers:
            if config.activation_checkpointing:
                block.forward = functools.partial(recomputed, block.forward, use_reentrant=False)
            if config.compile:
                block.compile()
        self.module: nn.Module = LanguageModelLoss(self.model)
        processes = distributed.data_parallel_size()
        self._sharded = processes > 1 and self._data_parallel == "fsdp"
        if not config.lora:
            tied = _ties(config, base)
            if tied:
                self.model.output.weight = self.model.tok_embeddings.weight
            if self._sharded:
                self._shard()
            self.module.to_empty(device=device)
            if tied:
                self.model.output.weight = self.model.tok_embeddings.weight
            self._fill(args, base)
        self.module.train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = _optimizers(self.model, config, self.dtype)
        self._cut = _cut_parameters(self.model)
        if processes > 1 and not self._sharded:
            group = distributed.data_parallel_group()
            self.module = DistributedDataParallel(self.module, process_group=group)

    @property
    def _data_parallel(self) -> str:
        if self.config.data_parallel:
            return self.config.data_parallel
        whole = self.config.lora or self.config.optimizer == "muon"
        return "fsdp" if self.device.type == "cuda" and not whole else "ddp"

    def _adapted(self, args: ModelArgs, base: Checkpoint | None) -> Transformer:
        """The frozen model of a checkpoint with an adapter to be trained."""
        config = self.config
        if base is None or config.lora is None:
            raise InputError("an adapter is trained on a model: give the checkpoint to start from")
        model = load(
            base,
            device=self.device,
            dtype=self.dtype,
            quantize=self._format,
            max_seq_len=args.max_seq_len,
            trainable=True,
        )
        add_lora(model, config.lora)
        return model

    def _shard(self) -> None:
        mesh = DeviceMesh.from_group(distributed.data_parallel_group(), self.device.type)
        policy = MixedPrecisionPolicy()
        if self._narrow:
            policy = MixedPrecisionPolicy(self.dtype, torch.float32, cast_forward_inputs=False)
        for block in self.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(self.module, mesh=mesh, mp_policy=policy)

    def _fill(self, args: ModelArgs, base: Checkpoint | None) -> None:
        """Gives each parameter this rank's part of what it is to begin with."""
        ranks, rank = distributed.model_parallel_size(), distributed.model_parallel_rank()
        whole, local = weight_shapes(args), weight_shapes(args, ranks)
        with torch.no_grad():
            for i, (name, parameter) in enumerate(self.model.named_parameters()):
                region = share(whole[name], local[name], rank, ranks)
                if base is not None:
                    part = base.weights[name].read(region, torch.device("cpu"), torch.float32)
                else:
                    part = _first_weight(name, whole[name], args, self.config.seed + i * 10007)[
                        region
                    ]
                target: Tensor = parameter
                if isinstance(parameter, DTensor):
                    parts = part.chunk(distributed.data_parallel_size())
                    mine = distributed.data_parallel_rank()
                    part = parts[mine] if mine < len(parts) else part[:0]
                    target = parameter.to_local()
                target.copy_(part)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """In which products are made in the dtype that the run was set to."""
        with torch.autocast(self.device.type, self.dtype, enabled=self._narrow):
            yield

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss of a batch, the loss of each target, and the targets (some -100)."""
        flat = batch.targets.flatten()
        found = (flat != IGNORED).nonzero().squeeze(1)
        learned = torch.cat((found, found.new_zeros(-len(found) % _LEARNED)))
        targets = flat[learned]
        targets[len(found) :] = IGNORED
        inputs = (batch.tokens, batch.positions, learned, targets)
        with self.computing():
            total, each = self.module(*(t.to(self.device, non_blocking=True) for t in inputs))
        return total, each, targets

    def step(self, batches: Sequence[Batch], rate: float, targets: int) -> tuple[float, float]:
        """One update from this process's batches, of a step with `targets` in all processes.

        Returns the mean loss of all of them before it, and the norm of the gradient. Nothing is
        changed where either is not finite.
        """
        processes = distributed.data_parallel_size()
        nats = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            with self._synchronized(i == len(batches) - 1):
                total, _, _ = self.losses(batch)
                # Processes average their gradients, and each is to count by its targets.
                (total * (processes / targets)).backward()
                nats += total.detach()
        if processes > 1:
            dist.all_reduce(nats, group=distributed.data_parallel_group())
        norm = self._clip_gradient()
        loss = nats.item() / targets
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return loss, norm

    @contextlib.contextmanager
    def _synchronized(self, last: bool) -> Iterator[None]:
        """Gradients of all but the last batch of a step stay on their process."""
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
        gradients = [(p, p.grad) for p in self.parameters if p.grad is not None]
        local = [g.to_local() if isinstance(g, DTensor) else g for _, g in gradients]
        squares = torch.stack(torch._foreach_norm(local)).square()
        cut = torch.tensor([p in self._cut for p, _ in gradients], device=squares.device)
        sums = torch.stack((squares.where(cut, 0.0).sum(), squares.where(~cut, 0.0).sum()))
        if self._sharded:
            dist.all_reduce(sums, group=distributed.data_parallel_group())
        parts, wholes = sums.unbind()
        if distributed.model_parallel_size() > 1:
            dist.all_reduce(parts, group=distributed.model_parallel_group())
        norm = (parts + wholes).sqrt().item()
        if norm > self.config.clip:
            torch._foreach_mul_(local, self.config.clip / norm)
        return norm

    @contextlib.contextmanager
    def generating(self) -> Iterator[None]:
        """In which the model itself may be called, on all processes alike."""
        if isinstance(self.module, FSDPModule):
            self.module.unshard()
        with self.computing(), torch.no_grad():
            yield
        if isinstance(self.module, FSDPModule):
            self.module.reshard()

    def whole_weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """This rank's weights on the CPU, put together from all data parallel processes.

        All of them call it; only the first gets any.
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
    """AdamW (Loshchilov and Hutter, 2019), or Muon for the blocks' matrices and it for the rest.

    Norms do not decay. One learning rate is for both.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = {
        name
        for name, p in trained.items()
        if config.optimizer == "muon" and p.dim() == 2 and name.startswith("layers.")
    }
    rest = [p for name, p in trained.items() if name not in matrices]
    groups = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    found: list[torch.optim.Optimizer] = []
    if groups:
        found.append(torch.optim.AdamW(groups, betas=config.betas, fused=True))
    if matrices:
        chosen = [trained[name] for name in sorted(matrices)]
        found.append(Muon(chosen, config.weight_decay, dtype))
    return found


def _ties(config: TrainConfig, base: Checkpoint | None) -> bool:
    if config.tie_embeddings is None:
        return base is None or base.tied
    return config.tie_embeddings


def _first_weight(name: str, shape: tuple[int, ...], args: ModelArgs, seed: int) -> Tensor:
    """A norm's weights are 1; others are drawn, smaller where they add to the residual stream."""
    if len(shape) == 1:
        return torch.ones(shape)
    std = 0.02
    if name.endswith(("wo.weight", "w2.weight")):
        std /= math.sqrt(2 * args.n_layers)  # Radford et al. (2019)
    return torch.empty(shape).normal_(0, std, generator=torch.Generator().manual_seed(seed))


def _cut_parameters(model: Transformer) -> set[Tensor]:
    """Those of which each rank that shares the model has a part."""
    ranks = distributed.model_parallel_size()
    if ranks == 1:
        return set()
    whole, local = weight_shapes(model.params), weight_shapes(model.params, ranks)
    cut: set[Tensor] = {
        p for name, p in model.named_parameters() if whole.get(name) != local.get(name)
    }
    for layer in model.modules():
        if isinstance(layer, LoRALinear):
            cut.add(layer.lora_A if layer.input_is_parallel else layer.lora_B)
    return cut


def keep_freed_memory() -> None:
    """Lets glibc keep large blocks that are freed instead of handing them back to the kernel.

    Activations are freed and wanted again at every step; faulting their pages in anew took a third
    of the time. Elsewhere than on glibc nothing happens.
    """
    m_trim_threshold, m_mmap_max = -1, -4
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(m_mmap_max, 0)
            mallopt(m_trim_threshold, 2**31 - 1)
