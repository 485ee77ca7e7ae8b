"""Chats and completions by Ollama's own client, and what it never sends."""

import json
from typing import Any

import httpx
import ollama
import pytest

from llama.generation import Llama
from llama.serving.ollama_chat import ChatFields, GenerateFields

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
PRODUCT = [{"role": "user", "content": "What is 23 * 17?"}]
STORY = [{"role": "user", "content": "Tell me a story about a dog."}]
GREEDY = {"temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}


def calculator(expression: str) -> str:
    """Evaluates an arithmetic expression.

    Args:
        expression: What to evaluate.
    """
    left, right = expression.split("*")
    return str(int(left) * int(right))


@pytest.fixture
def ollama_client(url: str) -> ollama.Client:
    return ollama.Client(url)


def lines(url: str, path: str, **body: Any) -> list[dict[str, Any]]:
    response = httpx.post(url + path, json={"model": "tiny", "options": GREEDY, **body})
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_an_answer(ollama_client: ollama.Client) -> None:
    answer = ollama_client.chat("tiny", QUESTION, options=GREEDY)
    assert (answer.message.role, answer.message.content) == ("assistant", "12 + 30 = 42.")
    assert answer.message.tool_calls is None
    assert (answer.model, answer.done, answer.done_reason) == ("tiny", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (24, 13)
    parts = answer.prompt_eval_duration, answer.eval_duration, answer.load_duration
    assert all(part > 0 for part in parts)
    assert answer.total_duration >= sum(parts)


def test_a_stream_as_it_is_sent(url: str) -> None:
    found = lines(url, "/api/chat", messages=QUESTION)  # stream is true by default
    for line in found[:-1]:
        assert line.keys() == {"model", "created_at", "message", "done"}
        assert line["message"].keys() == {"role", "content"}
        assert line["done"] is False
    assert "".join(line["message"]["content"] for line in found) == "12 + 30 = 42."
    last = found[-1]
    assert (last["done"], last["done_reason"]) == (True, "stop")
    assert last["message"] == {"role": "assistant", "content": ""}
    for name in ("total", "load", "prompt_eval", "eval"):
        assert isinstance(last[f"{name}_duration"], int)
    assert (last["prompt_eval_count"], last["eval_count"]) == (24, 13)


def test_a_completion(ollama_client: ollama.Client, url: str) -> None:
    whole = ollama_client.generate("tiny", QUESTION[0]["content"], options=GREEDY)
    assert whole.response == "12 + 30 = 42."
    assert (whole.done_reason, whole.prompt_eval_count, whole.eval_count) == ("stop", 24, 13)
    found = lines(url, "/api/generate", prompt=QUESTION[0]["content"])
    assert "".join(line["response"] for line in found) == whole.response
    assert found[-1]["response"] == ""
    with_system = ollama_client.generate("tiny", "Hi!", system="Be brief.", options=GREEDY)
    dialog = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    chat = ollama_client.chat("tiny", dialog, options=GREEDY)
    assert with_system.response == chat.message.content
    assert with_system.prompt_eval_count == chat.prompt_eval_count


def test_a_raw_prompt_is_completed_as_it_is(ollama_client: ollama.Client, llama: Llama) -> None:
    (expected,) = llama.text_completion(["Once upon a"], temperature=0, max_gen_len=12)
    answer = ollama_client.generate(
        "tiny", "Once upon a", raw=True, options={**GREEDY, "num_predict": 12}
    )
    assert (answer.response, answer.done_reason) == (expected["generation"], "length")
    forged = ollama_client.generate("tiny", "<|eot_id|>", raw=True, options={"num_predict": 0})
    assert forged.prompt_eval_count > 5  # text, whoever sends it


@pytest.mark.parametrize("stream", [False, True])
def test_the_calculator_is_called_and_its_result_read(
    ollama_client: ollama.Client, stream: bool
) -> None:
    def chat(messages: list[Any]) -> Any:
        if not stream:
            return ollama_client.chat("tiny", messages, tools=[calculator], options=GREEDY)
        parts = ollama_client.chat(
            "tiny", messages, tools=[calculator], options=GREEDY, stream=True
        )
        first, *rest = [part for part in parts if part.message.content or part.message.tool_calls]
        first.message.content += "".join(part.message.content for part in rest)
        return first

    answer = chat(PRODUCT)
    (call,) = answer.message.tool_calls
    assert (call.function.name, call.function.arguments) == (
        "calculator",
        {"expression": "23 * 17"},
    )
    assert answer.message.content == ""
    result = {"role": "tool", "content": calculator(**call.function.arguments)}
    answer = chat([*PRODUCT, answer.message, {**result, "tool_name": "calculator"}])
    assert answer.message.content == "23 * 17 = 391."


def test_a_call_as_it_is_sent(url: str) -> None:
    tool = ollama._utils.convert_function_to_tool(calculator).model_dump(exclude_none=True)
    found = lines(url, "/api/chat", messages=PRODUCT, tools=[tool])
    assert len(found) == 2
    (call,) = found[0]["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    function = {"index": 0, "name": "calculator", "arguments": {"expression": "23 * 17"}}
    assert call == {"function": function}
    assert found[1]["done_reason"] == "stop"
    cut = lines(
        url, "/api/chat", messages=PRODUCT, tools=[tool], options={**GREEDY, "num_predict": 18}
    )
    assert not any("tool_calls" in line["message"] for line in cut)
    text = "".join(line["message"]["content"] for line in cut)
    assert text.startswith('{"name": "calculator", "parameters": {')  # what there was of it
    assert cut[-1]["done_reason"] == "length"


def test_a_dialog_in_the_form_of_all_dialects() -> None:
    call = {"id": "a", "function": {"index": 0, "name": "f", "arguments": {"x": [1]}}}
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!", "images": []},
        {"role": "assistant", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "no", "tool_call_id": "a", "tool_name": "f"},
    ]
    body = {"model": "tiny", "messages": messages, "tools": [tool]}
    request = ChatFields.model_validate(body).chat_request()
    function = {"name": "f", "arguments": {"x": [1]}}
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": function}]},
        {"role": "tool", "content": "no", "tool_call_id": "a", "name": "f"},
    ]
    assert request.tools == [tool]
    assert not request.continue_final_message


def test_the_answer_goes_on_after_the_last_message(ollama_client: ollama.Client) -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "12 + 30 = "}]
    assert ollama_client.chat("tiny", messages, options=GREEDY).message.content == "42."


