"""Text to token ids and back, and the layout of a chat as token ids.

Llama 2 ships a SentencePiece model, Llama 3 a list of tiktoken ranks, and both files are
called `tokenizer.model`; Hugging Face has Llama 3's as `tokenizer.json`. `Tokenizer` reads
the content and behaves alike for each; `ChatFormat` writes the prompt that the generation was
trained on. Text never turns into a special token: only a chat format writes those. And a token
is not a character, so text that is shown while it is generated goes through
`Tokenizer.stream_decoder()`.

    tokenizer = Tokenizer("tokenizer.model")                  # Llama 3's 128,000 ranks + 256
    tokenizer.encode("Hello world", bos=True)                 # [128000, 9906, 1917]
    dialog = [{"role": "user", "content": "Hello world"}]
    ChatFormat(tokenizer).encode_dialog_prompt(dialog)

    128000  128006  882   128007  271   9906   1917    128009  128006  78191      128007  271
    begin   start   user  end     \\n\\n  Hello  _world  eot     start   assistant  end     \\n\\n

The last four ids open the answer: what the model generates next is the assistant speaking,
until one of `tokenizer.stop_tokens`.
"""

from __future__ import annotations

import codecs
import operator
import os
import re
from collections.abc import Collection, Iterable
from itertools import takewhile, zip_longest
from typing import Literal, NamedTuple, get_args

from llama.dialog import (
    DEFAULT_DATE,
    PYTHON_TAG,
    Dialog,
    Message,
    Role,
    Tool,
    ToolFormat,
    WrittenMessage,
    checked_builtin_tools,
    checked_dialog,
    checked_message,
    checked_tools,
    write_dialog,
    write_message,
)
from llama.errors import InputError, InputTypeError
from llama.storage.files import expand
from llama.tokenization import vocabulary
from llama.tokenization.vocabulary import SentencePieceVocabulary, open_vocabulary


class Turn(NamedTuple):
    """One turn of an encoded dialog: the ids before it, and those that `role` then writes."""

    role: Role
    prompt: list[int]
    completion: list[int]


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # of surrogateescape


