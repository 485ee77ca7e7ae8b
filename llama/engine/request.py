"""`Sequence`: one request, its settings, and the answer as it grows.

The engine decides when a sequence runs and which token comes next; what that token means for the
answer (its text, a stop string, the end) is decided here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from llama.engine.sampling import SamplerState
from llama.engine.sampling_params import SamplingParams, expect_integer
from llama.errors import InputError, InputTypeError
from llama.tokenizer import StreamDecoder

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Sequence:
    """A request and its answer.

    prompt: token ids: a list, a tuple, an iterator, a numpy array or a tensor.
    max_gen_len: the most tokens to generate; None goes on to the end of the context.
    stop: the text ends before the first of these strings.
    echo: the text begins with the prompt's.
    score_prompt: `prompt_logprobs` gets the natural log of each prompt token's probability, 0.0
        for the first.
    sample_index: number of this request among those with the same prompt and seed; each index
        draws its own random numbers.

    Raises InputError or InputTypeError for values that no engine can run.
    """

    prompt: list[int]
    max_gen_len: int | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    echo: bool = False
    score_prompt: bool = False
    sample_index: int = 0

    tokens: list[int] = field(default_factory=list)  # generated, without a stop token
    logprobs: list[float] = field(default_factory=list)  # of those
    prompt_logprobs: list[float] = field(default_factory=list)
    token_texts: list[str] = field(default_factory=list)  # the text that each token completed
    prompt_token_texts: list[str] = field(default_factory=list)  # with echo
    text: str = ""  # all token texts; until the end it may still lose a stop string's beginning
    finish_reason: FinishReason | None = None  # None while it waits or runs

    _num_emitted: int = 0  # characters that take_text has returned

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

    def take_text(self) -> str:
        """Text that is certain and that an earlier call has not returned."""
        certain = len(self.text) - (0 if self.finish_reason else self._num_uncertain())
        new = self.text[self._num_emitted : certain]
        self._num_emitted = max(self._num_emitted, certain)
        return new

    def _num_uncertain(self) -> int:
        """How many characters at the end of the answer may turn out to begin a stop string."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for size in range(min(longest, len(self.text) - self._answer_start), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stop):
                return size
        return 0

    def start(self, decoder: StreamDecoder, max_gen_len: int) -> None:
        """For the engine: prepares for at most `max_gen_len` tokens."""
        self._decoder, self.max_gen_len = decoder, max_gen_len
        self.sampler = SamplerState(self.params, self.prompt, self.sample_index)
        if self.echo:
            self.prompt_token_texts = [decoder.feed(token) for token in self.prompt]
            self.text = "".join(self.prompt_token_texts)
        self._answer_start = len(self.text)

    def append(self, token: int, logprob: float, stop_tokens: set[int]) -> None:
        """For the engine: adds a chosen token, and finishes if it is the last."""
        if token in stop_tokens:
            self.finish("stop")
            return
        self.sampler.record(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.token_texts.append(self._decoder.feed(token))
        self.text += self.token_texts[-1]
        if self._cut_at_stop():
            self.finish_reason = "stop"  # what the decoder still holds lies after the cut
        elif len(self.tokens) == self.max_gen_len:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """For the engine: ends the answer, with the bytes of an incomplete character as U+FFFD."""
        self.finish_reason = reason
        if texts := self.token_texts or self.prompt_token_texts:
            rest = self._decoder.flush()
            texts[-1] += rest
            self.text += rest

    def _cut_at_stop(self) -> bool:
        """Ends the text before the first stop string in it and drops the tokens after that."""
        # A match ends in the newest token's text, so it begins at most so far before its end.
        reach = max(map(len, self.stop), default=0) + len(self.token_texts[-1])
        earliest = max(self._answer_start, len(self.text) - reach)
        found = [at for stop in self.stop if (at := self.text.find(stop, earliest)) >= 0]
        if not found:
            return False
        surplus = len(self.text) - min(found)
        self.text = self.text[: min(found)]
        while self.token_texts and len(self.token_texts[-1]) <= surplus:
            surplus -= len(self.token_texts.pop())
            self.tokens.pop()
            self.logprobs.pop()
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
