"""Tool calls in an answer: found while it is generated, and asked for by a grammar.

    parser = ToolCallParser(tokenizer, tools, call_id_prefix(prompt))
    for token in ...:                              # of `Sequence.take_tokens()`
        for event in parser.feed(token.id, token.text): ...
    for event in parser.finish(): ...

    {"name": "add", "parameters": {"a": 1}}       JSON (Llama 3.1 and 3.3)
    [add(a=1), add(a=2)]                          pythonic (Llama 3.2, 3.3 without examples)
    <|python_tag|>brave_search.call(query="...")  built-in tools

A call begins at the start of the answer or after the token `<|python_tag|>`, and names a declared
function; whatever the model was prompted with, each of the forms is understood. Several calls may
be in a list, or have semicolons, commas, white space or nothing between them. The text of
`<|python_tag|>` that is spelled by other tokens is text. So is everything that turns out not to be
a call: it comes back as it was written. How the answer is cut into pieces changes nothing.
"""

import json
import re
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from string import ascii_letters, digits

from llama.dialog import (
    PYTHON_TAG,
    Tool,
    ToolCall,
    checked_builtin_tools,
    checked_tools,
    json_text,
)
from llama.tokenizer import Tokenizer

_END = "<end>"  # of the answer. Like the tag it has more characters than one, so it equals none.
_NAME = frozenset(ascii_letters + digits + "_./:-")
_KEY = frozenset(ascii_letters + digits + "_")
_LETTERS = frozenset(ascii_letters)
_HEX = frozenset("0123456789abcdefABCDEF")
_NUMBER_CHARS = frozenset(digits + "+-.eE")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_MAX_DIGITS = 1000  # Python's json refuses integers of more than 4300
_JSON_WORDS = {"true": "true", "false": "false", "null": "null"}
_JSON_ESCAPES = frozenset('"\\/bfnrt')
_PYTHON_WORDS = _JSON_WORDS | {"True": "true", "False": "false", "None": "null"}
_PYTHON_ESCAPES = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True)) | {"\n": ""}
_PYTHON_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_MAX_DEPTH = 64  # of lists and objects in each other; each level is a Python frame here

_Steps = Generator[None, str, None]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of the answer that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. `index` counts the calls of an answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    delta: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is over. `call` is the whole of it; None where it broke off or is malformed.

    `source` is how the model wrote it: what an answer that shows only whole calls has as text.
    """

    index: int
    call: ToolCall | None
    source: str


Event = TextDelta | CallStart | CallArguments | CallEnd


def call_id_prefix(prompt: Iterable[int], sample_index: int = 0) -> str:
    """What the ids of an answer's calls begin with: a function of the request alone."""
    text = ",".join(map(str, [sample_index, *prompt]))
    return f"call_{blake2b(text.encode(), digest_size=9).hexdigest()}"


def whole_answer(events: Iterable[Event]) -> tuple[str, list[ToolCall]]:
    """The text and the calls of an answer's events. A call without an end is text."""
    texts, calls = [], []
    for event in events:
        if isinstance(event, TextDelta):
            texts.append(event.text)
        elif isinstance(event, CallEnd):
            texts += [event.source] if event.call is None else []
            calls += [] if event.call is None else [event.call]
    return "".join(texts), calls


class _NotACall(Exception):
    """The current character does not continue a call."""


