"""An engine for asyncio programs: one thread steps, coroutines submit and iterate.

    engine = AsyncEngine(llama.engine)
    async for changed in engine.stream(Sequence(prompt)):
        print(changed.take_text(), end="")
    engine.close()

A consumer that is cancelled, or stops iterating and closes the iterator, cancels its requests. Each
engine has a thread of its own, so several models may run in one process.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable

import torch

from llama import distributed
from llama.engine.engine import Engine
from llama.engine.request import Sequence

_KEEP_ALIVE = 60  # seconds


class AsyncEngine:
    """Steps `engine` in a thread of its own whenever there is something to do.

    Coroutines of any event loop may stream from it, and other threads may go on to use the engine.
    The thread keeps the engine, and the model, in memory until `close`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.error: BaseException | None = None  # that a step has raised: nothing runs any more
        self._work = threading.Event()
        self._changing = threading.Condition()  # the lock of what follows
        self._num_adding = 0  # calls of `engine.add`
        self._closed = False
        self._streams: set[Callable[[None], None]] = set()  # each ends a stream after an error
        self._thread = threading.Thread(target=self._run, name="llama engine", daemon=True)
        self._thread.start()

    async def stream(self, *sequences: Sequence) -> AsyncGenerator[Sequence, None]:
        """Submits requests, and yields each one whenever it has changed, until all are finished.

        Raises as `Engine.check` does, before anything is submitted; RuntimeError after `close`; and
        what a step has raised, which is a defect and ends all streams.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Queue[Sequence | None]()

        def on_change(sequence: Sequence | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(changed.put_nowait, sequence)

        for sequence in sequences:
            self.engine.check(sequence)
            if sequence.grammar is not None:  # the loop goes on meanwhile
                await asyncio.to_thread(sequence.compile_grammar, self.engine.tokenizer)
            sequence.on_change = on_change
        adding = loop.run_in_executor(None, self._add, sequences, on_change)
        try:
            await asyncio.shield(adding)
            unfinished = set(sequences)
            while unfinished:
                changed_one = await changed.get()
                if changed_one is None:
                    self._raise_error()
                elif changed_one in unfinished:
                    if changed_one.finish_reason is not None:
                        unfinished.discard(changed_one)
                    yield changed_one
        finally:
            if adding.done():
                self._end(sequences, on_change)
            else:  # the consumer was cancelled
                adding.add_done_callback(lambda _: self._end(sequences, on_change))

    def _add(self, sequences: tuple[Sequence, ...], on_change: Callable[[None], None]) -> None:
        """Submits requests. A large grammar takes long to compile: no thread for an event loop."""
        with self._changing:
            self._raise_error()
            if self._closed:
                raise RuntimeError("this AsyncEngine is closed")
            self._streams.add(on_change)
            self._num_adding += 1
        try:
            self.engine.add(*sequences)
        finally:
            with self._changing:
                self._num_adding -= 1
                self._changing.notify_all()
        self._work.set()

    def _end(self, sequences: tuple[Sequence, ...], on_change: Callable[[None], None]) -> None:
        """Cancels what is not finished."""
        with self._changing:
            self._streams.discard(on_change)
        for sequence in sequences:
            sequence.on_change = None
            if sequence.finish_reason is None and self.error is None:
                self.engine.cancel(sequence)
        self._work.set()

    def close(self) -> None:
        """Ends the thread after its step. Requests that run are cancelled, ranks stop to follow."""
        with self._changing:
            was_closed, self._closed = self._closed, True
        self._work.set()
        self._thread.join()
        with self._changing:  # what is being added has to end too
            self._changing.wait_for(lambda: not self._num_adding)
        if was_closed or self.error is not None:
            return
        for sequence in self.engine.unfinished:
            self.engine.cancel(sequence)
        if self.engine.inbox.is_followed:
            self.engine.stop_following()

    def _run(self) -> None:
        torch.get_num_threads()  # a thread's first use of torch sets its number
        torch.set_num_threads(distributed.adaptive_threads().full)
        try:
            while not self._closed:
                # Ranks that follow wait in a collective, which has a timeout.
                if not self._work.wait(_KEEP_ALIVE) and self.engine.inbox.is_followed:
                    self.engine.step()
                self._work.clear()
                while not self.engine.idle and not self._closed:
                    self.engine.step()
        except BaseException as error:
            with self._changing:
                self.error, self._traceback = error, error.__traceback__
                streams = list(self._streams)
            for end in streams:
                end(None)

    def _raise_error(self) -> None:
        if self.error is not None:
            # With the traceback of the step alone: each `raise` adds to the one that is there.
            raise self.error.with_traceback(self._traceback)