def test_a_client_that_goes_away_cancels_its_request(
    ollama_client: ollama.Client, llama: Llama
) -> None:
    endless = {"type": "string", "minLength": 3000}
    parts = ollama_client.chat("tiny", QUESTION, format=endless, stream=True)
    next(parts)
    before = llama.engine.stats.finished["cancelled"]
    parts.close()
    while llama.engine.running:  # at the latest until the end of the context
        ollama_client.ps()
    assert llama.engine.stats.finished["cancelled"] == before + 1


def test_a_schema(ollama_client: ollama.Client) -> None:
    settings: dict[str, Any] = {"options": {**GREEDY, "num_predict": 60}}
    answer = ollama_client.chat("tiny", QUESTION, format=SCHEMA, **settings)
    assert isinstance(json.loads(answer.message.content)["sum"], int)
    answer = ollama_client.generate("tiny", "What is 12 + 30?", format=SCHEMA, **settings)
    assert isinstance(json.loads(answer.response)["sum"], int)
    answer = ollama_client.generate("tiny", "What is 12 + 30?", format="json", **settings)
    assert answer.response.lstrip().startswith("{")
    answer = ollama_client.generate("tiny", "What is 12 + 30?", format="", **settings)
    assert answer.response == "12 + 30 = 42."


def test_log_probabilities(ollama_client: ollama.Client, llama: Llama) -> None:
    settings: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "options": GREEDY}
    whole = ollama_client.chat("tiny", QUESTION, **settings)
    (expected,) = llama.chat_completion([QUESTION], temperature=0, logprobs=True)
    assert [token.logprob for token in whole.logprobs] == expected["logprobs"]
    assert "".join(token.token for token in whole.logprobs) == whole.message.content
    assert all(len(token.top_logprobs) == 2 for token in whole.logprobs)
    assert whole.logprobs[0].top_logprobs[0].token == whole.logprobs[0].token
    parts = ollama_client.chat("tiny", QUESTION, stream=True, **settings)
    assert [token for part in parts for token in part.logprobs or ()] == whole.logprobs