class Tokenizer:
    """The vocabulary in `model_path`: tiktoken ranks or Hugging Face's tokenizer.json (Llama 3),
    or a SentencePiece model (Llama 2). The file's content decides which, not its name.

    n_words          size of the vocabulary, special tokens included
    bos_id, eos_id   beginning and end of a text
    pad_id           fills up a batch. Always an id that can be embedded: Llama 2's file has -1,
                     which is replaced by its unknown token, since byte fallback never produces it
    stop_tokens      the ids that end an answer
    special_tokens   name to id, for all tokens that plain text is never encoded to
    is_sentencepiece whether this is Llama 2's kind of vocabulary, with its kind of chat format

    Copies and pickles carry the vocabulary, and need no file. Raises FileNotFoundError or
    IsADirectoryError where there is no file, and InputError, with what was found instead, where
    the file is not a complete vocabulary.
    """

    def __init__(self, model_path: str | os.PathLike[str]):
        self.model_path = expand(model_path)
        self.vocabulary = open_vocabulary(self.model_path)
        self.is_sentencepiece = isinstance(self.vocabulary, SentencePieceVocabulary)
        self.n_words = self.vocabulary.n_words
        self.bos_id = self.vocabulary.bos_id
        self.eos_id = self.vocabulary.eos_id
        self.pad_id = self.vocabulary.pad_id
        self.stop_tokens = self.vocabulary.stop_tokens
        self.special_tokens = self.vocabulary.special_tokens

    @property
    def block_chars(self) -> int | None:
        """Blocks of so many characters of a long text have the same ids as the whole text.

        None for SentencePiece, which needs the text whole.
        """
        return None if self.is_sentencepiece else vocabulary._MAX_BLOCK_CHARS

    def encode(
        self,
        s: str,
        bos: bool = False,
        eos: bool = False,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """The ids of `s`, with `bos_id` before and `eos_id` after them if asked.

        `<|eot_id|>` in `s` is encoded as those ten characters, unless its name is in
        `allowed_special`: for text you wrote yourself, and only with tiktoken. A name in
        `disallowed_special` must not occur in `s`; "all" means all that are not allowed.
        Half a surrogate pair, which UTF-8 has no bytes for, is encoded as U+FFFD.

        Raises InputTypeError if `s` is not a str, InputError for disallowed text or unknown names.
        """
        if not isinstance(s, str):
            raise InputTypeError(f"encode takes a str, not {type(s).__name__}: {s!r:.60}")
        allowed = self._special_names(allowed_special)
        if allowed and self.is_sentencepiece:
            raise InputError("allowed_special: SentencePiece has no text for special tokens")
        disallowed = self._special_names(disallowed_special)
        if disallowed_special == "all":
            disallowed -= allowed
        for name in sorted(disallowed):
            if name in s:
                where = s.index(name)
                raise InputError(f"the text has {name} (disallowed_special) at character {where}")
        ids = self.vocabulary.encode(s, allowed)
        return [self.bos_id] * bool(bos) + ids + [self.eos_id] * bool(eos)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Special tokens are written out by name for Llama 3 and vanish for Llama 2, as in Meta's
        packages. Raises InputError for an id outside the vocabulary.
        """
        return self.vocabulary.decode([self._checked(i) for i in ids])

    def stream_decoder(self) -> StreamDecoder:
        """Decodes one text token by token."""
        return StreamDecoder(self)

    def _checked(self, token_id: int) -> int:
        token_id = operator.index(token_id)  # takes numpy's and torch's integers, and no floats
        if not 0 <= token_id < self.n_words:
            raise InputError(f"token id {token_id} is not within 0..{self.n_words - 1}")
        return token_id

    def _special_names(self, names: Literal["all"] | Collection[str]) -> set[str]:
        if names == "all":
            return set(self.special_tokens)
        if unknown := sorted(name for name in names if name not in self.special_tokens):
            some = ", ".join(list(self.special_tokens)[:2])
            raise InputError(f"no special token {unknown[0]!r}: write 'all' or a set ({some}, ...)")
        return set(names)


class StreamDecoder:
    """Returns text as its tokens come, but never a part of a character.

    An emoji may be four tokens of a byte each: `feed` returns "" for the first three. Whatever
    the ids, `"".join(map(d.feed, ids)) + d.flush() == tokenizer.decode(ids)`.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        # SentencePiece replaces each wrong byte, Python (so tiktoken) each broken sequence.
        errors = "surrogateescape" if tokenizer.is_sentencepiece else "replace"
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._first_ids: list[int] = []  # until there is text: SentencePiece drops its first space
        self._has_text = False

    def feed(self, token_id: int) -> str:
        """The text that this token completes. Raises InputError for an id that does not exist."""
        token_id = self._tokenizer._checked(token_id)
        piece = self._tokenizer.vocabulary.piece(token_id)
        if isinstance(piece, bytes):
            self._has_text = True
            return self._decode(piece)
        text = self._decode(b"", final=True)  # a text piece ends a run of byte pieces
        if self._has_text or not piece:
            return text + piece
        self._first_ids.append(token_id)
        text = self._tokenizer.vocabulary.decode(self._first_ids)
        self._has_text = text != ""
        return text

    def flush(self) -> str:
        """The incomplete rest, as U+FFFD. The decoder is then ready for another text."""
        self._first_ids, self._has_text = [], False
        return self._decode(b"", final=True)

    def _decode(self, data: bytes, final: bool = False) -> str:
        return _ESCAPED_BYTE.sub("\ufffd", self._utf8.decode(data, final))


class ChatFormat:
    """Llama 3's chat layout; for a SentencePiece tokenizer Llama 2's (Llama2ChatFormat).

    `tools` are the functions that the assistant may call. `tool_format` is how the model was
    trained to see and call them: "json" for Llama 3.1 and 3.3, "pythonic" for 3.2 (see
    `llama.dialog`). Built-in tools are the names of Llama 3.1's, whose calls end in `<|eom_id|>`.
    With functions in JSON form the system message says a date, which is never the clock's.

    Raises InputError or InputTypeError, with the index of the message, for a dialog that is not a
    list of `Message`, or tools that are malformed.
    """

    # Meta's scripts call `ChatFormat(tokenizer)` for every checkpoint, so the choice is made here.
    def __new__(cls, tokenizer: Tokenizer, tool_format: ToolFormat = "json") -> ChatFormat:
        is_llama2 = cls is ChatFormat and tokenizer.is_sentencepiece
        return super().__new__(Llama2ChatFormat if is_llama2 else cls)

    def __init__(self, tokenizer: Tokenizer, tool_format: ToolFormat = "json"):
        if tool_format not in get_args(ToolFormat):
            raise InputError(f"tool_format is json or pythonic, not {tool_format!r}")
        self.tokenizer = tokenizer
        self.tool_format = tool_format

    def __reduce__(self) -> tuple[type[ChatFormat], tuple[Tokenizer, ToolFormat]]:  # for copies
        return type(self), (self.tokenizer, self.tool_format)

    def encode_header(self, message: Message) -> list[int]:
        """`<|start_header_id|>role<|end_header_id|>` and an empty line."""
        message = checked_message(message)
        # Llama 3.1's prompt format has only the name ipython for a tool's result.
        role = "ipython" if message["role"] == "tool" else message["role"]
        start, end = self._special("<|start_header_id|>"), self._special("<|end_header_id|>")
        return [start, *self.tokenizer.encode(role), end, *self.tokenizer.encode("\n\n")]

    def encode_message(self, message: Message) -> list[int]:
        """The header, the content without white space around it, its calls, `<|eot_id|>`."""
        written = write_message(checked_message(message), tool_format=self.tool_format)
        return self.encode_header(message) + self._encode_written(written)

    def encode_dialog_prompt(
        self,
        dialog: Dialog,
        tools: Iterable[Tool] | None = None,
        *,
        builtin_tools: Iterable[str] = (),
        date: str = DEFAULT_DATE,
        continue_final_message: bool = False,
    ) -> list[int]:
        """`<|begin_of_text|>`, the messages, and the header of the assistant's answer to come.

        With `continue_final_message` the dialog ends with a message of the assistant, which is the
        beginning of that answer, as it stands.
        """
        messages = checked_dialog(dialog)
        start = _started_answer(messages) if continue_final_message else ""
        messages = messages[:-1] if continue_final_message else messages
        ids = _joined(self.encode_turns(messages, tools, builtin_tools=builtin_tools, date=date))
        return ids + self._answer_header() + self.tokenizer.encode(start)

    def encode_turns(
        self,
        dialog: Dialog,
        tools: Iterable[Tool] | None = None,
        *,
        builtin_tools: Iterable[str] = (),
        date: str = DEFAULT_DATE,
    ) -> list[Turn]:
        """The turns of a dialog, for training: what each role writes, with the token that ends it.

        Joined, they are the ids that `encode_dialog_prompt` has for these messages. Functions may
        put a turn of the system in front.
        """
        turns: list[Turn] = []
        for message, written in write_dialog(
            checked_dialog(dialog),
            checked_tools(tools),
            checked_builtin_tools(builtin_tools),
            self.tool_format,
            date,
        ):
            bos = [] if turns else [self.tokenizer.bos_id]
            prompt = bos + self.encode_header({"role": message["role"], "content": ""})
            turns.append(Turn(message["role"], prompt, self._encode_written(written)))
        return turns

    def _answer_header(self) -> list[int]:
        return self.encode_header({"role": "assistant", "content": ""})

    def _encode_written(self, written: WrittenMessage) -> list[int]:
        ids = self.tokenizer.encode(written.content)
        tag = [self._special(PYTHON_TAG)] if written.is_tagged else []
        return [*ids, *tag, *self.tokenizer.encode(written.calls), self._special(written.end)]

    def _special(self, name: str) -> int:
        if name not in self.tokenizer.special_tokens:  # in a tokenizer.json of another model
            raise InputError(f"{self.tokenizer.model_path} has no {name}, which chat needs")
        return self.tokenizer.special_tokens[name]


class Llama2ChatFormat(ChatFormat):
    """Llama 2's chat layout, in which a question and its answer are one text:

        <s>[INST] <<SYS>>
        system
        <</SYS>>

        question [/INST] answer </s><s>[INST] question [/INST]

    Its tags are plain text, so a message that contains one is an InputError: nothing else would
    keep a user from writing as the system. So is a dialog of any other order than (system,) user,
    assistant, user, ..., user.
    """

    _TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

    def encode_header(self, message: Message) -> list[int]:
        raise InputTypeError("Llama 2's chat format has no headers: use encode_dialog_prompt")

    def encode_message(self, message: Message) -> list[int]:
        raise InputTypeError("Llama 2's chat format joins messages: use encode_dialog_prompt")

    def encode_dialog_prompt(
        self,
        dialog: Dialog,
        tools: Iterable[Tool] | None = None,
        *,
        builtin_tools: Iterable[str] = (),
        date: str = DEFAULT_DATE,
        continue_final_message: bool = False,
    ) -> list[int]:
        _refuse_tools(tools, builtin_tools)
        if not continue_final_message:
            return _joined(self._encode_turns(dialog, last_roles=("user",)))
        return _joined(self._encode_turns(dialog, last_roles=("assistant",), continues=True))

    def encode_turns(
        self,
        dialog: Dialog,
        tools: Iterable[Tool] | None = None,
        *,
        builtin_tools: Iterable[str] = (),
        date: str = DEFAULT_DATE,
    ) -> list[Turn]:
        _refuse_tools(tools, builtin_tools)
        return self._encode_turns(dialog, last_roles=("user", "assistant"))

    def _encode_turns(
        self, dialog: Dialog, last_roles: Collection[str], continues: bool = False
    ) -> list[Turn]:
        messages = checked_dialog(dialog)
        start = f" {_started_answer(messages)}" if continues else ""
        texts = self._checked_texts(messages, last_roles)
        texts = texts[:-1] if continues else texts
        turns: list[Turn] = []
        for question, answer in zip_longest(texts[::2], texts[1::2]):
            text = f"[INST] {question.strip()} [/INST]"
            if answer is None:
                turns.append(Turn("user", self.tokenizer.encode(text + start, bos=True), []))
                continue
            prompt = self.tokenizer.encode(text, bos=True)
            ids = self.tokenizer.encode(f"{text} {answer.strip()} ", bos=True, eos=True)
            # The whole prompt, unless the tokenizer has a token across its end.
            shared = sum(takewhile(bool, map(operator.eq, prompt, ids)))
            turns.append(Turn("assistant", ids[:shared], ids[shared:]))
        return turns

    def _checked_texts(self, dialog: list[Message], last_roles: Collection[str]) -> list[str]:
        """question, answer, question, ...; the system text within the first question."""
        has_system = dialog[0]["role"] == "system"
        roles = ["system"] * has_system + ["user", "assistant"] * len(dialog)
        for index, (message, expected) in enumerate(zip(dialog, roles, strict=False)):
            if message["role"] != expected:
                raise InputError(
                    f"message {index} has role {message['role']!r} where {expected!r} belongs: "
                    "Llama 2's dialogs are (system,) user, assistant, user, ..., user"
                )
            if message.get("tool_calls"):
                raise InputError(f"message {index} has tool_calls, which Llama 2's format has not")
            if tags := [tag for tag in self._TAGS if tag in message["content"]]:
                raise InputError(f"message {index} contains {tags[0]}, a tag of Llama 2's format")
        if dialog[-1]["role"] not in last_roles:
            raise InputError(
                f"message {len(dialog) - 1} is the last and has role {dialog[-1]['role']!r}: "
                "Llama 2's dialogs end with the user's message that is to be answered"
            )
        texts = [message["content"] for message in dialog]
        if has_system:
            texts[:2] = [f"<<SYS>>\n{texts[0]}\n<</SYS>>\n\n{texts[1]}"]
        return texts


def _joined(turns: list[Turn]) -> list[int]:
    return [token_id for turn in turns for token_id in turn.prompt + turn.completion]


def _started_answer(messages: list[Message]) -> str:
    """The content of the last of checked messages, which is to be continued."""
    last = messages[-1]
    if last["role"] != "assistant" or last.get("tool_calls") or not last["content"]:
        raise InputError(
            f"message {len(messages) - 1} is the last and can't be continued: it must be the "
            "assistant's, with a content and without tool_calls"
        )
    if len(messages) == 1:
        raise InputError("the dialog has no message before the answer that is to be continued")
    return last["content"]


def _refuse_tools(tools: Iterable[Tool] | None, builtin_tools: Iterable[str]) -> None:
    if checked_tools(tools) or checked_builtin_tools(builtin_tools):
        raise InputError(
            "Llama 2's chat format has no tools: use a model of Llama 3.1, 3.2 or 3.3, or leave "
            "tools out"
        )
