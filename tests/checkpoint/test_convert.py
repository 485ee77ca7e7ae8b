"""Conversion between all layouts, compared with transformers."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny_args, write_sentencepiece, write_shards, write_tiktoken

from llama import ChatFormat, Llama, Tokenizer, Transformer, kernels
from llama.checkpoint import convert as convert_module
from llama.checkpoint.convert import convert
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.storage import sharding as weights_module
from llama.storage import tensor_files

transformers = pytest.importorskip("transformers")
CPU = torch.device("cpu")
TINY = Path(__file__).parents[2] / "params" / "tiny"
SHAPES: dict[str, dict[str, Any]] = {
    "Llama 2": {"n_kv_heads": 4},
    "Llama 3.1": {"use_scaled_rope": True, "rope_theta": 500000.0},
    "head_dim 12": {"head_dim": 12, "rope_theta": 500000.0},
}


def make(folder: Path, shape: str, tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A checkpoint in Meta's layout, written without the project's own writer."""
    folder.mkdir(parents=True)
    write = write_sentencepiece if shape == "Llama 2" else write_tiktoken
    tokenizer = Tokenizer(write(folder / "tokenizer.model"))
    torch.manual_seed(0)
    args = tiny_args(vocab_size=tokenizer.n_words, **SHAPES[shape])
    weights = {
        name: (weight + 0.2 * torch.randn(weight.shape)).to(dtype)
        for name, weight in Transformer(args).state_dict().items()
    }
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    keys = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "norm_eps")
    write_shards(folder, weights, {key: getattr(args, key) for key in keys} | SHAPES[shape])
    if tied:
        torch.save(weights, folder / "consolidated.00.pth")
    return folder


def logits(folder: Path) -> torch.Tensor:
    model = load(folder, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.arange(40).view(2, 20))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    whole = {n: tuple(slice(0, s) for s in w.shape) for n, w in checkpoint.weights.items()}
    return {n: w.read(whole[n], CPU, w.dtype) for n, w in checkpoint.weights.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_meta_to_hugging_face_and_back_is_bit_for_bit(
    shape: str, tied: bool, tmp_path: Path
) -> None:
    meta = make(tmp_path / "meta", shape, tied)
    convert(str(meta), str(tmp_path / "hf"), to="hf")
    convert(str(tmp_path / "hf"), str(tmp_path / "again"), to="meta")
    first = torch.load(meta / "consolidated.00.pth")
    again = torch.load(tmp_path / "again" / "consolidated.00.pth", weights_only=True)
    assert list(again) == list(first)
    for name, weight in first.items():
        assert again[name].dtype == weight.dtype
        assert torch.equal(again[name], weight), name
    tied_in_file = again["output.weight"].data_ptr() == again["tok_embeddings.weight"].data_ptr()
    assert tied_in_file == tied
    args, args_again = (open_checkpoint(folder).args for folder in (meta, tmp_path / "again"))
    assert (
        args_again.hidden_dim == args.hidden_dim
    )  # by its size in config.json, by multiple_of in params.json
    same = {"multiple_of": 1, "ffn_dim_multiplier": None}
    assert vars(args_again) | same == vars(args) | same
    tokenizers = [Tokenizer(folder / "tokenizer.model") for folder in (meta, tmp_path / "again")]
    assert tokenizers[0].special_tokens == tokenizers[1].special_tokens
    text = "Hello  world 123, don't!\n\n\u00e9\U0001f600"
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)


@pytest.mark.parametrize("files", [None, 1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_computes_the_same_from_what_was_written(
    shape: str, tied: bool, files: int | None, tmp_path: Path
) -> None:
    meta = make(tmp_path / "meta", shape, tied, torch.float32)
    convert(str(meta), str(tmp_path / "hf"), to="hf", shards=files)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) == (files or 1)
    theirs, unmatched = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="sdpa"
    )
    assert not any(unmatched.values()), unmatched
    with torch.no_grad():
        expected = theirs(torch.arange(40).view(2, 20)).logits
    found = logits(meta)
    assert (found - expected).norm() < 1e-4 * expected.norm()
    assert torch.equal(logits(tmp_path / "hf"), found)


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    convert(str(meta), str(tmp_path / "hf"), to="hf")
    ours = Tokenizer(meta / "tokenizer.model")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    dialog = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " Hello world, the 123 \n"},
        {"role": "assistant", "content": "get()"},
        {"role": "tool", "content": "42"},
    ]
    expected = ChatFormat(ours).encode_dialog_prompt(dialog)
    assert theirs.encode("Hello world") == ours.encode("Hello world", bos=True)
    chat = theirs.apply_chat_template(dialog, add_generation_prompt=True, return_dict=False)
    assert chat == expected
    answers = [
        Llama.build(folder, device="cpu", dtype="float32").chat_completion([dialog], seed=1)
        for folder in (meta, tmp_path / "hf")
    ]
    assert answers[0] == answers[1]
    config = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    assert set(config.eos_token_id) == ours.stop_tokens
    assert config.bos_token_id == ours.bos_id


