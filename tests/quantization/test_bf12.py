"""Whole models with bfloat16 weights in 12 bits: the answers, bits and files of bfloat16."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import (
    is_mapped,
    kernel_targets,
    needs_compiler,
    run_ranks,
    tiny_args,
    use_kernels,
    write_shards,
)

from llama import Llama, Transformer, kernels
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.convert import convert
from llama.checkpoint.info import info
from llama.checkpoint.loading import load
from llama.checkpoint.opening import open_checkpoint
from llama.checkpoint.verify import verify
from llama.lora import LoraConfig, add_lora, save_adapter
from llama.quantization.bf12_embedding import Bf12Embedding
from llama.quantization.linear_layers import Bf12Linear, DenseLinear, check_format, use_format
from llama.storage import sharding
from llama.storage.files import Folder
from llama.storage.tensor_files import Entry, open_tensors, write_tensors

TINY = Path(__file__).parents[2] / "params" / "tiny"
CPU = torch.device("cpu")
# Columns of half a block, of several ranks' blocks, of no whole number of blocks.
ARGS = dict(dim=256, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=300, multiple_of=512)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    views = (x.view(torch.int16 if x.dtype == torch.bfloat16 else torch.int32) for x in (a, b))
    return torch.equal(*views)


def random_weights(tied: bool = False) -> dict[str, torch.Tensor]:
    """Normal numbers; a row of each matrix with escapes; a matrix of exponents of any size."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in weight_shapes(ModelArgs(**ARGS)).items():
        weight = torch.randn(shape, generator=generator) * 0.1
        if weight.dim() == 1:
            weight = weight.abs() + 0.5
        else:
            weight[3, 1:241:8] *= torch.exp2(-3.0 * torch.arange(30))
        weights[name] = weight.bfloat16()
    for name in ("tok_embeddings.weight", "layers.0.attention.wq.weight"):
        weights[name][5, :4] = torch.tensor([0.0, -0.0, 1e-40, -1e-39]).bfloat16()
    noise = weights["layers.1.feed_forward.w3.weight"]
    exponents = torch.randint(-60, 0, noise.shape, generator=generator)
    noise.copy_(noise.float() * torch.exp2(exponents.float()))
    if tied:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`, and `bf12-1` and `bf12-2` made of it in so many shards."""
    root = tmp_path_factory.mktemp("folders")
    write_shards(root / "plain", random_weights(), ARGS)
    for shards in (1, 2):
        target = str(root / f"bf12-{shards}")
        convert(str(root / "plain"), target, quantize="bf12", shards=shards)
    return root


def all_logits(model: Transformer) -> list[torch.Tensor]:
    """Of a prompt, of one row after it, of several, of ragged ones, and without a cache."""
    tokens = torch.randint(0, 300, (3, 60), generator=torch.Generator().manual_seed(1))
    found = []
    with torch.no_grad():
        cache = model.new_cache(3, 80)
        found.append(model(tokens[:, :40], 0, cache=cache))
        found.append(model(tokens[:1, 40:41], 40, cache=cache.view(0, 1, 80)))
        found.append(model(tokens[:, 41:42], 41, cache=cache))
        found.append(model(tokens[:, 42:47], 42, cache=cache))
        found.append(model(tokens[:, 47:48], torch.tensor([40, 7, 47]), cache=cache))
        found.append(model(tokens))
    return found


def packed_layers(model: Transformer) -> dict[str, kernels.Bf12]:
    kinds = (Bf12Linear, Bf12Embedding)
    return {name: m.packed for name, m in model.named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize(
    "target", [pytest.param("native", marks=needs_compiler), "off", *kernel_targets("x86-64-v3")]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_have_the_bits_of_bfloat16(
    target: str, threads: int, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if target != "native":
        use_kernels(target, monkeypatch)
    plain = load(folders / "plain", device=CPU, dtype="bfloat16")
    packed = load(folders / "plain", device=CPU, quantize="bf12")
    assert len(packed_layers(packed)) == 2 + 2 * 7 - 1
    assert sum(len(each.escapes) for each in packed_layers(packed).values()) > 100
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for one, other in zip(all_logits(packed), all_logits(plain), strict=True):
            assert same_bits(one, other)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("multiplies", [True, False])
def test_prompts_with_either_way_of_multiplying_bfloat16(
    multiplies: bool, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama.distributed.cpu_multiplies_bfloat16", lambda: multiplies)
    plain = load(folders / "plain", device=CPU, dtype="bfloat16")
    packed = load(folders / "plain", device=CPU, quantize="bf12")
    for one, other in zip(all_logits(packed), all_logits(plain), strict=True):
        assert same_bits(one, other)


@pytest.mark.parametrize("prompts", [1, 3])
def test_answers_and_log_probabilities_are_those_of_bfloat16(prompts: int) -> None:
    plain = Llama.build(TINY, device="cpu", dtype="bfloat16")
    packed = Llama.build(TINY, device="cpu", quantize="bf12")
    assert len(packed_layers(packed.model)) == 7 * packed.model.n_layers + 2
    starts = ["Once upon a time", "Tom", "Lily and her mom " * 30]
    ids = [plain.tokenizer.encode(start, bos=True) for start in starts[-prompts:]]
    for options in ({"temperature": 0}, {"temperature": 0.8, "seed": 3}):
        wanted: Any = {"logprobs": True, "echo": True, "max_gen_len": 30, **options}
        assert packed.generate(ids, **wanted) == plain.generate(ids, **wanted)


def test_a_tied_output_layer_shares_the_embedding(tmp_path: Path) -> None:
    weights = random_weights(tied=True)
    folder = tmp_path / "tied"
    folder.mkdir()
    torch.save(weights, folder / "consolidated.00.pth")
    (folder / "params.json").write_text(json.dumps(ARGS))
    convert(str(folder), str(tmp_path / "bf12"), quantize="bf12")
    convert(str(tmp_path / "bf12"), str(tmp_path / "back"))
    plain = load(folder, device=CPU, dtype="bfloat16")
    afterwards = load(folder, device=CPU, dtype="bfloat16", trainable=True)
    use_format(afterwards, "bf12")
    models = [load(folder, device=CPU, quantize="bf12"), load(tmp_path / "bf12", device=CPU)]
    for model in (*models, afterwards):
        layers = packed_layers(model)
        assert layers["output"].blocks.data_ptr() == layers["tok_embeddings"].blocks.data_ptr()
        for one, other in zip(all_logits(model), all_logits(plain), strict=True):
            assert same_bits(one, other)
    sizes = [(tmp_path / name / "consolidated.00.pth").stat().st_size for name in ("bf12", "back")]
    assert sizes[0] < 0.82 * sizes[1]
    assert open_checkpoint(tmp_path / "bf12").tied
    assert open_checkpoint(tmp_path / "back").tied


# ---------------------------------------------------------------- files


def stored_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in open_checkpoint(folder).weights.items():
        everything = tuple(slice(0, size) for size in weight.shape)
        yield name, weight.read(everything, CPU, torch.bfloat16)


def test_every_weight_comes_back_from_any_layout(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "_BLOCK", 30_000)  # several blocks of rows a weight
    expected = dict(stored_weights(folders / "plain"))
    sources = {"1": "bf12-1", "2": "bf12-2"}
    for name, source in sources.items():
        convert(str(folders / source), str(tmp_path / f"back-{name}"))
        convert(str(folders / source), str(tmp_path / f"hf-{name}"), to="hf")
        convert(str(folders / source), str(tmp_path / f"bf12-{name}"), shards=4, quantize="bf12")
        convert(str(tmp_path / f"hf-{name}"), str(tmp_path / f"of-{name}"), quantize="bf12")
    found = [folders / "bf12-1", folders / "bf12-2", *sorted(tmp_path.iterdir())]
    assert len(found) == 10
    for folder in found:
        weights = dict(stored_weights(folder))
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert same_bits(weight, expected[name]), (folder, name)


def test_loaded_mapped_packed_while_read_and_packed_afterwards_are_the_same(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards = load(folders / "plain", device=CPU, dtype="bfloat16", trainable=True)
    use_format(afterwards, "bf12")
    monkeypatch.setattr(sharding, "_BLOCK", 30_000)
    while_read = load(folders / "plain", device=CPU, quantize="bf12")
    mapped = load(folders / "bf12-1", device=CPU)
    expected = packed_layers(afterwards)
    file = folders / "bf12-1" / "consolidated.00.pth"
    for model in (while_read, mapped):
        found = packed_layers(model)
        assert found.keys() == expected.keys()
        for name, packed in found.items():
            for one, other in zip(packed.tensors, expected[name].tensors, strict=True):
                assert torch.equal(one, other)
    for packed in packed_layers(mapped).values():
        assert is_mapped(packed.blocks, file)


def test_what_gains_nothing_stays_bfloat16(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = "layers.1.feed_forward.w3"
    for folder in ("plain", "bf12-1", "bf12-2"):
        model = load(folders / folder, device=CPU, quantize="bf12")
        assert isinstance(model.get_submodule(noisy), DenseLinear)
    capsys.readouterr()
    info(str(folders / "bf12-1"))
    text = capsys.readouterr().out
    assert f"1 gain nothing and stay bfloat16: {noisy}.weight" in text
    assert "weights in 15 matrices are escapes (0.0" in text
    assert "Llama.build takes bf12 here by default" in text


def test_convert_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(str(TINY), str(tmp_path / "tiny"), quantize="bf12")
    text = capsys.readouterr().out
    assert "of 6,717,440 weights in 64 matrices are escapes" in text
    assert "--text" not in text
    weights = {name: weight.float() for name, weight in random_weights().items()}
    write_shards(tmp_path / "wide", weights, ARGS)
    convert(str(tmp_path / "wide"), str(tmp_path / "rounded"), quantize="bf12")
    assert "is not all bfloat16; it was rounded to that" in capsys.readouterr().out
    size = sum(f.stat().st_size for f in (tmp_path / "tiny").glob("*.pth"))
    assert size < 0.8 * (TINY / "consolidated.00.pth").stat().st_size


def test_a_folder_in_bf12_is_one_in_bfloat16_for_everything_else(folders: Path) -> None:
    for asked in ({"dtype": "float32"}, {"quantize": "bfloat16"}):
        expected = all_logits(load(folders / "plain", device=CPU, **asked))
        for folder in ("bf12-1", "bf12-2"):
            found = all_logits(load(folders / folder, device=CPU, **asked))
            for one, other in zip(found, expected, strict=True):
                assert same_bits(one, other)
    trainable = load(folders / "bf12-1", device=CPU, trainable=True)
    assert trainable.norm.weight.dtype == torch.float32
    assert not packed_layers(trainable)
    trainable(torch.tensor([[1, 2]])).sum().backward()


def test_int8_is_packed_from_it(tmp_path: Path) -> None:
    convert(str(TINY), str(tmp_path / "bf12"), quantize="bf12")
    convert(str(tmp_path / "bf12"), str(tmp_path / "int8"), quantize="int8")
    expected = all_logits(load(TINY, device=CPU, quantize="int8"))
    models = [load(tmp_path / "bf12", device=CPU, quantize="int8"), load(tmp_path / "int8")]
    for model in models:
        for one, other in zip(all_logits(model), expected, strict=True):
            assert same_bits(one, other)


def logits_of_all(root: Path) -> dict[str, list[torch.Tensor]]:
    asked: dict[str, Any] = {"plain": {"dtype": "bfloat16"}, "packed": {"quantize": "bf12"}}
    models = {name: load(root / "plain", device=CPU, **each) for name, each in asked.items()}
    models |= {name: load(root / name, device=CPU) for name in ("bf12-1", "bf12-2")}
    counts = {len(packed_layers(model)) for name, model in models.items() if name != "plain"}
    assert len(counts) == 1
    assert counts.pop() >= 4
    return {name: all_logits(model) for name, model in models.items()}


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_has_the_bits_of_as_many_in_bfloat16(ranks: int, folders: Path) -> None:
    for found in run_ranks(ranks, logits_of_all, folders):
        assert len(found) == 4
        for logits in found.values():
            for one, other in zip(logits, found["plain"], strict=True):
                assert same_bits(one, other)


# ---------------------------------------------------------------- adapters, other devices


def test_adapters_beside_it(folders: Path, tmp_path: Path) -> None:
    model = load(folders / "plain", device=CPU, dtype="float32", trainable=True)
    add_lora(model, LoraConfig(r=4, targets=("wq", "w2", "output")))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(2))
    save_adapter(model, tmp_path)
    plain, packed = (
        load(folders / "plain", device=CPU, adapter=tmp_path, **asked)
        for asked in ({"dtype": "bfloat16"}, {"quantize": "bf12"})
    )
    for one, other in zip(all_logits(packed), all_logits(plain), strict=True):
        assert same_bits(one, other)


def test_gradients_of_an_adapter_are_those_over_bfloat16(folders: Path) -> None:
    gradients = []
    for quantize in (None, "bf12"):
        model = load(
            folders / "plain", device=CPU, dtype="bfloat16", quantize=quantize, trainable=True
        )
        add_lora(model, LoraConfig(r=4))
        model.bfloat16()
        model(torch.arange(40).view(2, 20)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        assert same_bits(one, other)


def test_it_is_for_a_cpu_and_bfloat16(folders: Path) -> None:
    for device, dtype in (
        ("cuda", torch.bfloat16),
        ("mps", torch.bfloat16),
        ("cpu", torch.float32),
    ):
        with pytest.raises(ValueError, match="plain bfloat16 weights have the same values"):
            check_format("bf12", torch.device(device), dtype)
    with pytest.raises(ValueError, match=r"not with torch.float32 on cpu"):
        load(folders / "plain", device=CPU, dtype="float32", quantize="bf12")
    model = Transformer(tiny_args()).bfloat16()  # too narrow to gain
    use_format(model, "bf12")
    assert not packed_layers(model)
    assert isinstance(model.output, DenseLinear)


# ---------------------------------------------------------------- damage


def rewritten(folder: Path, target: Path, **changes: torch.Tensor) -> Path:
    """A copy of a folder, with some tensors of wq of the first layer changed."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".pth":
            (target / path.name).write_bytes(path.read_bytes())
    file = open_tensors(Folder(folder), "consolidated.00.pth")
    tensors = {name: stored.map().clone() for name, stored in file.tensors.items()}
    tensors |= {f"layers.0.attention.wq.weight.{key}": value for key, value in changes.items()}
    (target / "checksums.sha256").unlink(missing_ok=True)
    entries = {
        name: Entry(tensor.dtype, tuple(tensor.shape), [tensor].copy)
        for name, tensor in tensors.items()
    }
    write_tensors(target / "consolidated.00.pth", entries)
    return target


def test_damage_is_found_and_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folders / "bf12-1"
    file = open_tensors(Folder(source), "consolidated.00.pth")
    prefix = "layers.0.attention.wq.weight."
    starts, escapes = (file.tensors[prefix + key].map() for key in ("starts", "escapes"))
    cases = {
        "starts": {"starts": starts.flip(0)},
        "far": {"escapes": escapes + (256 << 8)},
        "order": {"escapes": escapes.flip(0)},
        "short": {"escapes": escapes[:-1]},
    }
    for name, changes in cases.items():
        folder = rewritten(source, tmp_path / name, **changes)
        with pytest.raises(ValueError, match=r"wq\.weight in .*consolidated\.00\.pth: "):
            load(folder, device=CPU)
        with pytest.raises(ValueError, match=r"problems? in"):
            verify(str(folder))
        assert "layers.0.attention.wq.weight in" in capsys.readouterr().out
    wrong = {
        "narrow": ({"blocks": torch.zeros(256, 1, 192, dtype=torch.uint8)}, "of shapes"),
        "dtype": ({"starts": starts.to(torch.uint8)}, "which should be torch.int32"),
        "scalar": ({"escapes": torch.tensor(1, dtype=torch.int32)}, "of shapes"),
    }
    for name, (changes, message) in wrong.items():
        folder = rewritten(source, tmp_path / name, **changes)
        with pytest.raises(ValueError, match=message):
            open_checkpoint(folder)


def test_verify_looks_at_values_and_bytes(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = random_weights()
    plain["layers.0.attention.wq.weight"][7, 9] = float("nan")
    plain["layers.1.attention.wo.weight"].zero_()
    write_shards(tmp_path / "plain", plain, ARGS)
    convert(str(tmp_path / "plain"), str(tmp_path / "bf12"), quantize="bf12")
    with pytest.raises(ValueError, match="problems in"):
        verify(str(tmp_path / "bf12"))
    text = capsys.readouterr().out
    assert "wq.weight has 1 NaN or infinite value(s), the first is nan at [7, 9]" in text
    assert "wo.weight is all zeros" in text
    copy = rewritten(folders / "bf12-1", tmp_path / "copy")
    path = copy / "consolidated.00.pth"
    stored = open_tensors(Folder(copy), path.name)
    blocks = stored.tensors["layers.0.attention.wq.weight.blocks"]
    with path.open("r+b") as opened:
        opened.seek(stored.offset_of(blocks.record) + 1000)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match="problem"):
        verify(str(copy))
    assert "wq.weight.blocks have changed (CRC-32" in capsys.readouterr().out
