"""A chat as data: every change happens whole or not at all."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llama import Llama
from llama.errors import InputError
from llama.serving.chat_models import LocalModel
from llama.serving.chat_session import DEFAULTS, ChatSession, Statistics, checked_settings
from llama.training.documents import find_sources, read_raw

Message = dict[str, str]


class Echo:
    """Answers with the number of messages and the last one, and remembers what it got."""

    name, llama = "echo", None

    def __init__(self) -> None:
        self.calls: list[tuple[list[Message], dict[str, Any]]] = []
        self.fails_after: int | None = None

    def stream(
        self,
        messages: list[Message],
        settings: Mapping[str, Any],
        statistics: Statistics,
        stop: threading.Event,
    ) -> Iterator[str]:
        self.calls.append((list(messages), dict(settings)))
        for i, text in enumerate([f"{len(messages)}: ", messages[-1]["content"]]):
            if stop.is_set():
                statistics.finish_reason = "cancelled"
                return
            if i == self.fails_after:
                raise InputError("the server is gone")
            yield text
        statistics.finish_reason = "stop"


@pytest.fixture
def model() -> Echo:
    return Echo()


@pytest.fixture
def session(model: Echo) -> ChatSession:
    return ChatSession(model)


def asked(session: ChatSession, text: str) -> str:
    return "".join(session.ask(text))


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def test_turns_are_remembered(session: ChatSession, model: Echo) -> None:
    assert asked(session, "one") == "1: one"
    assert asked(session, "two") == "3: two"
    assert session.messages == [user("one"), assistant("1: one"), user("two"), assistant("3: two")]
    assert model.calls[1][0] == session.messages[:3]


def test_the_system_message_is_first_and_can_be_replaced(session: ChatSession) -> None:
    asked(session, "one")
    session.set_system("be kind")
    session.set_system("be brief")
    assert session.messages == [system("be brief"), user("one"), assistant("1: one")]
    assert session.system == "be brief"
    session.clear()
    assert session.messages == [system("be brief")]
    session.set_system(None)
    assert session.messages == []
    assert session.system is None


def test_undo(session: ChatSession) -> None:
    session.set_system("be kind")
    asked(session, "one")
    asked(session, "two")
    assert session.undo() == [user("two"), assistant("4: two")]
    assert session.messages == [system("be kind"), user("one"), assistant("2: one")]
    session.undo()
    assert session.messages == [system("be kind")]
    with pytest.raises(InputError, match="no question yet to undo"):
        session.undo()


def test_again_replaces_the_answer_and_takes_the_next_seed(
    session: ChatSession, model: Echo
) -> None:
    with pytest.raises(InputError, match="no question yet to answer again"):
        session.again()
    session.set("seed", "7")
    asked(session, "one")
    assert "".join(session.again()) == "1: one"
    "".join(session.again())
    asked(session, "two")
    assert [settings["seed"] for _, settings in model.calls] == [7, 8, 9, 7]
    assert session.messages[:2] == [user("one"), assistant("1: one")]
    assert session.settings == {"seed": 7}


def test_an_answer_that_fails_leaves_the_dialog_as_it_was(
    session: ChatSession, model: Echo
) -> None:
    asked(session, "one")
    before = list(session.messages)
    for fails_after in (0, 1):
        model.fails_after = fails_after
        with pytest.raises(InputError, match="is gone"):
            asked(session, "two")
        with pytest.raises(InputError, match="is gone"):
            "".join(session.again())
        assert session.messages == before


def test_an_answer_that_is_stopped_keeps_its_text(session: ChatSession) -> None:
    answer = session.ask("one")
    assert next(answer) == "1: "
    session.stop.set()
    assert list(answer) == []
    assert session.messages == [user("one"), assistant("1: ")]


def test_an_answer_that_is_stopped_before_its_first_word_is_not_kept(
    session: ChatSession, model: Echo
) -> None:
    asked(session, "one")
    answer = session.ask("two")
    session.stop.set()
    assert list(answer) == ["3: ", "two"]  # the event belongs to the answer that is running
    messages = list(session.messages)

    def stopped(*arguments: Any) -> Iterator[str]:
        arguments[2].finish_reason = "cancelled"
        return iter(())

    model.stream = stopped
    assert asked(session, "three") == ""
    assert session.messages == messages


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", "0.2", 0.2),
        ("top_p", "1", 1),
        ("top_k", "40", 40),
        ("min_p", "0.05", 0.05),
        ("repetition_penalty", "1.1", 1.1),
        ("frequency_penalty", "-0.5", -0.5),
        ("presence_penalty", "0.5", 0.5),
        ("seed", "12", 12),
        ("max_gen_len", "20", 20),
        ("min_tokens", "3", 3),
        ("stop", "END", ("END",)),
        ("stop", '["a", "\\n"]', ["a", "\n"]),
        ("logit_bias", '{"5": -1.5}', {5: -1.5}),
    ],
)
def test_settings(
    name: str, value: str, expected: object, session: ChatSession, model: Echo
) -> None:
    session.set(name, value)
    asked(session, "one")
    assert model.calls[0][1] == {name: expected}
    session.set(name, "default")
    assert session.settings == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temprature", "1", "unknown setting 'temprature'; did you mean temperature"),
        ("xyz", "1", "unknown setting 'xyz'; there are temperature, top_p"),
        ("xyz", "default", "unknown setting 'xyz'"),
        ("temperature", "hot", "temperature must be a number, got 'hot'"),
        ("temperature", "-1", "temperature must be finite and at least 0"),
        ("temperature", "true", "temperature must be a number, got True"),
        ("top_p", "1.5", "top_p must be between 0 and 1"),
        ("top_k", "1.5", "top_k must be an integer, got 1.5"),
        ("seed", "x", "seed must be an integer"),
        ("max_gen_len", "-1", "max_gen_len must be at least 0"),
        ("stop", "3", "stop must be a tuple of strings, got 3"),
        ("stop", '""', "stop strings must not be empty"),
        ("logit_bias", '{"x": 1}', "a token id in logit_bias must be an integer, got 'x'"),
    ],
)
def test_a_wrong_setting_changes_nothing(
    name: str, value: str, message: str, session: ChatSession
) -> None:
    session.set("temperature", "0.5")
    with pytest.raises(InputError, match=message):
        session.set(name, value)
    assert session.settings == {"temperature": 0.5}


def test_defaults_are_those_of_chat_completion(llama: Llama) -> None:
    assert (DEFAULTS["temperature"], DEFAULTS["top_p"]) == (0.6, 0.9)
    dialog = [user("hello")]
    settings = {"seed": 3, "max_gen_len": 8}
    session = ChatSession(LocalModel(llama, "random"), settings=settings)
    expected = llama.chat_completion([dialog], **settings)
    assert asked(session, "hello") == expected[0]["generation"]["content"]
    assert session.statistics is not None
    assert session.statistics.seed == 3
    assert session.statistics.finish_reason == expected[0]["finish_reason"]


def test_a_dialog_is_saved_and_loaded(session: ChatSession, model: Echo, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    with pytest.raises(InputError, match="nothing to save"):
        session.save(str(file))
    session.set_system("be kind")
    asked(session, "你好\u2028😀\n")
    session.save(str(file))
    assert json.loads(file.read_text()) == session.messages
    assert "你好" in file.read_text()
    asked(session, "two")
    session.save(str(file))  # its own file
    other = ChatSession(model)
    other.load(str(file))
    assert other.messages == session.messages
    assert asked(other, "three") == "6: three"
    other.save(str(file))


def test_a_jsonl_gathers_dialogs_for_training(
    session: ChatSession, model: Echo, tmp_path: Path
) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text('{"messages": []}')  # without a line end
    asked(session, "one\u2028\x85")
    session.save(str(file))
    session.clear()
    asked(session, "two")
    session.save(str(file))
    lines = [json.loads(raw.content) for raw in read_raw(find_sources(str(file))[0], None)]
    assert [len(line["messages"]) for line in lines] == [0, 2, 2]
    other = ChatSession(model)
    other.load(str(file))
    assert other.messages == session.messages


def test_a_file_of_somebody_else_is_not_replaced(session: ChatSession, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("precious")
    asked(session, "one")
    with pytest.raises(InputError, match=r"mine\.json exists already"):
        session.save(str(file))
    with pytest.raises(InputError, match=r"should end in \.json"):
        session.save(str(tmp_path / "chat.txt"))
    with pytest.raises(OSError, match="No such file"):
        session.save(str(tmp_path / "nowhere" / "chat.json"))
    assert file.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"[]", "the dialog is empty"),
        (b"3", "should be a list of messages"),
        (b'{"text": "a"}', "should be a list of messages"),
        (b'["a"]', "message 0 must be a dict"),
        (b'[{"role": "robot", "content": "a"}]', "message 0 has the unknown role 'robot'"),
        (b'[{"role": "user", "content": 3}]', "content must be a str"),
        (b'[{"role": "user"}]', "must have the keys role and content"),
        (b"\xff", "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_dialog(
    content: bytes, message: str, session: ChatSession, tmp_path: Path
) -> None:
    asked(session, "one")
    before = list(session.messages)
    for name in ("chat.json", "chat.jsonl"):
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(InputError, match=message) as caught:
            session.load(str(file))
        assert name in str(caught.value)
    with pytest.raises(OSError, match="nowhere"):
        session.load(str(tmp_path / "nowhere.json"))
    assert session.messages == before


def test_earlier_turns_come_from_the_prefix_store(
    chain: Callable[..., Llama], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chain([0]).tokenizer
    end = tokenizer.special_tokens["<|eot_id|>"]
    newline = tokenizer.encode("\n\n")[0]
    llama = chain([newline, *tokenizer.encode("a"), end], max_seq_len=2048)
    session = ChatSession(LocalModel(llama, "chain"))
    cached = []
    for question in ("x" * 300, "y" * 300, "z"):
        asked(session, question)
        assert session.statistics is not None
        assert session.statistics.prompt_tokens == len(
            llama.formatter.encode_dialog_prompt(session.messages[:-1])
        )
        cached.append(session.statistics.cached_tokens)
    assert cached == [0, 256, 512]


def test_statistics() -> None:
    statistics = Statistics(completion_tokens=11, first_token=2.0, finished=4.0)
    assert statistics.tokens_per_second() == 5.0
    assert (
        Statistics(completion_tokens=1, first_token=2.0, finished=4.0).tokens_per_second() is None
    )
    assert Statistics(completion_tokens=5).tokens_per_second() is None


def test_settings_that_are_none_are_left_out() -> None:
    assert checked_settings({"seed": None, "temperature": 0.0}) == {"temperature": 0.0}