def test_every_option_reaches_the_model() -> None:
    options = {
        "num_predict": 9,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 5,
        "stop": ["a"],
    }
    fields = ChatFields.model_validate({"model": "tiny", "options": options})
    expected = {k: v for k, v in options.items() if k not in ("num_predict", "repeat_penalty")}
    assert fields.settings() == {**expected, "repetition_penalty": 1.1}
    assert fields.given_options.max_tokens == 9
    off = {"top_k": -1, "num_predict": -1, "stop": None}
    fields = ChatFields.model_validate({"model": "tiny", "options": off})
    assert fields.settings() == {"top_k": 0}
    assert fields.given_options.max_tokens is None


def test_what_changes_no_answer_is_taken(ollama_client: ollama.Client) -> None:
    loading = {"num_gpu": 99, "num_thread": 4, "num_batch": 512, "main_gpu": 0, "use_mmap": True}
    off = {"mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "tfs_z": 1.0, "typical_p": 1}
    kept = {"num_keep": 24, "repeat_last_n": 64, "numa": False, "penalize_newline": True}
    options = {**GREEDY, **loading, **off, **kept, "num_ctx": 1024}
    answer = ollama_client.generate(
        "tiny:latest",
        "What is 12 + 30?",
        suffix="",
        template="",
        context=[],
        images=[],
        think=False,
        keep_alive=-1,
        options=options,
    )
    assert answer.response == "12 + 30 = 42."


def test_a_body_that_declares_a_form_is_json(url: str) -> None:
    body = json.dumps({"model": "tiny", "prompt": "What is 12 + 30?", "options": GREEDY})
    headers = {"content-type": "application/x-www-form-urlencoded"}  # as curl -d does
    response = httpx.post(f"{url}/api/generate", content=body, headers=headers)
    found = [json.loads(line)["response"] for line in response.text.splitlines()]
    assert "".join(found) == "12 + 30 = 42."


def test_num_ctx_limits_the_prompt_and_the_answer(ollama_client: ollama.Client) -> None:
    options: dict[str, Any] = {**GREEDY, "num_ctx": 30}
    answer = ollama_client.chat("tiny", QUESTION, options=options)
    assert (answer.prompt_eval_count, answer.eval_count) == (24, 6)
    assert answer.done_reason == "length"
    answer = ollama_client.chat("tiny", QUESTION, options={**options, "num_predict": 4})
    assert answer.eval_count == 4
    with pytest.raises(ollama.ResponseError, match=r"24 tokens, but .*num_ctx is 20") as info:
        ollama_client.chat("tiny", QUESTION, options={"num_ctx": 20})
    assert info.value.status_code == 400
    with pytest.raises(ollama.ResponseError, match=r"num_ctx is 2048, but .* 1024 tokens"):
        ollama_client.chat("tiny", QUESTION, options={"num_ctx": 2048})
    with pytest.raises(ollama.ResponseError, match="the context is 1024"):
        ollama_client.generate("tiny", "word " * 1100)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_request_without_a_prompt_loads_the_model(url: str, path: str) -> None:
    for body in ({}, {"messages": []} if path == "/api/chat" else {"prompt": ""}):
        response = httpx.post(url + path, json={"model": "tiny", "keep_alive": "1h30m", **body})
        answer = response.json()
        assert (answer["done"], answer["done_reason"]) == (True, "load")
    response = httpx.post(url + path, json={"model": "tiny", "keep_alive": -1})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [
        (None, None),
        (0, 0),
        (-1, -1),
        (300.5, 300.5),
        ("300", 300),
        ("0", 0),
        ("5m", 300),
        ("-1m", -60),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("250ms", 0.25),
    ],
)
def test_durations(keep_alive: Any, seconds: float | None) -> None:
    body = {"model": "tiny", "keep_alive": keep_alive}
    assert GenerateFields.model_validate(body).seconds_alive == seconds


