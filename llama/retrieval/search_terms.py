"""What the full-text index holds of a text, and how it is asked, also in scripts without spaces.

    index_terms("全文検索 works")    # "全文 文検 検索 索 works"
    match_terms("検索 索")           # ['"検索"', '"索" *']

SQLite's tokenizer takes a run of Chinese or Japanese characters for one word. So a run is indexed
as its bigrams, and its last character alone: then every character begins exactly one term, and a
search for one character is a search for terms that begin with it.
"""

import re
import unicodedata

# Han, kana, Hangul; iteration marks; the planes of rarer Han characters.
_CJK = re.compile(
    "[\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\u1100-\u11ff\uac00-\ud7af\U00020000-\U0003ffff]+"
)
_WORD = re.compile(r"[^\W_]+")


def index_terms(text: str) -> str:
    """A text as it is indexed: its runs of CJK characters as terms with spaces between them."""
    normal = unicodedata.normalize("NFKC", text)
    return _CJK.sub(lambda run: f" {' '.join(_bigrams(run[0]))} ", normal)


def _bigrams(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run))]


def match_terms(question: str) -> list[str]:
    """The terms of the FTS5 query that finds texts with any of a question's words.

    A run of three CJK characters or more is looked for as a phrase, and by its bigrams: a text
    that has all of it ranks first, and one that has a part of it is found too. One character
    behind a number is its unit (3年, 5人), which is not looked for.
    """
    normal = unicodedata.normalize("NFKC", question)
    terms: list[str] = []
    for match in _CJK.finditer(normal):
        run = match[0]
        if len(run) == 1:
            if not normal[match.start() - 1 : match.start()].isdigit():
                terms.append(f'"{run}" *')
            continue
        bigrams = _bigrams(run)[:-1]
        terms += [f'"{bigram}"' for bigram in bigrams]
        if len(run) > 2:
            terms.append(f'"{" ".join(bigrams)}"')
    return terms + [f'"{word}"' for word in _WORD.findall(_CJK.sub(" ", normal))]
