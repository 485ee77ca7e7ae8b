"""Responses by OpenAI's own client, and the events that they are made of."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel
from serving.conftest import running

from llama.engine.request import Token
from llama.generation import Llama
from llama.serving.answers import ChatDelta, Usage
from llama.serving.app import create_app
from llama.serving.openai_response_events import ResponseWriter
from llama.serving.registry import ModelRegistry
from llama.tool_calls import CallArguments, CallEnd, CallStart, TextDelta

QUESTION = "What is 12 + 30?"
CALCULATOR: Any = {
    "type": "function",
    "name": "calculator",
    "description": "Calculates",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    "strict": True,
}


def ask(client: openai.OpenAI, content: Any = QUESTION, **settings: Any) -> Any:
    settings = {"model": "tiny", "temperature": 0, **settings}
    return client.responses.create(input=content, **settings)


def events_of(url: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream, as they are sent."""
    body = {"model": "tiny", "input": QUESTION, "temperature": 0, "stream": True, **body}
    response = httpx.post(f"{url}/v1/responses", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    found = []
    for event in events:
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_an_answer(client: openai.OpenAI, llama: Llama) -> None:
    response = ask(client)
    assert response.output_text == "12 + 30 = 42."
    assert (response.status, response.object, response.store) == ("completed", "response", False)
    assert response.usage.output_tokens == 13
    assert response.usage.total_tokens == response.usage.input_tokens + 13
    settings: dict[str, Any] = {"temperature": 0.9, "top_p": 0.8}
    story = [{"role": "user", "content": "Tell me a story."}]
    response = ask(client, story, max_output_tokens=30, extra_body={"seed": 4}, **settings)
    dialogs: Any = [story]
    (expected,) = llama.chat_completion(dialogs, max_gen_len=30, seed=4, **settings)
    assert response.output_text == expected["generation"]["content"]
    assert (response.temperature, response.top_p) == (0.9, 0.8)


def test_the_events_of_a_text(url: str) -> None:
    events = events_of(url, include=["message.output_text.logprobs"], top_logprobs=2)
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * len(deltas),
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"
    response = events[-1]["response"]
    (item,) = response["output"]
    (part,) = item["content"]
    assert part["text"] == "".join(event["delta"] for event in deltas) == "12 + 30 = 42."
    assert part["logprobs"] == [entry for event in deltas for entry in event["logprobs"]]
    assert len(part["logprobs"]) == response["usage"]["output_tokens"]
    assert len(part["logprobs"][0]["top_logprobs"]) == 2
    assert events[-4]["text"] == part["text"]
    assert events[-3]["part"] == part
    assert events[-2]["item"] == item
    assert {event["item_id"] for event in deltas} == {item["id"]}


def test_the_model_calls_its_calculator_and_answers_with_the_result(client: openai.OpenAI) -> None:
    dialog: list[Any] = [{"role": "user", "content": "What is 23 * 17?"}]
    tools = [CALCULATOR, {"type": "web_search"}, {"type": "custom", "name": "shell"}]
    response = ask(client, dialog, tools=tools, instructions="You are a helpful assistant.")
    assert [tool.type for tool in response.tools] == ["function"]
    (call,) = response.output
    assert (call.type, call.name, call.status) == ("function_call", "calculator", "completed")
    result = str(eval(json.loads(call.arguments)["expression"]))
    for output in (result, [{"type": "input_text", "text": result}]):
        answered = {"type": "function_call_output", "call_id": call.call_id, "output": output}
        answer = ask(client, [*dialog, call.to_dict(), answered], tools=tools)
        assert answer.output_text == "23 * 17 = 391."


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "get_weather"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "get_weather"}],
        },
    ],
)
def test_a_call_may_be_required(client: openai.OpenAI, choice: Any) -> None:
    tools = [CALCULATOR, {**CALCULATOR, "name": "get_weather"}]
    response = ask(client, tools=tools, tool_choice=choice, parallel_tool_calls=False)
    (call,) = response.output
    assert call.type == "function_call"
    assert choice == "required" or call.name == "get_weather"
    assert response.parallel_tool_calls is False
    assert response.to_dict()["tool_choice"] == choice


