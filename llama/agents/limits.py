"""How much an agent may do, and what a run of it hands down to those that it asks.

run = Run(deadline=time.monotonic() + 60)
run.seconds_left, run.at_most(10), run.through("lawyer")
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llama.agents.traces import Trace
from llama.errors import InputError, InputTypeError

Approve = Callable[[str, Mapping[str, Any]], bool | Awaitable[bool]]

_SHARE = 0.75  # of the time that is left, for what an agent asks: the rest is for its own answer


class AgentError(Exception):
    """Why an agent has no answer: `status` is that of an HTTP response which says so."""

    def __init__(self, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """How much one question may cost.

    steps: messages of the model; the last one is an answer, without tools.
    tokens: that the model writes, over all steps.
    seconds: until there is an answer, or an error that says why not.
    calls_per_tool: of one tool.
    tool_seconds: for a call; what takes longer is an error that the model gets.
    result_chars: of a tool's result; a longer one is an error that the model gets.
    hops: agents that a question may pass through, one asking the next.
    """

    steps: int = 8
    tokens: int = 2048
    seconds: float = 120
    calls_per_tool: int = 8
    tool_seconds: float = 30
    result_chars: int = 20_000
    hops: int = 4

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            kinds = (int, float) if "seconds" in limit.name else int
            if isinstance(value, bool) or not isinstance(value, kinds):
                what = "a number" if "seconds" in limit.name else "a whole number"
                raise InputTypeError(f"limits: {limit.name} must be {what}, got {value!r:.60}")
            if not 0 < value < math.inf:
                raise InputError(f"limits: {limit.name} must be above 0, got {value!r:.60}")


@dataclass(frozen=True)
class Run:
    """A question on its way: when it has to be answered, whom it passed, and who watches.

    deadline: in seconds of `time.monotonic`.
    path: names of the agents that were asked, from the first.
    max_hops: how many they may be.
    span: the step of the trace that this is part of.
    approve: says whether a tool with side effects may be called; without it none is.
    on_text: is called with each new piece of the answer.
    """

    deadline: float
    path: tuple[str, ...] = ()
    max_hops: int = Limits.hops
    trace: Trace = field(default_factory=Trace)
    span: str | None = None
    approve: Approve | None = None
    on_text: Callable[[str], None] | None = None

    @classmethod
    def starting(cls, limits: Limits = Limits(), **options: Any) -> "Run":
        """A question that comes now; the options are the other fields."""
        return cls(time.monotonic() + limits.seconds, max_hops=limits.hops, **options)

    @property
    def seconds_left(self) -> float:
        """Until the deadline; at least 0."""
        return max(self.deadline - time.monotonic(), 0.0)

    def at_most(self, seconds: float) -> float:
        """That many seconds, or what is left for something that an answer follows."""
        return min(seconds, self.seconds_left * _SHARE)

    def within(self, seconds: float) -> "Run":
        """The same for a part of it, which has at most so many seconds."""
        return replace(self, deadline=min(self.deadline, time.monotonic() + seconds))

    def through(self, agent: str) -> "Run":
        """The same when it reaches an agent. Raises AgentError where it passed too many."""
        path = (*self.path, agent)
        if len(path) > self.max_hops:
            raise AgentError(
                f"a circle of agents: the question passed {' > '.join(path)}, and at most "
                f"{self.max_hops} may be asked by one another",
                508,
            )
        return replace(self, path=path)