IMAGE = "aGVsbG8="
CALL = {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"stream": "no"}, "stream"),
        ({"format": "yaml"}, "format"),
        ({"format": {"type": 5}}, "type must"),
        ({"keep_alive": "soon"}, "keep_alive: 'soon' is no duration"),
        ({"keep_alive": "5 m"}, "keep_alive"),
        ({"keep_alive": []}, "keep_alive"),
        ({"think": True}, "think"),
        ({"think": "high"}, "think"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"options": 5}, "options"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"temperature": "warm"}}, "options.temperature"),
        ({"options": {"top_p": 2}}, "options.top_p"),
        ({"options": {"min_p": -1}}, "options.min_p"),
        ({"options": {"top_k": 1.5}}, "options.top_k"),
        ({"options": {"seed": "a"}}, "options.seed"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"num_ctx": 0}}, "options.num_ctx"),
        ({"options": {"stop": 5}}, "options.stop"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        (
            {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}},
            "options.repeat_last_n",
        ),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"tfs_z": 0.5}}, "options.tfs_z"),
        ({"options": {"typical_p": 0.7}}, "options.typical_p"),
        ({"options": {"penalize_newline": False}}, "options.penalize_newline"),
        ({"options": {"embedding_only": True}}, "options.embedding_only"),
        ({"options": {"warp": 9}}, "options.warp: this server does not know the field"),
        ({"max_tokens": 5}, "max_tokens: this server does not know the field"),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_what_is_wrong_is_refused_by_name(
    url: str, path: str, wrong: dict[str, Any], words: str
) -> None:
    prompt = {"messages": QUESTION} if path == "/api/chat" else {"prompt": "Hi!"}
    refused(url, path, {**prompt, **wrong}, words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"messages": "Hi!"}, "messages"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "images": [IMAGE]}]}, "messages.0.images"),
        ({"messages": [{"role": "user", "audio": ""}]}, "messages.0.audio"),
        ({"messages": [{"role": "user", "tool_calls": [CALL]}]}, "tool_calls"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
        ({"prompt": "Hi!"}, "prompt"),
    ],
)
def test_what_is_wrong_in_a_chat(url: str, wrong: dict[str, Any], words: str) -> None:
    refused(url, "/api/chat", {"messages": QUESTION, **wrong}, words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": 5}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"images": [IMAGE]}, "images"),
        ({"raw": True, "system": "Be brief."}, "system"),
        ({"raw": "yes"}, "raw"),
        ({"width": 512}, "width"),
        ({"messages": QUESTION}, "messages"),
    ],
)
def test_what_is_wrong_in_a_completion(url: str, wrong: dict[str, Any], words: str) -> None:
    refused(url, "/api/generate", {"prompt": "Hi!", **wrong}, words)


def refused(url: str, path: str, body: dict[str, Any], words: str) -> None:
    for stream in (False, True):
        response = httpx.post(url + path, json={"model": "tiny", "stream": stream, **body})
        assert response.status_code == 400, response.text
        assert response.json().keys() == {"error"}
        assert words in response.json()["error"]


def test_a_model_that_does_not_exist(ollama_client: ollama.Client) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="there is no model 'big'") as info:
            list(ollama_client.chat("big", QUESTION, stream=stream))
        assert info.value.status_code == 404


def test_an_error_in_mid_stream_is_a_line(
    ollama_client: ollama.Client, broken_in_mid_stream: None
) -> None:
    parts = ollama_client.chat("tiny", QUESTION, stream=True)
    assert not next(parts).done
    with pytest.raises(ollama.ResponseError, match="RuntimeError: broken"):
        next(parts)
