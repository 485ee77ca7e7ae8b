"""Guesses of the next tokens, which a decode step checks beside the newest token.

Checking costs little where memory is the limit: a step with 4 tokens of a request takes about as
long as one with 1. At each position the model's own token is drawn, with the request's own random
numbers; the step goes on as long as the guess was that token. So the answer is the same, bit for
bit, with and without guesses.

Prompt lookup (Saxena, 2023) guesses that what followed the last few tokens when they occurred
before follows again: it helps answers that copy from their prompt or repeat themselves. A draft
model (Leviathan et al., 2023; Chen et al., 2023) is a smaller model with the same tokenizer.
"""

from collections.abc import Sequence

import torch

from llama.cache import KVCache
from llama.model import Transformer

_LONGEST, _SHORTEST = 4, 2  # tokens that have to occur again
_MOST = 8  # tokens of a guess by lookup
_DRAFTED = 4  # tokens of a guess by a draft model
_PAUSE = 32  # tokens without guesses after they did not help; doubles each time
_LONGEST_PAUSE = 1024
_CHUNK = 256  # positions that a draft model computes at a time


class Acceptance:
    """How many tokens of a request's guesses are right, and whether guessing pays.

    It pauses while the moving average of accepted tokens is below `worthwhile`.
    """

    def __init__(self, worthwhile: float) -> None:
        self.average = 2.0
        self._worthwhile, self._pause, self._paused_until = worthwhile, _PAUSE, 0

    def is_paused(self, length: int) -> bool:
        """Whether a request of that many tokens goes on without guesses."""
        return length < self._paused_until

    def record(self, num_accepted: int, length: int) -> None:
        """Takes how many tokens of a guess were right."""
        self.average += 0.2 * (num_accepted - self.average)
        if self.average < self._worthwhile:
            self._paused_until = length + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self.average = 1.0
        elif self.average > 2:
            self._pause = _PAUSE


class PromptLookup:
    """Guesses for one request, from its own prompt and answer."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._ends: dict[tuple[int, ...], int] = {}  # where each n-gram ended last
        for end in range(1, len(self._tokens)):
            self._index(end)
        self._acceptance = Acceptance(0.6)

    def extend(self, token: int) -> None:
        """Adds a token to the text."""
        self._index(len(self._tokens))
        self._tokens.append(token)

    def guess(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where it does not help."""
        limit = min(limit, _MOST, 1 + round(2 * self._acceptance.average))
        if limit < 1 or self._acceptance.is_paused(len(self._tokens)):
            return []
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            end = self._ends.get(tuple(self._tokens[-size:]))
            if end is not None:
                return self._tokens[end : end + limit]
        return []

    def record(self, num_accepted: int) -> None:
        """Takes how many tokens of a guess were right."""
        self._acceptance.record(num_accepted, len(self._tokens))

    def _index(self, end: int) -> None:
        """Indexes the n-grams that end before position `end`, where a token follows."""
        for size in range(_SHORTEST, _LONGEST + 1):
            if end >= size:
                self._ends[tuple(self._tokens[end - size : end])] = end


class DraftGuesses:
    """Guesses for one request, by a smaller model's likeliest tokens."""

    def __init__(self, model: Transformer, tokens: Sequence[int]) -> None:
        self._model, self._tokens = model, list(tokens)
        self._row: KVCache | None = None
        self._length = 0  # tokens whose keys and values are in the row
        self._acceptance = Acceptance(1.0)

    def extend(self, token: int) -> None:
        """Adds a token to the text."""
        self._tokens.append(token)

    def guess(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where it does not help."""
        limit = min(limit, _DRAFTED, self._model.params.max_seq_len - len(self._tokens))
        if limit < 1 or self._acceptance.is_paused(len(self._tokens)):
            return []
        row = self._row_for(len(self._tokens) + limit)
        logits = None
        while self._length < len(self._tokens):
            ids = self._tokens[self._length : self._length + _CHUNK]
            logits = self._logits(ids, row)
            self._length += len(ids)
        guesses: list[int] = []
        while logits is not None:
            guesses.append(int(logits.argmax()))
            if len(guesses) == limit:
                break
            logits = self._logits(guesses[-1:], row, len(guesses) - 1)
        return guesses

    def record(self, num_accepted: int) -> None:
        """Takes how many tokens of a guess were right."""
        self._acceptance.record(num_accepted, len(self._tokens))

    def _logits(self, ids: list[int], row: KVCache, ahead: int = 0) -> torch.Tensor:
        device = self._model.norm.weight.device
        start = self._length + ahead
        last = torch.full((1, 1), len(ids) - 1, device=device)
        cache = row.view(0, 1, start + len(ids))
        tokens = torch.tensor([ids], device=device)
        return self._model(tokens, start, cache=cache, logits_at=last)[0, -1]

    def _row_for(self, length: int) -> KVCache:
        if self._row is None or self._row.seq_len < length:
            grown = self._model.new_cache(1, -(-length * 5 // 4 // 64) * 64)
            if self._row is not None:
                grown.copy_from(self._row)
            self._row = grown
        return self._row
