"""Fewer threads while other processes compete for the cores.

The threads of a parallel region wait for each other at its end, some hundred times a token. Where a
thread has lost its core to another process the rest wait for a time slice each time, and burn their
own while they do: two threads beside two busy processes on two cores are a hundred times slower
than one. A thread that loses its core is preempted, which the operating system counts.

    with adaptive_threads():
        ...  # a step, with all threads or fewer
"""

import functools
import threading
import time

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_SHORTEST, _LONGEST = 0.02, 0.1  # seconds between two looks
_FEWEST = 3  # preemptions: one or two happen on any machine
_RATE = 80.0  # preemptions a second of CPU time: a quiet machine has 20, a busy one 200
_FIRST_HOLD, _LONGEST_HOLD = 0.5, 30.0  # seconds with fewer threads, before more are tried again


class CpuThreads:
    """How many threads a step runs on: torch's number, or fewer while the machine is busy.

    Several Python threads may run steps at once; torch has a number for each. One that is new gets
    the number that any has set last, which may be one with `fewer`: it should set `full`.
    """

    def __init__(self) -> None:
        self.count = torch.get_num_threads()
        self.full = self.count
        self._lock = threading.Lock()
        self._num_reduced = 0  # Python threads in a step with fewer
        self._entered = threading.local()  # `numbers` of the steps that a Python thread is in
        self._hold, self._until = _FIRST_HOLD, 0.0
        self.was_busy = False  # at any time so far
        self._is_trying = False  # whether the number was raised after a hold
        self._last = self._usage()

    @property
    def is_busy(self) -> bool:
        """Whether other processes are competing for the cores."""
        return self.count < self.full

    def __enter__(self) -> "CpuThreads":
        own = torch.get_num_threads()
        with self._lock:
            if not self._num_reduced:
                self.full = own
            self.count = min(self.count, self.full) if self._until else self.full
            if resource is not None and self.full > 1:
                self._look()
            count = min(self.count, own)
            self._num_reduced += count < own
        self._entered.__dict__.setdefault("numbers", []).append((own, count))
        if count < own:
            torch.set_num_threads(count)
        return self

    def __exit__(self, *error: object) -> None:
        own, count = self._entered.numbers.pop()
        if count < own:
            torch.set_num_threads(own)
            with self._lock:
                self._num_reduced -= 1

    def _look(self) -> None:
        now, cpu, preempted = self._usage()
        before, cpu_before, preempted_before = self._last
        count, elapsed = preempted - preempted_before, now - before
        if elapsed < (_SHORTEST if count >= _FEWEST else _LONGEST):
            return
        self._last = now, cpu, preempted
        # With hardly any CPU time of its own the process was waiting: nothing to be seen.
        if count >= _FEWEST and count > _RATE * max(cpu - cpu_before, _SHORTEST):
            self.was_busy = True
            if self._is_trying:  # others go on, though fewer threads do not meet them
                self._hold = min(2 * self._hold, _LONGEST_HOLD)
            self.count, self._until, self._is_trying = (
                max(self.count // 2, 1),
                now + self._hold,
                False,
            )
        elif self.is_busy and now > self._until:
            self.count, self._is_trying = min(2 * self.count, self.full), True
        elif not self.is_busy and now > self._until + 2 * self._hold:
            self._hold, self._is_trying = _FIRST_HOLD, False

    @staticmethod
    def _usage() -> tuple[float, float, int]:
        """The time, this process's CPU time in seconds, and its threads' preemptions so far."""
        if resource is None:
            return time.perf_counter(), 0.0, 0
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime, usage.ru_nivcsw


@functools.cache
def adaptive_threads() -> CpuThreads:
    """The one of this process: what competes for its cores is the same for all of its loops."""
    return CpuThreads()