class ToolCallParser:
    """Tells the text of one answer from its calls of `tools`, piece by piece.

    The id of a call is `id_prefix` and its index. `start` is text that the answer begins with; what
    it brings comes with the first piece. Raises InputError for tools that are malformed.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tools: Iterable[Tool] | None,
        id_prefix: str,
        *,
        builtin_tools: Iterable[str] = (),
        start: str = "",
    ) -> None:
        self._tag_id = tokenizer.special_tokens.get(PYTHON_TAG)
        self._names = {tool["function"]["name"] for tool in checked_tools(tools)}
        self._names |= set(checked_builtin_tools(builtin_tools))
        self._id_prefix = id_prefix
        self._events: list[Event] = []
        self._is_text = False  # up to the next tag
        self._char = ""  # the current one
        self._source: list[str] = []  # what was read before it and is neither text nor call yet
        self._arguments: list[str] | None = None  # of the call that is being read
        self._is_started = False  # whether it has been announced
        self._name = ""
        self._num_calls = 0
        self._steps = self._answer()
        next(self._steps)
        for char in start:
            self._steps.send(char)

    def feed(self, token_id: int | None, text: str) -> list[Event]:
        """What the next piece of the answer brings: a token and the text that it completed.

        A piece without a token id is text.
        """
        is_tag = token_id is not None and token_id == self._tag_id
        if self._is_text and not is_tag and not self._events:
            return [TextDelta(text)] if text else []
        for char in text.removesuffix(PYTHON_TAG) if is_tag else text:
            self._steps.send(char)
        if is_tag:
            self._steps.send(PYTHON_TAG)
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """What the end of the answer brings. The parser can't be fed after it."""
        self._steps.send(_END)
        self._steps.close()
        events, self._events = self._events, []
        return events

    # Each of these is a coroutine that is sent the answer character by character and stops behind
    # what it is named after.

    def _answer(self) -> _Steps:
        self._char = yield
        is_tagged = False
        while True:
            yield from self._calls(is_tagged)
            if self._source:
                self._add(TextDelta("".join(self._source)))
            self._source.clear()
            while self._char not in (PYTHON_TAG, _END):
                self._add(TextDelta(self._char))
                self._is_text = True
                self._char = yield
            self._is_text = False
            if self._char == _END:
                yield
            yield from self._take()
            is_tagged = True

    def _calls(self, is_tagged: bool) -> _Steps:
        """As many calls as there are; `_source` is then the text behind them."""
        try:
            yield from self._space()
            if self._char == PYTHON_TAG:
                is_tagged = True
                yield from self._take()
                yield from self._space()
            while True:
                if self._char == "[":
                    yield from self._list()
                else:
                    yield from self._call(has_name=is_tagged)
                while self._char.isspace() or self._char in (";", ","):
                    yield from self._take()
                if self._char in (PYTHON_TAG, _END):
                    self._source.clear()
                    return
        except _NotACall:
            return

    def _list(self) -> _Steps:
        yield from self._take()
        while True:
            yield from self._space()
            yield from self._call(has_name=True)
            yield from self._space()
            if self._char != ",":
                break
            yield from self._take()
        if self._char == "]":
            yield from self._take()
            self._source.clear()

    def _call(self, has_name: bool) -> _Steps:
        try:
            if self._char == "{":
                yield from self._json_call()
            elif has_name and self._char in _NAME:
                yield from self._pythonic_call()
            else:
                raise _NotACall
        except _NotACall:
            if self._is_started:
                self._end_call(is_whole=False)
            raise

    def _json_call(self) -> _Steps:
        name: str | None = None
        self._arguments = None
        yield from self._take()
        while True:
            key = yield from self._member_key()
            if key == "name" and name is None:
                name = yield from self._plain_string()
                if name not in self._names:
                    raise _NotACall
            elif key in ("parameters", "arguments") and self._arguments is None:
                self._arguments = []
                if self._char == "n":
                    yield from self._word({"null": "{}"})
                else:
                    if self._char == "{" and name is not None:
                        self._start_call(name)
                    yield from self._object(_MAX_DEPTH, is_pythonic=False)
            elif key != "type" or (yield from self._plain_string()) != "function":
                raise _NotACall
            if name is not None and self._arguments is not None:
                break
            yield from self._space()
            yield from self._expect(",")
        self._start_call(name)
        self._end_call()
        # The arguments are complete: what else the object has is read over.
        yield from self._space()
        while self._char == ",":
            yield from self._take()
            yield from self._member_key()
            yield from self._value(_MAX_DEPTH, is_pythonic=False)
            yield from self._space()
        if self._char != _END:
            yield from self._expect("}")
        self._source.clear()

    def _member_key(self) -> Generator[None, str, str]:
        yield from self._space()
        key = yield from self._plain_string()
        yield from self._space()
        yield from self._expect(":")
        yield from self._space()
        return key

    def _pythonic_call(self) -> _Steps:
        self._arguments = None
        name = yield from self._run_of(_NAME)
        if name not in self._names:
            name = name.removesuffix(".call")
        if name not in self._names:
            raise _NotACall
        yield from self._expect("(")
        yield from self._space()
        self._arguments = []
        self._put("{")
        keys: set[str] = set()
        while self._char != ")":
            if keys:
                yield from self._expect(",")
                yield from self._space()
                if self._char == ")":  # after a trailing comma
                    break
            key = yield from self._run_of(_KEY)
            yield from self._space()
            if not key or key in keys:
                raise _NotACall
            yield from self._expect("=")
            yield from self._space()
            self._start_call(name)
            self._put(f"{', ' if keys else ''}{json_text(key)}: ")
            keys.add(key)
            yield from self._value(_MAX_DEPTH, is_pythonic=True)
            yield from self._space()
        yield from self._take()
        self._start_call(name)
        self._put("}")
        self._end_call()

    # Values are written as JSON while they are read. JSON keeps its own white space.

    def _value(self, depth: int, is_pythonic: bool) -> _Steps:
        char = self._char
        if char == "{":
            yield from self._object(depth, is_pythonic)
        elif char == "[" or (char == "(" and is_pythonic):
            yield from self._array(depth, is_pythonic, end="]" if char == "[" else ")")
        elif char == '"' or (char == "'" and is_pythonic):
            yield from self._string(is_pythonic)
        elif char == "-" or char in digits:
            yield from self._number()
        else:
            yield from self._word(_PYTHON_WORDS if is_pythonic else _JSON_WORDS)

    def _object(self, depth: int, is_pythonic: bool) -> _Steps:
        if self._char != "{" or not depth:
            raise _NotACall
        yield from self._take("{")
        yield from self._space(copies=not is_pythonic)
        while self._char != "}":
            if self._char != '"' and not (is_pythonic and self._char == "'"):
                raise _NotACall
            yield from self._string(is_pythonic)
            yield from self._space(copies=not is_pythonic)
            yield from self._expect(":", ": " if is_pythonic else ":")
            yield from self._space(copies=not is_pythonic)
            yield from self._value(depth - 1, is_pythonic)
            yield from self._next_item("}", is_pythonic)
        yield from self._take("}")

    def _array(self, depth: int, is_pythonic: bool, end: str) -> _Steps:
        if not depth:
            raise _NotACall
        yield from self._take("[")
        yield from self._space(copies=not is_pythonic)
        while self._char != end:
            yield from self._value(depth - 1, is_pythonic)
            yield from self._next_item(end, is_pythonic)
        yield from self._take("]")

    def _next_item(self, end: str, is_pythonic: bool) -> _Steps:
        """Up to the next item or the end; only Python has a comma in front of the end."""
        yield from self._space(copies=not is_pythonic)
        if self._char == end:
            return
        yield from self._expect(",", "" if is_pythonic else ",")
        yield from self._space(copies=not is_pythonic)
        if self._char != end:
            self._put(", " if is_pythonic else "")
        elif not is_pythonic:
            raise _NotACall

    def _string(self, is_pythonic: bool) -> _Steps:
        quote = self._char
        yield from self._take('"')
        while self._char != quote:
            if self._char in (PYTHON_TAG, _END):
                raise _NotACall
            if self._char != "\\":
                yield from self._take(_escaped(self._char))
            elif is_pythonic:
                yield from self._python_escape()
            else:
                yield from self._json_escape()
        yield from self._take('"')

    def _json_escape(self) -> _Steps:
        yield from self._take("\\")
        if self._char == "u":
            yield from self._take("u")
            for _ in range(4):
                if self._char not in _HEX:
                    raise _NotACall
                yield from self._take(self._char)
        elif self._char in _JSON_ESCAPES:
            yield from self._take(self._char)
        else:
            raise _NotACall

    def _python_escape(self) -> _Steps:
        yield from self._take()
        char = self._char
        if char in _PYTHON_ESCAPES:
            yield from self._take(_escaped(_PYTHON_ESCAPES[char]))
        elif char in _PYTHON_HEX_DIGITS:
            yield from self._take()
            code = 0
            for _ in range(_PYTHON_HEX_DIGITS[char]):
                if self._char not in _HEX:
                    raise _NotACall
                code = code * 16 + int(self._char, 16)
                yield from self._take()
            if code > 0x10FFFF:
                raise _NotACall
            self._put(json.dumps(chr(code))[1:-1])
        elif char in digits or char == "N":  # octal numbers and names of characters
            raise _NotACall
        else:
            self._put(_escaped("\\"))

    def _number(self) -> _Steps:
        text = yield from self._run_of(_NUMBER_CHARS)
        if len(text) > _MAX_DIGITS or not _NUMBER.fullmatch(text):
            raise _NotACall
        self._put(text)

    def _word(self, words: Mapping[str, str]) -> _Steps:
        text = yield from self._run_of(_LETTERS)
        if text not in words:
            raise _NotACall
        self._put(words[text])

    def _plain_string(self) -> Generator[None, str, str]:
        """A string without escapes, such as a name."""
        yield from self._expect('"')
        text = yield from self._run_of(_NAME)
        yield from self._expect('"')
        return text

    def _run_of(self, chars: frozenset[str]) -> Generator[None, str, str]:
        text = ""
        while self._char in chars:
            text += self._char
            yield from self._take()
        return text

    def _space(self, copies: bool = False) -> _Steps:
        while self._char.isspace():
            if copies and self._char not in " \t\r\n":
                raise _NotACall
            yield from self._take(self._char if copies else "")

    def _expect(self, char: str, written: str = "") -> _Steps:
        if self._char != char:
            raise _NotACall
        yield from self._take(written)

    def _take(self, written: str = "") -> _Steps:
        """Goes to the next character; `written` is what the arguments get for this one."""
        self._source.append(self._char)
        self._put(written)
        self._char = yield

    # What comes of it.

    def _put(self, text: str) -> None:
        if self._arguments is None or not text:
            return
        self._arguments.append(text)
        if self._is_started:
            self._add(CallArguments(self._num_calls, text))

    def _start_call(self, name: str) -> None:
        """Announces the call, once, with the arguments that are known."""
        if self._is_started or self._arguments is None:
            return
        self._is_started, self._name = True, name
        self._add(CallStart(self._num_calls, f"{self._id_prefix}_{self._num_calls}", name))
        if self._arguments:
            self._add(CallArguments(self._num_calls, "".join(self._arguments)))

    def _end_call(self, is_whole: bool = True) -> None:
        call: ToolCall | None = None
        if is_whole and self._arguments is not None:
            call = {
                "id": f"{self._id_prefix}_{self._num_calls}",
                "type": "function",
                "function": {"name": self._name, "arguments": "".join(self._arguments)},
            }
        self._add(CallEnd(self._num_calls, call, "".join(self._source)))
        self._num_calls += 1
        self._is_started, self._arguments = False, None
        self._source.clear()

    def _add(self, event: Event) -> None:
        """Adds an event, to the last one where that is more of the same."""
        last = self._events[-1] if self._events else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            self._events[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            self._events[-1] = CallArguments(event.index, last.delta + event.delta)
        else:
            self._events.append(event)


def _escaped(char: str) -> str:
    """A character as it stands in a JSON string."""
    return json_text(char)[1:-1]
