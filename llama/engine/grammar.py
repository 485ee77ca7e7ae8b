"""Answers that have to match a grammar: a JSON schema, a regular expression, a choice, Lark rules.

    Sequence(prompt, grammar=Grammar(json_schema={"type": "object", ...}))

llguidance follows the grammar token by token and says which tokens may come next; all others get
the score -inf before the draw. An answer may end only where the grammar is complete.
"""

import json
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama.errors import InputError
from llama.tokenizer import Tokenizer

# Between JSON's tokens. Without a bound some models write white space to the end of the context.
_JSON_SPACE = r"[ \n\t]{0,8}"

_tokenizers: "weakref.WeakKeyDictionary[Tokenizer, Any]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Grammar:
    """A JSON schema (or its text), a regular expression, strings to choose from, or Lark rules.

    The regular expression is that of the whole answer, in the syntax of Rust's regex crate. Raises
    InputError unless exactly one is given.
    """

    json_schema: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    lark: str | None = None

    def __post_init__(self) -> None:
        kinds = [kind for kind, value in vars(self).items() if value is not None]
        if len(kinds) != 1:
            raise InputError(
                "a grammar is one of json_schema, regex, choice and lark, got "
                + (" and ".join(kinds) or "none")
            )
        if self.choice is not None and (isinstance(self.choice, str) or not self.choice):
            raise InputError(f"choice must be a list of strings, got {self.choice!r}")


class GrammarState:
    """Where an answer is in its grammar. Raises InputError for a grammar that is malformed."""

    def __init__(self, grammar: Grammar, tokenizer: Tokenizer) -> None:
        try:
            import llguidance
        except ModuleNotFoundError:
            raise InputError(
                "constrained answers need llguidance: pip install llguidance"
            ) from None
        matcher = llguidance.LLMatcher
        try:
            if grammar.json_schema is not None:
                rules = matcher.grammar_from_json_schema(
                    grammar.json_schema, overrides={"whitespace_pattern": _JSON_SPACE}
                )
            elif grammar.regex is not None:
                rules = matcher.grammar_from_regex(grammar.regex)
            elif grammar.choice is not None:
                options = " | ".join(
                    json.dumps(option, ensure_ascii=False) for option in grammar.choice
                )
                rules = matcher.grammar_from_lark(f"start: {options}")
            else:
                assert grammar.lark is not None
                rules = matcher.grammar_from_lark(grammar.lark)
        except UnicodeEncodeError:
            raise InputError("the grammar holds half of a surrogate pair") from None
        except ValueError as error:
            raise InputError(f"json_schema is not a JSON object: {error}") from None
        if tokenizer not in _tokenizers:
            _tokenizers[tokenizer] = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(_Vocabulary(tokenizer)),
                eos_token=sorted(tokenizer.stop_tokens),
            )
        self._matcher = matcher(_tokenizers[tokenizer], rules, log_level=0)
        self._bits = torch.zeros(-(-tokenizer.n_words // 32), dtype=torch.int32)
        self._raise_error()

    def allowed(self) -> Tensor:
        """Which tokens may come next, bool (vocab, rounded up to a multiple of 32)."""
        self._matcher.unsafe_compute_mask_ptr(self._bits.data_ptr(), self._bits.nbytes)
        self._raise_error()
        octets = self._bits.view(torch.uint8).unsqueeze(-1)
        return (octets >> torch.arange(8, dtype=torch.uint8) & 1).flatten().bool()

    def advance(self, token: int) -> None:
        """Takes the chosen token."""
        self._matcher.consume_token(token)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"the grammar can't be followed: {self._matcher.get_error():.500}")


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        pieces = map(tokenizer.vocabulary.piece, range(tokenizer.n_words))
        self.tokens = [p.encode() if isinstance(p, str) else p for p in pieces]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())
        self._tokenizer = weakref.proxy(tokenizer)  # which has this as long as it is there
        special = set(self.special_token_ids)
        self._ids = {token: i for i, token in enumerate(self.tokens) if i not in special}

    def __call__(self, text: str) -> list[int]:
        """Tokens that spell exactly `text`, which SentencePiece's own begin with a space."""
        data = text.encode()
        ids = self._tokenizer.encode(text, bos=False, eos=False)
        if b"".join(self.tokens[i] for i in ids) == data:
            return ids
        ids = []
        while data:
            size = next(n for n in range(len(data), 0, -1) if data[:n] in self._ids)
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids
