"""Runs requests on a model within the server's limits, and observes how long they take."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from llama.engine.request import Sequence
from llama.serving.http_errors import RETRY_LATER, HttpError
from llama.serving.registry import ServedModel


async def changes(served: ServedModel, sequences: list[Sequence]) -> AsyncGenerator[Sequence, None]:
    """Submits requests, and yields each one whenever it has changed, until all are finished.

    A consumer that stops early cancels them. Raises HttpError where the queue is full, the time is
    up or the server ends, and the error of one that fails; the others are cancelled.
    """
    _check_queue(served, sequences)
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        for sequence in sequences:
            served.llama.engine.cancel(sequence)

    timer = None
    if served.limits.timeout is not None:
        timer = asyncio.get_running_loop().call_later(served.limits.timeout, end)
    seen: dict[Sequence, tuple[int, float]] = {}  # tokens, and when the last one came
    try:
        async with aclosing(served.engine.stream(*sequences)) as stream:
            async for sequence in stream:
                if sequence.error is not None:
                    raise sequence.error
                if sequence.finish_reason == "cancelled":
                    raise _too_late(served, sequences) if is_late else _shutting_down()
                count, last = seen.get(sequence, (0, 0.0))
                if (new := len(sequence.tokens) - count) > 0:
                    now = time.monotonic()
                    if count:
                        served.metrics.observe_tokens(new, now - last)
                    seen[sequence] = count + new, now
                yield sequence
    finally:
        if timer is not None:
            timer.cancel()
        for sequence in sequences:
            if "queued" in sequence.times:
                served.metrics.observe_request(sequence)


def _check_queue(served: ServedModel, sequences: list[Sequence]) -> None:
    limit = served.limits.max_queue_tokens
    if limit is None:
        return
    waiting = served.llama.engine.stats.waiting_prompt_tokens
    # A prompt that is longer than the limit runs when nothing else waits: a retry has to succeed.
    if waiting and waiting + sum(len(s.prompt) for s in sequences) > limit:
        raise HttpError(
            503,
            f"prompts of {waiting} tokens wait, of at most {limit} (--max_queue_tokens); try again "
            "later",
            code="queue_full",
            headers=RETRY_LATER,
        )


def _too_late(served: ServedModel, sequences: list[Sequence]) -> HttpError:
    """Clients retry a 503: only what had no turn may succeed the next time."""
    seconds = f"{served.limits.timeout:g} s (--timeout)"
    if not any("started" in s.times for s in sequences):
        text = f"the request waited {seconds} for other requests"
        return HttpError(503, text, code="timeout", headers=RETRY_LATER)
    count = sum(len(s.tokens) for s in sequences)
    done = f"the answer had {count} tokens; ask for fewer" if count else "the prompt was being read"
    text = f"the request was not finished after {seconds}: {done}"
    return HttpError(400, text, param="max_tokens", code="timeout")


def _shutting_down() -> HttpError:
    return HttpError(503, "the server is shutting down", code="draining", headers=RETRY_LATER)
