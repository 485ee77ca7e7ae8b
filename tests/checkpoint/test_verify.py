"""Checkpoints with one defect: `llama verify` names it, and they do not load.

The exceptions are in `ONLY_VERIFY_SEES`: loading reads no values and no checksums. What only a
list of checksums shows is in `test_a_file_without_checksum_is_named`.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures import write_shards
from safetensors.torch import load_file, save_file

from llama import Llama, Tokenizer, Transformer
from llama.checkpoint.convert import convert
from llama.checkpoint.opening import open_checkpoint
from llama.checkpoint.verify import examine, verify
from llama.lora.adapter_files import write_adapter
from llama.model import ModelArgs

TINY = Path(__file__).parents[2] / "params" / "tiny"
FIRST = "consolidated.00.pth"
SHARD = "consolidated.01.pth"
FILE = "model-00002-of-00004.safetensors"
NEXT = "model-00003-of-00004.safetensors"
INDEX = "model.safetensors.index.json"
WQ = "layers.1.attention.wq.weight"
Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "norm.weight"
NAN, INF = float("nan"), float("inf")
Damage = Callable[[Path], object]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def sound(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints with nothing wrong; `other-...` have other weights in the same shapes."""
    root = tmp_path_factory.mktemp("sound")
    params = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=4, multiple_of=16, norm_eps=1e-5)
    params["vocab_size"] = tokenizer.n_words
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.n_words,
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    for prefix, seed in (("", 0), ("other-", 1)):
        generator = torch.Generator().manual_seed(seed)
        ours, theirs = Transformer(ModelArgs(**params)), transformers.LlamaForCausalLM(config)
        for weight in (*ours.parameters(), *theirs.parameters()):
            weight.data = torch.randn(weight.shape, generator=generator)
        for count in (1, 2, 4):
            write_shards(root / f"{prefix}meta-{count}", ours.state_dict(), params, count)
        theirs.save_pretrained(root / f"{prefix}hf-1")
        theirs.save_pretrained(root / f"{prefix}hf-4", max_shard_size="70KB")
        theirs.to(torch.bfloat16).save_pretrained(root / f"{prefix}hf-bfloat16")
    shared = Transformer(ModelArgs(**{**params, "n_kv_heads": 2})).state_dict()
    write_shards(root / "meta-4-of-2-heads", shared, {**params, "n_kv_heads": 2}, 4)
    config.hidden_size, config.head_dim = 64, 16
    transformers.LlamaForCausalLM(config).save_pretrained(root / "wide")
    for folder in root.iterdir():
        shutil.copy(tokenizer.model_path, folder / "tokenizer.model")
    shutil.copytree(TINY, root / "tiny", ignore=shutil.ignore_patterns("README.md"))
    assert (root / "hf-4" / FILE).exists()
    return root


def problems_in(folder: Path) -> list[str]:
    return [text for kind, text in examine(str(folder)) if kind == "problem"]


def load(folder: Path) -> Llama:
    return Llama.build(folder, device="cpu", dtype="float32")


def change_json(name: str, **changes: Any) -> Damage:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **changes}))

    return change


