"""Tools in chat completions: the bundled model calls its calculator through OpenAI's client."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from llama.generation import Llama


def function(name: str, parameter: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {parameter: {"type": "string"}},
        "required": [parameter],
    }
    fields = {"name": name, "description": f"The {name}", "parameters": schema}
    return {"type": "function", "function": fields}


CALCULATOR = function("calculator", "expression")
WEATHER = function("get_weather", "city")
TOOLS = [CALCULATOR, WEATHER]
QUESTION: list[Any] = [{"role": "user", "content": "What is 23 * 17?"}]


def ask(client: openai.OpenAI, messages: list[Any], **settings: Any) -> Any:
    settings = {"model": "tiny", "temperature": 0, "tools": TOOLS, **settings}
    return client.chat.completions.create(messages=messages, **settings)


def test_the_model_calls_its_calculator_and_answers_with_the_result(client: openai.OpenAI) -> None:
    (choice,) = ask(client, QUESTION).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "calculator")
    expression = json.loads(call.function.arguments)["expression"]
    result = {"role": "tool", "tool_call_id": call.id, "content": str(eval(expression))}
    # The message goes back as the client has it, or with every field, null or not.
    for message in (choice.message, choice.message.model_dump()):
        (choice,) = ask(client, [*QUESTION, message, result]).choices
        assert choice.message.content == "23 * 17 = 391."
        assert choice.message.tool_calls is None
        assert choice.finish_reason == "stop"


def test_what_needs_no_tool_is_text(client: openai.OpenAI) -> None:
    (choice,) = ask(client, [{"role": "user", "content": "Hello! How are you?"}]).choices
    assert choice.message.tool_calls is None
    assert choice.message.content[0].isalpha()
    assert choice.finish_reason == "stop"


def test_no_tool_is_called_with_none(client: openai.OpenAI) -> None:
    without = ask(client, QUESTION, tools=openai.omit).choices[0].message
    assert ask(client, QUESTION, tool_choice="none").choices[0].message == without
    assert without.tool_calls is None


CALLS = (
    '{"name": "calculator", "parameters": {"expression": "1 + 1"}}; '
    '{"name": "get_weather", "parameters": {"city": "Zürich"}}'
)


def written(text: str) -> dict[str, Any]:
    """Settings that let the model write that text and nothing else."""
    return {"extra_body": {"structured_outputs": {"choice": [text]}}, "max_tokens": 200}


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize(("choice", "names"), [("required", None), (NAMED, ["get_weather"])])
def test_a_call_may_be_required(client: openai.OpenAI, choice: Any, names: Any) -> None:
    """Also where the question needs none; what it says then is not worth much."""
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    (choice,) = ask(client, messages, tool_choice=choice, parallel_tool_calls=False).choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert names is None or [call.function.name] == names
    assert json.loads(call.function.arguments).keys() <= {"city", "expression"}


def test_some_tools_may_be_allowed(client: openai.OpenAI) -> None:
    def allowed(mode: str, *tools: Any) -> Any:
        chosen = [{"type": "function", "function": {"name": t["function"]["name"]}} for t in tools]
        allowed = {"mode": mode, "tools": chosen}
        choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
        answer = ask(client, QUESTION, tool_choice=choice)
        return answer.choices, answer.usage.prompt_tokens

    only = ask(client, QUESTION, tools=[CALCULATOR])
    assert allowed("auto", CALCULATOR) == (only.choices, only.usage.prompt_tokens)
    ((choice,), _) = allowed("required", WEATHER)
    assert {call.function.name for call in choice.message.tool_calls} == {"get_weather"}


def test_parallel_calls_have_an_index_of_their_own(client: openai.OpenAI) -> None:
    (whole,) = ask(client, QUESTION, **written(CALLS)).choices
    chunks = [c.choices[0] for c in ask(client, QUESTION, stream=True, **written(CALLS))]
    deltas = [c.delta for c in chunks]
    assert deltas[0].role == "assistant"
    parts = [call for delta in deltas for call in delta.tool_calls or []]
    assert len(whole.message.tool_calls) == 2
    for index, call in enumerate(whole.message.tool_calls):
        first, *rest = [part for part in parts if part.index == index]
        assert (first.id, first.type, first.function.name) == (
            call.id,
            "function",
            call.function.name,
        )
        assert first.function.arguments == ""
        assert all(part.id is None and part.function.name is None for part in rest)
        assert "".join(part.function.arguments for part in rest) == call.function.arguments
    assert json.loads(whole.message.tool_calls[1].function.arguments) == {"city": "Zürich"}
    assert whole.finish_reason == chunks[-1].finish_reason == "tool_calls"
    assert [part.index for part in parts] == sorted(part.index for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        'I would write {"name": "calculator", "parameters": {"expression": "1"}}',
        '{"name": "unknown", "parameters": {"expression": "1"}}',
        '"{"name": "calculator", "parameters": {"expression": "1"}}"',
    ],
)
def test_quoted_calls_are_text(client: openai.OpenAI, text: str) -> None:
    (choice,) = ask(client, QUESTION, **written(text)).choices
    assert (choice.message.content, choice.finish_reason) == (text, "stop")
    chunks = [c.choices[0] for c in ask(client, QUESTION, stream=True, **written(text))]
    assert "".join(c.delta.content or "" for c in chunks) == text
    assert chunks[-1].finish_reason == "stop"


def test_a_call_that_breaks_off(client: openai.OpenAI) -> None:
    (choice,) = ask(client, QUESTION, **{**written(CALLS), "max_tokens": 12}).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None
    assert CALLS.startswith(choice.message.content)


def test_a_malformed_call_is_text(client: openai.OpenAI) -> None:
    text = '{"name": "calculator", "parameters": {"expression": one}}'
    (choice,) = ask(client, QUESTION, **written(text)).choices
    assert (choice.message.content, choice.message.tool_calls) == (text, None)
    assert choice.finish_reason == "stop"
    # A stream has begun the call when it turns out to be none.
    chunks = [c.choices[0] for c in ask(client, QUESTION, stream=True, **written(text))]
    assert any(c.delta.tool_calls for c in chunks)
    assert chunks[-1].finish_reason == "tool_calls"


class Result(BaseModel):
    result: int


def test_calls_beside_structured_output(client: openai.OpenAI) -> None:
    """As agents do it: calls as often as needed, and then an answer that matches a schema."""
    strict = {"function": {**CALCULATOR["function"], "strict": True}, "type": "function"}
    strict["function"]["parameters"]["additionalProperties"] = False
    settings: Any = {"model": "tiny", "temperature": 0, "tools": [strict], "max_tokens": 60}
    ask = client.chat.completions.parse
    (choice,) = ask(messages=QUESTION, response_format=Result, **settings).choices
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"expression": "23 * 17"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "391"}
    messages = [*QUESTION, choice.message, result]
    (choice,) = ask(messages=messages, response_format=Result, **settings).choices
    assert isinstance(choice.message.parsed, Result) or choice.message.tool_calls


def test_results_come_back_in_any_order_and_may_be_errors(client: openai.OpenAI) -> None:
    """They are read in the order of their calls: the same prompt, the same answer."""
    (asked,) = ask(client, QUESTION, **written(CALLS)).choices
    calls = asked.message.tool_calls
    results = [
        {"role": "tool", "tool_call_id": calls[0].id, "content": "2", "name": "calculator"},
        {"role": "tool", "tool_call_id": calls[1].id, "content": [{"type": "text", "text": "Hot"}]},
    ]
    one = ask(client, [*QUESTION, asked.message, *results])
    other = ask(client, [*QUESTION, asked.message, *reversed(results)])
    assert one.choices == other.choices
    assert one.usage.prompt_tokens == other.usage.prompt_tokens


def test_variables_of_the_released_templates(client: openai.OpenAI, llama: Llama) -> None:
    kwargs = {"date_string": "1 Jan 2026", "builtin_tools": ["brave_search"]}
    body = {"chat_template_kwargs": {**kwargs, "tools_in_user_message": True}}
    usage = ask(client, QUESTION, extra_body=body, max_tokens=1).usage
    prompt = llama.formatter.encode_dialog_prompt(
        QUESTION, TOOLS, builtin_tools=["brave_search"], date="1 Jan 2026"
    )
    assert usage.prompt_tokens == len(prompt)
    assert usage.prompt_tokens > ask(client, QUESTION, max_tokens=1).usage.prompt_tokens


def test_a_message_may_be_continued(client: openai.OpenAI, llama: Llama) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "23 * 17 is"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = ask(client, begun, tools=openai.omit, extra_body=body, max_tokens=8)
    prompt = llama.formatter.encode_dialog_prompt(begun, continue_final_message=True)
    (tokens,), _ = llama.generate([prompt], max_gen_len=8, temperature=0)
    assert answer.choices[0].message.content == llama.tokenizer.decode(tokens)


CALL = {"id": "a", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("wrong", "param", "words"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'function'"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "required"),
        ({"tools": [function("a b", "c")]}, None, "tools[0]: a function's name"),
        ({"tools": [CALCULATOR, CALCULATOR]}, None, "two functions named 'calculator'"),
        ({"tools": [{**CALCULATOR, "x": 1}]}, "tools.0.x", "does not know"),
        ({"tool_choice": "any"}, "tool_choice", "'auto'"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
            None,
            "names 'f', which is not among the tools: calculator, get_weather",
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [NAMED, {**NAMED, "x": 1}]},
                }
            },
            "tool_choice.allowed_tools.tools.1.x",
            "does not know",
        ),
        (
            {
                "tools": [CALCULATOR],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [NAMED]},
                },
            },
            "tool_choice",
            "'get_weather' is not among the tools",
        ),
        ({"tool_choice": "required", "tools": None}, None, "there are no tools"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            None,
            "a required call exclude each other",
        ),
        ({"functions": [{"name": "a"}]}, "functions", "does not support"),
        ({"function_call": "auto"}, "function_call", "does not support"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
            "messages.0.tool_calls",
            "only the assistant",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "tool_call_id": "a"}]},
            "messages.0.tool_call_id",
            "only a tool",
        ),
        (
            {"messages": [{"role": "user", "content": "a", "name": "Tom"}]},
            "messages.0.name",
            "no names",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "id": None}]}]},
            "messages.0.tool_calls.0.id",
            "valid string",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "b", "content": "1"},
                ]
            },
            None,
            "message 1 answers the call 'b'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs.thinking", "not know"),
        (
            {"chat_template_kwargs": {"tools_in_user_message": False}},
            "chat_template_kwargs.tools_in_user_message",
            "True",
        ),
        (
            {"chat_template_kwargs": {"builtin_tools": ["x"]}},
            None,
            "no built-in tool 'x'",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(
    url: str, wrong: dict[str, Any], param: str | None, words: str
) -> None:
    body = {"model": "tiny", "messages": QUESTION, "tools": TOOLS, **wrong}
    response = httpx.post(f"{url}/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert words in error["message"]
