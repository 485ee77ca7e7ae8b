"""`llama next`: what a language model does, one token at a time.

    llama next "Once upon a time" --steps 3
    llama next "Once upon a time" --model params/tiny --steps 3 --top 8 --temperature 1 --seed 7

It shows the prompt's tokens, then for each step the likeliest next tokens with their probabilities,
and which of them greedy search and sampling choose; at the end what greedy search, sampling and
beam search have made of the steps.

`predict_next` computes it, `show` prints it. The probabilities are those that `Llama` returns with
`logprobs=True`, to the last bit.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from rich.bar import Bar
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llama.checkpoint.bundled import bundled_model
from llama.engine.request import Sequence
from llama.engine.sampling_params import SamplingParams
from llama.errors import InputError
from llama.generation import Llama
from llama.inspection.token_texts import TokenTexts, visible

_GREEDY, _SAMPLING, _BEAM = "greedy search", "sampling", "beam search"


@dataclass(frozen=True)
class Candidate:
    """A token that may come next; `rank` is 1 for the likeliest.

    `probability` is the model's own. `sampling_probability` is what sampling draws it with: after
    temperature, top_k, top_p and min_p, and 0 for a token that those exclude.
    """

    rank: int
    token: int
    text: str
    logprob: float
    probability: float
    sampling_probability: float


@dataclass(frozen=True)
class Step:
    """The candidates after `context`, likeliest first: the top ones, and any other that is chosen.

    `choices` has the token that each method takes which has come to this context. Sampling draws
    from `num_sampled_from` tokens.
    """

    number: int
    context: str
    candidates: list[Candidate]
    choices: dict[str, int]
    num_sampled_from: int


@dataclass(frozen=True)
class Path:
    """What a method has chosen: the tokens without a stop token, and the text that they add.

    `logprob` is the natural log of the probability of all of it, with the stop token if there is
    one, and `score` is logprob by the number of tokens, which beam search ranks by.
    """

    method: str
    tokens: list[int]
    text: str
    logprob: float
    score: float
    finish_reason: str


@dataclass(frozen=True)
class NextTokens:
    """What `llama next` shows."""

    prompt: list[int]
    prompt_texts: list[str]
    steps: list[Step]
    paths: list[Path]


def next_tokens(
    text: str,
    /,
    *,
    model: str | None = None,
    steps: PositiveInt = 1,
    top: PositiveInt = 5,
    temperature: float = 0.6,
    top_p: float = 0.9,
    top_k: NonNegativeInt = 0,
    min_p: float = 0.0,
    seed: int = 1,
    beams: PositiveInt = 4,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    adapter: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Shows what may come next after a text, with probabilities, and how a token is chosen.

    Args:
        text: The text that goes on.
        model: Checkpoint folder or name of a pulled model; default: the bundled one.
        steps: How many tokens to go on.
        top: How many of the likeliest tokens to list.
        temperature: Of sampling: 0 always takes the likeliest token, higher values vary more.
        top_p: Of sampling: draws from the likeliest tokens that together have this probability.
        top_k: Of sampling: draws from so many of the likeliest tokens; 0 is off.
        min_p: Of sampling: leaves out tokens that are less than this times as likely as the first.
        seed: Of sampling: another seed draws other tokens.
        beams: How many beginnings beam search keeps.
        device: cuda, mps or cpu; default: the best there is.
        dtype: bfloat16, float16 or float32.
        quantize: bf12, which rounds nothing, int8 or int4.
        adapter: Folder of a LoRA adapter.
        as_json: Print one JSON object instead of tables.
    """
    params = SamplingParams(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
    )
    llama = Llama.build(
        bundled_model() if model is None else model,
        max_batch_size=1,
        device=device,
        dtype=dtype,
        quantize=quantize,
        adapter=adapter,
    )
    found = predict_next(llama, text, steps, top, params, beams)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show(found, llama, params, Console(highlight=False, markup=False, emoji=False))