def change_weights(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Rewrites a file, with a header and checksums that are right for its changed weights."""

    def rewrite(folder: Path) -> None:
        path = folder / name
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
        change(weights)
        if path.suffix == ".safetensors":
            save_file(weights, path, {"format": "pt"})
        else:
            torch.save(weights, path)

    return rewrite


def set_weight(name: str, key: str, change: Callable[[torch.Tensor], object]) -> Damage:
    """`change` returns another tensor, or None where it has changed the one it got."""

    def change_one(weights: dict[str, torch.Tensor]) -> None:
        changed = change(weights[key])
        if isinstance(changed, torch.Tensor):
            weights[key] = changed

    return change_weights(name, change_one)


def set_value(row: int, column: int, value: float) -> Callable[[torch.Tensor], None]:
    def change(weight: torch.Tensor) -> None:
        weight[row, column] = value

    return change


def change_header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Changes the JSON in a safetensors file and leaves the bytes of the tensors."""

    def rewrite(folder: Path) -> None:
        data = (folder / FILE).read_bytes()
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode().ljust(length)
        (folder / FILE).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return rewrite


def set_entry(**changes: Any) -> Damage:
    """Changes the second tensor of a safetensors header."""

    def change(header: dict[str, Any]) -> None:
        names = sorted(set(header) - {"__metadata__"}, key=lambda n: header[n]["data_offsets"])
        header[names[1]].update(changes)

    return change_header(change)


def share_bytes(header: dict[str, Any]) -> None:
    names = sorted(set(header) - {"__metadata__"})
    same = [(a, b) for a in names for b in names if a < b and header[a].keys() == header[b].keys()]
    a, b = next((a, b) for a, b in same if header[a]["shape"] == header[b]["shape"])
    header[b]["data_offsets"] = header[a]["data_offsets"]


def in_floats(header: dict[str, Any]) -> None:
    for name in set(header) - {"__metadata__"}:
        header[name]["data_offsets"] = [float(offset) for offset in header[name]["data_offsets"]]


def with_bytes(name: str, data: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, kept: float) -> Damage:
    """Keeps a part of a file, or so many bytes, or all but so many."""

    def change(folder: Path) -> None:
        size = (folder / name).stat().st_size
        os.truncate(folder / name, int(kept * size if 0 < kept < 1 else kept % size))

    return change


def zeroed(name: str) -> Damage:
    """As long as before, and with nothing written into it."""

    def empty(folder: Path) -> None:
        size = (folder / name).stat().st_size
        os.truncate(folder / name, 0)
        os.truncate(folder / name, size)

    return empty


def delete(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def copy(source: str, name: str) -> Damage:
    """`source` is a file beside it, or in another folder: `../sound` has all sound ones."""

    def change(folder: Path) -> None:
        shutil.copy(folder / source, folder / name)

    return change


def resave(source: str, name: str) -> Damage:
    """A copy of a shard that says it was written under the new name."""
    return lambda folder: torch.save(torch.load(folder / source), folder / name)


def misdirect(name: str) -> Damage:
    """Changes where a zip's directory says that a tensor lies."""

    def change(folder: Path) -> None:
        info = zipfile.ZipFile(folder / name).infolist()[-4]
        entry = [struct.pack("<I", at) + info.filename.encode() for at in (info.header_offset, 999)]
        data = (folder / name).read_bytes()
        assert data.count(entry[0]) == 1
        (folder / name).write_bytes(data.replace(*entry))

    return change


def unnamed(name: str) -> Damage:
    """As written to a stream: without its name in it."""

    def change(folder: Path) -> None:
        with (folder / name).open("r+b") as stream:
            weights = torch.load(stream)
            stream.seek(0)
            torch.save(weights, stream)
            stream.truncate()

    return change


def in_index(name: str) -> Damage:
    """Says in the index that a weight is in the file `name`."""

    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"]["model.layers.0.mlp.up_proj.weight"] = name
        (folder / INDEX).write_text(json.dumps(index))

    return change


def swap(one: str, other: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)

    return change


def forbid(name: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).chmod(0)
        if os.access(folder / name, os.R_OK):
            pytest.skip("root may read everything")

    return change


def flip(name: str, bit: int = 1) -> Damage:
    """Turns over one bit in the middle of the largest weight."""

    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        if name.endswith(".pth"):
            with zipfile.ZipFile(folder / name) as archive:
                largest = max(archive.infolist(), key=lambda info: info.file_size)
                place = largest.header_offset + 100 + largest.file_size // 2
        else:
            place = len(data) * 2 // 3
        data[place] ^= bit
        (folder / name).write_bytes(data)

    return change


class Runs:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("it-ran",)


def to_bin(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Hugging Face's older kind of file instead of the four."""

    def rewrite(folder: Path) -> None:
        weights: dict[str, Any] = {}
        for path in folder.glob("*.safetensors"):
            weights |= load_file(path)
            path.unlink()
        (folder / INDEX).unlink()
        change(weights)
        torch.save(weights, folder / "pytorch_model.bin")

    return rewrite


def listed(
    *names: str,
    change: Callable[[str], str] = str,
    kind: str = "md5",
    file: str = "checklist.chk",
) -> Damage:
    """Writes a list of the checksums at that moment, with its text changed."""

    def write(folder: Path) -> None:
        found = [(hashlib.new(kind, (folder / n).read_bytes()).hexdigest(), n) for n in names]
        text = "".join(f"{digest}  {name}\n" for digest, name in found)
        (folder / file).write_text(change(text))

    return write


def swap_tokens(folder: Path) -> None:
    lines = (folder / "tokenizer.model").read_text().splitlines()
    (a, i), (b, j) = lines[-1].split(), lines[-2].split()
    lines[-2:] = [f"{a} {j}", f"{b} {i}"]
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")


def both(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 2471645608\n"
META_1 = {
    "cut": (cut(FIRST, 0.5), r"consolidated\.00\.pth .*no complete \.pth file"),
    "page": (with_bytes(FIRST, PAGE), r"consolidated\.00\.pth .*web page"),
    "no params": (delete("params.json"), r"params\.json is not there"),
    "page for params": (with_bytes("params.json", PAGE), r"params\.json is a web page"),
    "cut params": (cut("params.json", 0.5), r"params\.json is not JSON"),
    "empty tokenizer": (with_bytes("tokenizer.model", b""), r"tokenizer\.model is empty"),
    "page for tokenizer": (with_bytes("tokenizer.model", PAGE), r"tokenizer\.model .*web page"),
    "cut tokenizer": (cut("tokenizer.model", 0.5), r"tokenizer\.model: .*cut off"),
    "other tokenizer": (copy(str(TINY / "tokenizer.model"), "tokenizer.model"), "tokenizer.model"),
}
META_4 = {
    **{f"cut at {n}": (cut(SHARD, n), rf"{SHARD} .*cut off") for n in (20, 0.1, 0.5, -99, -1)},
    **{
        f"no {i}": (delete(f"consolidated.{i:02d}.pth"), rf"consolidated\.{i:02d}\.pth is not")
        for i in range(3)
    },
    "no 3": (delete("consolidated.03.pth"), r"meta-4 has 3 shards.*get all 4"),
    "copied over another": (copy(SHARD, "consolidated.02.pth"), r"\.02\.pth was written as .*01"),
    "copied to another name": (copy(SHARD, "consolidated.04.pth"), r"\.04\.pth was written as"),
    "saved as another": (resave(SHARD, "consolidated.02.pth"), r"\.02\.pth holds the same .*01"),
    "saved as a fifth": (resave(SHARD, "consolidated.04.pth"), r"meta-4 has 5 shards.*all 4"),
    "swapped": (swap(SHARD, "consolidated.02.pth"), r"\.01\.pth was written as .*02\.pth"),
    "of another": (copy(f"../sound/other-meta-4/{SHARD}", SHARD), rf"{SHARD} is not of the same"),
    "of two": (copy(f"../sound/meta-2/{SHARD}", SHARD), rf"in .*{SHARD} is .*of shape"),
    "first of two": (
        copy("../sound/meta-2/consolidated.00.pth", "consolidated.00.pth"),
        r"meta-4 has 4 shards, but each holds 1/2",
    ),
    "int8": (set_weight(SHARD, WQ, lambda w: w.to(torch.int8)), rf"{SHARD} holds a CharStorage"),
    "float8": (set_weight(SHARD, WQ, lambda w: w.to(torch.float8_e4m3fn)), rf"{SHARD} holds"),
    "float64": (set_weight(SHARD, WQ, torch.Tensor.double), rf"{WQ} in .*{SHARD} is torch.float64"),
    "renamed": (
        change_weights(SHARD, lambda w: w.update(norm=w.pop(NORM))),
        rf"{SHARD} .*lacks 1 weight\(s\): {NORM}; has unexpected 1 weight\(s\): norm",
    ),
    "extra": (change_weights(SHARD, lambda w: w.update(a=w[NORM])), rf"{SHARD} .*unexpected 1 .*a"),
    "one less": (change_weights(SHARD, lambda w: w.pop(WQ)), rf"{SHARD} .*lacks 1 .*{WQ}"),
    "transposed": (
        set_weight(SHARD, "layers.0.feed_forward.w2.weight", lambda w: w.T.contiguous()),
        rf"w2\.weight in .*{SHARD} .*shape \(24, 32\)",
    ),
    "a row less": (set_weight(SHARD, WQ, lambda w: w[1:].clone()), rf"{WQ} in .*{SHARD} .*\(7, 32"),
    "a norm less": (set_weight(SHARD, NORM, lambda w: w[1:].clone()), rf"{NORM} in .*{SHARD}"),
    "nan in a norm": (set_weight(SHARD, NORM, lambda w: w / 0 * 0), rf"{SHARD}.*{NORM}"),
    "page": (with_bytes(SHARD, PAGE), rf"{SHARD} \(7\d bytes\) is a web page"),
    "pointer": (with_bytes(SHARD, POINTER), rf"{SHARD} .*git-lfs pointer.*git lfs pull"),
    "empty": (with_bytes(SHARD, b""), rf"{SHARD} .*is empty"),
    "zeros": (zeroed(SHARD), rf"{SHARD} .*all zeros"),
    "forbidden": (forbid(SHARD), rf"[Pp]ermission.*{SHARD}"),
    "folder": (as_folder(SHARD), rf"{SHARD} is not there"),
    "code": (
        lambda f: torch.save({NORM: Runs()}, f / SHARD),
        rf"{SHARD} holds posix\.mkdir .*was n",
    ),
    "no tensors": (
        lambda f: torch.save([1, 2], f / SHARD),
        rf"{SHARD} should contain a dictionary",
    ),
    "no zip of torch's": (
        lambda f: zipfile.ZipFile(f / SHARD, "w").writestr("readme", "hello"),
        rf"{SHARD} .*no complete",
    ),
    "directory": (misdirect(SHARD), rf"{SHARD} does not have consolidated.01/data/\d+ at"),
    "more layers": (change_json("params.json", n_layers=3), r"params\.json.*n_layers=3.*lacks 9"),
    "wider": (change_json("params.json", dim=64), r"params\.json asks for \(.*64"),
    "fewer heads": (
        change_json("params.json", n_kv_heads=2),
        r"params\.json of another: their .*wk",
    ),
    "other words": (change_json("params.json", vocab_size=1), r"weight .*params\.json asks"),
    "unknown key": (change_json("params.json", n_experts=8), r"params\.json.*n_experts"),
}
HF_4 = {
    **{f"cut at {n}": (cut(FILE, n), rf"{FILE} .*no complete") for n in (5, 99, 0.1, 0.5, -99, -1)},
    **{
        f"no {i}": (delete(f"model-0000{i}-of-00004.safetensors"), rf"-0000{i}-of-00004\S* is not")
        for i in range(1, 5)
    },
    "twice": (copy(FILE, NEXT), rf"is in .*{NEXT} and in .*{FILE}"),
    "swapped": (swap(FILE, NEXT), rf"is in .*{FILE}, where the index has it in {NEXT}"),
    "in two files": (both(copy(FILE, "extra.safetensors"), in_index("extra.safetensors")), "extra"),
    "of another width": (copy("../sound/wide/model.safetensors", FILE), rf"is in .*{FILE}, where"),
    "I8": (set_weight(FILE, Q, lambda w: w.to(torch.int8)), rf"{FILE} holds {Q} in I8"),
    "F8": (set_weight(FILE, Q, lambda w: w.to(torch.float8_e4m3fn)), rf"{FILE} holds {Q} in F8"),
    "renamed": (
        change_weights(FILE, lambda w: w.update(norm=w.pop(Q))),
        rf"lacks 1 weight\(s\): {Q}; has unexpected 1 weight\(s\): norm",
    ),
    "extra": (change_weights(FILE, lambda w: w.update(a=w[Q].clone())), r"unexpected 1 .*: a"),
    "one less": (change_weights(FILE, lambda w: w.pop(Q)), rf"lacks 1 .*{Q}"),
    "transposed": (
        set_weight(FILE, "model.layers.0.mlp.down_proj.weight", lambda w: w.T.contiguous()),
        rf"down_proj\.weight in .*{FILE} has shape \(96, 32\).*config\.json asks for \(32, 96\)",
    ),
    "page": (with_bytes(FILE, PAGE), rf"{FILE} \(7\d bytes\) is a web page"),
    "pointer": (with_bytes(FILE, POINTER), rf"{FILE} .*git-lfs pointer.*git lfs pull"),
    "empty": (with_bytes(FILE, b""), rf"{FILE} .*is empty"),
    "zeros": (zeroed(FILE), rf"{FILE} .*all zeros"),
    "forbidden": (forbid(FILE), rf"[Pp]ermission.*{FILE}"),
    "folder": (as_folder(FILE), rf"{FILE} is not there"),
    "long header": (with_bytes(FILE, b"\xff" * 7 + b"\x7f" + b"{}"), rf"{FILE} .*no complete"),
    "no JSON": (with_bytes(FILE, struct.pack("<Q", 9) + b'{"a": [,]}'), rf"{FILE} .*no complete"),
    "no object": (with_bytes(FILE, struct.pack("<Q", 6) + b"[1, 2]"), rf"{FILE} .*no complete"),
    "deep": (with_bytes(FILE, struct.pack("<Q", 10**5) + b"[" * 10**5), rf"{FILE} .*no complete"),
    "no entry": (change_header(lambda h: h.update(a=7)), rf"{FILE} .*no complete"),
    "overlapping": (change_header(share_bytes), rf"{FILE} .*no complete"),
    "negative": (set_entry(data_offsets=[-12288, 0]), rf"{FILE} .*no complete"),
    "after the end": (set_entry(data_offsets=[10**12, 10**12 + 12288]), rf"{FILE} .*no complete"),
    "upside down": (set_entry(data_offsets=[12288, 0]), rf"{FILE} .*no complete"),
    "huge": (set_entry(shape=[2**40, 2**40], data_offsets=[0, 2**82]), rf"{FILE} .*no complete"),
    "negative shape": (set_entry(shape=[-32, -96]), rf"{FILE} .*no complete"),
    "shape in words": (set_entry(shape="ab"), rf"{FILE} .*no complete"),
    "shape in halves": (set_entry(shape=[0.5, 6144]), rf"{FILE} .*no complete"),
    "offsets in floats": (change_header(in_floats), rf"{FILE} .*no complete"),
    "dtype is a list": (set_entry(dtype=["F32"]), rf"{FILE} .*no complete"),
    "index of a missing file": (in_index("gone.safetensors"), r"gone\.safetensors is not there"),
    "page for index": (with_bytes(INDEX, PAGE), rf"{INDEX} is a web page"),
    "index without map": (with_bytes(INDEX, b"{}"), rf"{INDEX} should have a weight_map"),
    "index elsewhere": (in_index("../sound/hf-1/model.safetensors"), r"model.* is not there"),
    "another model": (
        change_json("config.json", model_type="gpt2"),
        r"config\.json has .*gpt2",
    ),
    "more layers": (change_json("config.json", num_hidden_layers=3), r"config\.json.*lacks 9"),
    "wider": (change_json("config.json", hidden_size=64), r"config\.json asks for \(.*64"),
    "page for config": (with_bytes("config.json", PAGE), r"config\.json is a web page"),
    "code": (both(to_bin(lambda w: w.update(a=Runs()))), r"_model\.bin holds posix\.mkdir"),
    "cut bin": (both(to_bin(dict), cut("pytorch_model.bin", 0.5)), r"_model\.bin .*no complete"),
}
ONLY_VERIFY_SEES = {
    "nan": (
        "meta-4",
        set_weight(SHARD, WQ, set_value(3, 5, NAN)),
        rf"{SHARD}: {WQ} has 1 .*nan at \[3, 5\]",
    ),
    "inf": (
        "meta-1",
        set_weight(FIRST, WQ, set_value(3, 5, -INF)),
        rf"{FIRST}: {WQ} .*-inf at \[3, 5\]",
    ),
    "all nan": (
        "hf-4",
        set_weight(FILE, Q, lambda w: w.fill_(NAN)),
        rf"{FILE}: {Q} has 1,024 .*nan at \[0, 0\]",
    ),
    "bfloat16": (
        "hf-bfloat16",
        set_weight("model.safetensors", Q, set_value(31, 31, INF)),
        rf"{Q} .*inf at \[31, 31\]",
    ),
    "zeros": (
        "meta-4",
        set_weight(SHARD, WQ, torch.Tensor.zero_),
        rf"{SHARD}: {WQ} .*all zeros",
    ),
    "zeros of hf": (
        "hf-4",
        set_weight(FILE, Q, torch.Tensor.zero_),
        rf"{FILE}: {Q} .*all zeros",
    ),
    "norm of zeros": (
        "hf-1",
        set_weight("model.safetensors", "model.norm.weight", torch.Tensor.zero_),
        r"model.norm.weight .*zeros",
    ),
    "a bit": ("meta-4", flip(SHARD), rf"{SHARD}: the bytes of .*CRC-32"),
    "a bit of a bin": (
        "hf-4",
        both(to_bin(dict), flip("pytorch_model.bin")),
        r"pytorch_model\.bin: the bytes of .*CRC-32",
    ),
    "wrong sum": (
        "meta-1",
        listed(FIRST, "params.json", change=lambda t: "0" * 32 + t[32:]),
        rf"{FIRST} has md5 .*checklist.chk lists 0{{32}}",
    ),
    "wrong sum of sha256": (
        "hf-1",
        listed("config.json", kind="sha256", change=lambda t: "f" * 64 + t[64:]),
        r"config.json has sha256 .* lists f{64}",
    ),
    "listed and gone": (
        "meta-1",
        listed(FIRST, change=lambda t: t + t.replace("00", "01")),
        r"consolidated\.01\.pth does not exist, but checklist",
    ),
    "no list": (
        "meta-1",
        listed(FIRST, change=lambda t: t + "hello\n"),
        r"line 2 of .*checklist\.chk .*hello",
    ),
    "short sum": ("meta-1", listed(FIRST, change=lambda t: t[1:]), r"line 1 of .*checklist\.chk "),
    "page for a list": (
        "meta-1",
        with_bytes("checklist.chk", PAGE),
        r"checklist\.chk is a web page",
    ),
    "a bit and a list": ("hf-4", both(listed(FILE, INDEX), flip(FILE)), rf"{FILE} has md5"),
}


def cases(sound: str, damages: dict[str, tuple[Damage, str]]) -> list:
    return [pytest.param(sound, *case, id=f"{sound}: {name}") for name, case in damages.items()]


def copied(sound: Path, name: str, tmp_path: Path) -> Path:
    """A folder to damage; `../sound` is then the way to the others."""
    (tmp_path / "sound").symlink_to(sound)
    return shutil.copytree(sound / name, tmp_path / name)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [*cases("meta-1", META_1), *cases("meta-4", META_4), *cases("hf-4", HF_4)],
)
def test_damage_is_reported_and_never_loads(
    name: str, damage: Damage, message: str, sound: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = copied(sound, name, tmp_path)
    monkeypatch.chdir(tmp_path)
    damage(folder)
    with pytest.raises((ValueError, OSError), match=message):
        load(folder)
    found = problems_in(folder)
    assert any(re.search(message, text) for text in found), found
    assert len(found) == 1
    assert not Path("it-ran").exists()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [pytest.param(*case, id=name) for name, case in ONLY_VERIFY_SEES.items()],
)
def test_what_only_verify_sees(
    name: str, damage: Damage, message: str, sound: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("llama.storage.sharding._BLOCK", 96 * 4)  # three rows
    monkeypatch.setattr("llama.checkpoint.verify._BLOCK_BYTES", 1000)
    folder = copied(sound, name, tmp_path)
    damage(folder)
    load(folder)
    found = problems_in(folder)
    assert re.search(message, found[0]), found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "damage", "unprotected"),
    {
        "a digit": ("hf-4", flip(FILE), FILE),
        "a file of another": ("hf-4", copy(f"../sound/other-hf-4/{FILE}", FILE), FILE),
        "other heads": ("meta-4", change_json("params.json", n_heads=8, n_kv_heads=8), "params"),
        "another theta": (
            "hf-4",
            change_json("config.json", rope_theta=77.0, rope_parameters=None),
            "config.json",
        ),
        "swapped tokens": ("meta-1", swap_tokens, "tokenizer.model"),
    }.values(),
)
def test_a_file_without_checksum_is_named(
    name: str, damage: Damage, unprotected: str, sound: Path, tmp_path: Path
) -> None:
    folder = copied(sound, name, tmp_path)
    files = [file.name for file in folder.iterdir()]
    listed(*files, kind="sha256", file="checksums.sha256")(folder)
    damage(folder)
    assert len(problems_in(folder)) == 1
    assert not [text for kind, text in examine(str(folder)) if kind == "note"]
    (folder / "checksums.sha256").unlink()
    assert problems_in(folder) == []
    (note,) = [text for kind, text in examine(str(folder)) if kind == "note"]
    assert re.fullmatch(rf"no checksum of .*{unprotected}.*: changed values can .*", note)
    assert FIRST not in note  # it has its CRC-32


def test_swapped_shards_without_names_need_a_checksum(sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, "meta-4", tmp_path)
    for damage in (unnamed(SHARD), unnamed(FIRST), listed(FIRST, SHARD), swap(SHARD, FIRST)):
        damage(folder)
    assert len(problems_in(folder)) == 2
    (folder / "checklist.chk").unlink()
    assert problems_in(folder) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "md5") for name in ("meta-1", "meta-4", "meta-4-of-2-heads", "hf-1", "hf-4")),
        *((name, "sha256") for name in ("meta-2", "hf-bfloat16", "bin", "tiny")),
    ],
)
def test_a_sound_checkpoint(
    name: str, kind: str, sound: Path, tmp_path: Path, run_command: Command
) -> None:
    folder = copied(sound, "hf-4" if name == "bin" else name, tmp_path)
    if name == "bin":
        to_bin(dict)(folder)
    files = sorted(file.name for file in folder.iterdir())
    listed(*files, kind=kind)(folder)
    code, out, err = run_command("verify", folder)
    lines = out.splitlines()
    assert (code, err, lines[-1]) == (0, "", f"{folder}: no problems found")
    assert {line.split(": ok, ")[0] for line in lines[:-1]} == set(files)
    assert out.count(f"{kind} matches checklist.chk") == len(files)


