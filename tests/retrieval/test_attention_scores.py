"""Attention to passages against a naive computation of the whole model."""

import math

import pytest
import torch
import torch.nn.functional as F
from fixtures import difference, tiny_args

from llama.errors import InputError
from llama.generation import Llama
from llama.model import Transformer
from llama.retrieval.attention_scores import attention_scores, attention_to_context


@pytest.mark.parametrize("layers", [None, [1], [0]])
def test_attention_is_that_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch, layers: list[int] | None
) -> None:
    torch.manual_seed(1)
    model = Transformer(tiny_args(max_seq_len=64))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    tokens = torch.randint(64, (23,)).tolist()
    seen: list[torch.Tensor] = []
    whole = F.scaled_dot_product_attention

    def naive(q, k, v, mask, is_causal, enable_gqa):
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
        causal = torch.ones(scores.shape[-2:]).tril() == 0
        seen.append(scores.masked_fill(causal, -math.inf).softmax(-1))
        return whole(q, k, v, mask, is_causal=is_causal, enable_gqa=enable_gqa)

    monkeypatch.setattr(F, "scaled_dot_product_attention", naive)
    model(torch.tensor([tokens]))
    monkeypatch.undo()
    chosen = [seen[i] for i in (range(2) if layers is None else layers)]
    expected = sum(weights[0, :, -5:].sum(0).mean(0) for weights in chosen)
    found = attention_to_context(model, tokens, 5, layers)
    assert difference(found, expected.detach()) < 1e-5
    assert float(found.sum()) == pytest.approx(4 * len(chosen), rel=1e-5)  # each head's sum is 1


PASSAGES = [
    "Mia lives in Oslo. Mia is a pilot.",
    "Tom lives in Fairhaven. Tom is a baker.",
    "The museum opens at 10:15. The ticket costs 14 dollars.",
]


def test_the_passage_in_question_gets_the_most_attention(bundled: Llama) -> None:
    for question, best in (("Where does Mia live?", 0), ("When does the museum open?", 2)):
        scores = attention_scores(bundled.model, bundled.tokenizer, question, PASSAGES, 1024)
        assert max(range(3), key=scores.__getitem__) == best, scores


def test_a_query_without_content_prefers_none(bundled: Llama) -> None:
    scores = attention_scores(bundled.model, bundled.tokenizer, "N/A", PASSAGES, 1024)
    assert scores == [0.0, 0.0, 0.0]


def test_passages_that_do_not_fit_together_are_read_in_groups(bundled: Llama) -> None:
    many = PASSAGES * 6
    scores = attention_scores(bundled.model, bundled.tokenizer, "Where does Mia live?", many, 200)
    assert len(scores) == len(many)
    with pytest.raises(InputError, match="does not fit into the context beside the question"):
        attention_scores(bundled.model, bundled.tokenizer, "Where?", ["word " * 300], 200)
