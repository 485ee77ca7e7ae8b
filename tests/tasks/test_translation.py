"""Translations: the prompt, the languages, greedy and beam search."""

import math
from typing import Any

import pytest

from llama import InputError, Llama
from llama.errors import ContextLengthError
from llama.tasks import translate
from llama.tasks.translation import LANGUAGES, language_name

TEXTS = ["hello the world", "你好", "user"]


def prompts_of(monkeypatch: pytest.MonkeyPatch, llama: Llama) -> list[str]:
    seen: list[str] = []
    requests = llama.requests

    def spy(name: str, prompts: list[list[int]], *rest: Any) -> Any:
        seen.extend(map(llama.tokenizer.decode, prompts))
        return requests(name, prompts, *rest)

    monkeypatch.setattr(llama, "requests", spy)
    return seen


@pytest.mark.parametrize("kind", ["llama", "llama2"])
@pytest.mark.parametrize("chat", [True, False])
def test_the_prompt_names_the_languages(
    kind: str, chat: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = request.getfixturevalue(kind)
    seen = prompts_of(monkeypatch, llama)
    translate(llama, "hello", "zh", max_gen_len=2, chat=chat)
    translate(llama, ["hello"], to="Thai", source="EN", max_gen_len=2, chat=chat)
    first, second = seen
    if chat:
        assert "the following text into Chinese." in first
        assert "the following text from English into Thai." in second
        assert "\n\nhello" in second
    else:
        assert first.endswith("Text: hello\nChinese:")
        assert second.endswith("English: hello\nThai:")


def test_a_translation_does_not_depend_on_the_other_texts(llama: Llama) -> None:
    together = translate(llama, TEXTS, "en", max_gen_len=6)
    for text, found in zip(TEXTS, together, strict=True):
        assert translate(llama, text, max_gen_len=6) == found
        assert (found.language, 0 < found.score <= 1) == ("English", True)


def test_its_score_is_the_geometric_mean_of_the_probabilities(llama: Llama) -> None:
    dialog: Any = [
        {
            "role": "user",
            "content": "Translate the following text into French. Answer with the translation "
            "alone.\n\nhello",
        }
    ]
    (right,) = llama.chat_completion([dialog], temperature=0, max_gen_len=6, logprobs=True)
    found = translate(llama, "hello", "fr", max_gen_len=6)
    assert found.text == right["generation"]["content"].strip()
    if right["finish_reason"] == "length":
        expected = math.exp(sum(right["logprobs"]) / len(right["logprobs"]))
        assert found.score == pytest.approx(expected)
    assert found.finish_reason == right["finish_reason"]


def test_beam_search_finds_a_likelier_one(llama: Llama) -> None:
    greedy = translate(llama, TEXTS, "de", max_gen_len=4)
    found = translate(llama, TEXTS, "de", max_gen_len=4, beams=4)
    best = llama.beam_search(
        llama.formatter.encode_dialog_prompt(
            [
                {
                    "role": "user",
                    "content": "Translate the following text into German. Answer with the "
                    "translation alone.\n\n你好",
                }
            ]
        ),
        4,
        max_gen_len=4,
    )[0]
    assert found[1].text == llama.tokenizer.decode(best.tokens).strip()
    assert found[1].score == pytest.approx(math.exp(best.score))
    assert found != greedy
    assert all(a.score >= b.score - 1e-6 for a, b in zip(found, greedy, strict=True))


def test_languages_are_codes_or_names() -> None:
    assert language_name("de") == language_name("German") == language_name(" german ") == "German"
    assert language_name("ZH_Hant") == "Traditional Chinese"
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)
    assert {"en", "de", "fr", "it", "pt", "hi", "es", "th", "zh", "ja"} <= LANGUAGES.keys()


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("a", {"to": "klingon"}, ValueError, "unknown language 'klingon'; there are ar, bg"),
        ("a", {"to": "Germna"}, ValueError, "unknown language 'Germna'; did you mean German?"),
        ("a", {"to": ""}, ValueError, "unknown language ''"),
        ("a", {"to": 5}, TypeError, "a language is a code such as 'en' or its name, got 5"),
        ("a", {"source": "xx"}, ValueError, "unknown language 'xx'"),
        ("a", {"source": ""}, ValueError, "unknown language ''"),
        ("", {}, ValueError, "text is empty"),
        (["a", " "], {}, ValueError, r"text\[1\] is empty"),
        ("a\nb", {"chat": False}, ValueError, "text has several lines, which chat=False"),
        ("a", {"chat": False, "beams": 2}, ValueError, "chat=False and beams exclude each other"),
        ("a", {"beams": 0}, ValueError, "beams must be at least 1, got 0"),
        ("a", {"beams": 1.5}, TypeError, "beams must be an integer"),
        (["a", "b" * 1000], {}, ContextLengthError, r"text\[1\], with the inst.* 1024"),
    ],
)
def test_wrong_input(
    llama: Llama, text: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        translate(llama, text, **options)
    assert isinstance(caught.value, InputError)
    assert llama.engine.idle