def test_all_problems_are_reported(sound: Path, tmp_path: Path, run_command: Command) -> None:
    folder = copied(sound, "meta-4", tmp_path)
    for damage in (
        cut(FIRST, 0.5),
        with_bytes(SHARD, PAGE),
        set_weight("consolidated.02.pth", WQ, set_value(1, 2, NAN)),
        with_bytes("tokenizer.model", b""),
    ):
        damage(folder)
    code, out, err = run_command("verify", folder)
    named = re.findall(r"^problem: .*?/([\w.]+?)[: ]", out, re.M)
    assert named == [FIRST, SHARD, "consolidated.02.pth", "tokenizer.model"]
    assert re.search(r"^consolidated\.03\.pth: ok", out, re.M)
    assert (code, err) == (1, f"error: 4 problems in {folder}\n")
    code, out, err = run_command("verify", folder, "--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (1, 4)
    assert sum(finding["kind"] == "problem" for finding in found["findings"]) == 4


def test_a_file_may_have_no_checksums(sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, "meta-1", tmp_path)
    torch.serialization.set_crc32_options(False)
    try:
        change_weights(FIRST, dict)(folder)
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(info.CRC for info in zipfile.ZipFile(folder / FIRST).infolist())
    load(folder)
    assert problems_in(folder) == []
    flip(FIRST)(folder)
    assert problems_in(folder) == []
    set_weight(FIRST, WQ, torch.Tensor.zero_)(folder)
    assert len(problems_in(folder)) == 1


def test_a_file_that_does_not_fit_is_not_ok(sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, "meta-2", tmp_path)
    change_weights(SHARD, lambda weights: weights.pop(WQ))(folder)
    ok = [text.split(": ")[0] for kind, text in examine(str(folder)) if kind == "ok"]
    assert ok == [FIRST, "tokenizer.model"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (delete("tokenizer.model"), "hf-1 has no tokenizer.model or tokenizer.json; copy it"),
        (
            change_json("generation_config.json", eos_token_id="x"),
            "generation_config.json: eos_token_id is 'x'",
        ),
        (change_json("generation_config.json", eos_token_id=10**6), "end with token 1000000"),
    ],
)
def test_what_build_refuses_is_a_problem(
    damage: Damage, message: str, sound: Path, tmp_path: Path
) -> None:
    folder = copied(sound, "hf-1", tmp_path)
    damage(folder)
    with pytest.raises((ValueError, OSError)):
        load(folder)
    (problem,) = problems_in(folder)
    assert message in problem


