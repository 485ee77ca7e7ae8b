"""Weight formats in a whole model: the bundled one, which has something to say."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from fixtures import run_ranks, tiny_args

from llama import Llama, Transformer
from llama.checkpoint import save_model
from llama.info import packed_weights, read_facts
from llama.quantize import InferenceLinear, use_format

TINY = Path(__file__).parents[1] / "params" / "tiny"
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


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
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


def greedy(quantize: str) -> list[list[int]]:
    llama = build(quantize)
    prompts = [llama.tokenizer.encode(start, bos=True) for start in ("Once upon a time", "Tom")]
    return llama.generate(prompts, 30, temperature=0)[0]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_ranks_give_the_tokens_of_one(quantize: str, ranks: int) -> None:
    expected = greedy(quantize)
    for found in run_ranks(ranks, greedy, quantize):
        assert found == expected


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="quantize='int5' is none of int8, int4"):
        build("int5")
    with pytest.raises(
        ValueError, match=r"int8 weights are multiplied with bfloat16 on a CPU, not"
    ):
        build("int8", dtype="float32")
    assert build("int8", dtype=None).model.norm.weight.dtype == torch.bfloat16
    model = Transformer(tiny_args(vocab_size=60)).to(torch.bfloat16)
    with pytest.raises(ValueError, match="int8: output: a matrix of 60 x 32 can't be packed"):
        use_format(model, "int8")


def test_a_bfloat16_model_is_still_a_model(tmp_path: Path) -> None:
    llama = build()
    layer = llama.model.layers[0].attention.wq
    assert isinstance(layer, InferenceLinear)
    assert "layers.0.attention.wq.weight" in llama.model.state_dict()
    save_model(llama.model, tmp_path, llama.tokenizer.model_path, torch.bfloat16)
    with pytest.raises(ValueError, match="is quantized; save the model that it was made from"):
        save_model(build("int8").model, tmp_path, llama.tokenizer.model_path, torch.bfloat16)
    tokens = torch.tensor([[1, 2, 3]])
    llama.model(tokens).sum().backward()
    assert layer.weight is not None
    assert layer.weight.grad is not None
    moved = llama.model.to(torch.float32)
    assert moved(tokens).isfinite().all()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_info_tells_the_bytes_of_packed_weights(quantize: str) -> None:
    model = build(quantize).model
    layers = [layer for layer in model.modules() if isinstance(layer, InferenceLinear)]
    packed = sum(part.nbytes for layer in layers for part in layer.packed or ())
    others = sum(weight.nbytes for weight in model.parameters())  # the embedding and the norms
    assert packed_weights(read_facts(str(TINY)), quantize, 1) == packed + others
