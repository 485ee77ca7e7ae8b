"""Weight formats in a whole model: the bundled one, which has something to say."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fixtures import difference, is_mapped, needs_compiler, run_ranks, tiny_args, write_shards

from llama import Llama, Transformer, distributed, kernels
from llama.args import ModelArgs, weight_shapes
from llama.checkpoint.convert import convert
from llama.checkpoint.info import packed_weights, read_facts
from llama.checkpoint.loading import load
from llama.checkpoint.saving import save_model
from llama.quantization import linear_layers as quantize_source
from llama.quantization.linear_layers import DenseLinear, PackedLinear, divergence, use_format
from llama.storage import sharding as weights_module

TINY = Path(__file__).parents[2] / "params" / "tiny"
TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big dog. The dog was sad because he lost his ball. Lily wanted to help. "
    "She looked under a tree and found it. The dog was very happy and they became best friends."
)


def build(quantize: str | None = None, dtype: str | None = "bfloat16", rows: int = 8) -> Llama:
    return Llama.build(TINY, device="cpu", dtype=dtype, quantize=quantize, max_batch_size=rows)


def log_probabilities(llama: Llama, at_once: int) -> torch.Tensor:
    """Of every next token of TEXT, (tokens, vocab), read `at_once` tokens at a time."""
    tokens = torch.tensor([llama.tokenizer.encode(TEXT, bos=True)])
    cache = llama.model.new_cache(1, tokens.shape[1])
    with torch.no_grad():
        parts = [
            llama.model(tokens[:, i : i + at_once], i, cache=cache)
            for i in range(0, tokens.shape[1], at_once)
        ]
    return torch.cat(parts, dim=1)[0].log_softmax(-1)


@pytest.mark.parametrize("at_once", [1, 16, 1000])
@pytest.mark.parametrize(
    ("quantize", "most"), [(None, 0.0005), ("int8", 0.002), ("int4", 0.04)], ids=str
)
def test_how_far_a_format_is_from_float32(quantize: str | None, most: float, at_once: int) -> None:
    expected = log_probabilities(build(dtype="float32"), 1000)
    found = log_probabilities(build(quantize), at_once)
    divergence = F.kl_div(found, expected, log_target=True, reduction="batchmean")
    assert 0 < divergence < most


@pytest.mark.parametrize("quantize", [pytest.param(None, marks=needs_compiler), "int8", "int4"])
def test_an_answer_does_not_depend_on_the_batch(quantize: str | None) -> None:
    llama = build(quantize)
    starts = ["Once upon a time", "One day, a dog", "Lily", "The sun was", "Tom and his mom went"]
    prompts = [llama.tokenizer.encode(start, bos=True) for start in starts]
    together = llama.generate(prompts, 40, temperature=0, logprobs=True)
    for i, prompt in enumerate(prompts):
        alone = llama.generate([prompt], 40, temperature=0, logprobs=True)
        assert alone[0][0] == together[0][i]
        assert together[1] is not None
        assert alone[1] == [together[1][i]]


def greedy(quantize: str | None, folder: Path = TINY) -> list[list[int]]:
    llama = Llama.build(folder, device="cpu", quantize=quantize)
    prompts = [llama.tokenizer.encode(start, bos=True) for start in ("Once upon a time", "Tom")]
    return llama.generate(prompts, 30, temperature=0)[0]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_ranks_give_the_tokens_of_one(quantize: str, ranks: int) -> None:
    expected = greedy(quantize)
    for found in run_ranks(ranks, greedy, quantize):
        assert found == expected


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize='int5' is none of bf12, int8, int4"):
        build("int5")
    with pytest.raises(
        ValueError, match=r"int8 weights are multiplied with bfloat16 on a CPU or an NVIDIA GPU"
    ):
        build("int8", dtype="float32")
    assert build("int8", dtype=None).model.norm.weight.dtype == torch.bfloat16
    model = Transformer(tiny_args(vocab_size=60)).to(torch.bfloat16)
    with pytest.raises(ValueError, match="int8: output: a matrix of 60 x 32 can't be packed"):
        use_format(model, "int8")


def test_a_bfloat16_model_is_still_a_model(tmp_path: Path) -> None:
    llama = build()
    layer = llama.model.layers[0].attention.wq
    assert isinstance(layer, DenseLinear)
    assert "layers.0.attention.wq.weight" in llama.model.state_dict()
    save_model(llama.model, tmp_path, llama.tokenizer.model_path, torch.bfloat16)
    with pytest.raises(ValueError, match="is quantized or has an adapter; save the model"):
        save_model(build("int8").model, tmp_path, llama.tokenizer.model_path, torch.bfloat16)
    tokens = torch.tensor([[1, 2, 3]])
    llama.model(tokens).sum().backward()
    assert layer.weight is not None
    assert layer.weight.grad is not None
    moved = llama.model.to(torch.float32)
    assert moved(tokens).isfinite().all()


@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 0.0001), ("bfloat16", 0.0003)])
def test_how_far_a_cache_in_int8_is_from_one_in_float32(
    dtype: str, most: float, at_once: int
) -> None:
    expected = log_probabilities(build(dtype="float32"), 1000)
    llama = Llama.build(TINY, device="cpu", dtype=dtype, kv_cache_dtype="int8")
    found = log_probabilities(llama, at_once)
    divergence = F.kl_div(found, expected, log_target=True, reduction="batchmean")
    assert 0 < divergence < most


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_from_a_cache_in_int8(dtype: str) -> None:
    exact, llama = (
        Llama.build(TINY, device="cpu", dtype=dtype, max_batch_size=2, kv_cache_dtype=of_cache)
        for of_cache in (None, "int8")
    )
    prompts = [llama.tokenizer.encode(TEXT[:end], bos=True) for end in (60, 140)]
    answers, found = llama.generate(prompts, 40, temperature=0, logprobs=True)
    given = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    _, expected = exact.generate(given, 1, temperature=0, logprobs=True, echo=True)
    for each, is_int8 in ((exact, False), (llama, True)):
        assert (each.model.new_cache(1, 64).k.dtype == torch.int8) == is_int8
    assert found is not None
    assert expected is not None
    for prompt, mine, theirs in zip(prompts, found, expected, strict=True):
        pairs = zip(mine, theirs[len(prompt) : len(prompt) + len(mine)], strict=True)
        assert 0 < max(abs(a - b) for a, b in pairs) < 0.2
    with pytest.raises(ValueError, match="kv_cache_dtype='int4': leave it out, or give int8"):
        Llama.build(TINY, kv_cache_dtype="int4")


@pytest.mark.parametrize("multiplies", [False, True])
@pytest.mark.parametrize("rows", [17, 40])
def test_many_rows_are_multiplied_in_float32_where_bfloat16_is_not(
    multiplies: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "cpu_multiplies_bfloat16", lambda: multiplies)
    widened: list[torch.Tensor] = []
    plain = quantize_source._float32_product
    monkeypatch.setattr(quantize_source, "_FLOAT32_OUTPUTS", 300)

    def spy(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        widened.append(x)
        return plain(x, weight)

    monkeypatch.setattr(quantize_source, "_float32_product", spy)
    layer = build().model.layers[0].feed_forward.w1
    assert layer.weight is not None
    x = torch.randn(2, rows, layer.weight.shape[1]).bfloat16()
    with torch.no_grad():
        found = layer(x)
        assert difference(found, x.double() @ layer.weight.double().T) < 4e-3
    assert found.dtype == torch.bfloat16
    assert len(widened) == (not multiplies)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_info_tells_the_bytes_of_packed_weights(quantize: str) -> None:
    model = build(quantize).model
    packed = sum(tensor.nbytes for each in packed_of(model) for tensor in each)
    others = sum(weight.nbytes for weight in model.parameters())  # the embedding and the norms
    assert packed_weights(read_facts(str(TINY)), quantize, 1) == packed + others


# ---------------------------------------------------------------- packed while read, and on disk

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FORMAT-SHARDS for int8 and int4, in 1 and 2 shards, of the bundled model."""
    root = tmp_path_factory.mktemp("packed")
    for quantize in ("int8", "int4"):
        for shards in (1, 2):
            folder = root / f"{quantize}-{shards}"
            convert(str(TINY), str(folder), shards=shards, quantize=quantize)
    return root


