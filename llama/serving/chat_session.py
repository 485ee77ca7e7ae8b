"""A chat as data: the dialog, the settings, and what a person may do with them.

    session = ChatSession(LocalModel(llama), system="Answer in one word.")
    for text in session.ask("Where does Tom live?"):
        print(text, end="")
    session.undo()
    session.save("chat.json")

A change happens whole or not at all: an answer that fails leaves the dialog as it was, and one that
is interrupted keeps the text that there is. What is shown on a screen is decided elsewhere
(`terminal_chat.py`).
"""

import difflib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from llama.engine.request import Sequence
from llama.engine.sampling_params import SamplingParams
from llama.errors import InputError
from llama.generation import Llama
from llama.storage.files import atomic_write, expand, read_text
from llama.tokenizer import Message, checked_dialog

# What `settings` may hold, and what each is without it.
DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(SamplingParams)}
DEFAULTS |= {"logit_bias": {}, "stop": (), "max_gen_len": None, "min_tokens": 0}


@dataclass
class Statistics:
    """How an answer came about. Times are `time.monotonic()`; None is not known."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt, from the prefix store
    completion_tokens: int | None = None
    started: float = 0.0
    first_token: float | None = None
    finished: float = 0.0
    seed: int | None = None
    finish_reason: str | None = None

    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first one, which takes as long as the prompt does."""
        if self.first_token is None or (self.completion_tokens or 0) < 2:
            return None
        seconds = self.finished - self.first_token
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None  # type: ignore[operator]


class ChatModel(Protocol):
    """A model that answers: `llama` in this process, or None for one on a server."""

    name: str
    llama: Llama | None

    def stream(
        self,
        messages: list[Message],
        settings: Mapping[str, Any],
        statistics: Statistics,
        stop: threading.Event,
    ) -> Iterator[str]:
        """The answer as it comes; fills in `statistics`, and ends soon after `stop` is set."""


