"""Answers that have to match a grammar do."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny_args, write_sentencepiece

from llama import Engine, InputError, Llama, SamplingParams, Sequence, Tokenizer, Transformer
from llama.engine import Grammar

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

TINY = Path(__file__).parents[2] / "params" / "tiny"


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama.build(TINY, device="cpu", dtype="float32", max_seq_len=512)


def answer(
    llama: Llama, grammar: Grammar, seed: int = 0, size: int = 200, **options: Any
) -> Sequence:
    prompt = llama.tokenizer.encode("Once upon a time", bos=True)
    params = SamplingParams(temperature=1.0, top_p=1.0, seed=seed)
    sequence = llama.engine.add(Sequence(prompt, size, params, grammar=grammar, **options))
    for _ in llama.engine.run([sequence]):
        pass
    return sequence


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["integer", "boolean", "string", "enum", "null"] + ["object", "array"] * (depth > 0)
    kind = rng.choice(kinds)
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", 3, None, True, 'a "b" c'], 3)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(0, 8)}
    if kind == "integer":
        return {"type": "integer", "minimum": 0, "maximum": rng.randint(0, 5000)}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth - 1), "maxItems": 3}
    if kind == "object":
        names = rng.sample(["name", "age", "tags", "x y", "ü"], rng.randint(1, 3))
        return {
            "type": "object",
            "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": names[: rng.randint(0, len(names))],
            "additionalProperties": False,
        }
    return {"type": kind}


def check_schemas(llama: Llama, count: int, seed: int) -> None:
    rng = random.Random(seed)
    schemas = [random_schema(rng) for _ in range(count)]
    ended = 0
    for i, schema in enumerate(schemas):
        found = answer(llama, Grammar(json_schema=schema), seed=i)
        assert found.finish_reason in ("stop", "length"), (schema, found.error)
        if found.finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(found.text), schema)
    assert ended > count * 0.8


def test_answers_validate(llama: Llama) -> None:
    check_schemas(llama, 25, seed=1)


@pytest.mark.slow
def test_answers_to_hundreds_of_schemas_validate(llama: Llama) -> None:
    check_schemas(llama, 300, seed=2)


def test_regular_expressions_choices_and_rules(llama: Llama) -> None:
    for seed in range(5):
        found = answer(llama, Grammar(regex="[a-f]{2,6}-[0-9]{1,4}[.]"), seed).text
        assert re.fullmatch("[a-f]{2,6}-[0-9]{1,4}[.]", found)
        assert answer(llama, Grammar(choice=["yes", 'say "no"', "有"]), seed).text in (
            *("yes", 'say "no"', "有"),
        )
        rules = 'start: NAME " likes " NAME\nNAME: /[A-Z][a-z]{1,8}/'
        found = answer(llama, Grammar(lark=rules), seed).text
        assert re.fullmatch("[A-Z][a-z]{1,8} likes [A-Z][a-z]{1,8}", found)


def test_with_guesses_penalties_and_stop_strings_the_answer_is_the_same(llama: Llama) -> None:
    grammar = Grammar(regex="(ab, ){3,30}end")
    plain = answer(llama, grammar, speculate=False)
    guessed = answer(llama, grammar)
    assert guessed.num_accepted_tokens > 0
    assert (plain.tokens, plain.logprobs) == (guessed.tokens, guessed.logprobs)
    assert answer(llama, grammar, stop=(", ab",)).text == "ab"


def test_an_answer_that_is_begun_goes_on_in_its_grammar(llama: Llama) -> None:
    begin = llama.tokenizer.encode('{"n": 12')
    prompt = llama.tokenizer.encode("Once", bos=True) + begin
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    sequence = Sequence(
        prompt, 60, grammar=Grammar(json_schema=schema), num_prefix_tokens=len(begin)
    )
    llama.engine.add(sequence)
    for _ in llama.engine.run([sequence]):
        pass
    assert sequence.text.startswith('{"n": 12')
    assert sequence.finish_reason == "length" or json.loads(sequence.text)["n"] >= 12


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_sentencepiece(tmp_path / "tokenizer.model"))
    model = Transformer(tiny_args(vocab_size=tokenizer.n_words, max_seq_len=64))
    engine = Engine(model, tokenizer, 1, 64)
    for seed in range(5):
        sequence = Sequence(
            tokenizer.encode("Once", bos=True),
            40,
            SamplingParams(temperature=1.0, top_p=1.0, seed=seed),
            grammar=Grammar(regex="[0-9]{2,4} dogs?"),
        )
        engine.add(sequence)
        while not engine.idle:
            engine.step()
        assert sequence.finish_reason == "stop", sequence.error
        assert re.fullmatch("[0-9]{2,4} dogs?", sequence.text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Grammar(), "one of json_schema, regex, choice and lark, got none"),
        (lambda: Grammar(regex="a", lark="start: A"), "got regex and lark"),
        (lambda: Grammar(choice="yes"), "choice must be a list of strings"),
        (lambda: Grammar(regex="(a"), "can't be followed"),
        (lambda: Grammar(regex="\ud800"), "surrogate"),
        (lambda: Grammar(choice=["\ud800"]), "surrogate"),
        (lambda: Grammar(lark="start: undefined_rule"), "can't be followed"),
        (lambda: Grammar(json_schema='{"type": '), "json_schema is not a JSON object"),
        (lambda: Grammar(json_schema={"type": "nothing"}), "can't be followed"),
    ],
)
def test_a_malformed_grammar_is_an_error_of_the_request(
    llama: Llama, make: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        answer(llama, make())
    assert llama.engine.idle


def test_without_llguidance_a_constrained_request_says_what_to_install(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InputError, match="pip install llguidance"):
        answer(llama, Grammar(regex="a"))
