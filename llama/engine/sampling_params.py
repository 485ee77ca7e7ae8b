"""`SamplingParams`: the settings by which a request's tokens are chosen, and their checks."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from llama.errors import InputError, InputTypeError

_LARGEST = sys.float_info.max

# What each setting may be (every test is False for NaN), and the value that None stands for.
_RANGES: dict[str, tuple[Callable[[float], bool], str, float | None]] = {
    "temperature": (lambda x: 0 <= x <= _LARGEST, "finite and at least 0 (0 is greedy)", None),
    "top_p": (lambda x: 0 <= x <= 1, "between 0 and 1 (1 is off)", 1.0),
    "min_p": (lambda x: 0 <= x <= 1, "between 0 and 1 (0 is off)", 0.0),
    "repetition_penalty": (lambda x: 0 < x <= _LARGEST, "finite and above 0 (1 is off)", 1.0),
    "frequency_penalty": (lambda x: abs(x) <= _LARGEST, "finite (0 is off)", 0.0),
    "presence_penalty": (lambda x: abs(x) <= _LARGEST, "finite (0 is off)", 0.0),
}


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """The settings of one request, applied in the order that `llama.engine.sampling` gives.

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
    seed: makes the draws reproducible. They follow from the seed and the prompt's tokens, so that
        requests with one seed and different prompts draw different numbers. None takes a seed
        from the operating system.

    None switches any of them off, besides the temperature. Numbers may be numpy's. Raises
    InputTypeError or InputError with the name, the value and the allowed range.
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
        for name, (allowed, described, off) in _RANGES.items():
            value = getattr(self, name)
            if value is None and off is not None:
                value = off
            value = expect(name, value, Real, "a number")
            if not allowed(value):
                raise InputError(f"{name} must be {described}, got {value!r}")
            object.__setattr__(self, name, float(value))
        top_k = 0 if self.top_k is None else expect_integer("top_k", self.top_k, at_least=0)
        object.__setattr__(self, "top_k", top_k)
        if self.seed is not None:
            seed = expect_integer("seed", self.seed)
            if not -(2**63) <= seed < 2**64:
                raise InputError(f"seed must be at least -2**63 and below 2**64, got {seed}")
            object.__setattr__(self, "seed", seed)
        bias = {} if self.logit_bias is None else self.logit_bias
        checked = {}
        for token, value in expect(
            "logit_bias", bias, Mapping, "a mapping of ids to numbers"
        ).items():
            token = expect_integer("a token id in logit_bias", token, at_least=0)
            value = expect(f"logit_bias[{token}]", value, Real, "a number")
            if not (value == -math.inf or abs(value) <= _LARGEST):
                raise InputError(f"logit_bias[{token}] must be finite or -inf, got {value!r}")
            checked[token] = float(value)
        object.__setattr__(self, "logit_bias", checked)

    def check_vocab(self, vocab_size: int) -> None:
        """Raises InputError if logit_bias names a token id that the vocabulary does not have."""
        if (token := max(self.logit_bias, default=0)) >= vocab_size:
            raise InputError(
                f"logit_bias names token id {token}, but the vocabulary has {vocab_size} tokens"
            )


def expect(name: str, value: object, kind: type, described: str) -> Any:
    """`value`, if it is of that kind; InputTypeError if not, or if it is a bool."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputTypeError(f"{name} must be {described}, got {value!r} ({type(value).__name__})")
    return value.item() if hasattr(value, "item") else value  # numpy's numbers as Python's


def expect_integer(name: str, value: object, at_least: int | None = None) -> int:
    """`value` as an int, if it is an integer (numpy's too) and no less than `at_least`."""
    number = int(expect(name, value, Integral, "an integer"))
    if at_least is not None and number < at_least:
        raise InputError(f"{name} must be at least {at_least}, got {number}")
    return number


def check_limits(max_batch_size: int | None, max_seq_len: int | None) -> None:
    """Raises InputError or InputTypeError for limits of an engine that are no positive integers."""
    for name, value in (("max_batch_size", max_batch_size), ("max_seq_len", max_seq_len)):
        if value is not None:
            expect_integer(name, value, at_least=1)