def predict_next(
    llama: Llama,
    text: str,
    steps: int = 1,
    top: int = 5,
    params: SamplingParams | None = None,
    beams: int = 4,
) -> NextTokens:
    """What comes after `text` in `steps` tokens, of which each step lists the `top` likeliest.

    `params` are sampling's, by default SamplingParams(seed=1). Once sampling has chosen another
    token than greedy search, each has steps of its own. A method that chooses a stop token ends.
    Raises InputError for steps that do not fit into the context, or settings out of their range.
    """
    params = params or SamplingParams(seed=1)
    prompt = llama.tokenizer.encode(text, bos=True)
    room = llama.engine.max_seq_len - len(prompt)
    if room < steps:
        raise InputError(
            f"the text has {len(prompt)} tokens, and the context of {llama.engine.max_seq_len} has "
            f"room for {max(room, 0)} more, not for {steps} steps"
        )
    runs = {
        _GREEDY: _run(llama, prompt, steps, SamplingParams(temperature=0.0)),
        _SAMPLING: _run(llama, prompt, steps, params),
    }
    texts = TokenTexts(llama.tokenizer)
    found: list[Step] = []
    for index in range(steps):
        at: dict[tuple[int, ...], dict[str, int]] = {}  # what is chosen after these tokens
        for name, run in runs.items():
            if index < len(run.tokens):
                at.setdefault(tuple(run.tokens[:index]), {})[name] = run.tokens[index]
        for path, choices in at.items():
            ranked = _ranked(runs[next(iter(choices))].likeliest[index])
            weights = sampling_probabilities(ranked, params)
            candidates = [
                Candidate(
                    rank, token, texts[token], logprob, math.exp(logprob), weights.get(token, 0.0)
                )
                for rank, (token, logprob) in enumerate(ranked, start=1)
                if rank <= top or token in choices.values()
            ]
            context = texts.joined([*prompt[1:], *path])
            found.append(Step(index + 1, context, candidates, choices, len(weights)))
    paths = [_path(llama, texts, name, run) for name, run in runs.items()]
    paths += [
        Path(_BEAM, h.tokens, texts.joined(h.tokens), h.logprob, h.score, h.finish_reason)
        for h in llama.beam_search(prompt, beams, min(beams, 3), max_gen_len=steps)
    ]
    return NextTokens(prompt, [texts[token] for token in prompt], found, paths)


def sampling_probabilities(
    ranked: list[tuple[int, float]], params: SamplingParams
) -> dict[int, float]:
    """The probability of each token that sampling may draw, as `llama.engine.sampling` does it.

    `ranked` are all tokens with their log-probabilities, likeliest first.
    """
    best = ranked[0][1]
    if params.temperature == 0:
        return {ranked[0][0]: 1.0}
    weights = [math.exp((logprob - best) / params.temperature) for _, logprob in ranked]
    kept = weights[: params.top_k or None]
    limit, mass, count = params.top_p * sum(kept), 0.0, 0
    for weight in kept:
        if count and (mass > limit or weight < params.min_p):
            break
        mass, count = mass + weight, count + 1
    return {ranked[i][0]: weights[i] / mass for i in range(count) if weights[i]}


def show(found: NextTokens, llama: Llama, params: SamplingParams, console: Console) -> None:
    """Prints it as tables, as wide as the console."""
    console.print(f"The prompt is {_count(len(found.prompt), 'token')}:", style="bold")
    console.print(TokenTexts(llama.tokenizer).lines(found.prompt, console.width))
    for step in found.steps:
        console.print()
        names = "" if len(step.choices) > 1 else f" of {next(iter(step.choices))}"
        console.print(f"Step {step.number}{names}, after", style="bold", end=" ")
        console.print(f"'{visible(step.context)}'", soft_wrap=True)
        console.print(_candidates(step, console.width))
        for name, token in step.choices.items():
            chosen = next(c for c in step.candidates if c.token == token)
            console.print(_choice(name, chosen, step, params))
    console.print()
    console.print(f"After {_count(max(s.number for s in found.steps), 'step')}", style="bold")
    console.print(_paths(found, console.width))


