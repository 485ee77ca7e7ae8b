"""`llama train`: from text, or a checkpoint and text, to a folder that `Llama.build` runs.

llama train --data_path stories.txt --model_path my-llama               # a new model
llama train --data_path dialogs.jsonl --model_path mine --base Llama-3.2-1B-Instruct --lora
torchrun --nnodes 2 ... -m llama.training --data_path ... --params params/Llama-3.2-1B ...
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
from cyclopts import Parameter
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from llama import console, distributed
from llama.args import ModelArgs
from llama.checkpoint.meta_layout import read_params
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.dialog import default_tool_format
from llama.errors import InputError, MissingFileError
from llama.lora.adapter_layers import LoraConfig
from llama.storage.files import expand
from llama.tokenization.bpe import SPECIAL_TOKENS, Kind, train_tokenizer
from llama.tokenizer import Tokenizer
from llama.training.config import TrainConfig
from llama.training.documents import find_sources, read_texts
from llama.training.loop import check_folder, train
from llama.training.state import locked
from llama.training.tokenized import cpu_cores, tokenize

# For text of some megabytes.
_SHAPE = {"dim": 256, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "max_seq_len": 1024}
_VOCAB_SIZE = 4096
_DEFAULTS = TrainConfig()

_NewModel = Parameter(group="New model")
_LoRA = Parameter(group="LoRA")


def train_command(
    data_path: str,
    model_path: str,
    config: TrainConfig = _DEFAULTS,
    *,
    valid_data_path: str | None = None,
    base: str | None = None,
    tokenizer_path: str | None = None,
    num_gpus: int | None = None,
    device: str | None = None,
    skip_bad_lines: bool = False,
    params: Annotated[str | None, _NewModel] = None,
    dim: Annotated[int | None, _NewModel] = None,
    n_layers: Annotated[int | None, _NewModel] = None,
    n_heads: Annotated[int | None, _NewModel] = None,
    n_kv_heads: Annotated[int | None, _NewModel] = None,
    max_seq_len: Annotated[int | None, _NewModel] = None,
    vocab_size: Annotated[int | None, _NewModel] = None,
    lora: Annotated[bool, _LoRA] = False,
    lora_r: Annotated[int | None, _LoRA] = None,
    lora_alpha: Annotated[float | None, _LoRA] = None,
    lora_targets: Annotated[str | None, _LoRA] = None,
    torchrun_flags: Annotated[Sequence[str] | None, Parameter(parse=False)] = None,
) -> None:
    """Trains a model on text or dialogs. After Ctrl-C or a crash the same command resumes.

    Args:
        data_path: .txt or .jsonl files to train on: a file, a folder, a pattern, or several with
            commas. A line of .jsonl is {"text"}, {"prompt", "response"} or {"messages"}.
        model_path: folder for the finished model.
        valid_data_path: such files for validation; the best model on them is kept.
        base: folder of a checkpoint to start from, in either layout.
        tokenizer_path: by default that of base; for a new model one is trained on the text.
        num_gpus: processes that train, each on a GPU, or without GPUs on a share of the cores; by
            default one per GPU.
        device: cuda, mps or cpu; by default the best one.
        skip_bad_lines: count lines that can't be read instead of stopping at the first.
        params: a params.json, or its folder, with the shape of a new model.
        dim: width of a new model; by default 256, with 6 layers and 8 heads.
        n_layers: blocks of a new model.
        n_heads: its attention heads.
        n_kv_heads: its heads of keys and values.
        max_seq_len: its context.
        vocab_size: tokens of a new tokenizer, 256 special ones included; by default 4096.
        lora: train an adapter and leave the weights of base as they are.
        lora_r: its rank, by default 16.
        lora_alpha: its scale times the rank, by default 32.
        lora_targets: the layers it adapts, by default wq,wk,wv,wo,w1,w2,w3.
        torchrun_flags: command line of which to start several processes; a Python program has none.
    """
    chosen = distributed.select_device(device)
    targets = None if lora_targets is None else tuple(lora_targets.split(","))
    adapter = _without_none({"r": lora_r, "alpha": lora_alpha, "targets": targets})
    if adapter and not lora:
        raise InputError(f"--lora_{', --lora_'.join(adapter)} is for an adapter: give --lora too")
    if lora:
        config = dataclasses.replace(config, lora=LoraConfig(seed=config.seed, **adapter))
    config.check_validation(valid_data_path is not None)
    shape = _without_none(
        {"dim": dim, "n_layers": n_layers, "n_heads": n_heads, "n_kv_heads": n_kv_heads}
    )
    folder = Path(expand(model_path))
    check_folder(folder)
    for path in (data_path, valid_data_path):
        if path is not None:
            find_sources(path)
    checkpoint = None if base is None else open_checkpoint(base)
    if lora and checkpoint is None:
        raise InputError("an adapter is trained on a model: give --base, the checkpoint to adapt")
    if checkpoint is not None and tokenizer_path is None:
        tokenizer_path = checkpoint.tokenizer
        if tokenizer_path is None:
            raise MissingFileError(f"no tokenizer.model in {base}; give --tokenizer_path")
    tokenizer = None if tokenizer_path is None else Tokenizer(tokenizer_path)
    if tokenizer and vocab_size is not None:
        raise InputError(
            f"--vocab_size {vocab_size} is for a new tokenizer, and {tokenizer.model_path} is used"
        )
    n_words = tokenizer.n_words if tokenizer else vocab_size or _VOCAB_SIZE
    args = _model_args(checkpoint, params, shape, max_seq_len, n_words)
    config.sequence_length(args)

    if _ran_as_torchrun(num_gpus, chosen, torchrun_flags):
        return
    distributed.initialize(config.model_parallel_size, chosen)
    with locked(folder):
        if tokenizer is None:
            tokenizer = _new_tokenizer(data_path, folder, n_words, skip_bad_lines)
            args = dataclasses.replace(args, vocab_size=tokenizer.n_words)
        read = functools.partial(
            tokenize,
            tokenizer=tokenizer,
            skip_bad_lines=skip_bad_lines,
            tool_format=default_tool_format(args),
        )
        train(
            folder,
            tokenizer,
            read(data_path),
            config,
            args=args,
            base=base,
            held_out=() if valid_data_path is None else read(valid_data_path),
            device=chosen,
        )


@functools.wraps(train_command)
def train_from_command_line(*args: Any, **kwargs: Any) -> None:
    """`train_command` for the `llama` command, which may act as torchrun."""
    flags = sys.argv[2:] if sys.argv[1:2] == ["train"] else None  # else called by a program
    train_command(*args, **kwargs, torchrun_flags=flags)


def tokenizer_command(
    data_path: str,
    out: str,
    vocab_size: int = _VOCAB_SIZE,
    kind: Kind = "tiktoken",
    digits: bool = False,
    skip_bad_lines: bool = False,
) -> None:
    """Trains a tokenizer on text and writes its file.

    Args:
        data_path: .txt or .jsonl files: a file, a folder, a pattern, or several with commas.
        out: the file to write; an existing one is not replaced.
        vocab_size: of all tokens, special ones included (Llama 3 has 256 of these, Llama 2 has 3).
        kind: tiktoken, as Llama 3's, or sentencepiece, as Llama 2's.
        digits: no token has several digits; small models do sums better so.
        skip_bad_lines: count lines that can't be read instead of stopping at the first.
    """
    path = Path(expand(out))
    if path.exists():
        raise FileExistsError(
            f"{path} is there already, and models may depend on it; give another name, or remove it"
        )
    sources = find_sources(data_path)
    size = sum(source.stat().st_size for source in sources)
    with console.progress(size, "Reading") as bar:

        def texts() -> Iterator[str]:
            for text in read_texts(sources, skip_bad_lines):
                bar.update(len(text))
                yield text

        found = train_tokenizer(texts(), vocab_size - SPECIAL_TOKENS[kind], path, kind, digits)
    console.say(f"{path}: {found:,} tokens, {SPECIAL_TOKENS[kind]} of them special")


def _ran_as_torchrun(
    count: int | None, device: torch.device, torchrun_flags: Sequence[str] | None
) -> bool:
    """Runs `count` processes of this command, if it is more than one, as torchrun does."""
    if "RANK" in os.environ:
        if count not in (None, int(os.environ["WORLD_SIZE"])):
            raise InputError(
                f"num_gpus={count}, but torchrun started {os.environ['WORLD_SIZE']} processes"
            )
        return False
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if count is None:
        count = 1 if torchrun_flags is None else max(gpus, 1)
    if count < 1 or (gpus and count > gpus):
        raise InputError(f"num_gpus={count} should be from 1 to the {gpus or 'number of'} GPUs")
    if count == 1:
        return False
    if torchrun_flags is None:
        raise InputError(
            f"num_gpus={count}: a Python program trains in its own process; start several with "
            "`llama train` or torchrun"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cpu_cores() // count, 1)))
    settings = ["--standalone", "--nproc_per_node", str(count), "-m", "llama.training"]
    try:
        torchrun.run(torchrun.parse_args([*settings, *torchrun_flags]))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError:  # the processes have printed why
        sys.exit(1)
    return True


def _new_tokenizer(
    data_path: str, folder: Path, vocab_size: int, skip_bad_lines: bool
) -> Tokenizer:
    """The tokenizer of a run's folder; at the first call it is trained on the text."""
    path = folder / "tokenizer.model"
    if console.is_main() and not path.exists():
        console.notice(f"{path}: training a tokenizer of {vocab_size:,} tokens on {data_path}")
        texts = read_texts(find_sources(data_path), skip_bad_lines)
        train_tokenizer(texts, vocab_size - SPECIAL_TOKENS["tiktoken"], path)
    dist.barrier()
    return Tokenizer(path)


def _model_args(
    base: Checkpoint | None,
    params: str | None,
    shape: dict[str, Any],
    max_seq_len: int | None,
    vocab_size: int,
) -> ModelArgs:
    """The shape of the base, of a params.json, or of the settings given and the defaults."""
    context = _without_none({"max_seq_len": max_seq_len})
    flags = [f"--{key}" for key in shape]
    if base is not None:
        path, length = base.folder.path, base.args.max_seq_len
        if flags := flags + ["--params"] * (params is not None):
            raise InputError(f"--base {path} has a shape: leave out {', '.join(flags)}")
        if max_seq_len is not None and max_seq_len > length:
            raise InputError(f"--max_seq_len {max_seq_len}: {path} has {length} positions")
        return dataclasses.replace(base.args, **context)
    if params is not None:
        if flags:
            raise InputError(f"--params {params} says the shape: leave out {', '.join(flags)}")
        file = Path(expand(params))
        file = file / "params.json" if file.is_dir() else file
        return read_params(file, vocab_size=vocab_size, **context)
    settings = {**_SHAPE, **shape, **context}
    return ModelArgs(**settings, rope_theta=500000.0, vocab_size=vocab_size)


def _without_none(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
