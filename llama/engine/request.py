"""`Sequence`: one request, its settings, and the answer as it grows.

The engine decides when a sequence runs and which token comes next; what that token means for the
answer (its text, a stop string, the end) is decided here.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.engine.grammar import Grammar, GrammarState
from llama.engine.sampling import NonFiniteLogitsError, SamplerState
from llama.engine.sampling_params import SamplingParams, expect_integer
from llama.errors import ContextLengthError, InputError, InputTypeError
from llama.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Token:
    """A generated token: the text that it completed, and its log-probability.

    The bytes of a character that an answer leaves incomplete come as a last one, with `id` None.
    """

    id: int | None
    text: str
    logprob: float = 0.0
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Sequence:
    """A request and its answer.

    prompt: token ids: a list, a tuple, an iterator, a numpy array or a tensor.
    max_gen_len: the most tokens to generate; None goes on to the end of the context.
    stop: the text ends before the first of these strings.
    echo: the text begins with the prompt's.
    score_prompt: `prompt_logprobs` gets the natural log of each prompt token's probability, 0.0
        for the first.
    score_from: the index of the first token that `score_prompt` counts for.
    pool_from: `embedding` gets the mean of the hidden states after the final norm of the prompt's
        tokens from this index on, scaled to length 1. Such a request generates nothing.
    sample_index: number of this request among those with the same prompt and seed; each index
        draws its own random numbers.
    num_prefix_tokens: how many tokens at the end of the prompt are the beginning of the answer: its
        text begins with theirs, and a grammar goes on after them.
    top_logprobs: how many of the likeliest tokens are kept with their log-probabilities, for each
        generated token, and with `score_prompt` for each token of the prompt.
    min_tokens: stop tokens and stop strings do not end the answer before it has so many tokens.
    ignore_eos: stop tokens do not end it at all.
    grammar: what the answer has to match.
    adapter: the name of an adapter that the engine has loaded.
    priority: requests of a higher one are admitted first, and preempted last.
    speculate: whether the engine may guess tokens; the answer is the same.

    Raises InputError or InputTypeError for values that no engine can run.
    """

    prompt: list[int]
    max_gen_len: int | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    echo: bool = False
    score_prompt: bool = False
    sample_index: int = 0
    num_prefix_tokens: int = 0
    top_logprobs: int = 0
    min_tokens: int = 0
    ignore_eos: bool = False
    grammar: Grammar | None = None
    adapter: str | None = None
    priority: int = 0
    speculate: bool = True
    score_from: int = 0
    pool_from: int | None = None

    tokens: list[int] = field(default_factory=list)  # generated, without a stop token
    logprobs: list[float] = field(default_factory=list)  # of those
    prompt_logprobs: list[float] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)  # the text that each token completed
    prompt_token_texts: list[str] = field(default_factory=list)  # those that the text begins with
    embedding: Tensor | None = None  # float32 (dim,) on the CPU
    text: str = ""  # all token texts; until the end it may still lose a stop string's beginning
    finish_reason: FinishReason | None = None  # None while it waits or runs
    stopped_by: str | int | None = None  # the stop string or stop token that ended it
    stop_token: Token | None = None  # the one that ended it, with its log-probability
    error: Exception | None = None  # why it ended with "error"
    # (token, log-probability) of the likeliest, for each token; none for the prompt's first
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    # When it was queued, started and finished, and had its first_token, by time.monotonic(); of
    # those that happened. A request that was preempted has started when it did for the first time.
    times: dict[str, float] = field(default_factory=dict)
    num_cached_tokens: int = 0  # of the prompt, copied from the prefix store or another request
    num_accepted_tokens: int = 0  # that were guessed
    num_preemptions: int = 0  # how often it was preempted
    on_change: Callable[["Sequence"], None] | None = None  # called by the thread that steps

    _num_emitted: int = 0  # characters that take_text has returned
    _num_taken: tuple[int, int] | None = None  # tokens and characters that take_tokens has returned
    _grammar: GrammarState | None = None
    _pooled: Tensor | float = 0.0  # the sum of the hidden states so far, float64 (dim,)

    def __post_init__(self) -> None:
        self.prompt = token_ids("the prompt", self.prompt)
        if self.max_gen_len is not None:
            self.max_gen_len = expect_integer("max_gen_len", self.max_gen_len, at_least=0)
        if isinstance(self.stop, str):
            raise InputTypeError(f"stop must be a tuple of strings: write ({self.stop!r},)")
        if self.stop is not None and not isinstance(self.stop, Iterable):
            raise InputTypeError(f"stop must be a tuple of strings, got {self.stop!r}")
        self.stop = tuple(self.stop or ())
        if wrong := [stop for stop in self.stop if not isinstance(stop, str)]:
            raise InputTypeError(f"stop must hold strings, got {wrong[0]!r}")
        if "" in self.stop:
            raise InputError("stop strings must not be empty")
        counts = ["num_prefix_tokens", "top_logprobs", "min_tokens", "sample_index", "score_from"]
        if self.pool_from is not None:
            counts.append("pool_from")
            if self.max_gen_len:
                raise InputError("with pool_from nothing is generated: max_gen_len must be 0")
            self.max_gen_len = 0
        for name in counts:
            setattr(self, name, expect_integer(name, getattr(self, name), at_least=0))
        self.priority = expect_integer("priority", self.priority)
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise InputTypeError(
                f"grammar must be a Grammar, got {self.grammar!r:.60}: write "
                "Grammar(json_schema=...), Grammar(regex=...), Grammar(choice=...) or "
                "Grammar(lark=...)"
            )
        if self.grammar is not None and self.ignore_eos:
            raise InputError("ignore_eos and a grammar exclude each other: a grammar ends")
        self._lock = threading.Lock()  # of the text, which other threads may take

    def request(self) -> dict[str, Any]:
        """The arguments that make this request again."""
        names = [f.name for f in fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("tokens")]}

    def check(
        self, name: str, vocab_size: int, max_seq_len: int, positions: int, adapters: list[str]
    ) -> None:
        """For the engine: raises InputError for a request that it cannot run.

        `name` is the prompt's, `positions` are what the memory for keys and values holds.
        """
        size = len(self.prompt)
        if not size:
            raise InputError(
                f"{name} is empty; it needs at least one token, such as the tokenizer's bos_id"
            )
        if size > max_seq_len:
            raise ContextLengthError(
                name,
                size,
                max_seq_len,
                f"the context is {max_seq_len} (max_seq_len); shorten it or build with a larger "
                "max_seq_len",
            )
        if size > positions:
            raise ContextLengthError(
                name,
                size,
                positions,
                f"the memory for keys and values holds {positions} (kv_memory); shorten it or give "
                "more memory",
            )
        if wrong := [token for token in self.prompt if not 0 <= token < vocab_size]:
            raise InputError(f"{name} holds {wrong[0]}, no token id of 0 to {vocab_size - 1}")
        for option in ("num_prefix_tokens", "score_from", "pool_from"):
            if (getattr(self, option) or 0) >= size:
                raise InputError(
                    f"{option} must be less than the prompt's {size} tokens, got "
                    f"{getattr(self, option)}"
                )
        if self.adapter is not None and self.adapter not in adapters:
            names = ", ".join(adapters) or "none"
            raise InputError(f"no adapter {self.adapter!r} is loaded; there are {names}")
        self.params.check_vocab(vocab_size)

    def take_text(self) -> str:
        """Text that is certain and that an earlier call has not returned."""
        with self._lock:
            certain = len(self.text) - (0 if self.finish_reason else self._num_uncertain())
            new = self.text[self._num_emitted : certain]
            self._num_emitted = max(self._num_emitted, certain)
            return new

    def take_tokens(self) -> tuple[FinishReason | None, list[Token]]:
        """Generated tokens that are certain and that an earlier call has not returned.

        With them, the reason why the answer is finished, if they are its last. Their texts,
        joined, are the text of the answer after the prompt's and the prefix's.
        """
        with self._lock:
            certain = len(self.text) - (0 if self.finish_reason else self._num_uncertain())
            prefix = sum(map(len, self.prompt_token_texts))
            count, end = self._num_taken or (0, prefix)
            new = []
            for i in range(count, len(self.token_texts)):
                text = self.token_texts[i]
                if end + len(text) > certain:
                    break
                end += len(text)
                best = tuple(self.likeliest[i]) if self.likeliest else ()
                new.append(Token(self.tokens[i], text, self.logprobs[i], best))
            # One without text may still be cut off together with a stop string after it.
            while new and not new[-1].text and not self.finish_reason:
                new.pop()
            self._num_taken = count + len(new), end
            if self.finish_reason and end < len(self.text):
                new.append(Token(None, self.text[end:]))
            return self.finish_reason, new

    def _num_uncertain(self) -> int:
        """How many characters at the end of the answer may turn out to begin a stop string."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for size in range(min(longest, len(self.text) - self._stop_start), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stop):
                return size
        return 0

    def compile_grammar(self, tokenizer: Tokenizer) -> None:
        """For the engine: compiles the grammar, if there is one; may take a second.

        Raises InputError for one that is malformed.
        """
        if self.grammar is not None and self._grammar is None:
            self._grammar = GrammarState(self.grammar, tokenizer)

    def start(self, tokenizer: Tokenizer, max_gen_len: int) -> None:
        """For the engine: prepares for at most `max_gen_len` tokens.

        Raises InputError for a grammar that is malformed.
        """
        self._decoder, self.max_gen_len = tokenizer.stream_decoder(), max_gen_len
        self._stop_tokens = set() if self.ignore_eos else tokenizer.stop_tokens
        self._num_words = tokenizer.n_words
        self.compile_grammar(tokenizer)
        # Its hash of a prompt takes a while, and without an answer no number is drawn.
        self.sampler = SamplerState(self.params, self.prompt * bool(max_gen_len), self.sample_index)
        if self._grammar is not None or (self.min_tokens and self._stop_tokens):
            self.sampler.mask = self._mask
        prefix = self.prompt[len(self.prompt) - self.num_prefix_tokens :]
        if self._grammar is not None:
            for token in prefix:
                self._grammar.advance(token)
        if self.echo or prefix:
            shown = self.prompt if self.echo else prefix
            self.prompt_token_texts = [self._decoder.feed(token) for token in shown]
            self.text = "".join(self.prompt_token_texts)
        self._stop_start = len(self.text)  # where stop strings may begin

    @property
    def prompt_work(self) -> tuple[Hashable, ...]:
        """For the engine: what is computed of the prompt; those of equal requests are shared."""
        scored = self.score_prompt and (self.score_from, self.top_logprobs)
        return (*self.prompt,), self.adapter, scored, self.pool_from, bool(self.max_gen_len)

    @property
    def hidden_from(self) -> int:
        """For the engine: from which position of the prompt on hidden states are wanted.

        The length of the prompt if none are: after a preemption those of a prompt that was
        computed to its end are known.
        """
        wanted = [len(self.prompt)]
        if self.score_prompt and not self.tokens:
            wanted.append(max(self.score_from - 1, 0))
        if self.pool_from is not None:
            wanted.append(self.pool_from)
        return min(wanted)

    def score(self, logits: Tensor, start: int) -> None:
        """For the engine: scores the prompt by the logits (n, vocab) after tokens from `start`.

        Raises NonFiniteLogitsError.
        """
        after = self.prompt[start + 1 : start + 1 + len(logits)]
        if start == max(self.score_from - 1, 0):
            has_first = self.score_from == 0
            self.prompt_logprobs = [0.0] * has_first
            self.prompt_likeliest = [[] for _ in self.prompt_logprobs]
        targets = logits.new_tensor(after).long()
        scores = -F.cross_entropy(logits[: len(after)], targets, reduction="none")
        if not scores.isfinite().all():
            raise NonFiniteLogitsError([0])
        self.prompt_logprobs += scores.tolist()
        if self.top_logprobs:
            self.prompt_likeliest += [self._likeliest(row) for row in logits[: len(after)]]

    def pool(self, hidden: Tensor, start: int) -> None:
        """For the engine: adds the states (n, dim) of the tokens from `start` on to the embedding.

        Raises NonFiniteLogitsError.
        """
        total = hidden.float().sum(0).cpu().double()
        self._pooled = total if start == self.pool_from else total + self._pooled
        if start + len(hidden) == len(self.prompt):
            if not self._pooled.isfinite().all():
                raise NonFiniteLogitsError([0])
            self.embedding = F.normalize(self._pooled, dim=0).float()  # of the sum as of the mean

    def copy_prompt_results(self, other: "Sequence") -> None:
        """For the engine: takes what the prompt of a request with the same `prompt_work` gave."""
        self.prompt_logprobs = list(other.prompt_logprobs)
        self.prompt_likeliest = list(other.prompt_likeliest)
        self.embedding = None if other.embedding is None else other.embedding.clone()

    def append(self, token: int, logprob: float, logits: Tensor) -> None:
        """For the engine: adds a chosen token, and finishes if it is the last.

        `logits` (vocab) are those that it was chosen by. Raises InputError where a grammar can't be
        followed any further.
        """
        self.times.setdefault("first_token", time.monotonic())
        if token in self._stop_tokens and len(self.tokens) >= self.min_tokens:
            self.stopped_by = token
            best = self._likeliest(logits) if self.top_logprobs else []
            self.stop_token = Token(token, "", logprob, tuple(best))
            self.finish("stop")
            return
        if self._grammar is not None:
            self._grammar.advance(token)
        self.sampler.record(token)
        with self._lock:
            self.tokens.append(token)
            self.logprobs.append(logprob)
            if self.top_logprobs:
                self.likeliest.append(self._likeliest(logits))
            self.token_texts.append(self._decoder.feed(token))
            if len(self.tokens) <= self.min_tokens:
                self._stop_start = len(self.text)
            self.text += self.token_texts[-1]
            if len(self.tokens) > self.min_tokens and self._cut_at_stop():
                self._end("stop")  # what the decoder still holds lies after the cut
        if self.finish_reason is None and len(self.tokens) == self.max_gen_len:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """For the engine: ends the answer, with the bytes of an incomplete character as U+FFFD."""
        with self._lock:
            if texts := self.token_texts or self.prompt_token_texts:
                rest = self._decoder.flush()
                texts[-1] += rest
                self.text += rest
            self._end(reason)

    def _end(self, reason: FinishReason) -> None:
        # Other threads look at the reason first: from then on everything else is final.
        self.times["finished"] = time.monotonic()
        self.sampler.mask = None  # a circle, which would outlive a model that is unloaded
        self.finish_reason = reason

    def _mask(self) -> Tensor | None:
        """Which tokens may come next, bool (vocab); None for all."""
        bans_stops = len(self.tokens) < self.min_tokens and self._stop_tokens
        if self._grammar is None and not bans_stops:
            return None
        if self._grammar is None:
            mask = torch.ones(self._num_words, dtype=torch.bool)
        else:
            mask = self._grammar.allowed()[: self._num_words]
        if bans_stops:
            mask[list(self._stop_tokens)] = False
        return mask

    def _likeliest(self, logits: Tensor) -> list[tuple[int, float]]:
        best = logits.float().log_softmax(-1).topk(min(self.top_logprobs, len(logits)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _cut_at_stop(self) -> bool:
        """Ends the text before the first stop string in it and drops the tokens after that."""
        # A match ends in the newest token's text, so it begins at most so far before its end.
        reach = max(map(len, self.stop), default=0) + len(self.token_texts[-1])
        earliest = max(self._stop_start, len(self.text) - reach)
        found = [at for stop in self.stop if (at := self.text.find(stop, earliest)) >= 0]
        if not found:
            return False
        self.stopped_by = next(s for s in self.stop if self.text.startswith(s, min(found)))
        surplus = len(self.text) - min(found)
        self.text = self.text[: min(found)]
        while self.token_texts and len(self.token_texts[-1]) <= surplus:
            surplus -= len(self.token_texts.pop())
            self.tokens.pop()
            self.logprobs.pop()
            if self.likeliest:
                self.likeliest.pop()
        if self.token_texts:
            self.token_texts[-1] = self.token_texts[-1][: len(self.token_texts[-1]) - surplus]
        return True


def token_ids(name: str, ids: Any) -> list[int]:
    """The ids of a prompt as a list of int, from any iterable, numpy array or tensor of integers.

    Raises InputTypeError, with the prompt's `name`, for anything else, bools included.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(ids, Iterable) or isinstance(ids, str | bytes):
        raise InputTypeError(f"{name} must be a list of token ids, got {ids!r:.60}")
    numbers = [token.tolist() if hasattr(token, "tolist") else token for token in ids]
    for i, token in enumerate(numbers):
        if not isinstance(token, int) or isinstance(token, bool):
            raise InputTypeError(f"{name} must hold token ids, got {token!r:.60} at index {i}")
    return numbers