def build_from(folder: Path, quantize: str | None = None) -> Llama:
    return Llama.build(folder, device="cpu", quantize=quantize)


def packed_of(model: Transformer) -> Iterator[kernels.Packed]:
    for layer in model.modules():
        if isinstance(layer, PackedLinear):
            yield layer.packed


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_packed_afterwards_while_read_and_before_are_the_same(
    quantize: str, shards: int, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    afterwards = load(TINY, device=CPU, dtype=torch.bfloat16, trainable=True)
    use_format(afterwards, quantize)
    monkeypatch.setattr(weights_module, "_BLOCK", 30_000)  # several blocks a weight
    models = [afterwards, build(quantize).model]
    models += [
        build_from(folders / f"{quantize}-{shards}", asked).model for asked in (None, quantize)
    ]
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        expected = afterwards(tokens)
    for model in models:
        tensors = [tensor for packed in packed_of(model) for tensor in packed]
        assert len(tensors) == 2 * (7 * afterwards.n_layers + 1)
        for found, first in zip(
            tensors, (t for p in packed_of(afterwards) for t in p), strict=True
        ):
            assert found.dtype == first.dtype
            assert torch.equal(found, first)
        with torch.no_grad():
            assert torch.equal(model(tokens), expected)


def test_bfloat16_is_a_format_too(folders: Path) -> None:
    model = build("bfloat16").model
    layers = [m for m in model.modules() if isinstance(m, DenseLinear)]
    assert len(layers) == 7 * model.n_layers + 1
    with pytest.raises(ValueError, match=r"quantize='bfloat16', but .* holds int4 weights"):
        build_from(folders / "int4-1", "bfloat16")


def test_packed_weights_stay_mapped(folders: Path) -> None:
    llama = build_from(folders / "int4-1")
    file = folders / "int4-1" / "consolidated.00.pth"
    assert all(is_mapped(tensor, file) for packed in packed_of(llama.model) for tensor in packed)
    assert is_mapped(llama.model.tok_embeddings.weight, file)


def tokens_of_all(root: Path) -> dict[str, list[list[int]]]:
    return {folder.name: greedy(None, folder) for folder in sorted(root.iterdir())}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_packed_shards_on_any_number_of_ranks(ranks: int, folders: Path) -> None:
    found = [tokens_of_all(folders)] if ranks == 1 else run_ranks(ranks, tokens_of_all, folders)
    expected = {name: greedy(name.partition("-")[0]) for name in found[0]}
    assert len(expected) == 4
    assert found == [expected] * ranks


def logits_of_all(root: Path) -> list[torch.Tensor]:
    found = []
    for shards in ("1", "4"):
        model = load(root / shards, device=CPU)
        with torch.no_grad():
            found.append(model(torch.arange(20).view(2, 10)))
    return found


def test_ranks_that_share_a_head_share_its_packed_rows(tmp_path: Path) -> None:
    args = dict(dim=128, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=64, multiple_of=128)
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in weight_shapes(ModelArgs(**args)).items()}
    meta = write_shards(tmp_path / "meta", weights, args)
    for shards in (1, 4):
        convert(str(meta), str(tmp_path / str(shards)), shards=shards, quantize="int8")
    expected, of_four = logits_of_all(tmp_path)
    assert torch.equal(of_four, expected)
    for found in run_ranks(4, logits_of_all, tmp_path):
        for logits in found:
            assert (logits - expected).norm() < 0.02 * expected.norm()


