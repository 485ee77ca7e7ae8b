"""An engine for asyncio programs: one thread steps, coroutines submit and iterate.

    engine = AsyncEngine(llama.engine)
    async for changed in engine.stream(Sequence(prompt)):
        print(changed.take_text(), end="")
    engine.close()

A consumer that is cancelled, or stops iterating and closes the iterator, cancels its requests.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator

from llama.engine.request import Sequence
from llama.engine.scheduler import Engine

_KEEP_ALIVE = 60  # seconds


class AsyncEngine:
    """Steps `engine` in a thread of its own whenever there is something to do.

    Coroutines of any event loop may stream from it, and other threads may go on to use the engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="llama engine", daemon=True)
        self._thread.start()

    async def stream(self, *sequences: Sequence) -> AsyncGenerator[Sequence, None]:
        """Submits requests, and yields each one whenever it has changed, until all are finished.

        Raises as `Engine.check` does, before anything is submitted.
        """
        if self._closed:
            raise RuntimeError("this AsyncEngine is closed")
        loop, changed = asyncio.get_running_loop(), asyncio.Queue[Sequence]()

        def on_change(sequence: Sequence) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.put_nowait, sequence)

        for sequence in sequences:
            sequence.on_change = on_change
        try:
            self.engine.add(*sequences)
            self._work.set()
            unfinished = {s for s in sequences if s.finish_reason is None}
            for sequence in sequences:
                if sequence not in unfinished:
                    yield sequence
            while unfinished:
                sequence = await changed.get()
                is_finished = sequence.finish_reason is not None
                if is_finished and sequence not in unfinished:
                    continue
                if is_finished:
                    unfinished.discard(sequence)
                yield sequence
        finally:
            for sequence in sequences:
                sequence.on_change = None
                if sequence.finish_reason is None:
                    self.engine.cancel(sequence)
            self._work.set()

    def close(self) -> None:
        """Ends the thread after its step. Requests that run are cancelled, ranks stop to follow."""
        self._closed = True
        self._work.set()
        self._thread.join()
        for sequence in (*self.engine.running, *self.engine.waiting):
            self.engine.cancel(sequence)
        if self.engine.inbox.is_followed:
            self.engine.stop_following()

    def _run(self) -> None:
        while not self._closed:
            # Ranks that follow wait in a collective, which has a timeout.
            if not self._work.wait(_KEEP_ALIVE) and self.engine.inbox.is_followed:
                self.engine.step()
            self._work.clear()
            while not self.engine.idle and not self._closed:
                self.engine.step()
