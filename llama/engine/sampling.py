"""Choosing the next token of each row of a batch.

Requests that share a batch keep their own settings, their own random numbers and their own
history, so each gets the tokens it would get alone. A request is a `SamplerState`; a step of the
engine is one `sample` for all rows, then one `record` for each. `sample` records nothing itself:
with several ranks the tokens are rank 0's, broadcast first.

    states = [SamplerState(SamplingParams(temperature=0.8, seed=1), prompt) for prompt in prompts]
    tokens, logprobs = sample(logits, states)  # logits: (rows, vocab)
    for state, token in zip(states, tokens.tolist()):
        state.record(token)

The settings form a chain: repetition penalty, frequency and presence penalties, logit bias; then,
as in Hugging Face's libraries, temperature, top_k, top_p, min_p. Greedy is the argmax after the
bias. Say, probabilities (0.5, 0.25, 0.15, 0.1) and top_p 0.7: the mass before each token is (0,
0.5, 0.75, 0.9), so tokens 0 and 1 stay (token 1 crosses 0.7); the uniform number 0.8 points at
0.8 * 0.75 = 0.6 of the mass that stayed, and that is in token 1.

Probability mass is counted in integers. A float sum depends on the order of its terms, which
changes with the batch and the device; an integer sum does not, and its cumulative sum never
decreases, so no token of probability 0 is ever drawn. It is also much faster than float64.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llama.engine.sampling_params import SamplingParams
from llama.errors import InputError


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


class SamplerState:
    """One request's settings, random numbers and, if a penalty needs it, token history.

    The generator is the request's own (torch's global one is never touched) and lives on the CPU,
    so that a seed means the same numbers on every device. Its numbers follow from the seed, the
    prompt's tokens and `sample_index`. `seed` holds the seed, also where the settings left it open.
    """

    def __init__(
        self, params: SamplingParams, prompt_tokens: Sequence[int] = (), sample_index: int = 0
    ) -> None:
        self.params = params
        # Which tokens may be chosen next, bool (vocab) on the CPU, or None for all.
        self.mask: Callable[[], Tensor | None] | None = None
        self._uniform: float | None = None
        self._generator = torch.Generator()
        self.seed = self._generator.seed() if params.seed is None else params.seed
        # With the seed itself, all prompts of a call would draw the same numbers.
        key = repr((self.seed, sample_index, *prompt_tokens)).encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        self._generator.manual_seed(int.from_bytes(digest, "little"))
        repeats = params.repetition_penalty != 1
        self._has_penalty = bool(repeats or params.frequency_penalty or params.presence_penalty)
        self._counts: dict[int, int] = {}  # of the answer's tokens
        seen = set(prompt_tokens) if repeats else set()
        adjusted = sorted(seen.union(params.logit_bias))
        self._row_of = {token: row for row, token in enumerate(adjusted)}
        # (adjusted tokens, 3): a token's id, its repetition penalty, what is added to its logit
        rows = [self._adjustment(token, token in seen) for token in adjusted]
        self.adjustments = torch.tensor(rows, dtype=torch.float64).view(-1, 3)

    def draw(self) -> float:
        """The uniform number in [0, 1) of the next token: the same until a token is recorded."""
        if self._uniform is None:
            self._uniform = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        return self._uniform

    def record(self, token: int) -> None:
        """Adds the chosen token to the history that the penalties look at."""
        self._uniform = None
        if not self._has_penalty:
            return
        self._counts[token] = self._counts.get(token, 0) + 1
        new = torch.tensor([self._adjustment(token, seen=True)], dtype=torch.float64)
        row = self._row_of.setdefault(token, len(self.adjustments))
        # Replaces the row, or appends it: then nothing comes after.
        self.adjustments = torch.cat((self.adjustments[:row], new, self.adjustments[row + 1 :]))

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

    Raises NonFiniteLogitsError, and InputError if a row's every token is banned.
    """
    device = logits.device
    # MPS has no float64, and shares its memory with the CPU.
    logits = logits.to("cpu" if device.type == "mps" else device, torch.float32)
    logprobs = logits.log_softmax(-1)  # all NaN if the largest is NaN or infinite
    scores = _adjust(logits, states)
    best = logprobs.amax(-1)
    _check_choosable(best, best if scores is logits else scores.amax(-1))

    tokens = torch.empty(len(states), dtype=torch.int64, device=logits.device)
    samplers = [_sampler(state.params) for state in states]
    # The CPU draws for one large row at a time: then the temporaries fit its caches.
    at_once = max(1, 2**17 // logits.shape[-1]) if logits.is_cpu else len(states)
    for sampler in dict.fromkeys(samplers):
        rows = torch.tensor([row for row, its in enumerate(samplers) if its is sampler])
        for some in rows.split(len(states) if sampler is _greedy else at_once):
            their_states = [states[row] for row in some.tolist()]
            if len(some) == len(states):
                tokens = sampler(scores, their_states)
            else:
                index = some.to(logits.device)
                tokens[index] = sampler(scores[index], their_states)
    return tokens.to(device), logprobs.gather(-1, tokens[:, None]).squeeze(-1).to(device)


def _sampler(params: SamplingParams) -> Callable[[Tensor, Sequence[SamplerState]], Tensor]:
    """What chooses the tokens (rows,) of scores (rows, vocab) for a request with these settings."""
    if params.temperature == 0:
        return _greedy
    truncates = params.top_p < 1 or params.top_k or params.min_p
    return _draw_truncated if truncates else _draw


def _greedy(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    return scores.argmax(-1)


def _draw(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    uniform, temperature, _, _ = _settings(scores, states)
    mass = _weights(scores, temperature).cumsum(-1)
    return _pick(mass, mass[:, -1:], uniform).squeeze(-1)


def _draw_truncated(scores: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Adds up the mass in buckets of similar scores, and sorts only the buckets it needs.

    What stays is a prefix of the ranked tokens (higher scores first, of equal ones the lower id).
    The sums of the buckets show in which of them the prefix ends, and in which the draw falls.
    """
    uniform, temperature, top_p, min_p = _settings(scores, states)
    weights = _weights(scores, temperature)
    keys = (scores + 0.0).view(torch.int32)  # adding 0.0 makes -0.0 equal to 0.0
    # As unsigned numbers: the higher the score, the lower. (In place: new memory costs more.)
    keys ^= (keys >> 31).bitwise_not_().bitwise_and_(0x7FFFFFFF)
    bits = min(scores.shape[-1].bit_length(), 16)
    buckets = (keys >> (32 - bits)).bitwise_and_(2**bits - 1).add_(1).long()  # bucket 0 is empty
    mass = weights.new_zeros(len(states), 2**bits + 1)
    mass.scatter_add_(-1, buckets, weights).cumsum_(-1)
    end = _prefix_end(scores, weights, mass[:, -1:], states, top_p, min_p)

    last = torch.searchsorted(mass, end, right=True)  # the prefix ends in this bucket
    low = _pick(mass, mass.gather(-1, last - 1), uniform)  # the draw falls in low to high
    high = _pick(mass, mass.gather(-1, last), uniform)
    wanted = (buckets >= low).logical_and_(buckets <= high).logical_or_(buckets == last)
    rows, ids = wanted.nonzero().unbind(-1)  # synchronises with the device
    keys = (rows << 32) + (keys[rows, ids].long() & 0xFFFFFFFF)
    keys, order = keys.sort(stable=True)
    rows, ids = rows[order], ids[order]
    weight, bucket = weights[rows, ids], buckets[rows, ids]
    bucket_keys = keys >> (32 - bits)
    start = torch.searchsorted(bucket_keys, bucket_keys)  # index of each bucket's first token
    ranked = weight.cumsum(0)  # over several rows it may wrap around; the differences hold
    ranked += mass[rows, bucket - 1] - (ranked - weight)[start]
    first = torch.searchsorted(rows, torch.arange(len(states), device=rows.device))

    def index_at(target: Tensor) -> Tensor:  # of the first token whose ranked mass is above it
        return first.index_add(0, rows, (ranked <= target[rows, 0]).long())

    kept = ranked[index_at(end), None]
    return ids[index_at((uniform * kept).long())]


def _prefix_end(
    scores: Tensor,
    weights: Tensor,
    total: Tensor,
    states: Sequence[SamplerState],
    top_p: Tensor,
    min_p: Tensor,
) -> Tensor:
    """The prefix ends at the token where the ranked mass is first above this: (rows, 1)."""
    kept = total.clone()
    for row, state in enumerate(states):
        if 0 < (top_k := state.params.top_k) < scores.shape[-1]:
            best = scores[row].topk(top_k, sorted=False).indices  # any of those that tie for last
            kept[row] = weights[row, best].sum()
    end = torch.where(top_p < 1, (top_p * kept).long(), kept).minimum(kept - 1)
    if any(state.params.min_p for state in states):
        likely = weights >= (min_p * _unit(scores)).ceil().long()
        end = end.minimum((weights * likely).sum(-1, keepdim=True) - 1)
    return end


def _pick(mass: Tensor, total: Tensor, uniform: Tensor) -> Tensor:
    """The first index in each row where the cumulative mass is above uniform * total: (rows, 1).

    A uniform number is at most 1 - 2**-53, so the product stays below total in float64 too.
    """
    return torch.searchsorted(mass, (uniform * total).long(), right=True)


def _settings(scores: Tensor, states: Sequence[SamplerState]) -> tuple[Tensor, ...]:
    """Uniform numbers, drawn here, temperatures, top_p and min_p: each (rows, 1) float64."""
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
    raise InputError(
        f"logit_bias, penalties and the grammar ban every token of the vocabulary in rows {rows}"
    )


def _adjust(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """The logits after penalties, bias and masks; the same tensor if no row has any."""
    scores = _penalized(logits, states)
    for row, state in enumerate(states):
        if state.mask is not None and (mask := state.mask()) is not None:
            if scores is logits:
                scores = logits.clone()
            scores[row].masked_fill_(~mask.to(logits.device), -math.inf)
    return scores


def _penalized(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """The logits after penalties and bias; the same tensor if no row has any."""
    if not any(len(state.adjustments) for state in states):
        return logits
    table = torch.cat([state.adjustments for state in states])  # (adjusted in all rows, 3)
    sizes = torch.tensor([len(state.adjustments) for state in states])
    rows, ids = torch.arange(len(states)).repeat_interleave(sizes), table[:, 0].long()
    rows, ids, table = (x.to(logits.device) for x in (rows, ids, table))
    values = logits[rows, ids].double()
    values = torch.where(values > 0, values / table[:, 1], values * table[:, 1]) + table[:, 2]
    scores = logits.clone()
    scores[rows, ids] = values.clamp(max=torch.finfo(torch.float32).max).float()
    return scores