class ChatSession:
    """A dialog with a model.

    messages: the dialog so far, the system message first if there is one.
    settings: those that were set, of `DEFAULTS`.
    statistics: those of the last answer.
    """

    def __init__(
        self,
        model: ChatModel,
        system: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.settings = checked_settings(settings or {})
        self.statistics: Statistics | None = None
        self.stop = threading.Event()  # set by a signal handler to interrupt the answer
        self._num_again = 0  # since the last question
        self._own_file: Path | None = None
        if system is not None:
            self.set_system(system)

    @property
    def system(self) -> str | None:
        """The text of the system message."""
        has_system = self.messages and self.messages[0]["role"] == "system"
        return self.messages[0]["content"] if has_system else None

    def set_system(self, text: str | None) -> None:
        """Puts a system message in the place of the present one; None removes it."""
        rest = self.messages[self.system is not None :]
        new: list[Message] = [] if text is None else [{"role": "system", "content": text}]
        self.messages = new + rest

    def clear(self) -> None:
        """Removes all messages but the system message."""
        del self.messages[self.system is not None :]

    def ask(self, text: str) -> Iterator[str]:
        """Adds a user's message, and yields the answer to it as it comes."""
        self._num_again = 0
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def again(self) -> Iterator[str]:
        """Answers the last question once more, in place of the present answer.

        With a seed each time uses the next one, so that the answers differ and can be repeated.
        """
        end = len(self.messages)
        while end and self.messages[end - 1]["role"] == "assistant":
            end -= 1
        if not end or self.messages[end - 1]["role"] == "system":
            raise InputError("there is no question yet to answer again")
        self._num_again += 1
        return self._answer(self.messages[:end])

    def undo(self) -> list[Message]:
        """Removes the last question and what came after it; returns those messages."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise InputError("there is no question yet to undo")
        removed = self.messages[asked[-1] :]
        del self.messages[asked[-1] :]
        return removed

    def set(self, name: str, value: str) -> None:
        """Changes a setting; `value` is JSON or a plain string, `default` takes the default.

        Raises InputError for an unknown name, with one that is near, or a value out of range.
        """
        if value == "default":
            _check_name(name)
            self.settings.pop(name, None)
        else:
            self.settings = checked_settings({**self.settings, name: _parsed(value)})

    def save(self, path: str) -> str:
        """Writes the messages; returns where they are.

        A `.json` file is the list of messages. To a `.jsonl` file a line `{"messages": [...]}` is
        added, so that a file gathers dialogs for `llama train`. Raises InputError rather than
        replace a file that this chat neither loaded nor saved.
        """
        if not self.messages:
            raise InputError("there is nothing to save yet")
        target = Path(expand(path))
        if target.suffix == ".jsonl":
            before = target.read_bytes() if target.exists() else b""
            before += b"\n" * (bool(before) and not before.endswith(b"\n"))
            line = json.dumps({"messages": self.messages}, ensure_ascii=False)
            content = before + line.encode() + b"\n"
        elif target.suffix == ".json":
            if target.exists() and target.absolute() != self._own_file:
                raise InputError(f"{target} exists already; choose another name or remove it")
            text = json.dumps(self.messages, ensure_ascii=False, indent=1)
            content = text.encode() + b"\n"
        else:
            raise InputError(f"{path} should end in .json (this dialog) or .jsonl (several)")
        with atomic_write(target) as file:
            file.write(content)
        self._own_file = target.absolute()
        return str(target)

    def load(self, path: str) -> None:
        """Takes the messages of a file that `save` wrote; of a `.jsonl` those of the last line.

        Raises InputError or OSError, and keeps the present dialog, for any other file.
        """
        target = Path(expand(path))
        text = read_text(target)
        lines = [line for line in text.split("\n") if line.strip()]
        if target.suffix == ".jsonl" and lines:
            text = lines[-1]
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{target} is not JSON: {error}") from error
        if isinstance(content, dict):
            content = content.get("messages")
        if not isinstance(content, list):
            raise InputError(f"{target} should be a list of messages, or an object with messages")
        try:
            self.messages = checked_dialog(content)
        except InputError as error:
            raise InputError(f"{target}: {error}") from error
        self._own_file = target.absolute()

    def tokens(self) -> list[int]:
        """The dialog as token ids, up to the header of the next answer, as the model gets it."""
        if self.model.llama is None:
            raise InputError("tokens are shown for a model in this process, not for a server's")
        if not self.messages:
            raise InputError("there is no message yet")
        return self.model.llama.formatter.encode_dialog_prompt(self.messages)

    def _answer(self, messages: list[Message]) -> Iterator[str]:
        self.stop.clear()
        self.statistics = statistics = Statistics()
        settings = dict(self.settings)
        if settings.get("seed") is not None:
            settings["seed"] += self._num_again
        parts = []
        for text in self.model.stream(messages, settings, statistics, self.stop):
            parts.append(text)
            yield text
        content = "".join(parts)
        if content or statistics.finish_reason != "cancelled":
            self.messages = [*messages, {"role": "assistant", "content": content}]


def checked_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, checked as the engine checks them; those that are None are left out.

    Raises InputError or InputTypeError that names the setting.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        _check_name(name)
    if isinstance(given.get("stop"), str):
        given["stop"] = (given["stop"],)
    if isinstance(bias := given.get("logit_bias"), dict):
        given["logit_bias"] = {_token_id(token): value for token, value in bias.items()}
    sequence_of(given, [0])
    return given


def sequence_of(settings: Mapping[str, Any], prompt: list[int]) -> Sequence:
    """The request for an answer to `prompt`. Raises InputError that names a wrong setting."""
    sampling = {f.name for f in fields(SamplingParams)}
    return Sequence(
        prompt,
        params=SamplingParams(**{k: v for k, v in settings.items() if k in sampling}),
        **{k: v for k, v in settings.items() if k not in sampling},
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest one, or all."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def _check_name(name: str) -> None:
    if name not in DEFAULTS:
        raise InputError(f"unknown setting {name!r}; {nearest(name, DEFAULTS)}")


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _token_id(token: Any) -> Any:
    """JSON has no integers as keys."""
    return int(token) if isinstance(token, str) and token.isascii() and token.isdigit() else token
