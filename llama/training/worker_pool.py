"""Worker processes behind one `map`: concurrent.futures, and what it lacks for Ctrl-C and kill -9.

    with worker_map(encode, workers=4) as encode_all:
        for encoded in encode_all(batches): ...

Results come in the order of the batches, few of which are in memory at a time. Ctrl-C reaches the
calling process only; the workers end with it, also when it is killed.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_function: Callable[[Any], Any] | None = None  # of a worker process


@contextlib.contextmanager
def worker_map(
    function: Callable[[T], R], workers: int
) -> Iterator[Callable[[Iterable[T]], Iterator[R]]]:
    """Gives a `map` with `function` that computes in `workers` processes, or with 1 in this one.

    Each process gets a pickle of `function` once. Raises ChildProcessError where a process dies.
    """
    if workers == 1:
        yield functools.partial(map, function)
        return
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_initialize,
        initargs=(function,),
    )
    try:
        _start(executor, workers)
        yield functools.partial(_map, executor, 2 * workers)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died: out of memory, perhaps, or the script that started it has no "
            '`if __name__ == "__main__":`; workers=1 starts none'
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start(executor: Executor, workers: int) -> None:
    """Starts all processes where SIGINT is blocked, which they inherit; it is delivered after."""
    if sys.platform == "win32":
        return
    resource_tracker.ensure_running()  # starting it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(workers):
            executor.submit(int)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _map(executor: Executor, ahead: int, items: Iterable[Any]) -> Iterator[Any]:
    """`map` in order that reads at most `ahead` items more than it has given results."""
    futures: deque[Future[Any]] = deque()
    for item in items:
        futures.append(executor.submit(_call, item))
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _initialize(function: Callable[[Any], Any]) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = function


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