def test_what_is_refused_of_packed_folders(folders: Path) -> None:
    folder = folders / "int4-1"
    with pytest.raises(ValueError, match=r"quantize='int8', but .*int4-1 holds int4 weights; take"):
        build_from(folder, "int8")
    with pytest.raises(ValueError, match="int4 weights are multiplied with bfloat16 on a CPU or"):
        Llama.build(folder, device="cpu", dtype="float32")


def test_layers_that_are_no_tiles_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    args = dict(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=60, multiple_of=32)
    weights = {name: torch.ones(shape) for name, shape in weight_shapes(ModelArgs(**args)).items()}
    folder = write_shards(tmp_path, weights, args)
    with pytest.raises(ValueError, match=r"int8: output\.weight: a matrix of 60 x 32 can't be"):
        load(folder, device=CPU, quantize="int8")


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "shards"), [(torch.float32, 2), (torch.bfloat16, 1)], ids=str)
def test_packing_while_reading_takes_little_memory(
    dtype: torch.dtype, shards: int, tmp_path: Path
) -> None:
    args = dict(dim=1024, n_layers=4, n_heads=16, n_kv_heads=8, vocab_size=512, multiple_of=256)
    weights = {
        name: torch.full(shape, 0.5, dtype=dtype)
        for name, shape in weight_shapes(ModelArgs(**args)).items()
    }
    for i, weight in enumerate(weights.values()):
        weight.flatten()[i] = i
        weight[-1:] = i  # shards are not to be the same
    write_shards(tmp_path, weights, args, shards)
    script = rf"""
import re, torch
from pathlib import Path
from llama import kernels
from llama.checkpoint import load
def peak():
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
kernels.pack(torch.zeros(16, 32, dtype=torch.bfloat16), 4)
before = peak()
model = load({str(tmp_path)!r}, device="cpu", quantize="int4")
print(peak() - before)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    count = sum(weight.numel() for weight in weights.values())
    largest = max(weight.numel() for weight in weights.values())
    packed = count * 4.5 / 8
    # Beside them the largest weight as it is stored and in bfloat16, and what torch takes anyway.
    assert packed < int(found.stdout) < packed + largest * (dtype.itemsize + 2) + 30e6 < count * 2


# ---------------------------------------------------------------- what it costs


def test_divergence_is_that_of_decoding() -> None:
    reference, packed = build(), build("int4")
    tokens = reference.tokenizer.encode(TEXT, bos=True)
    ours, theirs = (log_probabilities(llama, 16)[:-1] for llama in (reference, packed))
    found = divergence(reference.model, packed.model, [tokens])
    targets = torch.tensor(tokens[1:])
    assert found.tokens == len(targets)
    assert found.reference == pytest.approx(F.nll_loss(ours, targets).item(), rel=1e-4)
    assert found.packed == pytest.approx(F.nll_loss(theirs, targets).item(), rel=1e-4)
    expected = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    assert found.kl == pytest.approx(expected, rel=1e-3)
    assert 0.005 < found.kl < 0.04
    assert divergence(reference.model, reference.model, [tokens]).kl == 0


def test_divergence_counts_each_token_of_each_window_once() -> None:
    model = build().model
    windows = [[1, 2, 3], [4] * 40, [5], [6, 7]]
    alone = [divergence(model, model, [window]) for window in windows if len(window) > 1]
    found = divergence(model, model, windows)
    assert found.tokens == sum(one.tokens for one in alone) == 2 + 39 + 1
    mean = math.fsum(one.reference * one.tokens for one in alone) / found.tokens
    assert found.reference == pytest.approx(mean, rel=1e-5)
    with pytest.raises(ValueError, match="no text to compare on: give at least two tokens"):
        divergence(model, model, [[5], []])
