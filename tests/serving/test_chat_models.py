"""What answers in a chat: the engine, and a server in OpenAI's dialect."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_stand_in import Handler, chunk, serving

from llama import Llama
from llama.engine import Engine
from llama.errors import InputError
from llama.serving.chat_models import LocalModel, ServerError, ServerModel
from llama.serving.chat_session import ChatSession
from llama.serving.terminal_screen import interrupt_sets

TINY = Path(__file__).parents[2] / "params" / "tiny"


def test_the_answer_of_a_server() -> None:
    with serving() as server:
        session = ChatSession(ServerModel(server.url), system="be kind")
        assert list(session.ask("hi")) == ["Hello", ", ", "世界\u2028!"]
        list(session.ask("more"))
    assert session.messages[:3] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello, 世界\u2028!"},
    ]
    first, second = server.bodies
    assert first == {
        "model": "tiny",
        "messages": session.messages[:2],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.6,
        "top_p": 0.9,
    }
    assert second["messages"] == session.messages[:4]
    statistics = session.statistics
    assert statistics is not None
    assert statistics.finish_reason == "stop"
    assert (statistics.prompt_tokens, statistics.cached_tokens) == (300, 256)
    assert statistics.completion_tokens == 5
    assert statistics.first_token is not None
    assert statistics.started <= statistics.first_token <= statistics.finished


def test_this_projects_server_gives_the_answers_of_the_model_in_this_process(url: str) -> None:
    llama = Llama.build(TINY, max_batch_size=1, device="cpu")
    dialogs = []
    for model in (LocalModel(llama, "tiny"), ServerModel(url, "tiny")):
        session = ChatSession(model, system="You are a storyteller.")
        for name, value in (
            *(("seed", "5"), ("temperature", "0.9"), ("top_k", "50"), ("min_p", "0.01")),
            *(("repetition_penalty", "1.1"), ("frequency_penalty", "0.1"), ("top_p", "0.95")),
            *(("presence_penalty", "0.1"), ("logit_bias", '{"44": -2}'), ("max_gen_len", "60")),
            *(("min_tokens", "2"), ("stop", '["dragon", "\\n\\n"]')),
        ):
            session.set(name, value)
        list(session.ask("Tell me a story."))
        list(session.again())
        list(session.ask("What is 47 + 36?"))
        assert session.statistics is not None
        counts = session.statistics.prompt_tokens, session.statistics.completion_tokens
        dialogs.append((session.messages, counts, session.statistics.finish_reason))
    assert dialogs[0] == dialogs[1]


def test_errors_of_this_projects_server(url: str) -> None:
    with pytest.raises(ServerError, match="has no model 'big'; there are tiny"):
        ServerModel(url, "big")
    session = ChatSession(ServerModel(url))
    with pytest.raises(ServerError, match=r"400: .* 1024"):
        list(session.ask("hi " * 2000))


def test_settings_as_openai_calls_them() -> None:
    with serving() as server:
        session = ChatSession(ServerModel(server.url))
        for name, value in (
            *(("temperature", "0"), ("seed", "5"), ("max_gen_len", "9"), ("stop", '["a"]')),
            *(("logit_bias", '{"3": 1}'), ("top_k", "2")),
        ):
            session.set(name, value)
        list(session.ask("hi"))
    assert server.bodies[0] | {"messages": [], "model": ""} == {
        **{"model": "", "messages": [], "stream": True, "stream_options": {"include_usage": True}},
        **{"temperature": 0, "top_p": 0.9, "seed": 5, "max_tokens": 9, "stop": ["a"]},
        **{"logit_bias": {"3": 1}, "top_k": 2},
    }


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_address_with_v1_or_without(suffix: str) -> None:
    with serving() as server:
        assert ServerModel(server.url + suffix).url == f"{server.url}/v1"


def test_which_model() -> None:
    with serving(models=("a/tiny", "big")) as server:
        assert ServerModel(server.url, "big").name == "big"
        with pytest.raises(ServerError, match=r"has 2 models: a/tiny, big; name one with --model"):
            ServerModel(server.url)
        with pytest.raises(ServerError, match=r"no model 'bigg'; did you mean big\?"):
            ServerModel(server.url, "bigg")
        with pytest.raises(ServerError, match=r"no model 'xyz'; there are a/tiny, big"):
            ServerModel(server.url, "xyz")
    with serving(models=()) as server, pytest.raises(ServerError, match="has no models"):
        ServerModel(server.url)


def test_a_key() -> None:
    with serving(key="secret") as server:
        session = ChatSession(ServerModel(server.url, api_key="secret"))
        assert "".join(session.ask("hi")).startswith("Hello")
        for key in (None, "wrong"):
            with pytest.raises(ServerError, match=r"401: the key is wrong \(the key is --api_key"):
                ServerModel(server.url, api_key=key)


def test_no_server_there() -> None:
    with serving() as server:
        url = server.url
        session = ChatSession(ServerModel(url))
    with pytest.raises(ServerError, match=f"no server answers at {url}/v1"):
        ServerModel(url)
    with pytest.raises(ServerError, match="start one with `llama serve`"):
        list(session.ask("hi"))
    assert session.messages == []


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "x"])
def test_a_wrong_address(url: str) -> None:
    with pytest.raises(ServerError, match="--url") as error:
        ServerModel(url)
    assert "\n" not in str(error.value)


def refuses(status: int, data: bytes) -> Callable[[Handler, dict[str, Any]], None]:
    return lambda handler, body: handler.send_data(status, data)


def writes(*events: Any, ends: bool = True) -> Callable[[Handler, dict[str, Any]], None]:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_stream()
        for event in events:
            handler.write_event(event)
        if ends:
            handler.end_stream()
        handler.close_connection = True

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuses(400, b'{"error": {"message": "too\\nlong"}}'), "400: too long"),
        (refuses(404, b'{"error": "no such model"}'), "404: no such model"),
        (refuses(422, b'{"detail": "min_p"}'), "422: {'detail': 'min_p'}"),
        (refuses(502, b"<html>\n bad  gateway</html>"), "502: <html> bad gateway</html>"),
        (refuses(503, b""), "503: Service Unavailable"),
        (writes(chunk({"content": "a"}), {"error": {"message": "out of memory"}}), "out of memory"),
        (writes(chunk({"content": "a"})), "closed the stream before the answer's end"),
        (writes(chunk({"content": "a"}), ends=False), "incomplete chunked read"),
        (writes("{"), "sent what is no chunk of OpenAI's: {"),
        (writes("[1]"), "sent what is no chunk of OpenAI's"),
    ],
)
def test_errors_of_a_server(
    answer: Callable[[Handler, dict[str, Any]], None], message: str
) -> None:
    with serving(answer) as server:
        session = ChatSession(ServerModel(server.url))
        with pytest.raises(ServerError) as error:
            list(session.ask("hi"))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{server.url}/v1")
    assert "\n" not in str(error.value)
    assert session.messages == []


def test_no_list_of_models(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        monkeypatch.setattr(Handler, "do_GET", lambda handler: handler.send_data(200, b"hello"))
        with pytest.raises(ServerError, match=r"/v1/models is not OpenAI's list of models"):
            ServerModel(server.url)


def test_events_however_they_are_cut() -> None:
    """Comments, other fields, CRLF, several data lines, and cuts within a character."""
    text = (
        ": ping\r\n\r\n"
        "event: x\r\nid: 3\r\n"
        'data: {"choices":\r\ndata: [{"delta": {"content": "猫\u2028"}}]}\r\n\r\n'
        'data:{"choices": [{"delta": {"content": null}, "finish_reason": "length"}]}\n\n'
        "data: [DONE]\n\ndata: {after\n\n"
    ).encode()

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_stream()
        for i in range(len(text)):
            handler.write_bytes(text[i : i + 1])
        handler.end_stream()

    with serving(answer) as server:
        session = ChatSession(ServerModel(server.url))
        assert list(session.ask("hi")) == ["猫\u2028"]
    assert session.statistics is not None
    assert session.statistics.finish_reason == "length"


def test_an_interrupted_answer_of_a_server_closes_its_connection() -> None:
    def answer(handler: Handler, body: dict[str, Any]) -> None:
        handler.begin_stream()
        handler.write_text("one ", "two ")
        handler.connection.recv(1)  # until the client is gone
        handler.server.disconnected.set()
        handler.close_connection = True

    with serving(answer) as server:
        session = ChatSession(ServerModel(server.url))
        texts = []
        with interrupt_sets(session.stop):
            for text in session.ask("hi"):
                texts.append(text)
                if len(texts) == 2:
                    signal.raise_signal(signal.SIGINT)
                    signal.raise_signal(signal.SIGINT)  # as often as one likes
        assert server.disconnected.wait(timeout=60)
    assert texts == ["one ", "two "]
    assert session.messages[-1] == {"role": "assistant", "content": "one two "}
    assert session.statistics is not None
    assert session.statistics.finish_reason == "cancelled"


def test_a_server_that_says_nothing_can_be_interrupted() -> None:
    session: ChatSession

    def answer(handler: Handler, body: dict[str, Any]) -> None:
        session.stop.set()  # as a signal would, while the client waits for the first byte
        handler.connection.recv(1)
        handler.server.disconnected.set()
        handler.close_connection = True

    with serving(answer) as server:
        session = ChatSession(ServerModel(server.url))
        assert list(session.ask("hi")) == []
        assert server.disconnected.wait(timeout=60)
    assert session.messages == []


def test_a_proxy_of_the_environment_is_not_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving() as server:
        assert list(ChatSession(ServerModel(server.url)).ask("hi"))


def test_an_interrupted_answer_of_the_engine(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes in the middle of a step, which runs to its end."""
    session = ChatSession(LocalModel(llama, "x"), settings={"seed": 1})
    whole = "".join(session.ask("Tell me a story."))
    step, count = Engine.step, 0

    def step_and_interrupt(engine: Engine) -> Any:
        nonlocal count
        count += 1
        if count == 6:
            signal.raise_signal(signal.SIGINT)
        return step(engine)

    monkeypatch.setattr(Engine, "step", step_and_interrupt)
    session = ChatSession(LocalModel(llama, "x"), settings={"seed": 1})
    with interrupt_sets(session.stop):
        text = "".join(session.ask("Tell me a story."))
    assert text
    assert whole.startswith(text.rstrip("\ufffd"))
    assert len(text) < len(whole)
    assert session.statistics is not None
    assert session.statistics.finish_reason == "cancelled"
    assert session.messages[-1]["content"] == text
    assert llama.engine.idle
    monkeypatch.undo()
    session.undo()
    assert "".join(session.ask("Tell me a story.")) == whole  # the engine is as it was


def test_an_abandoned_answer_is_cancelled(llama: Llama) -> None:
    session = ChatSession(LocalModel(llama, "x"))
    answer = session.ask("hello")
    next(answer)
    answer.close()
    assert llama.engine.idle
    assert session.messages == []


def test_a_dialog_that_does_not_fit(llama: Llama) -> None:
    session = ChatSession(LocalModel(llama, "x"))
    with pytest.raises(InputError, match=r"but the context is 1024 \(max_seq_len\)"):
        list(session.ask("hi " * 2000))
    assert session.messages == []


def test_tokens(llama: Llama) -> None:
    session = ChatSession(LocalModel(llama, "x"))
    with pytest.raises(InputError, match="no message yet"):
        session.tokens()
    session.set_system("be kind")
    dialog = [{"role": "system", "content": "be kind"}]
    assert session.tokens() == llama.formatter.encode_dialog_prompt(dialog)
    with serving() as server, pytest.raises(InputError, match="not for a server's"):
        ChatSession(ServerModel(server.url)).tokens()


def test_the_stop_event_is_of_one_answer() -> None:
    with serving() as server:
        session = ChatSession(ServerModel(server.url))
        session.stop.set()
        assert list(session.ask("hi"))
