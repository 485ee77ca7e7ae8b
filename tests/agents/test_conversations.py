"""Dialogs that go on: in memory and in a file, with a window and a summary."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted

from llama import InputError
from llama.agents import Agent, AgentError, Conversations, Team


def team(model: Scripted, conversations: Conversations) -> Team:
    agent = Agent("helper", model, "You help.")
    return Team({"helper": agent}, "helper", conversations=conversations)


def say(members: Team, text: str, id: str = "c1") -> str:
    question: Any = [{"role": "user", "content": text}]
    return asyncio.run(members.answer("helper", question, conversation=id)).text


@pytest.fixture(params=["memory", "file"])
def conversations(request: pytest.FixtureRequest, tmp_path: Path) -> Conversations:
    return Conversations(tmp_path / "c.db" if request.param == "file" else None, window=4)


def test_a_conversation_goes_on(conversations: Conversations) -> None:
    model = Scripted("First.", "Other.", "Second.")
    members = team(model, conversations)
    assert say(members, "One?") == "First."
    assert say(members, "Else?", id="c2") == "Other."
    assert say(members, "Two?") == "Second."
    assert [m["content"] for m in model.asked[1]] == ["You help.", "Else?"]
    assert [m["content"] for m in model.asked[2]] == ["You help.", "One?", "First.", "Two?"]


def test_what_leaves_the_window_is_summarized(conversations: Conversations) -> None:
    model = Scripted("A.", "B.", "C.", "They counted.", "D.")
    members = team(model, conversations)
    for text in ("1?", "2?", "3?"):
        say(members, text)
    assert say(members, "4?") == "D."
    asked = [m["content"] for m in model.asked[3]]
    assert asked[:-1] == ["1?", "A.", "2?", "B."]
    assert asked[-1].startswith("Summarize the conversation above")
    assert [m["content"] for m in model.asked[4]] == [
        "You help.\n\nWhat was said before, in short:\nThey counted.",
        "3?",
        "C.",
        "4?",
    ]
    agent: Any = members.agent("helper")

    async def kept() -> Any:
        async with conversations.open("c1", agent) as state:
            return state.messages(), state.summary()

    messages, summary = asyncio.run(kept())
    assert [m["content"] for m in messages] == ["1?", "A.", "2?", "B.", "3?", "C.", "4?", "D."]
    assert summary == (4, "They counted.")


def test_long_messages_leave_the_window_too() -> None:
    model = Scripted("A" * 50, "They wrote.", "B.")
    model.context = 60  # of the prompt, half of it for what was said
    members = team(model, Conversations())
    say(members, "1" * 50)
    assert say(members, "2?") == "B."
    assert [m["content"] for m in model.asked[2]][1:] == ["2?"]
    assert "They wrote." in model.asked[2][0]["content"]


def test_a_file_outlives_its_server(tmp_path: Path) -> None:
    members = team(Scripted("First."), Conversations(tmp_path / "c.db"))
    say(members, "One?")
    members.close()
    model = Scripted("Second.")
    say(team(model, Conversations(tmp_path / "c.db")), "Two?")
    assert [m["content"] for m in model.asked[0]] == ["You help.", "One?", "First.", "Two?"]


def test_a_question_without_an_answer_is_not_kept() -> None:
    model = Scripted(" ")
    members = team(model, Conversations())
    with pytest.raises(AgentError):
        say(members, "One?")
    model._replies = ["Yes."]
    say(members, "Two?")
    assert [m["content"] for m in model.asked[-1]] == ["You help.", "Two?"]


def test_one_request_at_a_time_goes_on() -> None:
    model = Scripted("A.", "B.")
    members = team(model, Conversations())

    async def both() -> None:
        async def ask(text: str) -> None:
            question: Any = [{"role": "user", "content": text}]
            await members.answer("helper", question, conversation="c")

        await asyncio.gather(ask("1?"), ask("2?"))

    asyncio.run(both())
    assert [m["content"] for m in model.asked[1]] == ["You help.", "1?", "A.", "2?"]


def test_memory_keeps_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama.agents.conversations._KEPT_IN_MEMORY", 2)
    model = Scripted("Yes.")
    members = team(model, Conversations())
    for id in ("a", "b", "a", "c"):
        say(members, "One?", id)
    rows = members.conversations.database.execute("SELECT DISTINCT conversation FROM messages")
    assert {*rows} == {("a",), ("c",)}


def test_wrong_conversations(tmp_path: Path) -> None:
    members = team(Scripted("Yes."), Conversations())
    for id in ("", "x" * 201):
        with pytest.raises(InputError, match="id has 1 to 200 characters"):
            say(members, "One?", id)
    messages: Any = [{"role": "user", "content": "1"}] * 2
    with pytest.raises(AgentError, match="goes on with one question"):
        asyncio.run(members.answer("helper", messages, conversation="c"))
    with pytest.raises(InputError, match="at least 2 messages"):
        Conversations(window=1)
    (tmp_path / "text").write_text("no database, no database, no database, no database" * 9)
    for file in (tmp_path / "text", tmp_path / "none" / "c.db"):
        with pytest.raises(InputError, match="can't be kept in"):
            Conversations(file)


def test_an_unknown_agent_is_named() -> None:
    with pytest.raises(AgentError, match="there is no agent 'x'; there are helper"):
        asyncio.run(team(Scripted(""), Conversations()).answer("x", []))
