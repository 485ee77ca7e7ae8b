"""`llama train`: from text, or a checkpoint and text, to a folder that `Llama.build` runs.

llama train --data_path stories.txt --model_path my-llama               # from nothing
llama train --data_path dialogs.jsonl --model_path mine --base Llama-3.2-1B-Instruct --lora
torchrun --nnodes 2 ... -m llama.training --data_path ... --params params/Llama-3.2-1B ...
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from llama import console, distributed
from llama.args import ModelArgs
from llama.checkpoint.meta_layout import read_params
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.errors import InputError, MissingFileError
from llama.lora.adapter_layers import LoraConfig
from llama.tokenizer import Tokenizer
from llama.training.bpe import SPECIAL_TOKENS, train_tokenizer
from llama.training.config import TrainConfig
from llama.training.documents import find_sources, read_texts
from llama.training.loop import train
from llama.training.tokenized import tokenize

# That of the bundled model, for text of some megabytes.
_SHAPE = {"dim": 256, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "max_seq_len": 1024}


def train_command(
    data_path: str,
    model_path: str,
    valid_data_path: str | None = None,
    base: str | None = None,
    tokenizer_path: str | None = None,
    num_gpus: int | None = None,
    batch_size: int = 16,
    learning_rate: float | None = None,
    num_epochs: float = 1,
    steps: int | None = None,
    params: str | None = None,
    dim: int | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    n_kv_heads: int | None = None,
    max_seq_len: int | None = None,
    vocab_size: int = 4096,
    seq_len: int | None = None,
    micro_batch_size: int | None = None,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    decay: float = 0.2,
    warmup_steps: int | None = None,
    final_learning_rate: float = 0.0,
    weight_decay: float = 0.1,
    clip: float = 1.0,
    dtype: str | None = None,
    tie_embeddings: bool | None = None,
    lora: bool = False,
    lora_r: int = 16,
    lora_alpha: float = 32,
    lora_targets: str | tuple[str, ...] = ("wq", "wk", "wv", "wo", "w1", "w2", "w3"),
    quantize: str | None = None,
    data_parallel: str | None = None,
    model_parallel_size: int = 1,
    activation_checkpointing: bool = False,
    compile: bool = False,
    eval_every: int | None = None,
    save_every: int | None = None,
    patience: int | None = None,
    samples: int = 2,
    skip_bad_lines: bool = False,
    device: str | None = None,
    seed: int = 1,
) -> None:
    """Trains a model on text or dialogs; stopped, the same command goes on.

    Args:
        data_path: .txt or .jsonl files to learn from: a file, a folder, a pattern, or several. On
            a line of .jsonl stands {"text"}, {"prompt", "response"} or {"messages"}.
        model_path: folder that the finished model goes to.
        valid_data_path: the same kind of files, for evaluation; the best model on them is kept.
        base: folder of a checkpoint to start from, in either layout; from nothing if not given.
        tokenizer_path: that of base if not given; without a base one is learned from the text.
        num_gpus: how many processes train, on a GPU each or, without GPUs, on the cores of the CPU;
            all GPUs if not given. Under torchrun its own number holds.
        batch_size: sequences of a step, over all processes.
        learning_rate: the highest; 0.46 / dim from nothing, 2e-5 from a base, 2e-4 with lora.
        num_epochs: passes over the text.
        steps: how many steps to make, instead of num_epochs.
        params: a params.json, or its folder, that says the shape of a new model.
        dim: width of a new model; n_layers, n_heads, n_kv_heads and max_seq_len (its context) with
            it, of the bundled model's shape where not given.
        vocab_size: tokens of a new tokenizer, 256 special ones included.
        seq_len: tokens of a sequence, 1024 or the model's context if not given.
        micro_batch_size: sequences that a process computes at a time; the rest is accumulated.
        optimizer: adamw, or muon for the blocks' matrices, which learns more from a step.
        schedule: cosine, or wsd (warm-up, stable, decay).
        decay: the share of wsd's steps in which the rate goes down.
        warmup_steps: steps in which the rate goes up, 100 or a tenth of all if not given.
        final_learning_rate: the rate at the end, as a share of learning_rate.
        weight_decay: AdamW's, of matrices.
        clip: the largest norm of a gradient.
        dtype: bfloat16 or float32, of products; weights are kept in float32.
        tie_embeddings: whether embedding and output layer of a new model are the same weights.
        lora: train an adapter and leave the weights of base as they are.
        lora_r: rank of the adapter.
        lora_alpha: its scale, times the rank.
        lora_targets: the layers it adapts.
        quantize: int8 or int4, for the frozen weights below an adapter.
        data_parallel: ddp, or fsdp, which divides weights and optimizer among processes.
        model_parallel_size: processes that share each layer.
        activation_checkpointing: takes less memory and a third more time.
        compile: uses torch.compile.
        eval_every: steps between evaluations.
        save_every: steps between saved states.
        patience: stop after so many evaluations without a better one.
        samples: beginnings of held-out documents that are continued at each evaluation.
        skip_bad_lines: count lines that can't be read instead of stopping at the first.
        device: cuda, mps or cpu; the best one if not given.
        seed: of first weights and order.
    """
    chosen = distributed.select_device(device)
    _start_processes(num_gpus, chosen)
    distributed.initialize(model_parallel_size, chosen)
    targets = lora_targets.split(",") if isinstance(lora_targets, str) else lora_targets
    config = TrainConfig(
        epochs=num_epochs,
        steps=steps,
        seq_len=seq_len,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        learning_rate=learning_rate,
        final_learning_rate=final_learning_rate,
        optimizer=optimizer,
        schedule=schedule,
        decay=decay,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        clip=clip,
        dtype=None if dtype is None else distributed.select_dtype(chosen, dtype),
        data_parallel=data_parallel,
        model_parallel_size=model_parallel_size,
        activation_checkpointing=activation_checkpointing,
        compile=compile,
        tie_embeddings=tie_embeddings,
        lora=LoraConfig(r=lora_r, alpha=lora_alpha, targets=tuple(targets), seed=seed)
        if lora
        else None,
        quantize=quantize,
        eval_every=eval_every,
        save_every=save_every,
        patience=patience,
        samples=samples,
        seed=seed,
    )
    shape = {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    given = {key: value for key, value in shape.items() if value is not None}
    _check_start(base, params, given)
    find_sources(data_path)
    checkpoint = None if base is None else open_checkpoint(base)
    folder = Path(str(model_path))
    tokenizer = _tokenizer(
        tokenizer_path, checkpoint, data_path, folder, vocab_size, skip_bad_lines
    )
    held_out = (
        tokenize(valid_data_path, tokenizer, skip_bad_lines=skip_bad_lines)
        if valid_data_path
        else ()
    )
    train(
        folder,
        tokenizer,
        tokenize(data_path, tokenizer, skip_bad_lines=skip_bad_lines),
        config,
        args=_args(checkpoint, params, given, max_seq_len, tokenizer),
        base=base,
        held_out=held_out,
        device=chosen,
    )


def _start_processes(count: int | None, device: torch.device) -> None:
    """Becomes torchrun with `count` processes of this command, where it is more than one."""
    if "RANK" in os.environ:
        if count not in (None, int(os.environ["WORLD_SIZE"])):
            raise InputError(
                f"num_gpus={count}, but torchrun started {os.environ['WORLD_SIZE']} processes"
            )
        return
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    count = max(gpus, 1) if count is None else count
    if count < 1 or (gpus and count > gpus):
        raise InputError(f"num_gpus={count}, but this machine has {gpus}")
    if count == 1:
        return
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores // count, 1)))
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    runner += ["--nproc_per_node", str(count), "-m", "llama.training"]
    flags = sys.argv[1:]
    os.execv(sys.executable, [*runner, *flags[flags[:1] == ["train"] :]])


def _check_start(base: str | None, params: str | None, shape: dict[str, int]) -> None:
    if base is not None and (params is not None or shape):
        raise InputError(
            f"--base {base} has a shape of its own: leave out {'--params' if params else ''}"
            f"{', '.join(f'--{key}' for key in shape)}"
        )
    if params is not None and shape:
        raise InputError(f"--params {params} says the shape: leave out --{', --'.join(shape)}")


def _tokenizer(
    path: str | None,
    base: Checkpoint | None,
    data_path: str,
    folder: Path,
    vocab_size: int,
    skip_bad_lines: bool,
) -> Tokenizer:
    """The tokenizer that is given, that of the base, or one learned from the text."""
    if path is None and base is not None:
        path = base.tokenizer
        if path is None:
            raise MissingFileError(
                f"no tokenizer.model in {base.folder.path}; give --tokenizer_path"
            )
    if path is None:
        path = str(folder / "tokenizer.model")
        if console.is_main() and not Path(path).exists():
            folder.mkdir(parents=True, exist_ok=True)
            console.notice(f"{path}: learning {vocab_size} tokens from {data_path}")
            train_tokenizer(
                read_texts(find_sources(data_path), skip_bad_lines),
                vocab_size - SPECIAL_TOKENS["tiktoken"],
                path,
            )
        dist.barrier()
    return Tokenizer(path)


def _args(
    base: Checkpoint | None,
    params: str | None,
    shape: dict[str, int],
    max_seq_len: int | None,
    tokenizer: Tokenizer,
) -> ModelArgs:
    context: dict[str, Any] = {} if max_seq_len is None else {"max_seq_len": max_seq_len}
    if base is not None:
        args = base.args
        if max_seq_len is not None and max_seq_len > args.max_seq_len:
            raise InputError(
                f"--max_seq_len {max_seq_len}: {base.folder.path} has {args.max_seq_len} positions"
            )
        return ModelArgs(**{**vars(args), **context})
    if params is not None:
        file = Path(params)
        file = file / "params.json" if file.is_dir() else file
        return read_params(file, vocab_size=tokenizer.n_words, **context)
    new: dict[str, Any] = {**_SHAPE, **shape, **context, "rope_theta": 500000.0}
    return ModelArgs(**new, vocab_size=tokenizer.n_words)
