"""`llama next`: its figures are Llama's own, and what it prints fits and loses nothing."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len

from llama import Llama, SamplingParams
from llama.engine.sampling import SamplerState, sample
from llama.errors import InputError
from llama.inspection.next_tokens import predict_next, sampling_probabilities

TINY = Path(__file__).parents[2] / "params" / "tiny"
Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_paths_are_what_llama_generates(llama: Llama, seed: int) -> None:
    params = SamplingParams(temperature=2.0, top_p=0.95, seed=seed)
    found = predict_next(llama, "hello", steps=6, params=params, beams=3)
    greedy, sampled, *beams = found.paths
    prompt = llama.tokenizer.encode("hello", bos=True)
    for path, settings in (
        (greedy, {"temperature": 0.0}),
        (sampled, {"temperature": 2.0, "top_p": 0.95, "seed": seed}),
    ):
        tokens, logprobs = llama.generate([prompt], max_gen_len=6, logprobs=True, **settings)
        assert path.tokens == tokens[0]
        if path.finish_reason == "length":
            assert path.logprob == sum(logprobs[0])
            assert path.score == path.logprob / 6
    best = llama.beam_search(prompt, 3, 3, max_gen_len=6)
    assert [(b.tokens, b.score) for b in beams] == [(h.tokens, h.score) for h in best]


def test_candidates_are_the_likeliest_with_llamas_log_probabilities(llama: Llama) -> None:
    found = predict_next(llama, "hello", steps=2, top=4)
    prompt = llama.tokenizer.encode("hello", bos=True)
    step = found.steps[0]
    assert [c.rank for c in step.candidates[:4]] == [1, 2, 3, 4]
    for candidate in step.candidates:
        _, logprobs = llama.generate(
            [[*prompt, candidate.token]], max_gen_len=0, logprobs=True, echo=True
        )
        assert candidate.logprob == pytest.approx(logprobs[0][-1], abs=1e-5)
        assert candidate.probability == math.exp(candidate.logprob)
    logits = llama.model(torch.tensor([prompt]))[0, -1, : llama.tokenizer.n_words]
    assert [c.token for c in step.candidates[:4]] == logits.topk(4).indices.tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.6, top_p=0.9),
        SamplingParams(temperature=1.5, top_p=0.5, top_k=7),
        SamplingParams(temperature=1.0, top_p=1.0, min_p=0.2),
        SamplingParams(temperature=1.0, top_p=0.0),
        SamplingParams(temperature=0.0),
    ],
)
def test_sampling_probabilities_are_those_that_the_engine_draws_with(
    params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 2
    logprobs = logits[0].log_softmax(-1).tolist()
    ranked = sorted(enumerate(logprobs), key=lambda pair: -pair[1])
    weights = sampling_probabilities(ranked, params)
    assert sum(weights.values()) == pytest.approx(1)
    below = 0.0  # the engine's draw u is the first ranked token whose cumulative mass is above u
    for token, weight in weights.items():
        for uniform in (below + weight * 1e-3, below + weight * (1 - 1e-3)):
            state = SamplerState(params)
            monkeypatch.setattr(state, "draw", lambda uniform=uniform: uniform)
            assert sample(logits, [state])[0].tolist() == [token]
        below += weight


def test_where_the_paths_part_each_has_its_steps(llama: Llama) -> None:
    params = SamplingParams(temperature=3.0, top_p=1.0, seed=5)
    found = predict_next(llama, "hello", steps=4, params=params)
    greedy, sampled = found.paths[:2]
    parted = next(i for i in range(4) if greedy.tokens[i] != sampled.tokens[i])
    chosen = [(step.number, sorted(step.choices)) for step in found.steps]
    both = [(n + 1, ["greedy search", "sampling"]) for n in range(parted + 1)]
    apart = [(n + 1, [who]) for n in range(parted + 1, 4) for who in ("greedy search", "sampling")]
    assert chosen == both + apart
    for step in found.steps:  # a chosen token is listed, however unlikely
        assert {*step.choices.values()} <= {c.token for c in step.candidates}
        if "greedy search" in step.choices:
            assert step.candidates[0].token == step.choices["greedy search"]


def test_a_stop_token_ends_a_path(chain: Callable[..., Llama]) -> None:
    llama = chain([0])
    tokenizer = llama.tokenizer
    start, end = tokenizer.encode("h"), tokenizer.special_tokens["<|eot_id|>"]
    llama = chain([*start, *tokenizer.encode("a"), end])
    found = predict_next(llama, "h", steps=5, params=SamplingParams(temperature=0.01, seed=1))
    assert [step.number for step in found.steps] == [1, 2]
    assert found.steps[-1].choices == {"greedy search": end, "sampling": end}
    assert found.paths[0].tokens == tokenizer.encode("a")
    assert found.paths[0].finish_reason == "stop"
    assert found.paths[0].score == found.paths[0].logprob / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 80}, "the context of 64 has room for 58 more, not for 80 steps"),
        ({"steps": 2, "beams": 0}, "beams must be a whole number"),
    ],
)
def test_wrong_settings(llama: Llama, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predict_next(llama, "123123hello 12", **settings)


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("text", ["Once upon a time", "Once 你好", ""])
def test_it_fits_the_terminal(
    width: int, text: str, run_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run_command("next", text, "--steps", "2", "--temperature", "1.5")
    assert (code, err) == (0, "")
    headings = [line for line in out.splitlines() if line.startswith("Step")]
    assert max(cell_len(line) for line in out.splitlines() if line not in headings) <= width
    assert "1792 <|begin_of_text|>" in out
    assert "█" in out
    assert "beam search" in out or "beam" in out


@pytest.mark.parametrize(
    ("top_p", "drawn"), [(0.0, "1 token remains"), (0.999999, "tokens remain")]
)
def test_the_printed_figures(
    top_p: float, drawn: str, run_command: Command, bundled: Llama
) -> None:
    flags = ("--model", TINY, "--top", "2", "--top_p", str(top_p), "--temperature", "1")
    code, out, err = run_command("next", "Once upon a time", *flags)
    assert (code, err) == (0, "")
    prompt = bundled.tokenizer.encode("Once upon a time", bos=True)
    with torch.no_grad():
        probabilities = bundled.model(torch.tensor([prompt]))[0, -1].float().softmax(0)
    found = re.findall(r"^ +([12]) +(\d+) +('.*?') +([\d.]+)%", out, re.M)
    assert [int(token) for _, token, *_ in found] == probabilities.topk(2).indices.tolist()
    for rank, token, text, percent in found:
        assert text == repr(bundled.tokenizer.decode([int(token)]))
        assert float(percent) == pytest.approx(100 * probabilities[int(token)].item(), abs=0.06)
        assert (f"greedy search takes the likeliest: {text}\n" in out) == (rank == "1")
    assert f"{drawn} at temperature 1, top_p {top_p:g}" in out
    assert "\x1b" not in out


def test_json(run_command: Command) -> None:
    code, out, err = run_command("next", "Once", "--steps", "2", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["prompt_texts"][1:] == ["'Once'"]
    assert [step["number"] for step in found["steps"]][:2] == [1, 2]
    assert {path["method"] for path in found["paths"]} == {
        *("greedy search", "sampling", "beam search"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature must be finite and at least 0"),
        (["--top_p", "2"], "top_p must be between 0 and 1"),
        (["--steps", "2000"], "has room for"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input(arguments: list[str], message: str, run_command: Command) -> None:
    code, out, err = run_command("next", "Once", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.startswith("error: ")


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--top", "0"], ["--beams", "x"], []])
def test_a_wrong_command_line(arguments: list[str], run_command: Command) -> None:
    assert run_command("next", *["Once"] * bool(arguments), *arguments)[0] == 2


def test_without_the_bundled_model(
    run_command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from llama.checkpoint import bundled

    monkeypatch.setattr(bundled, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    code, out, err = run_command("next", "Once")
    assert (code, out) == (1, "")
    assert "no model is named" in err
