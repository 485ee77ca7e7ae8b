"""Dialogs that go on over several requests, each under an id, in memory or in an SQLite file.

    conversations = Conversations("conversations.db")
    async with conversations.open("c1", agent) as conversation:
        dialog = await conversation.dialog("And how much is that?", run)
        conversation.add(question, answer)

What does not fit into the window is replaced by a summary, which the agent's own model writes; the
whole text stays in the store. One request at a time goes on with a conversation.
"""

import asyncio
import contextlib
import sqlite3
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from llama.agents.agent import Agent
from llama.agents.limits import Run
from llama.dialog import Message, Role
from llama.errors import InputError
from llama.storage.files import expand

SUMMARIZE = (
    "Summarize the conversation above in a few sentences: who said what, names, numbers and open "
    "questions."
)
_SUMMARY = "What was said before, in short:\n"
_MAX_ID = 200  # characters
_KEPT_IN_MEMORY = 10_000  # conversations; the one that was used least recently goes first
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    conversation TEXT, agent TEXT, number INTEGER, role TEXT, content TEXT,
    PRIMARY KEY (conversation, agent, number));
CREATE TABLE IF NOT EXISTS summaries (
    conversation TEXT, agent TEXT, upto INTEGER, content TEXT, PRIMARY KEY (conversation, agent));
CREATE TABLE IF NOT EXISTS used (
    conversation TEXT, agent TEXT, number INTEGER PRIMARY KEY AUTOINCREMENT,
    UNIQUE (conversation, agent));
"""


class Conversations:
    """The conversations of all agents of a server.

    file: where they are kept; None keeps the last 10,000 in memory.
    window: the most messages of a prompt before the question; earlier ones are summarized.
    window_chars: the most characters of them; None for what half of the model's context holds.
    """

    def __init__(
        self, file: str | Path | None = None, window: int = 20, window_chars: int | None = None
    ) -> None:
        if window < 2 or (window_chars is not None and window_chars < 1):
            raise InputError("a conversation's window needs at least 2 messages and 1 character")
        self.window, self.window_chars = window, window_chars
        self._is_in_memory = file is None
        path = ":memory:" if file is None else expand(file)
        try:
            self.database = sqlite3.connect(path, check_same_thread=False)
            self.database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise InputError(f"conversations can't be kept in {path}: {error}") from None
        self.lock = threading.Lock()
        self._busy: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )

    @contextlib.asynccontextmanager
    async def open(self, id: str, agent: Agent) -> AsyncIterator["Conversation"]:
        """A conversation with an agent, new or old; others that want it wait until it is done."""
        if not id or len(id) > _MAX_ID:
            raise InputError(f"a conversation's id has 1 to {_MAX_ID} characters, not {len(id)}")
        key = id, agent.name
        lock = self._busy.get(key)
        if lock is None:
            lock = self._busy[key] = asyncio.Lock()
        async with lock:
            yield Conversation(self, id, agent)

    def close(self) -> None:
        """Closes the file."""
        self.database.close()

    def forget_old(self) -> None:
        """In memory, removes what was used least recently beyond the number that is kept."""
        if not self._is_in_memory:
            return
        old = self.database.execute(
            "SELECT conversation, agent FROM used ORDER BY number DESC LIMIT -1 OFFSET ?",
            (_KEPT_IN_MEMORY,),
        ).fetchall()
        for table in ("messages", "summaries", "used") if old else ():
            self.database.executemany(
                f"DELETE FROM {table} WHERE conversation = ? AND agent = ?", old
            )


@dataclass
class Conversation:
    """One of them."""

    store: Conversations
    id: str
    agent: Agent

    def messages(self) -> list[Message]:
        """All that was said."""
        rows = self._select("SELECT role, content FROM messages", "ORDER BY number")
        return [_message(role, content) for role, content in rows]

    def summary(self) -> tuple[int, str]:
        """How many messages are summarized, and how."""
        rows = self._select("SELECT upto, content FROM summaries", "")
        return rows[0] if rows else (0, "")

    def add(self, *messages: Message) -> None:
        """Messages that follow the others."""
        key = self.id, self.agent.name
        with self.store.lock, self.store.database as database:
            (count,) = database.execute(
                "SELECT count(*) FROM messages WHERE conversation = ? AND agent = ?", key
            ).fetchone()
            database.executemany(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?)",
                [(*key, count + i, m["role"], m["content"]) for i, m in enumerate(messages)],
            )
            database.execute("INSERT OR REPLACE INTO used (conversation, agent) VALUES (?, ?)", key)
            self.store.forget_old()

    async def dialog(self, question: str, run: Run) -> list[Message]:
        """What the agent is asked: a summary, the messages in the window, and the question.

        Raises as `Agent.answer` where a summary is needed and can't be made.
        """
        messages = self.messages()
        upto, summary = self.summary()
        recent = messages[upto:]
        if excess := self._excess(recent):
            summary = await self._summarize(summary, recent[:excess], run)
            self._keep(upto + excess, summary)
            recent = recent[excess:]
        start: list[Message] = [_message("system", _SUMMARY + summary)] if summary else []
        return [*start, *recent, _message("user", question)]

    def _excess(self, messages: list[Message]) -> int:
        """How many messages do not fit into the window; half of it stays free then."""
        tokens = self.agent.model.max_model_len()
        chars = self.store.window_chars or (20_000 if tokens is None else tokens)
        sizes = [len(message["content"]) for message in messages]
        if len(messages) <= self.store.window and sum(sizes) <= chars:
            return 0
        excess = 0
        while excess < len(messages) and (
            len(messages) - excess > self.store.window // 2 or sum(sizes[excess:]) > chars // 2
        ):
            excess += 2  # a question and its answer
        return min(excess, len(messages))

    async def _summarize(self, summary: str, messages: list[Message], run: Run) -> str:
        start = [_message("user", _SUMMARY + summary)] if summary else []
        limits = self.agent.limits
        reply = await self.agent.reply(
            [*start, *messages, _message("user", SUMMARIZE)],
            replace(run.within(run.at_most(limits.seconds)), on_text=None),
            [],
            max(limits.tokens // 4, 1),
            self.agent.settings,
        )
        return reply.message["content"].strip()

    def _keep(self, upto: int, summary: str) -> None:
        with self.store.lock, self.store.database as database:
            database.execute(
                "INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?)",
                (self.id, self.agent.name, upto, summary),
            )

    def _select(self, select: str, order: str) -> list[tuple[int, str]]:
        statement = f"{select} WHERE conversation = ? AND agent = ? {order}"
        with self.store.lock:
            return self.store.database.execute(statement, (self.id, self.agent.name)).fetchall()


def _message(role: object, content: str) -> Message:
    known: Role = "system" if role == "system" else "user" if role == "user" else "assistant"
    return {"role": known, "content": content}
