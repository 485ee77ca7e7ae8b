'''Reads messages from a person at a terminal, or from a pipe.

Enter sends a message. It continues on a new line after Alt-Enter, after a backslash at the end of a
line, and between triple quotes:

    >>> """
    ... one line
    ... another
    ... """

Pasted lines are one message. From a pipe each line is a message, with the same rules.
'''

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import completion_is_selected
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from llama.storage.files import cache_root

# Returns the next message. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C on no text.
Reader = Callable[[], str]

_PROMPT, _CONTINUED = ">>> ", "... "
_QUOTES = '"""'
_OPENING = re.compile(rf"\s*(/system\s+)?{_QUOTES}")  # of a message, or of a command's text


def is_open(text: str) -> bool:
    """Whether triple quotes at the beginning are not closed at the end."""
    opening = _OPENING.match(text)
    return opening is not None and not text[opening.end() :].rstrip().endswith(_QUOTES)


def is_continued(text: str) -> bool:
    r"""Whether one backslash, and not two, is at the end."""
    return text.endswith("\\") and not text.endswith("\\\\")


def unquoted(text: str) -> str:
    """A text without the triple quotes around it and the line ends next to them."""
    stripped = text.strip()
    if len(stripped) < 2 * len(_QUOTES) or stripped[:3] != _QUOTES or stripped[-3:] != _QUOTES:
        return text
    return stripped[3:-3].strip("\n")


def pipe_reader(ask: bool) -> Reader:
    """Reads from standard input; `ask` shows the prompt on standard error."""

    def line(prompt: str) -> str:
        if ask:
            print(prompt, end="", file=sys.stderr, flush=True)
        text = sys.stdin.readline()
        if not text:
            raise EOFError
        return text.removesuffix("\n")

    def read() -> str:
        text = line(_PROMPT)
        while is_open(text) or is_continued(text):
            text = text if is_open(text) else text.removesuffix("\\")
            try:
                text += "\n" + line(_CONTINUED)
            except EOFError:
                break  # what there is counts
        return text

    return read


def terminal_reader(commands: Mapping[str, str], settings: Iterable[str]) -> Reader:
    """Reads with line editing, a history and, by Tab, completion of commands and their arguments.

    `commands` has what follows each: NAME is one of `settings`, FILE a path.
    """
    keys = KeyBindings()

    @keys.add("enter", filter=~completion_is_selected)
    def enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        elif is_continued(buffer.text):
            buffer.text = buffer.text.removesuffix("\\") + "\n"
            buffer.cursor_position = len(buffer.text)
        else:
            buffer.validate_and_handle()

    @keys.add("c-c")
    def ctrl_c(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.app.exit(result="")
        else:
            event.app.exit(exception=KeyboardInterrupt)

    @keys.add("escape", "enter")
    def alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    session: PromptSession[str] = PromptSession(
        message=_PROMPT,
        # Not where the terminal wraps a line.
        prompt_continuation=lambda width, line, wraps: "" if wraps else _CONTINUED,
        multiline=True,
        key_bindings=keys,
        completer=_CommandCompleter(commands, list(settings)),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        history=_history(),
    )
    return session.prompt


class _CommandCompleter(Completer):
    def __init__(self, commands: Mapping[str, str], settings: list[str]) -> None:
        self._commands, self._settings = commands, settings

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or text.startswith("//") or "\n" in text:
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            words = [command for command in self._commands if command.startswith(name)]
            yield from (Completion(f"{word} ", -len(name), display=f"/{word}") for word in words)
        elif "NAME" in self._commands.get(name, ""):
            words = [setting for setting in self._settings if setting.startswith(argument)]
            yield from (Completion(f"{word} ", -len(argument), display=word) for word in words)
        elif self._commands.get(name) == "FILE":
            paths = PathCompleter(expanduser=True)
            yield from paths.get_completions(Document(argument), event)


def _history() -> History:
    """Earlier messages, in a file that only this user can read; in memory where there is none."""
    path = cache_root() / "chat_history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        return FileHistory(path)
    return InMemoryHistory()
