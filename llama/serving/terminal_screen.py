"""How a chat looks: answers as they come, notes, tables.

Answers are written as they are: the terminal breaks lines, nothing is drawn again. Only control
characters are shown instead of obeyed. Where standard output is no terminal there are no colors
and no replacements, and with NO_COLOR no colors.
"""

import contextlib
import signal
import sys
import termios
import threading
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama.inspection.token_texts import visible
from llama.serving.chat_session import ChatSession, Statistics


class Screen:
    """Standard output, a terminal or not."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.is_terminal = sys.stdin.isatty() and sys.stdout.isatty()

    def answer(self, texts: Iterable[str], stop: threading.Event) -> None:
        """Writes an answer as it comes. Ctrl-C sets `stop`."""
        last = "\n"
        with interrupt_sets(stop), _no_echo():
            try:
                for text in texts:
                    shown = visible(text, keep="\n\t") if sys.stdout.isatty() else text
                    print(shown, end="", flush=True)
                    last = shown[-1:] or last
            finally:
                if last != "\n":
                    print(flush=True)

    def note(self, text: str) -> None:
        """A line that is not part of the dialog."""
        self._line(text, "dim")

    def error(self, text: str) -> None:
        """What went wrong, in one line."""
        self._line(f"error: {text}", "red")

    def _line(self, text: str, style: str) -> None:
        """Wrapped at spaces on a terminal; one line in a file."""
        self.console.print(text, style=style, soft_wrap=not self.console.is_terminal)

    def text(self, text: str | Text) -> None:
        """Text as it is."""
        self.console.print(text, soft_wrap=True)

    def pairs(self, rows: Mapping[str, str]) -> None:
        """A table of two columns; the second one is wrapped."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table)


@contextlib.contextmanager
def interrupt_sets(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C, once or often, sets `stop` and raises nothing, so that no step is cut in two."""
    before = signal.signal(signal.SIGINT, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Keys that are typed during an answer wait for the next prompt, and do not appear in it."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def statistics_line(statistics: Statistics) -> str:
    """Tokens and times of an answer, as far as they are known."""
    parts = []
    if statistics.prompt_tokens is not None:
        cached = statistics.cached_tokens
        stored = f" ({cached} from the prefix store)" if cached is not None else ""
        parts.append(f"prompt {statistics.prompt_tokens} tokens{stored}")
    if statistics.first_token is not None:
        parts.append(f"first token after {statistics.first_token - statistics.started:.2f} s")
    if statistics.completion_tokens is not None:
        parts.append(f"answer {statistics.completion_tokens} tokens")
    if (rate := statistics.tokens_per_second()) is not None:
        parts.append(f"{rate:.1f} tokens/s")
    if statistics.seed is not None:
        parts.append(f"seed {statistics.seed}")
    return ", ".join(parts)


def ending(session: ChatSession) -> str | None:
    """What a reader should know of how the answer ended; None where it ended by itself."""
    statistics = session.statistics
    assert statistics is not None
    if statistics.finish_reason == "cancelled":
        return "(stopped)"
    if statistics.finish_reason == "length":
        limit = session.settings.get("max_gen_len")
        if limit is not None and statistics.completion_tokens == limit:
            return f"(cut after {limit} tokens: max_gen_len)"
        if session.model.llama is None:
            return "(cut: the context is full, or the server's limit is reached)"
        return f"(cut: the context of {session.model.llama.engine.max_seq_len} tokens is full)"
    if statistics.finish_reason not in ("stop", None):
        return f"(ended: {statistics.finish_reason})"
    return None if statistics.completion_tokens != 0 else "(an empty answer)"
