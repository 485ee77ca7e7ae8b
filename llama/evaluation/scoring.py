"""Log-likelihoods under a model: perplexity of texts, multiple choice.

    score = score_texts(model, tokenizer, ["Once upon a time ...", "One day ..."])
    score.bits_per_byte, score.perplexity
    log_likelihoods(model, [([128000, 791], [8415])])       # token ids: context, continuation
    score_choices(model, tokenizer, [Question("Cats say", ["meow", "moo"], answer=0)])

A text longer than the context is read in consecutive windows. With a context of 4, and B for
begin_of_text:

    text    B a b c d e f g
    reads   B a b c . . . .   predicts a b c d
            . . . . d e f .            e f g

The last token of a window begins the next one: each token is predicted once, the first ones of a
window from a short context.

Rows of similar length run as a batch, padded on the right to few widths. Logits are computed only
for scored tokens and only a few at a time: at a vocabulary of 128,256 those of 8192 tokens would
take 4 GB.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llama import console
from llama.engine.sampling import NonFiniteLogitsError
from llama.errors import InputError, InputTypeError
from llama.model import Transformer
from llama.tokenizer import ChatFormat, Dialog, Tokenizer

BATCH_TOKENS = 4096

_WIDTH = 32  # batches have multiples of this width: kernels are compiled for few shapes
_MAX_LOGITS = 2**25  # at a time: 128 MB in float32, beside copies for the dtype and the softmax


@dataclass(frozen=True)
class TextScore:
    """Negative log-likelihood of texts in `nats`, over how many tokens and UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """e to the mean nats of a token; depends on the tokenizer."""
        mean = self.nats / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Lower is better. Unlike perplexity it compares models with different tokenizers."""
        return self.nats / math.log(2) / self.bytes


class LogLikelihood(NamedTuple):
    """Of a continuation: its log-probability in nats, and whether greedy decoding generates it.

    `cut` is how many of the context's oldest tokens did not fit and were left out.
    """

    total: float
    is_greedy: bool
    cut: int


class Question(NamedTuple):
    """`choices[answer]` is the right continuation of the prompt."""

    prompt: str
    choices: Sequence[str]
    answer: int


@dataclass(frozen=True)
class ChoiceScore:
    """The number of questions and the share that was answered right.

    `acc` takes the choice with the greatest log-likelihood, `acc_norm` the one with the greatest
    log-likelihood per UTF-8 byte; of equal ones the first. Standard errors are those of a mean,
    None for a single question. `cut` tokens of prompts did not fit.
    """

    questions: int
    acc: float
    acc_stderr: float | None
    acc_norm: float
    acc_norm_stderr: float | None
    cut: int


def score_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    batch_tokens: int = BATCH_TOKENS,
) -> TextScore:
    """The negative log-likelihood of `texts`, each on its own after begin_of_text.

    The end token is not scored. `batch_tokens`, padding included, go through the model at a time; a
    longer window runs alone. Raises InputError if there is nothing to score, InputTypeError for one
    string instead of several, and NonFiniteLogitsError for a broken model.
    """
    if isinstance(texts, str):
        raise InputTypeError("texts should be a list of strings, not one string")
    context = model.params.max_seq_len
    windows = []
    for text in texts:
        ids = tokenizer.encode(text, bos=True)
        for start in range(0, len(ids) - 1, context):
            part = ids[start : start + context + 1]
            windows.append(_Window(part[:-1], list(range(len(part) - 1)), part[1:]))
    if not windows:
        raise InputError("no text to score: give at least one that is not empty")
    nats = -sum(float(logprobs.sum()) for logprobs, _ in _score(model, windows, batch_tokens))
    tokens = sum(len(window.targets) for window in windows)
    return TextScore(nats, tokens, sum(map(_size, texts)))


def log_likelihoods(
    model: Transformer,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch_tokens: int = BATCH_TOKENS,
) -> list[LogLikelihood]:
    """The log-likelihood of each continuation after its context, both as token ids.

    If both are longer than the model's context, the oldest tokens of the context are left
    out, as in lm-eval, and a line on standard error says how many. Continuations that differ in
    their last token only, such as A, B, C and D, run once. Raises InputError, naming the pair, for
    an empty context or continuation and for a continuation that does not fit.
    """
    limit = model.params.max_seq_len
    windows: dict[tuple[int, ...], _Window] = {}
    spans, cuts = [], []
    for i, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            name = "continuation" if context else "context"
            raise InputError(f"pairs[{i}] has an empty {name}; it needs at least one token")
        if len(continuation) > limit:
            raise InputError(
                f"the continuation of pairs[{i}] has {len(continuation)} tokens, but the context "
                f"is {limit} (max_seq_len); shorten it or build with a larger max_seq_len"
            )
        whole = [*context, *continuation]
        cut = max(0, len(whole) - 1 - limit)
        tokens = tuple(whole[cut:-1])
        window = windows.setdefault(tokens, _Window(tokens, [], []))
        start = len(window.targets)
        window.positions.extend(range(len(tokens) - len(continuation), len(tokens)))
        window.targets.extend(continuation)
        spans.append((tokens, slice(start, len(window.targets))))
        cuts.append(cut)
    notice_cuts(cuts, f"inputs do not fit the context of {limit}")
    scores = dict(zip(windows, _score(model, list(windows.values()), batch_tokens), strict=True))
    found = []
    for (tokens, span), cut in zip(spans, cuts, strict=True):
        logprobs, greedy = (values[span] for values in scores[tokens])
        found.append(LogLikelihood(float(logprobs.sum()), bool(greedy.all()), cut))
    return found


def notice_cuts(cuts: Sequence[int], what: str) -> None:
    """Prints how many inputs lose tokens, if any do. `cuts` has for each how many."""
    if any(cuts):
        console.notice(
            f"{sum(map(bool, cuts))} of {len(cuts)} {what} tokens: their oldest tokens are left "
            f"out, {sum(cuts)} in all and {max(cuts)} of the longest"
        )


def score_choices(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    batch_tokens: int = BATCH_TOKENS,
    chat: bool = False,
) -> ChoiceScore:
    """The share of questions whose right choice is the most likely one under `model`.

    A space separates prompt and choice unless one of them has white space there. With `chat` the
    prompt is a user's message in the model's chat format, and the choice an answer to it. Raises
    InputError if there is no question, and as `log_likelihoods`.
    """
    if not questions:
        raise InputError("no questions to answer: give at least one")
    pairs = []
    for question in questions:
        if chat:
            dialog: Dialog = [{"role": "user", "content": question.prompt}]
            prompt = ChatFormat(tokenizer).encode_dialog_prompt(dialog)
            pairs += [(prompt, tokenizer.encode(choice)) for choice in question.choices]
        else:
            pairs += [_encode_pair(tokenizer, question.prompt, c) for c in question.choices]
    likely = iter(log_likelihoods(model, pairs, batch_tokens))
    right, right_norm, cut = [], [], 0
    for _, choices, answer in questions:
        found = [next(likely) for _ in choices]
        by_byte = [f.total / _size(choice) for f, choice in zip(found, choices, strict=True)]
        totals = [f.total for f in found]
        right.append(totals.index(max(totals)) == answer)
        right_norm.append(by_byte.index(max(by_byte)) == answer)
        cut += max(f.cut for f in found)
    return ChoiceScore(len(questions), *_mean(right), *_mean(right_norm), cut)


def _encode_pair(tokenizer: Tokenizer, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt with begin_of_text, and those that a choice adds.

    White space at the prompt's end goes to the choice: tokens begin with their space.
    """
    if prompt and not prompt[-1].isspace() and not choice[0].isspace():
        choice = f" {choice}"
    kept = prompt.rstrip()
    start = tokenizer.encode(kept, bos=True)
    return start, tokenizer.encode(prompt + choice, bos=True)[len(start) :]


