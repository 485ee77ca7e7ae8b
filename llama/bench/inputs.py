"""What the contenders of `llama bench` read: the same weights, in the form that each of them wants.

A shape without weights gets random numbers, which take as long as others. llama.cpp reads GGUF:
the rows of wq and wk stay in Meta's order there, and rotary scaling is a divisor of each frequency.
"""

import base64
import functools
import json
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from llama import console
from llama.args import ModelArgs, weight_shapes
from llama.bench.plan import Plan
from llama.bench.report import TRANSFORMERS, bytes_read
from llama.bench.workers import Failed, Worker
from llama.checkpoint.convert import convert
from llama.checkpoint.memory import this_machine
from llama.checkpoint.meta_layout import write_params
from llama.checkpoint.opening import Checkpoint, open_checkpoint
from llama.errors import InputError
from llama.model import rotary_frequencies
from llama.storage.files import short_size
from llama.storage.tensor_files import Entry, write_tensors

_BLOCK = 2**24  # random numbers that are made at a time
_GGUF_NAMES = {
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


def make_checkpoint(folder: str | Path, args: ModelArgs, tied: bool) -> None:
    """Writes a checkpoint of random numbers of that shape: Meta's layout, bfloat16, no tokenizer.

    `tied`: the output layer is the embedding, and stored once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    entries: dict[str, Entry] = {}
    for seed, (name, shape) in enumerate(weight_shapes(args).items()):
        blocks = functools.partial(_random, shape, seed)
        entries[name] = Entry(torch.bfloat16, shape, blocks)
    if tied:
        entries["output.weight"] = entries["tok_embeddings.weight"]
    total = sum(entry.nbytes for entry in dict.fromkeys(entries.values()))
    with console.progress(total, f"Making {folder}") as bar:
        write_tensors(folder / "consolidated.00.pth", entries, bar.update)
    (folder / "params.json").write_text(json.dumps(write_params(args)))


def _random(shape: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    if len(shape) == 1:
        yield torch.ones(shape, dtype=torch.bfloat16)
        return
    rows, inputs = shape
    generator = torch.Generator().manual_seed(seed)
    step = max(_BLOCK // inputs, 1)
    for start in range(0, rows, step):
        block = torch.empty(min(step, rows - start), inputs)
        yield block.normal_(0, 0.02, generator=generator).bfloat16()


def make_tokenizer(path: str | Path, vocab_size: int) -> None:
    """Writes a made-up tokenizer of so many tokens, for a checkpoint that has none."""
    if vocab_size < 512:
        raise InputError(
            f"no tokenizer can be made up for {vocab_size} tokens: bytes and special tokens are "
            "512; put the checkpoint's own tokenizer.model into its folder"
        )
    tokens = [bytes([i]) for i in range(256)] + [b"%07d" % i for i in range(vocab_size - 512)]
    lines = (b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens))
    Path(path).write_bytes(b"".join(lines))


def gguf_name(name: str) -> str:
    """llama.cpp's name of a weight of Meta's."""
    stem = name.removesuffix(".weight")
    if stem in _GGUF_NAMES:
        return f"{_GGUF_NAMES[stem]}.weight"
    _, layer, rest = stem.split(".", 2)
    return f"blk.{layer}.{_GGUF_NAMES[rest]}.weight"


def write_gguf(checkpoint: Checkpoint, path: str | Path) -> None:
    """Writes a checkpoint as llama.cpp reads it: matrices in bfloat16, no vocabulary."""
    import gguf

    args = checkpoint.args
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(args.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(args.max_seq_len)
    writer.add_embedding_length(args.dim)
    writer.add_block_count(args.n_layers)
    writer.add_feed_forward_length(args.hidden_dim)
    writer.add_head_count(args.n_heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_key_length(args.head_dim)
    writer.add_value_length(args.head_dim)
    writer.add_rope_dimension_count(args.head_dim)
    writer.add_rope_freq_base(args.rope_theta)
    writer.add_layer_norm_rms_eps(args.norm_eps)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    names = [n for n in weight_shapes(args) if not (n == "output.weight" and checkpoint.tied)]
    divisors = _frequency_divisors(args)
    if divisors is not None:
        _declare(writer, "rope_freqs.weight", divisors.shape)
    for name in names:
        _declare(writer, gguf_name(name), checkpoint.weights[name].shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors.numpy())
    for name in names:
        weight = checkpoint.weights[name]
        whole = tuple(slice(0, size) for size in weight.shape)
        if len(weight.shape) == 1:
            array = weight.read(whole, torch.device("cpu"), torch.float32)
        else:
            array = weight.read(whole, torch.device("cpu"), torch.bfloat16).view(torch.uint16)
        writer.write_tensor_data(array.numpy())
    writer.close()


def _declare(writer, name: str, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    """Announces a tensor: float32 if it is a vector, bfloat16 (as numpy has it, uint16) if not."""
    import gguf
    import numpy

    count = torch.Size(shape).numel()
    if len(shape) == 1:
        writer.add_tensor_info(name, shape, numpy.dtype("float32"), 4 * count)
    else:
        kind = gguf.GGMLQuantizationType.BF16
        writer.add_tensor_info(name, shape, numpy.dtype("uint16"), 2 * count, raw_dtype=kind)


def _frequency_divisors(args: ModelArgs) -> Tensor | None:
    """What llama.cpp divides each rotary frequency by; None where they are not scaled."""
    if not args.use_scaled_rope:
        return None
    plain = rotary_frequencies(args.head_dim, args.rope_theta)
    scaled = rotary_frequencies(
        args.head_dim,
        args.rope_theta,
        True,
        args.rope_scaling_factor or 1.0,
        args.rope_low_freq_factor,
        args.rope_high_freq_factor,
        args.rope_original_seq_len,
    )
    return plain / scaled


def gguf_bytes_read(path: str | Path) -> int:
    """Bytes of the matrices that a token multiplies; the embedding only where it is the output."""
    import gguf

    sizes = {str(t.name): int(t.n_bytes) for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1}
    if "output.weight" in sizes:
        del sizes["token_embd.weight"]
    return sum(sizes.values())


def _check_room(plan: Plan, folder: Path) -> None:
    """Raises OSError or ValueError where files do not fit the disk, or contenders the memory."""
    parameters, checkpoint = plan.facts.parameters(), plan.facts.checkpoint
    size = {"bfloat16": 2.0, "BF16": 2.0, "int8": 1.07, "Q8_0": 1.07, "int4": 0.7, "Q4_0": 0.7}
    specs = plan.contenders
    files = 2.0 * (checkpoint is None) + 2.0 * (TRANSFORMERS in specs)
    ggufs = {spec["format"] for spec in specs.values() if spec["kind"] == "llama.cpp"}
    files += sum(size[name] for name in ({"BF16"} | ggufs if ggufs else ()))
    free = shutil.disk_usage(folder).free
    if files * parameters > free:
        raise OSError(
            f"{folder.parent} needs {short_size(files * parameters)} for weights and has "
            f"{short_size(free)} left; make room, or set TMPDIR to a folder on another disk"
        )
    needed = sum(size[spec["format"]] for spec in specs.values()) * parameters
    place = next(p for p in this_machine(parameters) if _is_place_of(p.name, plan.device))
    if needed > place.memory:
        raise InputError(
            f"{len(specs)} contenders at a time take {short_size(needed)}, and {place.name} is "
            f"{short_size(place.memory)}; take fewer, such as --quantize int4 --peers none"
        )


def _is_place_of(name: str, device: torch.device) -> bool:
    return ("GPU" in name) == (device.type != "cpu")


def prepare(
    plan: Plan, path: str, folder: Path, failures: dict[str, str]
) -> tuple[dict[str, str], dict[str, float]]:
    """Makes what has to be made; where each contender reads, and bytes of weights of its steps.

    Whose file can't be made is not among them, but with the reason in `failures`.
    """
    _check_room(plan, folder)
    facts = plan.facts
    if facts.checkpoint is None:
        path = str(folder / "meta")
        size = short_size(2 * facts.parameters())
        console.say(f"{facts.source} has no weights: making random ones, {size}, in {folder}")
        make_checkpoint(path, facts.args, bool(facts.tied))
    checkpoint = open_checkpoint(path)
    if checkpoint.tokenizer is None:
        make_tokenizer(folder / "tokenizer.model", facts.args.vocab_size)
    paths = {name: path for name in plan.formats}
    weights = {name: bytes_read(facts.args, name) for name in plan.formats}
    if TRANSFORMERS in plan.peers:
        paths[TRANSFORMERS] = _hugging_face_folder(checkpoint, path, folder / "hf")
        weights[TRANSFORMERS] = bytes_read(facts.args, "bfloat16")
    if "llama.cpp" in plan.peers:
        source = folder / "BF16.gguf"
        write_gguf(checkpoint, source)
        for name, spec in plan.contenders.items():
            if spec["kind"] != "llama.cpp":
                continue
            target = folder / f"{spec['format']}.gguf"
            if target != source:
                quantizing = {**spec, "kind": "quantizing", "source": str(source)}
                worker = Worker(name, plan, {**quantizing, "path": str(target)}, folder)
                try:
                    worker.answer()
                except Failed as failed:
                    failures[name] = str(failed)
                    continue
                finally:
                    worker.end()
            paths[name], weights[name] = str(target), gguf_bytes_read(target)
    # Whoever comes first would else read from the disk, and the others from memory.
    for file in Path(path).iterdir() if Path(path).is_dir() else ():
        with file.open("rb") as stream:
            while stream.read(2**24):
                pass
    return paths, weights


def _hugging_face_folder(checkpoint: Checkpoint, path: str, folder: Path) -> str:
    """The checkpoint itself if transformers reads just the same from it, else a converted one."""
    dtypes = {weight.dtype for weight in checkpoint.weights.values()}
    if checkpoint.layout == "hf" and dtypes == {torch.bfloat16} and Path(path).is_dir():
        return path
    with redirect_stdout(StringIO()):
        convert(path, str(folder), to="hf", dtype="bfloat16")
    return str(folder)
