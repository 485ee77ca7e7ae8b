"""How to train: every setting with its default, which are also the flags of `llama train`.

The string below a field is its text in `llama train --help`.
"""

import math
import numbers
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from cyclopts import Parameter, Token

from llama import distributed
from llama.args import ModelArgs
from llama.errors import InputError, InputTypeError
from llama.lora.adapter_layers import LoraConfig

_DEFAULT_SEQ_LEN = 1024
_MICRO_BATCH_TOKENS = 4096
_MAY_BE_ZERO = {
    *("final_learning_rate", "decay", "warmup_steps", "weight_decay", "samples", "seed"),
}
_AT_MOST_ONE = {"final_learning_rate", "decay"}


def _dtype(_: object, tokens: Sequence[Token]) -> torch.dtype:
    return distributed.select_dtype(torch.device("cpu"), tokens[0].value)


@Parameter(name="*", group="Training")
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. None stands for what follows from the model and the data.

    A step takes `batch_size` sequences of `seq_len` tokens, over all processes. In float32 the same
    settings give the same losses to 7 digits on any number of processes; in bfloat16 they drift
    apart by its rounding. Raises ValueError or TypeError for a value out of its range.
    """

    epochs: Annotated[float, Parameter(name=("--num-epochs", "--epochs"))] = 1.0
    """passes over the text"""
    steps: int | None = None
    """optimizer steps, instead of num_epochs"""
    batch_size: int = 16
    """sequences of a step, over all processes"""
    seq_len: int | None = None
    """tokens of a sequence; by default the model's context, at most 1024"""
    micro_batch_size: int | None = None
    """sequences a process computes at a time, the rest is accumulated; by default 4096 tokens"""
    learning_rate: float | None = None
    """the highest; by default 0.46 / dim for a new model, 2e-5 from a base, 2e-4 with lora"""
    final_learning_rate: float = 0.0
    """the last, as a share of learning_rate"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon (Jordan et al., 2024) is for the blocks' matrices, where it learns more from a step"""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """of the learning rate; wsd is warm-up, stable, then linear decay"""
    decay: float = 0.2
    """share of the steps in which wsd decays"""
    warmup_steps: int | None = None
    """steps of linear warm-up; by default 100, at most a tenth of the steps"""
    weight_decay: float = 0.1
    """of matrices; norms have none"""
    betas: Annotated[tuple[float, float], Parameter(negative="")] = (0.9, 0.95)
    """AdamW's"""
    clip: float = 1.0
    """the largest norm of the gradient"""
    dtype: Annotated[torch.dtype | None, Parameter(converter=_dtype)] = None
    """bfloat16 or float32, of matrix products; trained weights are float32"""
    data_parallel: Literal["ddp", "fsdp"] | None = None
    """fsdp shards weights and optimizer over processes; by default fsdp on GPUs, ddp on CPUs"""
    model_parallel_size: int = 1
    """processes that share each layer"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more time"""
    compile: bool = False
    """use torch.compile"""
    tie_embeddings: bool | None = None
    """share the weights of embedding and output layer; by default as base, a new model does"""
    lora: Annotated[LoraConfig | None, Parameter(parse=False)] = None
    quantize: Literal["int8", "int4"] | None = None
    """format of the frozen weights under an adapter"""
    eval_every: int | None = None
    """steps between evaluations; by default a twentieth of the run, at most 250"""
    save_every: int | None = None
    """steps between saved states; by default as eval_every"""
    patience: int | None = None
    """stop after so many evaluations without a better one"""
    samples: int = 2
    """validation documents whose beginnings are continued at each evaluation"""
    seed: int = 1
    """of first weights and order"""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            _check(name, getattr(self, name), hint)
        if self.dtype not in (None, torch.bfloat16, torch.float32):
            raise InputError(
                f"dtype {str(self.dtype).removeprefix('torch.')} has too small a range to train "
                "in; use bfloat16 or float32"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas={self.betas} should be from 0 to less than 1")
        if self.seed >= 2**63:
            raise InputError(f"seed={self.seed} should be less than 2**63")
        if self.steps:
            self.check_warmup(self.steps)
        is_cut = self.model_parallel_size > 1 or self.data_parallel == "fsdp"
        if self.optimizer == "muon" and is_cut:
            raise InputError(
                "muon needs each matrix whole: data_parallel ddp, model_parallel_size 1"
            )
        if self.quantize and not self.lora:
            raise InputError(
                f"quantize={self.quantize!r} is for the frozen weights under an adapter: "
                "give lora as well, or train in bfloat16"
            )
        if self.lora and self.data_parallel == "fsdp":
            raise InputError(
                "an adapter is trained with ddp, its frozen weights cut by model_parallel_size"
            )

    def check_warmup(self, steps: int) -> None:
        """Raises ValueError where the warm-up does not end within `steps`."""
        if (self.warmup_steps or 0) > steps:
            raise InputError(f"warmup_steps={self.warmup_steps} is more than the {steps} steps")

    def check_validation(self, has_validation: bool) -> None:
        """Raises ValueError where a setting needs validation documents and there are none."""
        if self.patience and not has_validation:
            raise InputError(
                f"patience={self.patience} needs validation documents: give valid_data_path "
                "(held_out in Python)"
            )

    def compute_dtype(self, device: torch.device, packed: bool = False) -> torch.dtype:
        """`dtype`; else bfloat16 where `device` multiplies it or weights are packed, or float32."""
        if self.dtype is not None:
            return self.dtype
        if packed or self.quantize:
            return torch.bfloat16
        best = distributed.select_dtype(device)
        return torch.float32 if best == torch.float16 else best

    def sequence_length(self, args: ModelArgs) -> int:
        """Tokens of a sequence. Raises ValueError for more than the model's context."""
        if self.seq_len is None:
            return min(args.max_seq_len, _DEFAULT_SEQ_LEN)
        if self.seq_len > args.max_seq_len:
            raise InputError(
                f"seq_len={self.seq_len} is more than the {args.max_seq_len} positions of the "
                "model (max_seq_len); train on shorter sequences, or make a model for longer ones"
            )
        return self.seq_len

    def local_micro_batch_size(self, seq_len: int, processes: int) -> int:
        """Sequences that each of `processes` computes at a time.

        Raises ValueError where they can't share `batch_size` evenly.
        """
        if self.batch_size % processes:
            raise InputError(
                f"batch_size={self.batch_size} is not divisible by the {processes} processes that "
                "share it"
            )
        at_most = self.micro_batch_size or max(_MICRO_BATCH_TOKENS // seq_len, 1)
        return min(at_most, self.batch_size // processes)


def _check(name: str, value: Any, hint: Any) -> None:
    """Raises InputError where a setting is not of its type or out of its range."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return
    kind = kinds[0]
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(f"{name}={value!r} is none of {', '.join(get_args(kind))}")
        return
    if kind not in (int, float):
        return
    is_number = isinstance(value, numbers.Integral if kind is int else numbers.Real)
    if isinstance(value, bool) or not is_number:
        what = "whole number" if kind is int else "number"
        raise InputTypeError(f"{name}={value!r} should be a {what}")
    if not (0 < value < math.inf or (value == 0 and name in _MAY_BE_ZERO)):
        least = "0 or more" if name in _MAY_BE_ZERO else "greater than 0"
        raise InputError(f"{name}={value} should be {least}")
    if name in _AT_MOST_ONE and value > 1:
        raise InputError(f"{name}={value} should be a share, from 0 to 1")


def default_learning_rate(args: ModelArgs, from_base: bool, lora: bool) -> float:
    """What usually works: 2e-4 for an adapter, 2e-5 for a whole trained model.

    For a new model it falls with the width, as GPT-3's do (Brown et al., 2020, table 2.1: 6e-4 for
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
        factor = (1 + math.cos(math.pi * done)) / 2
    else:
        factor = min((steps - step) / max(config.decay * steps, 1), 1)
    return highest * (config.final_learning_rate + (1 - config.final_learning_rate) * factor)
