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
from collections.abc import Collection, Iterable, Sequence
from itertools import takewhile, zip_longest
from typing import Literal, NamedTuple, TypedDict, get_args

from llama.errors import InputError, InputTypeError
from llama.storage.files import expand
from llama.tokenization import vocabulary
from llama.tokenization.vocabulary import SentencePieceVocabulary, open_vocabulary

Role = Literal["system", "user", "assistant", "ipython", "tool"]


class Message(TypedDict):
    """One turn of a dialog. `ipython`, also called `tool`, is what a called tool returned."""

    role: Role
    content: str


Dialog = Sequence[Message]


class Turn(NamedTuple):
    """One turn of an encoded dialog: the ids before it, and those that `role` then writes."""

    role: Role
    prompt: list[int]
    completion: list[int]


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # of surrogateescape

# What makes transformers write a dialog as `ChatFormat` encodes it.
LLAMA3_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'ipython' if message['role'] == 'tool' else message['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)


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

    Raises InputError or InputTypeError, with the index of the message, for a dialog that is not a
    list of `{"role": one of Role, "content": str}`.
    """

    # Meta's scripts call `ChatFormat(tokenizer)` for every checkpoint, so the choice is made here.
    def __new__(cls, tokenizer: Tokenizer) -> ChatFormat:
        is_llama2 = cls is ChatFormat and tokenizer.is_sentencepiece
        return super().__new__(Llama2ChatFormat if is_llama2 else cls)

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def __reduce__(self) -> tuple[type[ChatFormat], tuple[Tokenizer]]:  # for copies and pickles
        return type(self), (self.tokenizer,)

    def encode_header(self, message: Message) -> list[int]:
        """`<|start_header_id|>role<|end_header_id|>` and an empty line."""
        _check_message(message)
        # Llama 3.1's prompt format has only the name ipython for a tool's result.
        role = "ipython" if message["role"] == "tool" else message["role"]
        special = self.tokenizer.special_tokens
        for name in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"):
            if name not in special:  # in a tokenizer.json of another model
                raise InputError(f"{self.tokenizer.model_path} has no {name}, which chat needs")
        ids = [special["<|start_header_id|>"], *self.tokenizer.encode(role)]
        return [*ids, special["<|end_header_id|>"], *self.tokenizer.encode("\n\n")]

    def encode_message(self, message: Message) -> list[int]:
        """The header, the content without white space around it, `<|eot_id|>`."""
        return self.encode_header(message) + self._encode_content(message)

    def encode_dialog_prompt(self, dialog: Dialog) -> list[int]:
        """`<|begin_of_text|>`, the messages, and the header of the assistant's answer to come."""
        ids = _joined(self.encode_turns(dialog))
        return ids + self.encode_header({"role": "assistant", "content": ""})

    def encode_turns(self, dialog: Dialog) -> list[Turn]:
        """The turns of a dialog, for training: what each role writes, with the token that ends it.

        Joined, they are the ids that `encode_dialog_prompt` has for these messages.
        """
        turns: list[Turn] = []
        for message in checked_dialog(dialog):
            bos = [] if turns else [self.tokenizer.bos_id]
            prompt = bos + self.encode_header(message)
            turns.append(Turn(message["role"], prompt, self._encode_content(message)))
        return turns

    def _encode_content(self, message: Message) -> list[int]:
        ids = self.tokenizer.encode(message["content"].strip())
        return [*ids, self.tokenizer.special_tokens["<|eot_id|>"]]


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

    def encode_dialog_prompt(self, dialog: Dialog) -> list[int]:
        return _joined(self._encode_turns(dialog, last_roles=("user",)))

    def encode_turns(self, dialog: Dialog) -> list[Turn]:
        return self._encode_turns(dialog, last_roles=("user", "assistant"))

    def _encode_turns(self, dialog: Dialog, last_roles: Collection[str]) -> list[Turn]:
        texts = self._checked_texts(checked_dialog(dialog), last_roles)
        turns: list[Turn] = []
        for question, answer in zip_longest(texts[::2], texts[1::2]):
            text = f"[INST] {question.strip()} [/INST]"
            prompt = self.tokenizer.encode(text, bos=True)
            if answer is None:
                turns.append(Turn("user", prompt, []))
                continue
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


def checked_dialog(dialog: Dialog) -> list[Message]:
    """The messages of a well-formed dialog; InputError or InputTypeError for any other."""
    if not isinstance(dialog, Iterable):
        raise InputTypeError(f"a dialog must be a list of messages, got {dialog!r:.60}")
    messages = list(dialog)
    if not messages:
        raise InputError("the dialog is empty; it needs at least one message")
    for index, message in enumerate(messages):
        _check_message(message, f"message {index}")
    return messages


def _check_message(message: Message, name: str = "message") -> None:
    if not isinstance(message, dict):
        raise InputTypeError(f"{name} must be a dict with role and content, got {message!r:.60}")
    if message.keys() != {"role", "content"}:
        raise InputError(f"{name} must have the keys role and content, got {list(message)}")
    if message["role"] not in get_args(Role):
        roles = ", ".join(get_args(Role))
        raise InputError(f"{name} has the unknown role {message['role']!r}; roles are {roles}")
    if not isinstance(message["content"], str):
        raise InputTypeError(f"{name}: content must be a str, got {message['content']!r:.60}")
