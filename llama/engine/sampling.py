"""Choosing the next token: what a request asks for, and the draw itself.

Requests that share a batch keep their own settings, their own random numbers and their own
history, so each gets the tokens it would get alone. A request is a `SamplerState`; a step of the
engine is one `sample` for all rows, then one `record` for each. `sample` records nothing itself:
with several ranks the tokens are rank 0's, broadcast first.

    states = [SamplerState(SamplingParams(temperature=0.8, seed=1), prompt) for prompt in prompts]
    tokens, logprobs = sample(logits, states)  # logits: (rows, vocab)
    for state, token in zip(states, tokens.tolist()):
        state.record(token)

The order of the settings: repetition penalty, frequency and presence penalties, logit bias; then,
as Hugging Face has them, temperature, top_k, top_p, min_p. Greedy is the argmax after the bias.
Say, probabilities (0.5, 0.25, 0.15, 0.1) and top_p 0.7: the mass before each token is (0, 0.5,
0.75, 0.9), so tokens 0 and 1 stay (token 1 crosses 0.7); the uniform number 0.8 points at
0.8 * 0.75 = 0.6 of the mass that stayed, and that is in token 1.

Probability mass is counted in integers. A float sum depends on the order of its terms, which
changes with the batch and the device; an integer sum does not, and its cumulative sum never
wavers, so no token of probability 0 can be hit. It is also much faster than float64.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from llama.errors import InputError, InputTypeError

_LARGEST = sys.float_info.max

# Each test is False for NaN.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda x: 0 <= x <= _LARGEST, "finite and at least 0 (0 is greedy)"),
    "top_p": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1"),
    "repetition_penalty": (lambda x: 0 < x <= _LARGEST, "finite and above 0 (1 is off)"),
    "frequency_penalty": (lambda x: abs(x) <= _LARGEST, "finite (0 is off)"),
    "presence_penalty": (lambda x: abs(x) <= _LARGEST, "finite (0 is off)"),
}


class NonFiniteLogitsError(InputError, FloatingPointError):
    """The model's logits hold NaN or infinity. `rows`: in which rows of the batch."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(rows)
        self.rows = rows

    def __str__(self) -> str:
        return (
            f"the logits of batch rows {self.rows} are not finite. Likely causes: NaN in the "
            "weights (a damaged or wrongly converted checkpoint: `llama verify` finds them), or "
            "float16 overflow (use bfloat16 or float32)"
        )


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How a request wants its tokens chosen; applied in the order the module's docstring gives.

    temperature: divides the logits; 0 is greedy.
    top_p: keeps the most likely tokens up to the one that crosses this mass (Holtzman et al. 2020,
        arXiv:1904.09751); 1 is off, 0 keeps the most likely token only, as in Meta's code.
    top_k: keeps this many tokens, of equal ones the lower ids; 0 is off.
    min_p: keeps tokens at least this many times as likely as the most likely one (Nguyen et al.
        2024, arXiv:2407.01082); 0 is off.
    repetition_penalty: divides the positive and multiplies the negative logits of all tokens in
        the prompt and the answer (CTRL, Keskar et al. 2019, arXiv:1909.05858); 1 is off.
    frequency_penalty, presence_penalty: subtracted from a token's logit for each time, and once
        if ever, the answer holds it (OpenAI's API); 0 is off.
    logit_bias: token id to what is added to its logit; -inf bans the token.
    seed: makes the draws reproducible; torch's CPU generator uses its low 32 bits. None takes one
        from the operating system.

    Raises TypeError or ValueError with the name, the value and the allowed range.
    """

    temperature: float = 0.6
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (allowed, described) in _RANGES.items():
            value = _expect(name, getattr(self, name), Real, "a number")
            if not allowed(value):
                raise InputError(f"{name} must be {described}, got {value!r}")
            object.__setattr__(self, name, float(value))
        if _expect("top_k", self.top_k, Integral, "an integer") < 0:
            raise InputError(f"top_k must be at least 0 (0 is off), got {self.top_k}")
        if self.seed is not None:
            seed = _expect("seed", self.seed, Integral, "an integer or None")
            if not -(2**63) <= seed < 2**64:
                raise InputError(f"seed must be at least -2**63 and below 2**64, got {seed}")
        # Our own copy: what the caller does to theirs later has no effect here.
        bias = dict(_expect("logit_bias", self.logit_bias, Mapping, "a mapping of ids to numbers"))
        object.__setattr__(self, "logit_bias", bias)
        for token, value in bias.items():
            if _expect("a token id in logit_bias", token, Integral, "an integer") < 0:
                raise InputError(f"a token id in logit_bias must be at least 0, got {token}")
            _expect(f"logit_bias[{token}]", value, Real, "a number")
            if not (value == -math.inf or abs(value) <= _LARGEST):
                raise InputError(f"logit_bias[{token}] must be finite or -inf, got {value!r}")

    def check_vocab(self, vocab_size: int) -> None:
        """Raises ValueError if logit_bias names a token id that the vocabulary does not have."""
        if (token := max(self.logit_bias, default=0)) >= vocab_size:
            raise InputError(
                f"logit_bias names token id {token}, but the vocabulary has {vocab_size} tokens"
            )


class SamplerState:
    """One request's settings, random numbers and, if a penalty needs it, token history.

    The generator is the request's own (torch's global one is never touched) and lives on the CPU,
    so that a seed means the same numbers on every device. `seed` holds it, also where the
    settings left it open.
    """

    def __init__(self, params: SamplingParams, prompt_tokens: Iterable[int] = ()) -> None:
        self.params = params
        self._generator = torch.Generator()
        self.seed = self._generator.seed() if params.seed is None else int(params.seed)
        self._generator.manual_seed(self.seed)
        repeats = params.repetition_penalty != 1
        self._has_penalty = bool(repeats or params.frequency_penalty or params.presence_penalty)
        self._counts: dict[int, int] = {}  # of the answer's tokens
        seen = set(prompt_tokens) if repeats else set()
        touched = sorted(seen.union(params.logit_bias))
        self._places = {token: place for place, token in enumerate(touched)}
        # (touched, 3): a token's id, its repetition penalty, what is added to its logit
        lines = [self._adjustment(token, token in seen) for token in touched]
        self.adjustments = torch.tensor(lines, dtype=torch.float64).view(-1, 3)

    def draw(self) -> float:
        """The next uniform number in [0, 1). Each token that is not greedy takes exactly one."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()

    def record(self, token: int) -> None:
        """Takes the chosen token into the history that the penalties look at."""
        if not self._has_penalty:
            return
        self._counts[token] = self._counts.get(token, 0) + 1
        line = torch.tensor([self._adjustment(token, seen=True)], dtype=torch.float64)
        place = self._places.setdefault(token, len(self.adjustments))
        # Replaces the line at `place`, or appends it: then nothing comes after.
        self.adjustments = torch.cat(
            (self.adjustments[:place], line, self.adjustments[place + 1 :])
        )

    def _adjustment(self, token: int, seen: bool) -> tuple[int, float, float]:
        params, count = self.params, self._counts.get(token, 0)
        added = params.logit_bias.get(token, 0.0)
        if count:
            added -= count * params.frequency_penalty + params.presence_penalty
        return token, params.repetition_penalty if seen else 1.0, added


