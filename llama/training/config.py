"""How to train: every setting, its default, and the learning rate that follows from them."""

import math
from dataclasses import dataclass

import torch

from llama import distributed
from llama.args import ModelArgs
from llama.errors import InputError
from llama.lora.adapter_layers import LoraConfig
from llama.quantization import packed_formats

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd")
DATA_PARALLEL = ("ddp", "fsdp")
_LONGEST = 1024  # tokens of a sequence, unless more are asked for
_AT_ONCE = 4096  # tokens that a process computes at a time, unless a number is given


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. None stands for what follows from the model and the data.

    A step takes `batch_size` sequences of `seq_len` tokens, over all processes: the same numbers
    give the same run on any number of them. Raises ValueError for a value out of its range.
    """

    epochs: float = 1.0  # passes over the documents
    steps: int | None = None  # instead of epochs
    seq_len: int | None = None  # None: the model's context, at most 1024
    batch_size: int = 16
    micro_batch_size: int | None = None  # sequences a process takes at a time; None: 4096 tokens
    learning_rate: float | None = None  # None: see `default_learning_rate`
    final_learning_rate: float = 0.0  # as a share of learning_rate
    optimizer: str = "adamw"  # or muon (Jordan et al., 2024) for the blocks' matrices
    schedule: str = "cosine"  # or wsd: stable, then linearly down in the last `decay` of the steps
    decay: float = 0.2
    warmup_steps: int | None = None  # None: 100, at most a tenth of the steps
    weight_decay: float = 0.1  # of matrices; norms have none
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # of the gradient's norm
    dtype: torch.dtype | None = None  # of products, see `products`; trained weights are float32
    data_parallel: str | None = None  # ddp or fsdp; None: fsdp on GPUs, else ddp
    model_parallel_size: int = 1
    activation_checkpointing: bool = False  # blocks are computed again for the gradient
    compile: bool = False
    tie_embeddings: bool | None = None  # None: as the base has it; from nothing, tied
    lora: LoraConfig | None = None
    quantize: str | None = None  # the frozen weights below an adapter
    eval_every: int | None = None  # steps; None: 20 times in a run, but every 250 at the latest
    save_every: int | None = None  # steps; None: as eval_every
    patience: int | None = None  # evaluations without a better one after which it stops
    samples: int = 2  # held-out documents whose beginnings are continued, to look at
    seed: int = 1

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "steps", "seq_len", "batch_size", "micro_batch_size", "clip"),
            *("learning_rate", "model_parallel_size", "eval_every", "save_every", "patience"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name}={value} should be greater than 0")
        for name in ("final_learning_rate", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} is a share, from 0 to 1")
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("data_parallel", self.data_parallel, (None, *DATA_PARALLEL)),
            ("quantize", self.quantize, (None, *packed_formats.PACKED)),
        ):
            if value not in known:
                raise InputError(f"{name}={value!r} is none of {', '.join(filter(None, known))}")
        if self.dtype not in (None, torch.bfloat16, torch.float32):
            raise InputError(
                f"dtype {str(self.dtype).removeprefix('torch.')} has too small a range to train "
                "in; use bfloat16 or float32"
            )
        if self.weight_decay < 0 or (self.warmup_steps or 0) < 0:
            raise InputError("weight_decay and warmup_steps should be 0 or more")
        if self.optimizer == "muon" and (
            self.model_parallel_size > 1 or self.data_parallel == "fsdp"
        ):
            raise InputError(
                "muon needs each matrix whole: data_parallel ddp, model_parallel_size 1"
            )
        if self.quantize and not self.lora:
            raise InputError(
                f"quantize={self.quantize!r} is for the frozen weights below an adapter: "
                "give lora as well, or train in bfloat16"
            )
        if self.lora and self.data_parallel == "fsdp":
            raise InputError(
                "an adapter is trained with ddp, its frozen weights cut by model_parallel_size"
            )

    def products(self, device: torch.device, packed: bool = False) -> torch.dtype:
        """`dtype`; else bfloat16 where `device` multiplies it or weights are packed, or float32."""
        if self.dtype is not None:
            return self.dtype
        if packed or self.quantize:
            return torch.bfloat16
        best = distributed.select_dtype(device)
        return torch.float32 if best == torch.float16 else best

    def sequence(self, args: ModelArgs) -> int:
        """Tokens of a sequence. Raises ValueError for more than the model's context."""
        if self.seq_len is None:
            return min(args.max_seq_len, _LONGEST)
        if self.seq_len > args.max_seq_len:
            raise InputError(
                f"seq_len={self.seq_len} is more than the {args.max_seq_len} positions of the "
                "model (max_seq_len); train on shorter sequences, or make a model for longer ones"
            )
        return self.seq_len

    def rows_at_once(self, seq_len: int, processes: int) -> int:
        """Sequences that one of `processes` computes at a time, of its share of a batch."""
        if self.batch_size % processes:
            raise InputError(
                f"batch_size={self.batch_size} is not divisible by the {processes} processes that "
                "share it"
            )
        at_most = self.micro_batch_size or max(_AT_ONCE // seq_len, 1)
        return min(at_most, self.batch_size // processes)


def default_learning_rate(args: ModelArgs, from_base: bool, lora: bool) -> float:
    """What usually works: 2e-4 for an adapter, 2e-5 for a whole trained model.

    From nothing it falls with the width, as GPT-3's do (Brown et al., 2020, table 2.1: 6e-4 for
    768, 1.2e-4 for 4096).
    """
    if lora:
        return 2e-4
    return 2e-5 if from_base else 0.46 / args.dim


def learning_rate(config: TrainConfig, highest: float, step: int, steps: int) -> float:
    """The rate of a step: up linearly, then by the schedule down to `final_learning_rate`.

    The cosine is that of Loshchilov and Hutter (2017), warm-up-stable-decay that of Hu et al.
    (2024, MiniCPM).
    """
    warmup = min(100, steps // 10) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return highest * (step + 1) / warmup
    if config.schedule == "cosine":
        done = min((step - warmup) / max(1, steps - warmup), 1)
        share = (1 + math.cos(math.pi * done)) / 2
    else:
        share = min((steps - step) / max(config.decay * steps, 1), 1)
    return highest * (config.final_learning_rate + (1 - config.final_learning_rate) * share)
