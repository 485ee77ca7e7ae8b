"""Worker processes that leave nothing behind.

    with worker_map(make_encoder, path, workers=4) as encode:
        for encoded in encode(batches): ...

Each process calls `make_encoder(path)` once, and what that returns for one batch after another. The
results come in the order of the batches, of which few are in memory at a time. Ctrl-C is for the
process that called; the workers end with it, also when it is killed.
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

A = TypeVar("A")
T = TypeVar("T")
R = TypeVar("R")

_function: Callable[[Any], Any] | None = None  # in a worker: what it was started for


@contextlib.contextmanager
def worker_map(
    make: Callable[[A], Callable[[T], R]], argument: A, workers: int
) -> Iterator[Callable[[Iterable[T]], Iterator[R]]]:
    """Gives a `map` with the function `make(argument)` that computes in `workers` processes.

    `make` stands at the top level of a module. Raises ChildProcessError where one ends by itself.
    """
    if sys.platform != "win32":
        resource_tracker.ensure_running()  # lets signals through again, so not at the first worker
    executor = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(make, argument),
    )
    try:
        yield functools.partial(_in_order, executor, workers)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process ended by itself: for want of memory, perhaps, or because the script "
            'that started it has no `if __name__ == "__main__":`; workers=1 does without'
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _in_order(executor: Executor, workers: int, items: Iterable[Any]) -> Iterator[Any]:
    begun: deque[Future[Any]] = deque()
    for item in items:
        with _interrupts_held_back():
            begun.append(executor.submit(_call, item))
        if len(begun) > 2 * workers:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C waits until the end of this, and processes that start meanwhile never hear of it."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(make: Callable[[A], Callable[[T], R]], argument: A) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = make(argument)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