@torch.no_grad()
def sample(logits: Tensor, states: Sequence[SamplerState]) -> tuple[Tensor, Tensor]:
    """Chooses a token for each row by that row's settings; changes neither logits nor histories.

    logits: (rows, vocab), computed in float32. Returns the token ids, (rows,) int64, and the
    natural log of their probabilities in the model's own distribution, before penalties, bias and
    temperature (what Meta's `generate` returns), (rows,) float32; both on the logits' device.

    Raises NonFiniteLogitsError; ValueError if a row's every token is banned, for a token id outside
    the vocabulary, and for logits that do not fit the states.
    """
    if logits.dim() != 2 or len(logits) != len(states):
        expected = f"({len(states)}, vocab), one row for each state"
        raise InputError(f"logits must be {expected}, got shape {tuple(logits.shape)}")
    device = logits.device
    # MPS has no float64, and shares its memory with the CPU.
    logits = logits.to("cpu" if device.type == "mps" else device, torch.float32)
    logprobs = logits.log_softmax(-1)  # all NaN if the largest is NaN or infinite
    scores = _adjust(logits, states)
    best = logprobs.amax(-1)
    _check_choosable(best, best if scores is logits else scores.amax(-1))

    tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
    ways = [_way(state.params) for state in states]
    # The CPU draws for one large row at a time: then the temporaries fit its caches.
    at_once = max(1, 2**17 // logits.shape[-1]) if logits.is_cpu else len(states)
    for way in dict.fromkeys(ways):
        rows = torch.tensor([row for row, its_way in enumerate(ways) if its_way is way])
        for part in rows.split(len(states) if way is _most_likely else at_once):
            theirs = [states[row] for row in part.tolist()]
            if len(part) == len(states):
                tokens = way(scores, theirs)
            else:
                index = part.to(logits.device)
                tokens[index] = way(scores[index], theirs)
    return tokens.to(device), logprobs.gather(-1, tokens[:, None]).squeeze(-1).to(device)


def _way(params: SamplingParams) -> Callable[[Tensor, Sequence[SamplerState]], Tensor]:
    if params.temperature == 0:
        return _most_likely
    truncates = params.top_p < 1 or params.top_k or params.min_p
    return _draw_truncated if truncates else _draw_untruncated


def _most_likely(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    return scores.argmax(-1)


def _draw_untruncated(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    uniform, temperature, _, _ = _settings(scores, states)
    mass = _weights(scores, temperature).cumsum(-1)
    return _pick(mass, mass[:, -1:], uniform).squeeze(-1)


def _draw_truncated(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Adds up the mass in buckets of like scores, and sorts only the buckets it has to look into.

    What stays is a prefix of the ranked tokens (higher scores first, of equal ones the lower id).
    The first sums tell in which bucket the prefix ends, and between which two the draw then falls.
    """
    uniform, temperature, top_p, min_p = _settings(scores, states)
    weights = _weights(scores, temperature)
    keys = (scores + 0.0).view(torch.int32)  # -0.0 is as good as 0.0
    # As unsigned numbers: the higher the score, the lower. (In place: new memory costs more.)
    keys ^= (keys >> 31).bitwise_not_().bitwise_and_(0x7FFFFFFF)
    bits = min(scores.shape[-1].bit_length(), 16)
    buckets = (keys >> (32 - bits)).bitwise_and_(2**bits - 1).add_(1).long()  # bucket 0 is empty
    mass = weights.new_zeros(len(states), 2**bits + 1)
    mass.scatter_add_(-1, buckets, weights).cumsum_(-1)

    # The prefix ends at the token where the ranked mass first is above `end`.
    left_by_k = mass[:, -1:].clone()
    for row, state in enumerate(states):
        if 0 < (top_k := state.params.top_k) < scores.shape[-1]:
            best = scores[row].topk(top_k, sorted=False).indices  # any of those that tie for last
            left_by_k[row] = weights[row, best].sum()
    end = torch.where(top_p < 1, (top_p * left_by_k).long(), left_by_k).minimum(left_by_k - 1)
    if any(state.params.min_p for state in states):
        likely = weights >= (min_p * _unit(scores)).ceil().long()
        end = end.minimum((weights * likely).sum(-1, keepdim=True) - 1)

    last = torch.searchsorted(mass, end, right=True)
    low = _pick(mass, mass.gather(-1, last - 1), uniform)
    high = _pick(mass, mass.gather(-1, last), uniform)
    wanted = (buckets >= low).logical_and_(buckets <= high).logical_or_(buckets == last)
    rows, ids = wanted.nonzero().unbind(-1)  # synchronises with the device
    keys = (rows << 32) + (keys[rows, ids].long() & 0xFFFFFFFF)
    keys, order = keys.sort(stable=True)
    rows, ids = rows[order], ids[order]
    weight, bucket = weights[rows, ids], buckets[rows, ids]
    bucket_keys = keys >> (32 - bits)
    start = torch.searchsorted(bucket_keys, bucket_keys)  # where the token's bucket begins
    ranked = weight.cumsum(0)  # over several rows it may wrap around; the differences hold
    ranked += mass[rows, bucket - 1] - (ranked - weight)[start]
    first = torch.searchsorted(rows, torch.arange(len(states), device=rows.device))

    def place(target: Tensor) -> Tensor:  # of the token where the ranked mass first is above it
        return first.index_add(0, rows, (ranked <= target[rows, 0]).long())

    kept = ranked[place(end), None]
    return ids[place((uniform * kept).long())]


def _pick(mass: Tensor, total: Tensor, uniform: Tensor) -> Tensor:
    """The first place in each row where the cumulative mass is above uniform * total: (rows, 1).

    A uniform number is at most 1 - 2**-53, so the product stays below total in float64 too.
    """
    return torch.searchsorted(mass, (uniform * total).long(), right=True)


def _settings(scores: Tensor, states: Sequence[SamplerState]) -> tuple[Tensor, ...]:
    """The uniform numbers, drawn here, temperatures, top_p and min_p: each (rows, 1) float64."""
    table = [(s.draw(), s.params.temperature, s.params.top_p, s.params.min_p) for s in states]
    return torch.tensor(table, dtype=torch.float64, device=scores.device).split(1, dim=-1)


def _weights(scores: Tensor, temperature: Tensor) -> Tensor:
    """exp(scores / temperature), (rows, vocab), in int64: the most likely token weighs `_unit`.

    What becomes 0 is less than 2**-44 as likely (at a vocabulary of 128k); all such tokens
    together stay below float32's precision.
    """
    limits = torch.finfo(torch.float32)
    temperature = temperature.clamp(limits.tiny, limits.max).float()
    below_peak = scores - scores.amax(-1, keepdim=True)  # so that no temperature overflows
    return below_peak.div_(temperature).exp_().mul_(_unit(scores)).long()


def _unit(scores: Tensor) -> float:
    """A power of two, the largest for which a row of equal weights sums up to less than 2**62."""
    return 2.0 ** (62 - scores.shape[-1].bit_length())


def _check_choosable(best_logprob: Tensor, best_score: Tensor) -> None:
    finite = best_logprob.isfinite()
    choosable = finite & (best_score > -math.inf)
    if choosable.all():  # synchronises with the device
        return
    if not finite.all():
        raise NonFiniteLogitsError((~finite).nonzero().flatten().tolist())
    rows = (~choosable).nonzero().flatten().tolist()
    raise InputError(f"logit_bias and penalties ban every token of the vocabulary in rows {rows}")


def _adjust(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """The logits after penalties and bias; the very same tensor if no row has any."""
    if not any(len(state.adjustments) for state in states):
        return logits
    vocab = logits.shape[-1]
    table = torch.cat([state.adjustments for state in states])  # (touched in all rows, 3)
    sizes = torch.tensor([len(state.adjustments) for state in states])
    rows, ids = torch.arange(len(states)).repeat_interleave(sizes), table[:, 0].long()
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        for state in states:
            state.params.check_vocab(vocab)
        raise InputError(
            f"the prompts and answers hold token ids from {ids.min()} to {ids.max()}, "
            f"but the vocabulary has {vocab} tokens"
        )
    rows, ids, table = (x.to(logits.device) for x in (rows, ids, table))
    values = logits[rows, ids].double()
    values = torch.where(values > 0, values / table[:, 1], values * table[:, 1]) + table[:, 2]
    scores = logits.clone()
    scores[rows, ids] = values.clamp(max=torch.finfo(torch.float32).max).float()
    return scores


def _expect(name: str, value: object, kind: type, described: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputTypeError(f"{name} must be {described}, got {value!r} ({type(value).__name__})")
    return value
