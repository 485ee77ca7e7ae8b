"""What any thread asks of an engine, on every rank of its model.

Threads put new requests and cancellations in; the thread that steps takes them out, between two
steps. With several ranks the first one's are those of all. Where every rank makes the same calls,
each has the requests already, known by their number in the order of arrival; an engine that is
followed sends them.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from llama import distributed
from llama.engine.decoding import Job
from llama.engine.request import Sequence


class Inbox:
    """New requests and cancellations, from `add` and `cancel` to `take`."""

    def __init__(self) -> None:
        self._entries: deque[tuple[str, Any]] = deque()
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}  # by number, until they are ended
        self._numbers: dict[Sequence, int] = {}
        self._num_added = 0
        self.is_followed = False
        self.is_stopped = False

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, jobs: list[Job]) -> None:
        """Puts new requests in, all or none."""
        with self._lock:
            self._entries.append(("add", jobs))
            self._number(jobs)

    def cancel(self, sequence: Sequence) -> None:
        """Puts a cancellation in."""
        self._entries.append(("cancel", sequence))

    def stop(self) -> None:
        """Lets the ranks that follow this one stop."""
        self._entries.append(("stop", None))

    def forget(self, job: Job) -> None:
        """Takes note that a request has ended."""
        with self._lock:
            self._jobs.pop(self._numbers.pop(job.sequence), None)

    @property
    def unfinished(self) -> list[Job]:
        """All that were added and have not ended."""
        with self._lock:
            return list(self._jobs.values())

    def take(self, new_jobs: Callable[[list[Sequence]], list[Job]]) -> tuple[list[Job], list[Job]]:
        """New jobs, and jobs to cancel, in the order of all ranks.

        `new_jobs` makes jobs of requests that came from another rank.
        """
        entries = [self._entries.popleft() for _ in range(len(self._entries))]
        message: list[tuple[str, list[int | None], Any]] = []
        for kind, subject in entries:
            if kind == "add":
                requests = [job.sequence.request() for job in subject] if self.is_followed else None
                message.append((kind, [self._numbers[job.sequence] for job in subject], requests))
            else:
                message.append((kind, [self._numbers.get(subject)], None))
        added, cancelled = [], []
        for kind, numbers, requests in distributed.broadcast_object(message):
            if kind == "add" and requests is not None and numbers[0] not in self._jobs:
                jobs = new_jobs([Sequence(**request) for request in requests])
                with self._lock:
                    self._number(jobs)
            jobs = [self._jobs[number] for number in numbers if number in self._jobs]
            if kind == "stop":
                self.is_stopped = True
            elif kind == "add":
                added += jobs
            else:
                cancelled += jobs
        return added, cancelled

    def _number(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._jobs[self._num_added] = job
            self._numbers[job.sequence] = self._num_added
            self._num_added += 1
