"""What a call says of its answers, and the requests that follow from it.

Every call of `Llama` takes `SamplingOptions`, and so does a server for each of its dialects:
`requests` makes the sequences of both, so that they have the same answers.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from llama.engine.engine import Engine
from llama.engine.grammar import Grammar
from llama.engine.request import Sequence
from llama.engine.sampling_params import SamplingParams, expect_integer
from llama.errors import InputError, InputTypeError


class SamplingOptions(TypedDict, total=False):
    """Settings that every call takes besides temperature and top_p; see `SamplingParams`.

    `stop` is a string or several: an answer ends before the first of them. With a `seed`, an
    answer is a function of its prompt and the settings; a prompt that is repeated in a call gets
    other draws each time. Without one, each call has a seed of its own, which follows from the
    `seed` of `Llama.build`. `n` answers to each prompt, computed once, follow each other in the
    result. `prefix` is text that each answer begins with, and goes on after. The others are
    described in `Sequence`.
    """

    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | Iterable[str] | None
    n: int
    top_logprobs: int
    min_tokens: int
    ignore_eos: bool
    grammar: Grammar | None
    prefix: str | None
    adapter: str | None
    priority: int


# Those that are not SamplingParams': of a call, and of each request.
_CALL_OPTIONS = ("stop", "n", "prefix")
_REQUEST_OPTIONS = ("top_logprobs", "min_tokens", "ignore_eos", "grammar", "adapter", "priority")
_SETTINGS = ["temperature", "top_p", *SamplingOptions.__annotations__]


def requests(
    engine: Engine,
    name: str,
    prompts: list[list[int]],
    settings: Mapping[str, Any],
    max_gen_len: int | None,
    logprobs: bool = False,
    echo: bool = False,
) -> list[Sequence]:
    """One checked request for each prompt of token ids, and for each of `n`; none runs yet.

    `name` is what errors call a prompt, {} in it its index; `settings` are temperature, top_p and
    `SamplingOptions`. Raises InputError or InputTypeError that names the prompt or the setting.
    """
    if unknown := sorted(settings.keys() - _SETTINGS):
        known = [*_SETTINGS, "max_gen_len", "logprobs", "echo"]
        close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_SETTINGS)}"
        raise InputTypeError(f"unknown option {unknown[0]!r}; {hint}")
    stop: Any = settings.get("stop")
    if isinstance(stop, Iterable):
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
    options = {k: v for k, v in settings.items() if k in _REQUEST_OPTIONS}
    count = expect_integer("n", settings.get("n", 1), at_least=1)
    params = SamplingParams(
        **{k: v for k, v in settings.items() if k not in (*_CALL_OPTIONS, *_REQUEST_OPTIONS)}
    )
    prefix: list[int] = []
    if settings.get("prefix"):
        prefix = engine.tokenizer.encode(settings["prefix"], bos=False, eos=False)
        options["num_prefix_tokens"] = len(prefix)
    seen: Counter[tuple[int, ...]] = Counter()
    sequences = []
    for i, prompt in enumerate(prompts):
        key, scored = tuple(prompt), echo and logprobs
        for _ in range(count):
            sequence = Sequence(
                prompt + prefix, max_gen_len, params, stop, echo, scored, seen[key], **options
            )
            seen[key] += 1
            engine.check(sequence, name.format(i))
            sequences.append(sequence)
    return sequences


def as_list(name: str, items: Any, element: type | tuple[()], single: str) -> list[Any]:
    """A call's prompts as a list; an error where they are one prompt, with `element` in it."""
    items = items.tolist() if hasattr(items, "tolist") else items  # numpy's array, a tensor
    is_single = isinstance(items, str | bytes | Mapping)
    if not is_single:
        if not isinstance(items, Iterable):
            raise InputTypeError(f"{name} must be a list, got {items!r:.60}")
        items = list(items)
        is_single = any(isinstance(item, element) for item in items)
    if is_single:
        raise InputTypeError(f"{name} must be a list, got one {single}: write [{single}]")
    if not items:
        raise InputError(f"{name} is empty: give at least one {single}")
    return items