def _size(text: str) -> int:
    """UTF-8 bytes; half a surrogate pair is encoded as U+FFFD, which has as many."""
    return len(text.encode("utf-8", "surrogatepass"))


def _mean(values: Sequence[bool]) -> tuple[float, float | None]:
    """A share and its standard error."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(mean * (1 - mean) / (len(values) - 1))


class _Window(NamedTuple):
    """Tokens to run; the logits at `positions` of them predict `targets`."""

    tokens: Sequence[int]
    positions: list[int]
    targets: list[int]


@torch.no_grad()
def _score(
    model: Transformer, windows: Sequence[_Window], batch_tokens: int
) -> list[tuple[Tensor, Tensor]]:
    """For each window the log-probabilities of its targets, float64 (n,), and whether each target
    is the most likely token, bool (n,).
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} should be 1 or more")
    device = model.norm.weight.device
    scores: dict[int, tuple[Tensor, Tensor]] = {}
    lengths = [len(window.tokens) for window in windows]
    with console.progress(sum(lengths), "Scoring", unit=" tokens") as bar:
        for batch in _batches(lengths, batch_tokens):
            tokens = torch.zeros(len(batch), _padded(lengths[batch[0]]), dtype=torch.long)
            for row, i in enumerate(batch):
                tokens[row, : lengths[i]] = torch.tensor(windows[i].tokens)
            h = model.hidden(tokens.to(device))  # (batch, seq, dim)
            rows = torch.cat([h[row, windows[i].positions] for row, i in enumerate(batch)])
            targets = torch.tensor([token for i in batch for token in windows[i].targets])
            sizes = [len(windows[i].targets) for i in batch]
            logprobs, greedy = (
                values.split(sizes) for values in _score_targets(model, rows, targets.to(device))
            )
            if broken := [row for row, part in enumerate(logprobs) if not part.isfinite().all()]:
                raise NonFiniteLogitsError(broken)
            scores.update(zip(batch, zip(logprobs, greedy, strict=True), strict=True))
            bar.update(sum(lengths[i] for i in batch))
    return [scores[i] for i in range(len(windows))]


def _score_targets(model: Transformer, h: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As `_score`, for rows (n, dim) of the last block's output and their targets (n,)."""
    chunk = max(1, _MAX_LOGITS // model.vocab_size)
    logprobs, greedy = [], []
    for rows, expected in zip(h.split(chunk), targets.split(chunk), strict=True):
        logits = model.output(model.norm(rows)).float()  # (n, vocab_size)
        chosen = logits.gather(1, expected.unsqueeze(1)).squeeze(1)
        logprobs.append((chosen - logits.logsumexp(1)).cpu())
        greedy.append((logits.argmax(1) == expected).cpu())
    return torch.cat(logprobs).double(), torch.cat(greedy)


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of windows that run together, in descending order of length."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * _padded(lengths[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(length: int) -> int:
    return -(-length // _WIDTH) * _WIDTH
