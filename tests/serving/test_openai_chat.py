"""Chat completions by OpenAI's own client, and what it never sends."""

import json
from typing import Any

import httpx
import openai
import pytest

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
STORY = [{"role": "user", "content": "Tell me a story about a dog."}]


def test_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
    (choice,) = answer.choices
    assert choice.message.content == "12 + 30 = 42."
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert answer.object == "chat.completion"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == 11


def test_a_stream_has_the_text_and_log_probabilities_of_a_whole_answer(
    client: openai.OpenAI,
) -> None:
    settings: dict[str, Any] = {
        "model": "tiny",
        "messages": STORY,
        "seed": 5,
        "temperature": 0.9,
        "max_tokens": 40,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "stop": ["."],
    }
    whole = client.chat.completions.create(**settings)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options=options))
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert mine[-1].finish_reason == choice.finish_reason
        assert all(c.finish_reason is None for c in mine[:-1])
        logprobs = [token for c in mine if c.logprobs for token in c.logprobs.content]
        assert logprobs == choice.logprobs.content
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_a_stream_as_it_is_sent(url: str) -> None:
    body = {"model": "tiny", "messages": QUESTION, "temperature": 0, "stream": True}
    response = httpx.post(f"{url}/v1/chat/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert all("usage" not in chunk for chunk in chunks)


def test_json_that_a_schema_describes(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["sum"], int)


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"guided_json": {}}, "guided_json", "does not know"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "null"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"stream_options": {}}, "stream_options", "stream"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "token id"),
        ({"audio": {"voice": "x"}}, "audio", "does not support"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "give one"),
        ({"continue_final_message": True}, "continue_final_message", "assistant"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    url: str, wrong: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": "tiny", "messages": QUESTION, **wrong}
    for path in ("/v1/chat/completions", "/chat/completions"):
        response = httpx.post(url + path, json=body)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"


def test_a_model_that_does_not_exist(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'big'; there are tiny"):
        client.chat.completions.create(model="big", messages=QUESTION)