def test_an_adapter(tmp_path: Path, run_command: Command) -> None:
    folder, key = tmp_path / "adapter", "layers.0.attention.wq"
    args = open_checkpoint(TINY).args
    a, b = torch.randn(4, args.dim), torch.randn(args.dim, 4)
    write_adapter(folder, {key: (a, b)}, 2.0, args, TINY)
    code, out, _ = run_command("verify", folder)
    assert code == 0
    assert f"adapter_config.json: ok, adapts 1 layers of {TINY}\n" in out
    assert "adapter_model.safetensors: ok, " in out
    assert "no checksum of adapter_model.safetensors, adapter_config.json" in out
    change_json("adapter_config.json", base_model_name_or_path="meta/model")(folder)
    code, out, _ = run_command("verify", folder)
    assert (code, out.count("pass --base")) == (0, 1)
    change_json("adapter_config.json", r=8)(folder)
    code, out, _ = run_command("verify", folder, "--base", TINY)
    assert code == 1
    assert re.search(rf"^problem: .*has shape \(4, {args.dim}\), but r=8", out, re.M)
    cut("adapter_model.safetensors", 0.5)(folder)
    assert len(problems_in(folder)) == 1


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        verify(str(tmp_path / "nowhere"))


def test_tied_weights_are_read_once_and_parts_of_a_storage_as_they_are(
    sound: Path, tmp_path: Path
) -> None:
    """A tensor may be a part of what is stored with it; the rest of it is not looked at."""
    folder = copied(sound, "meta-1", tmp_path)

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["output.weight"] = weights["tok_embeddings.weight"]
        stored = torch.full((40, 40), NAN)
        stored[3:35, 2:34] = weights[WQ]
        weights[WQ] = stored[3:35, 2:34]

    change_weights(FIRST, change)(folder)
    assert problems_in(folder) == []