def _run(llama: Llama, prompt: list[int], steps: int, params: SamplingParams) -> Sequence:
    """The chosen tokens up to a stop token, and at each step all tokens' log-probabilities."""
    words = llama.tokenizer.n_words
    run = Sequence(prompt, steps, params, top_logprobs=words, ignore_eos=True)
    llama.engine.add(run)
    for _ in llama.engine.run([run]):
        pass
    if run.error is not None:
        raise run.error
    ends = [i for i, token in enumerate(run.tokens) if token in llama.tokenizer.stop_tokens]
    if ends:
        del run.tokens[ends[0] + 1 :], run.logprobs[ends[0] + 1 :]
    return run


def _path(llama: Llama, texts: TokenTexts, name: str, run: Sequence) -> Path:
    is_ended = run.tokens[-1] in llama.tokenizer.stop_tokens
    tokens = run.tokens[: len(run.tokens) - is_ended]
    logprob = sum(run.logprobs)
    reason = "stop" if is_ended else "length"
    return Path(name, tokens, texts.joined(tokens), logprob, logprob / len(run.tokens), reason)


def _ranked(likeliest: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Likeliest first, and of equal ones the lower ids, as sampling ranks them."""
    return sorted(likeliest, key=lambda pair: (-pair[1], pair[0]))


def _candidates(step: Step, width: int) -> Table:
    gap = 1 if width < 60 else 2
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    for heading, justify in (("rank", "right"), ("id", "right"), ("token", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    table.add_column("prob", justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("drawn with" if gap == 2 else "drawn", justify="right", no_wrap=True)
    rows = [
        [str(c.rank), str(c.token), c.text, _percent(c.probability), "", _drawn_with(c)]
        for c in step.candidates
    ]
    headings = [str(column.header) for column in table.columns]
    widths = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    bar = min(max(width - sum(widths) - gap * (len(widths) - 1), 5), 30)
    for candidate, row in zip(step.candidates, rows, strict=True):
        cells: list[str | Bar] = [*row]
        cells[4] = Bar(1.0, 0.0, candidate.probability, width=bar)
        is_chosen = candidate.token in step.choices.values()
        table.add_row(*cells, style="bold" if is_chosen else "")
    return table


def _choice(name: str, chosen: Candidate, step: Step, params: SamplingParams) -> Text:
    if name == _GREEDY:
        return Text(f"greedy search takes the likeliest: {chosen.text}")
    settings = [f"temperature {params.temperature:g}"]
    settings += [f"top_k {params.top_k}"] * bool(params.top_k)
    settings += [f"top_p {params.top_p:g}"] * (params.top_p < 1)
    settings += [f"min_p {params.min_p:g}"] * bool(params.min_p)
    remain = _count(step.num_sampled_from, "token")
    verb = "remains" if step.num_sampled_from == 1 else "remain"
    return Text(f"sampling draws {chosen.text}: {remain} {verb} at {', '.join(settings)}")


def _paths(found: NextTokens, width: int) -> Table:
    gap = 1 if width < 60 else 2
    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    table.add_column("text", overflow="fold")
    table.add_column("log-probability" if gap == 2 else "logprob", justify="right", no_wrap=True)
    table.add_column("per token", justify="right")
    for path in found.paths:
        ended = " (ended)" if path.finish_reason == "stop" else ""
        text = f"'{visible(path.text)}'{ended}"
        method = path.method if gap == 2 else path.method.removesuffix(" search")
        table.add_row(method, text, f"{path.logprob:.3f}", f"{path.score:.3f}")
    return table


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 or share == 0 else "<0.1%"


def _drawn_with(candidate: Candidate) -> str:
    return _percent(candidate.sampling_probability) if candidate.sampling_probability else "-"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
