"""The prompt that a label answers: what `classify` scores and `train_adapter` trains on.

In the model's chat format examples are turns before the text's:

    user       Which label fits the text best, positive or negative? ...  Great food.
    assistant  positive
    user       Which label fits the text best, positive or negative? ...  The soup was cold.
    assistant  negative <end of turn>

and for base models (`chat=False`) lines:

    Which label fits ...

    Text: Great food.
    Label: positive

    Text: The soup was cold.
    Label: negative <end of line>

The end belongs to what is scored, so that no label is the beginning of another one: without it
"good" would always be at least as likely as "good enough".
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from llama.dialog import Message
from llama.engine.embedding import encode_after_space
from llama.errors import InputError, InputTypeError
from llama.tasks.task_requests import check_text
from llama.tokenizer import ChatFormat


class LabelledText(NamedTuple):
    """An example: a text, and the label that is right for it."""

    text: str
    label: str


class LabelPrompt:
    """Makes the tokens of a text's prompt and of the labels that may answer it.

    `instruction` stands before each text; by default it lists the labels, in Chinese where they are
    Chinese. Raises InputError or InputTypeError, naming the argument, for fewer than two labels,
    blank ones, two of the same text or tokens, and examples of other labels.
    """

    def __init__(
        self,
        formatter: ChatFormat,
        labels: Iterable[str],
        examples: Iterable[tuple[str, str]] = (),
        instruction: str | None = None,
        chat: bool = True,
    ) -> None:
        self.labels = checked_labels(labels)
        self.examples = checked_examples(examples, self.labels)
        if instruction is not None:
            check_text("instruction", instruction)
        self._instruction = instruction or default_instruction(self.labels)
        self._formatter, self._chat = formatter, chat
        tokenizer = formatter.tokenizer
        seen: dict[tuple[int, ...], str] = {}
        for label in self.labels:
            if not tokenizer.decode(tokenizer.encode(label)).strip():
                raise InputError(f"the label {label!r:.60} has no tokens: the tokenizer drops it")
            _, completion = self.encode("", label)
            if (other := seen.setdefault(tuple(completion), label)) != label:
                raise InputError(
                    f"the labels {other!r} and {label!r} have the same tokens: no model can tell "
                    "them apart"
                )

    def encode(self, text: str, label: str) -> tuple[list[int], list[int]]:
        """The tokens of the prompt, and those of the label with the end after it."""
        return self._encode_chat(text, label) if self._chat else self._encode_lines(text, label)

    def _encode_chat(self, text: str, label: str) -> tuple[list[int], list[int]]:
        dialog: list[Message] = []
        for each in (*self.examples, LabelledText(text, label)):
            dialog.append({"role": "user", "content": f"{self._instruction}\n\n{each.text}"})
            dialog.append({"role": "assistant", "content": each.label})
        *before, last = self._formatter.encode_turns(dialog)
        ids = [token for turn in before for token in turn.prompt + turn.completion]
        return ids + last.prompt, last.completion

    def _encode_lines(self, text: str, label: str) -> tuple[list[int], list[int]]:
        shown = "".join(f"Text: {e.text}\nLabel: {e.label}\n\n" for e in self.examples)
        tokenizer = self._formatter.tokenizer
        prompt = f"{self._instruction}\n\n{shown}Text: {text}\nLabel:"
        return tokenizer.encode(prompt, bos=True), encode_after_space(tokenizer, f"{label}\n")


def default_instruction(labels: list[str]) -> str:
    """The question that lists the labels: in Chinese where one has Han characters and no kana."""
    letters = "".join(labels)
    is_chinese = any("\u4e00" <= letter <= "\u9fff" for letter in letters)
    if is_chinese and not any("\u3040" <= letter <= "\u30ff" for letter in letters):
        return f"下面的文字属于哪一类：{'、'.join(labels[:-1])}还是{labels[-1]}？只回答类别。"
    listed = f"{', '.join(labels[:-1])} or {labels[-1]}"
    return f"Which label fits the text best: {listed}? Answer with the label alone."


def checked_labels(labels: Any) -> list[str]:
    """At least two different labels, without white space around them."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise InputTypeError(f"labels must be a list of strings, got {labels!r:.60}")
    found = list(labels)
    for i, label in enumerate(found):
        check_text(f"labels[{i}]", label)
    found = [label.strip() for label in found]
    if len(found) < 2:
        held = f"only {found[0]!r}" if found else "empty"
        raise InputError(f"labels is {held}: give at least two to choose from")
    if twice := [label for i, label in enumerate(found) if label in found[:i]]:
        raise InputError(f"labels has {twice[0]!r} twice")
    return found


def checked_examples(examples: Any, labels: list[str] | None = None) -> list[LabelledText]:
    """Pairs of a text and its label, one of `labels` if these are given."""
    if isinstance(examples, str) or not isinstance(examples, Iterable):
        raise InputTypeError(f"examples must be pairs of a text and a label, got {examples!r:.60}")
    found = []
    for i, pair in enumerate(examples):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputTypeError(f"examples[{i}] must be a pair (text, label), got {pair!r:.60}")
        text, label = pair
        check_text(f"examples[{i}], its text,", text)
        check_text(f"examples[{i}], its label,", label)
        if labels is not None and label.strip() not in labels:
            raise InputError(
                f"examples[{i}] has the label {label!r:.60}, which is none of {', '.join(labels)}"
            )
        found.append(LabelledText(text, label.strip()))
    return found