def test_the_events_of_a_call(url: str, client: openai.OpenAI) -> None:
    question = "What is 23 * 17?"
    events = events_of(url, input=question, tools=[CALCULATOR])
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [e for e in events if e["type"] == "response.function_call_arguments.delta"]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        *["function_call_arguments.delta"] * len(deltas),
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[2]["item"]["name"] == "calculator"
    assert events[2]["item"]["arguments"] == ""
    arguments = "".join(event["delta"] for event in deltas)
    assert events[-3]["arguments"] == events[-2]["item"]["arguments"] == arguments
    with client.responses.stream(
        model="tiny", input=question, tools=[CALCULATOR], temperature=0
    ) as stream:
        (call,) = stream.get_final_response().output
    assert call.arguments == arguments


def test_a_text_after_a_call_has_log_probabilities_of_its_own(llama: Llama) -> None:
    def token(text: str) -> Token:
        return Token(llama.tokenizer.encode(text)[0], text, -1.0)

    call: Any = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
    deltas = [
        ChatDelta(0, [], [token("{")], None),
        ChatDelta(0, [CallStart(0, "a", "f"), CallArguments(0, "{}")], [token("}")], None),
        ChatDelta(0, [CallEnd(0, call, "")], [token(" ")], None),
        ChatDelta(0, [TextDelta("So")], [token("So")], None),
    ]
    writer = ResponseWriter({"output": []})
    list(writer.begin(llama.tokenizer))
    for delta in deltas:
        list(writer.add(delta))
    list(writer.end(True, Usage(1, 4, 0), 0))
    first, second = writer.response["output"]
    assert (first["type"], first["arguments"], first["status"]) == (
        "function_call",
        "{}",
        "completed",
    )
    (part,) = second["content"]
    assert [entry["token"] for entry in part["logprobs"]] == ["So"]


def test_a_dialog_of_items_is_that_of_chat_completions(client: openai.OpenAI) -> None:
    """The same prompt has the same number of tokens, and the same answer."""
    call: Any = {"name": "calculator", "arguments": '{"expression": "2 + 2"}'}
    items = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "input_text", "text": "What is 2 + 2?"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I calculate.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "a", **call},
        {"type": "function_call", "call_id": "b", **call},
        {"type": "function_call_output", "call_id": "a", "output": "4"},
        {"type": "function_call_output", "call_id": "b", "output": "4"},
        {"role": "user", "content": "Thanks."},
    ]
    calls = [{"id": name, "type": "function", "function": call} for name in "ab"]
    messages: Any = [
        {"role": "system", "content": "You calculate."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "I calculate.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": "4"},
        {"role": "tool", "tool_call_id": "b", "content": "4"},
        {"role": "user", "content": "Thanks."},
    ]
    response = ask(client, items, instructions="You calculate.")
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    assert response.output_text == chat.choices[0].message.content


class Sum(BaseModel):
    total: int


def test_structured_output(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model="tiny", input=QUESTION, text_format=Sum, temperature=0, max_output_tokens=60
    )
    assert isinstance(response.output_parsed, Sum)
    dialog: Any = [{"role": "user", "content": "What is 23 * 17?"}]
    settings: Any = {"model": "tiny", "tools": [CALCULATOR], "temperature": 0}
    dialog += response.output  # as the client has it, with what it has parsed
    dialog += [{"role": "user", "content": "What is 23 * 17?"}]
    dialog += client.responses.parse(input=dialog, max_output_tokens=60, **settings).output
    (*_, call) = dialog
    dialog += [{"type": "function_call_output", "call_id": call.call_id, "output": "391"}]
    assert "391" in client.responses.parse(input=dialog, **settings).output_text
    response = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=40)
    assert response.output_text.startswith("{")


def test_an_answer_that_is_cut_off(url: str, client: openai.OpenAI) -> None:
    response = ask(client, max_output_tokens=3)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 3
    assert events_of(url, max_output_tokens=3)[-1]["type"] == "response.incomplete"
    call = ask(client, "What is 23 * 17?", tools=[CALCULATOR], max_output_tokens=16).output[0]
    assert (call.type, call.status) == ("function_call", "incomplete")


def test_an_empty_answer_is_an_empty_message(client: openai.OpenAI, llama: Llama) -> None:
    bias = dict.fromkeys(map(str, llama.tokenizer.stop_tokens), 1e6)
    response = ask(client, extra_body={"logit_bias": bias})
    (item,) = response.output
    assert [part.text for part in item.content] == [""]
    assert response.status == "completed"


