"""The chat as a loop: read a message or a command, do it, show what comes of it."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from llama.dialog import write_message
from llama.errors import InputError, message
from llama.inspection.token_texts import TokenTexts, visible
from llama.serving.chat_session import DEFAULTS, ChatSession, nearest
from llama.serving.terminal_input import pipe_reader, terminal_reader, unquoted
from llama.serving.terminal_screen import Screen, ending, statistics_line


class Chat:
    """A session and the screen that it is shown on; `shows_statistics` after each answer."""

    def __init__(
        self, session: ChatSession, screen: Screen, shows_statistics: bool = False
    ) -> None:
        self.session, self.screen = session, screen
        self.shows_statistics = shows_statistics
        self.is_over = False

    def run(self) -> None:
        """Reads and does until /bye or the end of the input."""
        if self.screen.is_terminal:
            arguments = {name: command.argument for name, command in COMMANDS.items()}
            read = terminal_reader(arguments, DEFAULTS)
            self.screen.note(f"{self.session.model.name}: /help lists the commands, Ctrl-D ends")
        else:
            read = pipe_reader(ask=sys.stdin.isatty())
        while not self.is_over:
            try:
                self.do(read())
            except EOFError:
                return
            except KeyboardInterrupt:
                self.screen.note("Ctrl-D or /bye ends the chat")

    def do(self, typed: str) -> None:
        """Does a command, which begins with one slash, or asks. Input errors are shown."""
        text = typed.strip()
        try:
            if text.startswith("/") and not text.startswith("//"):
                self._command(text)
                return
            question = unquoted(text.removeprefix("/") if text.startswith("//") else text)
            if question.strip():
                self.answer(self.session.ask(question))
        except BrokenPipeError:
            raise
        except (InputError, OSError) as error:
            self.screen.error(message(error))

    def answer(self, texts: Iterator[str]) -> None:
        """Shows an answer as it comes, and how it ended."""
        self.screen.answer(texts, self.session.stop)
        if note := ending(self.session):
            self.screen.note(note)
        if self.shows_statistics:
            self.show_statistics()

    def show_statistics(self) -> None:
        """Shows those of the last answer."""
        if self.session.statistics is None:
            raise InputError("there is no answer yet")
        self.screen.note(statistics_line(self.session.statistics))

    def show_dialog(self) -> None:
        """Shows the messages as they looked when they were written."""
        for each in self.session.messages:
            written = write_message(each)
            content = visible("\n".join(filter(None, (written.content, written.calls))), "\n\t")
            shown = {"user": f">>> {content}", "assistant": content}
            self.screen.text(shown.get(each["role"], f"({each['role']}) {content}"))

    def show_settings(self, names: Iterable[str]) -> None:
        """Shows settings by name, with whether each is the default."""
        rows = {}
        for name in names:
            is_set = name in self.session.settings
            value = self.session.settings.get(name, DEFAULTS[name])
            shown = "none" if value is None else json.dumps(value, ensure_ascii=False)
            rows[name] = shown if is_set else f"{shown} (default)"
        self.screen.pairs(rows)

    def _command(self, text: str) -> None:
        name, *rest = text[1:].split(maxsplit=1) or [""]
        argument = rest[0] if rest else ""
        command = COMMANDS.get(_ALIASES.get(name, name))
        if command is None:
            raise InputError(
                f"unknown command /{name}; {nearest(f'/{name}', [f'/{c}' for c in COMMANDS])} (a "
                "message that begins with a slash is typed with two)"
            )
        if argument and not command.argument:
            raise InputError(f"/{name} takes nothing after it, got {argument!r:.60}")
        if not argument and command.argument and not command.argument.startswith("["):
            raise InputError(f"/{name} needs {command.argument}: {command.help}")
        command.do(self, argument)


def _help(chat: Chat, _: str) -> None:
    commands = {f"/{name} {c.argument}".rstrip(): c.help for name, c in COMMANDS.items()}
    chat.screen.pairs(commands | _KEYS)


def _bye(chat: Chat, _: str) -> None:
    chat.is_over = True


def _system(chat: Chat, text: str) -> None:
    if text == "off":
        chat.session.set_system(None)
    elif text:
        chat.session.set_system(unquoted(text))
    chat.screen.note(f"system message: {chat.session.system or 'none'}")


def _undo(chat: Chat, _: str) -> None:
    asked = " ".join(chat.session.undo()[0]["content"].split())
    chat.screen.note(f"removed {asked!r:.60} and its answer")


def _again(chat: Chat, _: str) -> None:
    chat.answer(chat.session.again())


def _clear(chat: Chat, _: str) -> None:
    chat.session.clear()
    kept = " but for the system message" if chat.session.system is not None else ""
    chat.screen.note(f"the dialog is empty{kept}")


def _save(chat: Chat, path: str) -> None:
    where = chat.session.save(path)
    chat.screen.note(f"{len(chat.session.messages)} messages are in {where}")


def _load(chat: Chat, path: str) -> None:
    chat.session.load(path)
    chat.show_dialog()


def _set(chat: Chat, argument: str) -> None:
    if not argument:
        chat.show_settings(DEFAULTS)
        return
    name, *value = argument.replace("=", " ", 1).split(maxsplit=1)
    if name not in DEFAULTS or value:
        chat.session.set(name, value[0] if value else "")
    chat.show_settings([name])


def _tokens(chat: Chat, _: str) -> None:
    llama, ids = chat.session.model.llama, chat.session.tokens()
    assert llama is not None
    lines = TokenTexts(llama.tokenizer).lines(ids, chat.screen.console.width)
    chat.screen.text(lines)
    chat.screen.note(f"{len(ids)} tokens, of a context of {llama.engine.max_seq_len}")


def _stats(chat: Chat, choice: str) -> None:
    if choice in ("on", "off"):
        chat.shows_statistics = choice == "on"
        chat.screen.note(f"statistics after each answer: {choice}")
    elif choice:
        raise InputError(f"write /stats, /stats on or /stats off, not {choice!r:.60}")
    else:
        chat.show_statistics()


class Command(NamedTuple):
    """A command: what it does, what follows its name (in brackets if not needed), its help."""

    do: Callable[[Chat, str], None]
    argument: str
    help: str


COMMANDS = {
    "system": Command(_system, "[TEXT|off]", "shows, sets or removes the system message"),
    "set": Command(
        _set, "[NAME VALUE]", "shows or sets how tokens are chosen; VALUE may be default"
    ),
    "again": Command(_again, "", "answers the last question once more"),
    "undo": Command(_undo, "", "removes the last question and its answer"),
    "clear": Command(_clear, "", "removes all messages but the system message"),
    "save": Command(_save, "FILE", "writes the dialog to a .json, or adds it to a .jsonl"),
    "load": Command(_load, "FILE", "goes on with a dialog that was saved"),
    "tokens": Command(_tokens, "", "shows the dialog as token ids"),
    "stats": Command(_stats, "[on|off]", "shows counts of tokens and tokens per second"),
    "help": Command(_help, "", "shows this"),
    "bye": Command(_bye, "", "ends the chat, as Ctrl-D does"),
}
_ALIASES = {"?": "help", "exit": "bye", "quit": "bye"}
_KEYS = {
    "//...": "a message that begins with a slash",
    '""" ... """': "a message of several lines; also Alt-Enter, or \\ at the end of a line",
    "Ctrl-C": "stops an answer",
}
