"""Beam search: the most likely answers as a whole, instead of one token after the other.

The search keeps the `beams` most likely beginnings. Each is extended by every token, and the most
likely extensions are kept; one that ends with a stop token is a finished answer. A beginning is a
row of the KV cache, copied where it has more than one extension.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llama.cache import KVCache
from llama.engine.decoding import Job, RaggedDecoder
from llama.engine.engine import Engine
from llama.engine.request import FinishReason, Sequence
from llama.errors import InputError
from llama.lora.adapter_switch import AdapterSwitch


@dataclass(frozen=True)
class Hypothesis:
    """An answer that a beam search found.

    `tokens` are without the stop token; `logprob` is the natural log of the probability of all
    `length` tokens with it, and `score` is logprob / length ** length_penalty.
    """

    tokens: list[int]
    logprob: float
    score: float
    finish_reason: FinishReason


@dataclass(eq=False)
class _Beam:
    tokens: list[int]
    logprob: float
    row: KVCache


@torch.no_grad()
def beam_search(
    engine: Engine,
    prompt: list[int],
    beams: int = 4,
    n_best: int = 1,
    length_penalty: float = 1.0,
    max_gen_len: int = 64,
) -> list[Hypothesis]:
    """The `n_best` answers with the highest scores, best first.

    With a `length_penalty` above 0 longer answers score higher than the sum of their log-
    probabilities, with 0 that sum decides. Answers of `max_gen_len` tokens without a stop token
    count as they are. Raises InputError for settings out of their range.
    """
    for name, value in (("beams", beams), ("n_best", n_best), ("max_gen_len", max_gen_len)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of 1 or more, got {value!r}")
    if n_best > beams:
        raise InputError(f"n_best={n_best} must be at most beams={beams}")
    engine.check(Sequence(prompt))
    length = min(len(prompt) + max_gen_len, engine.max_seq_len)
    rows = [engine.memory.new_row(length) for _ in range(beams)]
    try:
        if any(row is None for row in rows):
            raise InputError(
                f"{beams} beams of {length} positions do not fit into kv_memory; use fewer"
            )
        return _search(engine, prompt, [r for r in rows if r], n_best, length_penalty, length)
    finally:
        for row in rows:
            if row is not None:
                engine.memory.free(row)


def _search(
    engine: Engine,
    prompt: list[int],
    free: list[KVCache],
    n_best: int,
    length_penalty: float,
    limit: int,
) -> list[Hypothesis]:
    beams, stops = len(free), engine.tokenizer.stop_tokens
    most = limit - len(prompt)
    finished: list[Hypothesis] = []

    def finish(tokens: list[int], logprob: float, length: int, reason: FinishReason) -> None:
        score = logprob / length**length_penalty
        finished.append(Hypothesis(tokens, logprob, score, reason))
        finished.sort(key=lambda h: -h.score)
        del finished[n_best:]

    running = [_Beam([], 0.0, free.pop())]
    logits = engine.run_prompt(prompt, running[0].row)
    while running:
        scores = logits[:, : engine.tokenizer.n_words].log_softmax(-1).double()
        scores += torch.tensor([[beam.logprob] for beam in running], dtype=torch.float64)
        width = scores.shape[1]
        # As many as can be stop tokens besides, so that enough are left to go on.
        count = min(beams * (1 + len(stops)), scores.numel())
        best = scores.flatten().topk(count)
        kept: list[tuple[int, int, float]] = []  # beam, token, log-probability
        for logprob, flat in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            beam, token = divmod(flat, width)
            if len(kept) == beams or logprob == float("-inf"):
                break
            tokens = running[beam].tokens
            if token in stops:
                finish(tokens, logprob, len(tokens) + 1, "stop")
            elif len(tokens) + 1 == most:
                finish([*tokens, token], logprob, most, "length")
                kept.append((beam, token, logprob))
            else:
                kept.append((beam, token, logprob))
        if not kept or len(running[0].tokens) + 1 == most:
            break
        # The log-probability only falls; divided by the greatest length it bounds the score.
        bound = kept[0][2] / (most if length_penalty > 0 else 1) ** length_penalty
        if len(finished) == n_best and finished[-1].score >= bound:
            break
        running = _extend(running, kept, free, len(prompt))
        logits = _step(engine, running, len(prompt))
    return finished


def _extend(
    running: list[_Beam], kept: list[tuple[int, int, float]], free: list[KVCache], prompt: int
) -> list[_Beam]:
    """The new beams: the first extension of a beam takes its row, others a copy."""
    used = {beam for beam, _, _ in kept}
    free += [beam.row for i, beam in enumerate(running) if i not in used]
    length = prompt + len(running[0].tokens)
    extended = []
    for i, token, logprob in kept:
        beam = running[i]
        row = beam.row
        if i in used:
            used.remove(i)
        else:
            row = free.pop()
            row.view(0, 1, length).copy_from(beam.row.view(0, 1, length))
        extended.append(_Beam([*beam.tokens, token], logprob, row))
    return extended


def _step(engine: Engine, beams: list[_Beam], prompt: int) -> Tensor:
    jobs = [Job(Sequence([0]), (0, 0), beam.row, prompt + len(beam.tokens) - 1) for beam in beams]
    feeds = [(job, beam.tokens[-1:]) for job, beam in zip(jobs, beams, strict=True)]
    with AdapterSwitch.of(engine.model).using(None):
        return RaggedDecoder(engine.model).run(feeds)