# ---------------------------------------------------------------- int8 and int4

DATA, SCALES = f"{WQ}.data", f"{WQ}.scales"


def shape(key: str, found: str, expected: str) -> str:
    return re.escape(
        f"{key} in FOLDER/{FIRST} has shape {found}, but FOLDER/params.json asks for {expected}"
    ).replace("FOLDER", ".*")


PACKED_DAMAGES: dict[str, tuple[Damage, str]] = {
    "no scales": (
        change_weights(FIRST, lambda weights: weights.pop(SCALES)),
        rf"{FIRST} does not fit .*params.json .*lacks 1 weight\(s\): {SCALES}",
    ),
    "a weight that is not packed": (
        change_weights(FIRST, lambda weights: weights.update({WQ: weights.pop(DATA)})),
        rf"{FIRST} .*lacks 1 weight\(s\): {DATA}; has unexpected 1 weight\(s\): {WQ}",
    ),
    "data of int8 in int4": (
        set_weight(FIRST, DATA, lambda data: data.repeat(1, 1, 2)),
        shape(DATA, "(16, 8, 512)", "(16, 8, 256)"),
    ),
    "a tile less": (
        set_weight(FIRST, SCALES, lambda scales: scales[:-1].clone()),
        shape(SCALES, "(15, 8, 16)", "(16, 8, 16)"),
    ),
    "scales in bfloat16": (
        set_weight(FIRST, SCALES, lambda scales: scales.bfloat16()),
        f"{FIRST} holds {SCALES} in torch.bfloat16, which should be torch.float16",
    ),
    "data in float16": (
        set_weight(FIRST, DATA, lambda data: data.half()),
        f"{FIRST} holds {DATA} in torch.float16, which should be torch.uint8",
    ),
    "a norm of bytes": (
        set_weight(FIRST, NORM, lambda norm: norm.to(torch.uint8)),
        f"{FIRST} holds {NORM} in torch.uint8, which should be bfloat16, float16, float32 or",
    ),
    "another format": (
        change_json("params.json", quantize="int8"),
        f"in .*{FIRST} has shape .*, but .*params.json asks for",
    ),
    "a format unknown here": (
        change_json("params.json", quantize="int3"),
        "params.json: quantize is 'int3', which is none of bf12, int8, int4",
    ),
    "no format": (
        change_json("params.json", quantize=None),
        "params.json: quantize is None, which is none of bf12, int8, int4",
    ),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "int4"
    convert(str(TINY), str(folder), quantize="int4")
    (folder / "checksums.sha256").unlink()
    return folder


@pytest.mark.parametrize("name", PACKED_DAMAGES)
def test_damaged_packed_weights_are_reported_and_never_load(
    name: str, packed: Path, tmp_path: Path
) -> None:
    damage, message = PACKED_DAMAGES[name]
    folder = Path(shutil.copytree(packed, tmp_path / "damaged"))
    assert not problems_in(folder)
    damage(folder)
    assert any(re.search(message, problem) for problem in problems_in(folder)), problems_in(folder)
    with pytest.raises(ValueError, match=message):
        Llama.build(folder, device="cpu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            set_weight(FIRST, SCALES, lambda scales: [scales[2, 3].fill_(INF)]),
            rf"{SCALES} has 16 NaN or infinite value\(s\), the first is inf at \[2, 3, 0\]",
        ),
        (
            set_weight(FIRST, DATA, lambda data: data.zero_()),
            f"{DATA} is all zeros",
        ),
        (flip(FIRST), f"{FIRST}: the bytes of .* have changed"),
    ],
    ids=["infinite scales", "zeros", "a bit"],
)
def test_what_only_verify_sees_of_packed_weights(
    damage: Damage, message: str, packed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path / "damaged"))
    damage(folder)
    assert any(re.search(message, problem) for problem in problems_in(folder)), problems_in(folder)