def test_a_sentencepiece_tokenizer_goes_along(tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")  # with which transformers reads it
    meta = make(tmp_path / "meta", "Llama 2")
    convert(str(meta), str(tmp_path / "hf"), to="hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("Hello world", "the dog  played 123 \u00e9"):
        assert theirs.encode(text) == Tokenizer(meta / "tokenizer.model").encode(text, bos=True)


@pytest.mark.parametrize("block", [1, 700, 5000])
def test_weights_go_block_by_block(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = make(tmp_path / "meta", "head_dim 12")
    convert(str(meta), str(tmp_path / "hf"), to="hf")
    sizes = []
    write = tensor_files.Entry.write

    def noting(self: Any, stream: Any, written: Any) -> None:
        write(self, stream, lambda count: (sizes.append(count), written(count)))

    monkeypatch.setattr(tensor_files.Entry, "write", noting)
    monkeypatch.setattr(weights_module, "_BLOCK", block)
    convert(str(meta), str(tmp_path / "hf in blocks"), to="hf")
    head = 12 * 32 * 2  # bytes of a head, which stays whole
    assert max(sizes) <= max(block, head)
    same = [tmp_path / name / "model.safetensors" for name in ("hf", "hf in blocks")]
    assert same[0].read_bytes() == same[1].read_bytes()
    convert(str(tmp_path / "hf"), str(tmp_path / "again"), to="meta")
    first, again = (
        torch.load(folder / "consolidated.00.pth") for folder in (meta, tmp_path / "again")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_are_cut_as_meta_cuts_them(shards: int, tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    whole = torch.load(meta / "consolidated.00.pth")
    params = json.loads((meta / "params.json").read_text())
    write_shards(tmp_path / "expected", whole, params, shards)
    convert(str(meta), str(tmp_path / "cut"), to="meta", shards=shards)
    names = sorted(path.name for path in (tmp_path / "expected").glob("*.pth"))
    assert names == sorted(path.name for path in (tmp_path / "cut").glob("*.pth"))
    for name in names:
        expected, found = (torch.load(tmp_path / f / name) for f in ("expected", "cut"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    convert(str(tmp_path / "cut"), str(tmp_path / "whole"), to="meta")
    again = torch.load(tmp_path / "whole" / "consolidated.00.pth")
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_params_json_is_one_that_metas_package_takes(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    convert(str(meta), str(tmp_path / "cut"), to="meta")
    written = json.loads((tmp_path / "cut" / "params.json").read_text())
    assert written == json.loads((meta / "params.json").read_text())
    hf = tmp_path / "hf"
    convert(str(meta), str(hf), to="hf")
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}))
    convert(str(hf), str(tmp_path / "short"), to="meta")
    assert open_checkpoint(tmp_path / "short").args.max_seq_len == 77


@pytest.mark.parametrize("to", ["meta", "hf"])
def test_another_dtype(to: str, tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1", dtype=torch.float32)
    convert(str(meta), str(tmp_path / "small"), to=to, dtype="bfloat16")
    expected = weights_of(meta)
    for name, weight in weights_of(tmp_path / "small").items():
        assert torch.equal(weight, expected[name].bfloat16()), name
    if to == "hf":
        config = json.loads((tmp_path / "small" / "config.json").read_text())
        assert config["torch_dtype"] == "bfloat16"


def test_values_that_a_dtype_cannot_hold_are_an_error(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1", dtype=torch.float32)
    weights = torch.load(meta / "consolidated.00.pth")
    weights["layers.1.attention.wo.weight"][3, 3] = 1e6
    torch.save(weights, meta / "consolidated.00.pth")
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wo\.weight .*float16 can't hold"):
        convert(str(meta), str(tmp_path / "small"), to="meta", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "meta", "shards": 3}, r"n_heads \(4\) is not divisible by the number of ranks \(3"),
        ({"to": "hf", "shards": 1000}, "--shards 1000: there are only 21 weights"),
        ({"to": "meta", "dtype": "int3"}, "dtype 'int3' is none of"),
    ],
)
def test_wrong_arguments(options: dict, message: str, tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    with pytest.raises(ValueError, match=message):
        convert(str(meta), str(tmp_path / "new"), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    with pytest.raises(FileExistsError, match="meta already exists"):
        convert(str(meta), str(meta), to="hf")
    (tmp_path / "empty").mkdir()
    convert(str(meta), str(tmp_path / "empty"), to="hf")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_padded_vocabulary_has_no_place_in_metas_layout(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    convert(str(meta), str(tmp_path / "hf"), to="hf")
    small = write_tiktoken(tmp_path / "small", merges=[b"ab"])
    (tmp_path / "hf" / "tokenizer.json").unlink()
    shutil.copy(small, tmp_path / "hf" / "tokenizer.model")
    config = tmp_path / "hf" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": 3}))
    with pytest.raises(ValueError, match="has 513 tokens; Meta's layout can't express a padded"):
        convert(str(tmp_path / "hf"), str(tmp_path / "again"), to="meta")
    assert not (tmp_path / "again").exists()
    built = Llama.build(tmp_path / "hf", device="cpu")
    tokens = built.generate([[1, 2, 3]], 30, temperature=50.0, top_p=1.0, seed=3)[0][0]
    assert max(tokens) < 513 < built.model.vocab_size


def test_a_full_disk_is_reported_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OSError, match=r"takes 0.1 MB, and its disk has 0.0 MB left"):
        convert(str(meta), str(tmp_path / "new"), to="hf")
    monkeypatch.undo()

    def full(self: Any, stream: Any, written: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tensor_files.Entry, "write", full)
    with pytest.raises(OSError, match=r"the disk of .*new.* is full"):
        convert(str(meta), str(tmp_path / "new"), to="hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    (tmp_path / "new.incomplete").mkdir()
    (tmp_path / "new.incomplete" / "thesis.txt").write_text("the user's own")

    def interrupt(self: Any, stream: Any, written: Any) -> None:
        (partial,) = tmp_path.glob(".new.*.part")  # hidden: a killed process leaves no checkpoint
        assert not (tmp_path / "new").exists()
        with pytest.raises((FileNotFoundError, ValueError)):
            open_checkpoint(partial)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files.Entry, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(str(meta), str(tmp_path / "new"), shards=2)
    assert {path.name for path in tmp_path.iterdir()} == {"meta", "new.incomplete"}
    convert(str(meta), str(tmp_path / "new"), shards=2)
    assert (tmp_path / "new.incomplete" / "thesis.txt").read_text() == "the user's own"


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    for to in ("meta", "hf"):
        convert(str(TINY), str(tmp_path / to), to=to)
        lines = (tmp_path / to / "checksums.sha256").read_text().splitlines()
        listed = dict(reversed(line.split("  ")) for line in lines)
        files = {path.name for path in (tmp_path / to).iterdir()} - {"checksums.sha256"}
        assert listed == {
            name: hashlib.sha256((tmp_path / to / name).read_bytes()).hexdigest() for name in files
        }


# ---------------------------------------------------------------- int8 and int4


def packed_by_hand(folder: Path, quantize: str) -> dict[str, torch.Tensor]:
    """What a packed shard should hold, from the shard that `make` has written."""
    expected = {}
    for name, weight in torch.load(folder / "consolidated.00.pth").items():
        if weight.dim() == 1 or name.startswith("tok_"):
            expected[name] = weight.bfloat16()
        else:
            bits = 4 if quantize == "int4" and name != "output.weight" else 8
            packed = kernels.pack(weight.bfloat16(), bits)
            expected |= {f"{name}.data": packed.data, f"{name}.scales": packed.scales}
    return expected


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_packed_weights_are_written_in_metas_layout(
    quantize: str, dtype: torch.dtype, tied: bool, tmp_path: Path, capsys, monkeypatch
) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1", tied, dtype)
    monkeypatch.setattr(weights_module, "_BLOCK", 1)  # 16 rows at a time
    convert(str(meta), str(tmp_path / "hf"), to="hf")
    for source in ("meta", "hf"):
        target = tmp_path / f"{source}-packed"
        convert(str(tmp_path / source), str(target), quantize=quantize)
        assert sorted(path.name for path in target.iterdir()) == [
            "checksums.sha256",
            "consolidated.00.pth",
            "params.json",
            "tokenizer.model",
        ]
        params = json.loads((meta / "params.json").read_text())
        found = json.loads((target / "params.json").read_text())
        assert found.pop("quantize") == quantize
        if source == "meta":
            assert found == params
        written = torch.load(target / "consolidated.00.pth")
        expected = packed_by_hand(meta, quantize)
        assert list(written) == list(expected)
        for name, tensor in expected.items():
            assert written[name].dtype == tensor.dtype
            assert torch.equal(written[name], tensor), name
    assert "--text FILE measures" in capsys.readouterr().out


def test_packed_shards_are_cut_between_tiles(tmp_path: Path) -> None:
    convert(str(TINY), str(tmp_path / "one"), quantize="int4")
    convert(str(TINY), str(tmp_path / "four"), quantize="int4", shards=4)
    whole = torch.load(tmp_path / "one" / "consolidated.00.pth")
    parts = [torch.load(tmp_path / "four" / f"consolidated.{i:02d}.pth") for i in range(4)]
    for name, tensor in whole.items():
        dim = 1 if ".wo." in name or ".w2." in name else 0
        cut = torch.cat([part[name] for part in parts], dim) if tensor.dim() > 1 else parts[3][name]
        assert torch.equal(cut, tensor), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4", "to": "hf"}, "--to hf --quantize int4: packed weights exist in"),
        ({"quantize": "int4", "dtype": "float16"}, "--dtype float16 --quantize int4"),
        ({"text": "story.txt"}, "--text measures the cost of --quantize: pass both"),
        (
            {"quantize": "int8", "shards": 2},
            r"int8: layers\.0\.attention\.wk\.weight: a matrix of 8 x 32 can't be packed in tiles "
            "of 16 x 32, on each of 2 ranks",
        ),
    ],
)
def test_what_cannot_be_packed(options: dict, message: str, tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    with pytest.raises(ValueError, match=message):
        convert(str(meta), str(tmp_path / "new"), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


def test_packed_weights_are_not_converted_again(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    convert(str(meta), str(tmp_path / "packed"), quantize="int4")
    message = "packed has int4 weights; convert the model they were made from"
    for options in ({"to": "hf"}, {"to": "meta"}, {"quantize": "int8"}):
        with pytest.raises(ValueError, match=message):
            convert(str(tmp_path / "packed"), str(tmp_path / "new"), **options)
    assert not (tmp_path / "new").exists()


def test_values_that_a_scale_cannot_hold_are_an_error(tmp_path: Path) -> None:
    meta = make(tmp_path / "meta", "Llama 3.1")
    weights = torch.load(meta / "consolidated.00.pth")
    weights["layers.1.attention.wo.weight"][3, 3] = 1e9
    torch.save(weights, meta / "consolidated.00.pth")
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wo\.weight .*int4 can't hold"):
        convert(str(meta), str(tmp_path / "new"), quantize="int4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wo\.weight .*int4 can't hold"):
        Llama.build(meta, device="cpu", quantize="int4")


def test_the_cost_of_packing_is_reported(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(convert_module, "_WINDOW", 33)
    text = tmp_path / "story.txt"
    text.write_text(
        "Once upon a time there was a dog named Tim. He liked to play in the park. " * 3
    )
    ids = Tokenizer(TINY / "tokenizer.model").encode(text.read_text())
    assert len(ids) > 33
    for quantize, most in (("int8", 0.005), ("int4", 0.1)):
        convert(str(TINY), str(tmp_path / quantize), quantize=quantize, text=str(text))
        out = capsys.readouterr().out
        losses = re.findall(r"^(\w+) +([0-9.]+) nats per token, perplexity ([0-9.]+)$", out, re.M)
        assert [name for name, *_ in losses] == ["bfloat16", quantize]
        for _, loss, perplexity in losses:
            assert 0.5 < float(loss) < 4
            assert float(perplexity) == pytest.approx(math.exp(float(loss)), rel=1e-3)
        found = re.search(r"KL divergence ([0-9.]+) nats per token, over ([0-9,]+) tokens", out)
        assert found is not None
        assert 0 < float(found[1]) < most
        assert int(found[2]) == len(ids)  # each once, begin_of_text before each piece


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty: pass a text"), (b"\xff\xfe", "is not UTF-8 text")]
)
def test_a_text_that_is_none(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        convert(str(TINY), str(tmp_path / "new"), quantize="int4", text=str(tmp_path / "text"))
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        convert(str(TINY), str(tmp_path / "new"), quantize="int4", text="nothing-here")
    assert not (tmp_path / "new").exists()
