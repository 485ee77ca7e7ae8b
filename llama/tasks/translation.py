"""Translations by a model that knows both languages, with how sure it is.

    translate(llama, "Guten Morgen!", to="en").text     # "Good morning!"
    translate(llama, texts, to="zh", beams=4)

Llama 3.1 and later are made for English, German, French, Italian, Portuguese, Hindi, Spanish and
Thai, and know something of the others.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, overload

from llama import console
from llama.engine import FinishReason
from llama.engine.request import Sequence as Request
from llama.engine.sampling_params import expect_integer
from llama.errors import InputError, InputTypeError
from llama.generation import Llama
from llama.tasks.task_requests import Generated, Texts, as_texts, check_llama, generate
from llama.tokenizer import ChatFormat

# ISO 639-1 (zh with its script), and the names in English.
LANGUAGES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish"},
    **{"de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian"},
    **{"fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi"},
    **{"hr": "Croatian", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese"},
    **{"ko": "Korean", "la": "Latin", "lt": "Lithuanian", "lv": "Latvian", "ms": "Malay"},
    **{"nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian"},
    **{"ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sr": "Serbian", "sv": "Swedish"},
    **{"sw": "Swahili", "th": "Thai", "tl": "Filipino", "tr": "Turkish", "uk": "Ukrainian"},
    **{"ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese", "zh-hant": "Traditional Chinese"},
}


@dataclass(frozen=True)
class Translation:
    """A translation into `language`.

    `score` is the geometric mean of the probabilities of its tokens, and of the token that ends it,
    between 0 and 1. One with the `finish_reason` "length" is cut off at `max_gen_len` tokens.
    """

    text: str
    language: str
    score: float
    finish_reason: FinishReason


@overload
def translate(
    llama: Llama,
    text: str,
    to: str = "en",
    *,
    source: str | None = None,
    beams: int = 1,
    max_gen_len: int = 512,
    chat: bool = True,
) -> Translation: ...
@overload
def translate(
    llama: Llama,
    text: Texts,
    to: str = "en",
    *,
    source: str | None = None,
    beams: int = 1,
    max_gen_len: int = 512,
    chat: bool = True,
) -> list[Translation]: ...
def translate(
    llama: Llama,
    text: str | Iterable[str],
    to: str = "en",
    *,
    source: str | None = None,
    beams: int = 1,
    max_gen_len: int = 512,
    chat: bool = True,
) -> Translation | list[Translation]:
    """A text in the language `to`, or each of several.

    Languages are codes (`LANGUAGES`) or English names; without a `source` the model finds out.
    With `beams` the translation is looked for by beam search, one text at a time; else it is the
    likeliest token by token. `chat=False` is for base models, and texts of one line. A translation
    does not depend on the other texts.

    Raises InputError or InputTypeError for an unknown language and blank texts, and
    ContextLengthError, with both numbers, for a text that does not fit.
    """
    check_llama(llama)
    texts, is_several = as_texts("text", text)
    language, origin = language_name(to), None if source is None else language_name(source)
    if expect_integer("beams", beams, at_least=1) > 1 and not chat:
        raise InputError("chat=False and beams exclude each other: a line's end ends no beam")
    prompts = []
    for i, each in enumerate(texts):
        name = f"text[{i}]" if is_several else "text"
        if not chat and "\n" in each.strip():
            raise InputError(f"{name} has several lines, which chat=False can't translate at once")
        prompts.append(_prompt(llama.formatter, each, language, origin, chat))
        llama.engine.check(Request(prompts[-1]), f"{name}, with the instruction,")
    if beams == 1:
        found = generate(llama, "text", prompts, max_gen_len, None if chat else "\n")
    else:
        found = _by_beam_search(llama, prompts, beams, max_gen_len)
    results = [Translation(f.text, language, f.score, f.finish_reason) for f in found]
    return results if is_several else results[0]


def language_name(language: Any) -> str:
    """The English name of a language by its code or name; InputError for an unknown one."""
    if not isinstance(language, str):
        raise InputTypeError(f"a language is a code such as 'en' or its name, got {language!r:.60}")
    wanted = language.strip().lower()
    names = {name.lower(): name for name in LANGUAGES.values()}
    if name := LANGUAGES.get(wanted.replace("_", "-")) or names.get(wanted):
        return name
    close = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {names[close[0]]}?" if close else f"there are {', '.join(LANGUAGES)}"
    raise InputError(f"unknown language {language!r:.60}; {hint}")


def _prompt(
    formatter: ChatFormat, text: str, language: str, source: str | None, chat: bool
) -> list[int]:
    if chat:
        origin = f" from {source}" if source else ""
        order = f"Translate the following text{origin} into {language}."
        content = f"{order} Answer with the translation alone.\n\n{text}"
        return formatter.encode_dialog_prompt([{"role": "user", "content": content}])
    lines = f"{source or 'Text'}: {text.strip()}\n{language}:"
    return formatter.tokenizer.encode(lines, bos=True)


def _by_beam_search(
    llama: Llama, prompts: list[list[int]], beams: int, max_gen_len: int
) -> list[Generated]:
    found = []
    with console.progress(len(prompts), "Generating", unit=" requests") as bar:
        for prompt in prompts:
            (best,) = llama.beam_search(prompt, beams, max_gen_len=max_gen_len)
            text = llama.tokenizer.decode(best.tokens).strip()
            mean = [best.logprob / (len(best.tokens) + (best.finish_reason == "stop"))]
            found.append(Generated(text, best.tokens, mean, best.finish_reason))
            bar.update()
    return found