def test_an_error_in_the_middle_of_a_stream(models: ModelRegistry, monkeypatch: Any) -> None:
    """It is a failed response, and then an error, which the client raises."""
    from llama.serving import answers

    deltas = answers.answer_deltas

    async def fail(*args: Any) -> Any:
        async for delta in deltas(*args):
            yield delta
            raise RuntimeError("broken")

    monkeypatch.setattr(answers, "answer_deltas", fail)
    with running(create_app(models)) as url:
        *_, failed, error = events_of(url)
        assert failed["type"] == "response.failed"
        assert failed["response"]["status"] == "failed"
        assert failed["response"]["error"]["code"] == "server_error"
        assert error["type"] == "error"
        assert error["sequence_number"] == failed["sequence_number"] + 1
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="broken"):
            list(ask(client, stream=True))
        settings: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
        with pytest.raises(openai.APIError, match="broken"):
            list(client.chat.completions.create(**settings, stream=True))
        with pytest.raises(openai.InternalServerError, match="broken"):
            client.chat.completions.create(**settings)


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"store": True}, "store", "False"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "does not support"),
        ({"conversation": "conv_1"}, "conversation", "does not support"),
        ({"background": True}, "background", "False"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "does not support"),
        ({"prompt": {"id": "a"}}, "prompt", "does not support"),
        ({"truncation": "auto"}, "truncation", "'disabled'"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "does not support"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "requ"),
        ({"input": []}, "input", "empty"),
        ({"input": 3}, "input", "valid string or"),
        (
            {"input": [{"type": "item_reference", "id": "a"}]},
            "input.0",
            "this server knows message",
        ),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0", "this server knows message"),
        ({"input": [{"role": "user"}]}, "input.0.content", "required"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role", "'user'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0",
            "input_text",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "b"}]},
            "input.0.arguments",
            "required",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": 3}]},
            "input.0.output",
            "valid string or",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.name", "required"),
        ({"tools": [{"name": "a"}]}, "tools.0.type", "required"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "'function'"),
        ({"tool_choice": "required"}, None, "there are no tools"),
        (
            {"tools": [{"type": "function", "name": "a", "function": {}}]},
            "tools.0.function",
            "does not know",
        ),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"include": ["everything"]}, "include.0", "message.output_text.logprobs"),
        ({"n": 2}, "n", "does not know"),
        ({"max_tokens": 2}, "max_tokens", "does not know"),
        ({"stream_options": {}}, "stream_options", "stream: true"),
        ({"instructions": 1}, "instructions", "valid string"),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    url: str, wrong: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "tiny", "input": QUESTION, **wrong}
    for path in ("/v1/responses", "/responses"):
        response = httpx.post(url + path, json=body)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert words in error["message"]


HALF = "\ud83d"  # of an emoji that was cut in two


def test_half_a_surrogate_pair_is_a_replacement_character(url: str) -> None:
    tool = {"type": "function", "name": "f", "parameters": {"description": HALF}}
    body = {"model": "tiny", "input": HALF, "instructions": HALF, "metadata": {"a": HALF}}
    body |= {"tools": [tool], "tool_choice": "none", "max_output_tokens": 3}
    for stream in (False, True):
        response = httpx.post(f"{url}/v1/responses", content=json.dumps({**body, "stream": stream}))
        assert response.status_code == 200
        assert '"metadata":{"a":"\ufffd"}' in response.text
    response = httpx.post(f"{url}/v1/responses", content=json.dumps({**body, "model": HALF}))
    assert response.json()["error"]["param"] == "model"


def test_deep_schemas(url: str) -> None:
    schema: dict[str, Any] = {}
    for _ in range(300):
        schema = {"items": schema}
    tool = {"type": "function", "name": "f", "parameters": schema}
    body = {"model": "tiny", "input": "a", "tools": [tool], "tool_choice": "none"}
    response = httpx.post(f"{url}/v1/responses", json=body)
    assert response.json()["tools"][0]["parameters"] == schema


def test_a_model_that_does_not_exist(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'big'"):
        ask(client, model="big", stream=True)
