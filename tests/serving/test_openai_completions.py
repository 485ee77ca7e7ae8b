"""Text completions by OpenAI's own client."""

import json
import math
from typing import Any

import httpx
import openai
import pytest

from llama.generation import Llama
from llama.serving.openai_fields import SamplingFields

STORY = "Once upon a time"


def complete(client: openai.OpenAI, **body: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": STORY, **body})


def test_an_answer_is_that_of_python(client: openai.OpenAI, llama: Llama) -> None:
    settings: dict[str, Any] = {"temperature": 0.8, "seed": 3}
    answer = complete(client, **settings, max_tokens=20, logprobs=0)
    (expected,) = llama.text_completion([STORY], max_gen_len=20, logprobs=True, **settings)
    (choice,) = answer.choices
    assert choice.text == expected["generation"]
    assert choice.logprobs.token_logprobs == expected["logprobs"]
    assert choice.finish_reason == expected["finish_reason"]
    assert answer.object == "text_completion"
    assert answer.usage.completion_tokens == 20


def test_sixteen_tokens_unless_told(client: openai.OpenAI) -> None:
    assert complete(client, temperature=0).usage.completion_tokens == 16


def test_texts_token_ids_and_lists_of_them(client: openai.OpenAI, llama: Llama) -> None:
    other = "The dog"
    texts = complete(client, prompt=[STORY, other], n=2, seed=1).choices
    ids = [llama.tokenizer.encode(text, bos=True) for text in (STORY, other)]
    assert complete(client, prompt=ids, n=2, seed=1).choices == texts
    assert [choice.index for choice in texts] == [0, 1, 2, 3]
    assert complete(client, prompt=ids[1], n=2, seed=1).choices[0].text == texts[2].text
    assert len({choice.text for choice in texts}) == 4


def test_a_stream_has_the_text_and_log_probabilities_of_a_whole_answer(
    client: openai.OpenAI,
) -> None:
    settings = {
        "prompt": [STORY, "The café 🙂 was"],
        "echo": True,
        "logprobs": 2,
        "n": 2,
        "seed": 7,
        "stop": [" the", "."],
        "max_tokens": 30,
    }
    whole = complete(client, **settings)
    chunks = list(complete(client, **settings, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        assert all(c.finish_reason is None for c in mine[:-1])
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            parts = [entry for c in mine for entry in getattr(c.logprobs, name)]
            assert parts == getattr(choice.logprobs, name)


def test_the_echo_of_a_text_is_the_text(client: openai.OpenAI, llama: Llama) -> None:
    (choice,) = complete(
        client, echo=True, logprobs=2, max_tokens=4, temperature=0, top_p=1
    ).choices
    assert choice.text.startswith(STORY)
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text  # no bos token
    assert [choice.text[at:][:1] for at in logprobs.text_offset] == [t[:1] for t in logprobs.tokens]
    (expected,) = llama.text_completion([STORY], 0, 1, max_gen_len=4, logprobs=True, echo=True)
    assert logprobs.token_logprobs == expected["logprobs"][1:]
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
        assert max(top.values()) >= logprob


def test_scores_of_token_ids(client: openai.OpenAI, llama: Llama) -> None:
    """What evaluation harnesses ask for: they drop the last token, which was generated."""
    ids = llama.tokenizer.encode("3 + 4 = 7.", bos=True)
    answer = complete(client, prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0)
    logprobs = answer.choices[0].logprobs
    _, scores = llama.generate([ids], max_gen_len=0, logprobs=True, echo=True)
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1:-1] == scores[0][1:]
    none = complete(client, prompt=ids, echo=True, logprobs=1, max_tokens=0).choices[0]
    assert none.logprobs.token_logprobs[1:] == scores[0][1:]
    assert none.text == llama.tokenizer.decode(ids)
    assert none.finish_reason == "length"


def test_a_stop_token_has_its_log_probability(client: openai.OpenAI, llama: Llama) -> None:
    stop = min(llama.tokenizer.stop_tokens)
    answer = complete(client, logit_bias={str(stop): 1e6}, logprobs=1, echo=True, max_tokens=1)
    (choice,) = answer.choices
    assert choice.text == STORY
    assert choice.finish_reason == "stop"
    assert choice.logprobs.tokens[-1] == llama.tokenizer.decode([stop])
    assert choice.logprobs.text_offset[-1] == len(STORY)
    assert choice.logprobs.top_logprobs[-1][choice.logprobs.tokens[-1]] < 0


def test_bytes_of_a_character_are_tokens_of_their_own(client: openai.OpenAI) -> None:
    (choice,) = complete(client, prompt="🙂!", echo=True, logprobs=1, max_tokens=0).choices
    names, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    assert names[0].startswith("bytes:\\xf0")
    assert names[-1] == "!"
    assert choice.text == "🙂!"
    assert offsets == [0] * (len(names) - 1) + [1]


def test_the_best_of_several(client: openai.OpenAI) -> None:
    settings = {"temperature": 1.5, "seed": 2, "max_tokens": 8, "logprobs": 0}
    several = complete(client, **settings, n=5)

    def mean(choice: Any) -> float:
        return math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    ranked = sorted(several.choices, key=mean, reverse=True)
    best = complete(client, **settings, n=2, best_of=5)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert best.usage.completion_tokens == several.usage.completion_tokens


def test_vllms_meanings_of_top_k_and_priority() -> None:
    fields = SamplingFields(top_k=-1, priority=3, seed=None)
    assert fields.sampling() == {"top_k": 0, "priority": -3}  # off; the lowest is first


@pytest.mark.parametrize(
    ("outputs", "matches"),
    [
        ({"regex": "[0-9]{3}"}, lambda text: text.isdigit() and len(text) == 3),
        ({"choice": ["red", "blue"]}, lambda text: text in ("red", "blue")),
        ({"grammar": 'start: "yes" | "no"'}, lambda text: text in ("yes", "no")),
        ({"json": {"type": "integer"}}, lambda text: isinstance(json.loads(text), int)),
        ({"json": '{"type": "boolean"}'}, lambda text: isinstance(json.loads(text), bool)),
    ],
)
def test_structured_outputs(client: openai.OpenAI, outputs: Any, matches: Any) -> None:
    answer = complete(client, extra_body={"structured_outputs": outputs}, seed=1)
    assert matches(answer.choices[0].text)


def test_a_json_object(client: openai.OpenAI) -> None:
    for extra in (
        {"structured_outputs": {"json_object": True}},
        {"response_format": {"type": "json_object"}},
    ):
        # Without a bias for what ends it the tiny model writes members to the end of the context.
        answer = complete(client, extra_body=extra, temperature=0, max_tokens=60)
        assert answer.choices[0].text.startswith("{")


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"suffix": "."}, "suffix", "does not support"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ["a", ""]}, "prompt", "empty"),
        ({"prompt": [[1], []]}, "prompt", "empty"),
        ({"prompt": None}, "prompt", "valid string"),
        ({"prompt": [1, "a"]}, "prompt.0", "valid string"),
        ({"prompt": [[1, 2.5]]}, "prompt.0.1", "valid integer"),
        ({"prompt": [99999999]}, None, "prompt[0] holds 99999999, no token id"),
        ({"best_of": 1, "n": 2}, "best_of", "less than n"),
        ({"best_of": 3, "stream": True}, "best_of", "stream"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"logprobs": True}, "logprobs", "valid integer"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"echo": 1}, "echo", "valid boolean"),
        ({"stop": [1]}, "stop.0", "valid string"),
        ({"stop": ""}, None, "must not be empty"),
        ({"seed": 1.5}, "seed", "valid integer"),
        ({"seed": 2**64}, None, "seed must be"),
        ({"top_p": 2}, "top_p", "less than or equal to 1"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "token id"),
        ({"logit_bias": {"9999999": 1}}, None, "token id 9999999"),
        ({"structured_outputs": {}}, "structured_outputs", "got none"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "got regex and choice",
        ),
        ({"structured_outputs": {"regex": "("}}, None, "grammar can't be followed"),
        ({"structured_outputs": {"json": "{"}}, None, "json_schema is not a JSON object"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"tag": 1}}, "structured_outputs.tag", "does not know"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "not both",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "does not know"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"model": 3}, "model", "valid string"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    url: str, wrong: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "tiny", "prompt": STORY, "max_tokens": 4, **wrong}
    for path in ("/v1/completions", "/completions"):
        response = httpx.post(url + path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"]


def test_a_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2000 tokens, but the context is 1024") as e:
        complete(client, prompt=[5] * 2000)
    assert e.value.code == "context_length_exceeded"