def test_sound_packed_weights(tmp_path: Path, run_command: Command) -> None:
    run_command("convert", TINY, tmp_path / "packed", "--quantize", "int4")
    code, out, _ = run_command("verify", tmp_path / "packed")
    size = f"{(tmp_path / 'packed' / FIRST).stat().st_size / 1e6:.1f} MB"
    count = len(torch.load(tmp_path / "packed" / FIRST))
    checked = f"{count} tensors, CRC-32 matches, sha256 matches checksums.sha256"
    assert code == 0
    assert f"{FIRST}: ok, {size}, {checked}\n" in out
    assert "note" not in out


def test_packed_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    convert(str(TINY), str(tmp_path / "two"), quantize="int4", shards=2)
    assert not problems_in(tmp_path / "two")
    (tmp_path / "two" / "checksums.sha256").unlink()
    first, second = (torch.load(tmp_path / "two" / name) for name in (FIRST, SHARD))
    second[NORM] += 1
    torch.save(second, tmp_path / "two" / SHARD)
    (found,) = problems_in(tmp_path / "two")
    assert "is not of the same checkpoint as" in found
    torch.save(first, tmp_path / "two" / SHARD)
    (found,) = problems_in(tmp_path / "two")
    assert "holds the same weights as" in found


def test_bytes_are_no_weights_where_none_are_packed(sound: Path, tmp_path: Path) -> None:
    folder = copied(sound, "meta-1", tmp_path)
    set_weight(FIRST, WQ, lambda weight: weight.to(torch.uint8))(folder)
    message = f"{FIRST} holds {WQ} in torch.uint8, which should be bfloat16, float16, float32 or"
    with pytest.raises(ValueError, match=message):
        load(folder)
