"""The engine: the loop around a model that every call is run by.

`generate`, streaming, evaluation and a server are the same loop around it:

    engine = Engine(model, tokenizer, max_batch_size=8, max_seq_len=2048)
    sequence = engine.add(Sequence(prompt_tokens, max_gen_len=64))
    while sequence.finish_reason is None:
        for running in engine.step():
            print(running.take_text(), end="")

`add` and `cancel` may be called from any thread; one thread at a time steps (`run` is for several
threads that each wait for their own requests). What goes wrong with a request ends that request:
its `finish_reason` is "error" and `error` the exception. `scheduler.py` decides who runs when.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llama import distributed
from llama.cache import KVCache
from llama.engine.decoding import Job
from llama.engine.inbox import Inbox
from llama.engine.kv_memory import KVMemory
from llama.engine.model_runner import ModelRunner
from llama.engine.request import Sequence
from llama.engine.sampling_params import check_limits
from llama.engine.scheduler import Scheduler
from llama.engine.stats import EngineStats
from llama.errors import InputError
from llama.model import Transformer
from llama.tokenizer import Tokenizer


class Engine:
    """Runs requests on a model, at most `max_batch_size` at a time.

    kv_memory: bytes for keys and values of all requests; half of the free memory if None. Requests
        that do not fit wait, and one that grows may preempt the last admitted one, which continues
        later with the same answer.
    prefix_memory: bytes for full chunks of prompts, which later prompts that begin alike copy; an
        eighth of the free memory, at most 1 GiB, if None, and no store if 0.
    prefix_folder: where they are kept for later processes.
    chunk: positions of a prompt that are computed between two decode steps; 256 on a CPU, 1024
        elsewhere.
    draft: a smaller model with the same tokenizer, which guesses tokens (see `speculation.py`).
    cuda_graphs: whether decoding on a GPU is recorded, where the GPU has the model to itself.

    Every rank has an engine. The first rank's requests, cancellations and tokens are those of all.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        max_batch_size: int,
        max_seq_len: int,
        *,
        kv_memory: int | None = None,
        prefix_memory: int | None = None,
        prefix_folder: str | Path | None = None,
        chunk: int | None = None,
        draft: Transformer | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        check_limits(max_batch_size, max_seq_len)
        self.model, self.tokenizer = model, tokenizer
        self.max_batch_size, self.max_seq_len = max_batch_size, max_seq_len
        self.draft = draft
        self.memory = KVMemory(model, kv_memory)
        self._runner = ModelRunner(
            model,
            tokenizer.n_words,
            max_batch_size,
            max_seq_len,
            chunk,
            prefix_memory,
            prefix_folder,
            cuda_graphs,
        )
        self.inbox = Inbox()
        self._scheduler = Scheduler(self._runner, self.memory, self.inbox, max_batch_size, draft)
        self._stepping = threading.RLock()
        self._threads = distributed.adaptive_threads()
        self._stepped = threading.Condition()
        self._num_steps = 0

    @property
    def idle(self) -> bool:
        """True when there is nothing left to do."""
        return not self._scheduler.jobs and not self.inbox

    @property
    def waiting(self) -> list[Sequence]:
        """Requests that are not admitted, the next one first."""
        return [job.sequence for job in self._scheduler.waiting]

    @property
    def running(self) -> list[Sequence]:
        """Requests that are admitted, those that decode first."""
        return [job.sequence for job in (*self._scheduler.running, *self._scheduler.prompts)]

    @property
    def unfinished(self) -> list[Sequence]:
        """All requests that were added and have not ended."""
        return [job.sequence for job in self.inbox.unfinished]

    @property
    def stats(self) -> EngineStats:
        """What the engine does and has done, from any thread."""
        jobs, memory = self.inbox.unfinished, self.memory
        waiting = [len(job.sequence.prompt) for job in jobs if not job.is_admitted]
        return replace(
            self._scheduler.totals,
            running=len(jobs) - len(waiting),
            waiting=len(waiting),
            waiting_prompt_tokens=sum(waiting),
            kv_positions=memory.positions,
            kv_positions_used=memory.used // memory.position_bytes,
            finished=self._scheduler.totals.finished.copy(),
        )

    def check(self, sequence: Sequence, name: str = "the prompt") -> None:
        """Raises InputError for a request that this engine cannot run; `name` is its prompt's."""
        vocab_size, positions = self.tokenizer.n_words, self.memory.positions
        sequence.check(name, vocab_size, self.max_seq_len, positions, self.adapters)

    def add(self, sequence: Sequence, *siblings: Sequence) -> Sequence:
        """Queues requests, from any thread; those of equal prompts share the work for the prompt.

        Raises as `check` does, and then queues none. Returns the first.
        """
        sequences = [sequence, *siblings]
        for each in sequences:
            self.check(each)
        self.inbox.add(self._new_jobs(sequences))
        self._take_inbox_if_idle()
        return sequence

    def _new_jobs(self, sequences: list[Sequence]) -> list[Job]:
        """Prepares requests; those of which the same is computed are each other's siblings."""
        jobs = []
        groups: dict[Hashable, list[Job]] = {}
        for each in sequences:
            room = min(self.max_seq_len, self.memory.positions) - len(each.prompt)
            wanted = room if each.max_gen_len is None else min(each.max_gen_len, room)
            each.start(self.tokenizer, wanted)
            each.times["queued"] = time.monotonic()
            siblings = groups.setdefault(each.prompt_work, [])
            jobs.append(Job(each, (-each.priority, 0), siblings=siblings))
            siblings.append(jobs[-1])
        return jobs

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Loads a LoRA adapter beside the model, for requests with that name as their `adapter`.

        Raises FileNotFoundError or InputError for what is missing, damaged or does not fit.
        """
        with self._stepping:
            if self._scheduler.jobs and self._runner.decoder.owns_rows:
                raise InputError("on a GPU an adapter is loaded while no request runs")
            self._runner.load_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Unloads an adapter; InputError if there is none of that name or a request uses it."""
        with self._stepping:
            if users := sum(sequence.adapter == name for sequence in self.unfinished):
                raise InputError(f"the adapter {name!r} is in use by {users} unfinished requests")
            self._runner.adapters.unload(name)

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that are loaded."""
        return list(self._runner.adapters.fingerprints)

    def cancel(self, sequence: Sequence) -> None:
        """Ends a request, keeping what it has, from any thread; others go on as they are."""
        self.inbox.cancel(sequence)
        self._take_inbox_if_idle()

    def follow(self) -> None:
        """On a rank besides the first: runs what the first rank's engine runs, until it is closed.

        The first rank sets `inbox.is_followed`, and calls `stop_following` at the end.
        """
        while not self.inbox.is_stopped:
            self.step()

    def stop_following(self) -> None:
        """On the first rank: lets the ranks that follow return."""
        self.inbox.stop()
        self.step()

    @torch.no_grad()
    def run_prompt(self, prompt: list[int], row: KVCache) -> Tensor:
        """The logits (1, vocab) after a prompt, computed in `row` between two steps."""
        job = Job(Sequence(prompt), (0, 0), row)
        with self._stepping:
            while (logits := self._runner.run_chunk(job, self.model.n_layers)) is None:
                pass
        return logits

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """Runs a token of each request that decodes, then a chunk of a prompt, if any waits.

        Returns the requests that changed.
        """
        has_prompts = bool(self.inbox or self._scheduler.waiting or self._scheduler.prompts)
        varies = self._runner.may_vary_threads(has_prompts)
        with self._stepping, self._threads if varies else contextlib.nullcontext():
            changed: dict[Sequence, None] = {}
            self._scheduler.changed = changed
            self._take_inbox()
            self._scheduler.step()
            self._report()
            with self._stepped:
                self._num_steps += 1
                self._stepped.notify_all()
            return list(changed)

    def run(self, sequences: list[Sequence]) -> Iterator[list[Sequence]]:
        """Steps until all of `sequences` are finished; yields those that have changed.

        Several threads may do so at once: one of them steps, for all, and the others wait for it.
        """
        changed: deque[Sequence] = deque()
        for sequence in sequences:
            sequence.on_change = changed.append
        unfinished, new = set(sequences), sequences  # another thread may have stepped already
        while True:
            unfinished.difference_update(s for s in new if s.finish_reason is not None)
            yield new
            if not unfinished:
                self._take_inbox_if_idle()  # what was cancelled during the last step
                return
            seen = self._num_steps
            if self._stepping.acquire(blocking=False):
                try:
                    self.step()
                finally:
                    self._stepping.release()
            else:
                with self._stepped:  # the thread that steps may stop when its requests end
                    if self._num_steps == seen:
                        self._stepped.wait(timeout=0.05)
            new = list(dict.fromkeys(changed.popleft() for _ in range(len(changed))))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No step runs meanwhile: for a caller that uses the model itself."""
        with self._stepping:
            yield

    def _take_inbox_if_idle(self) -> None:
        """Acts at once where no thread steps, so that one thread sees what it asked for."""
        if distributed.model_parallel_size() == 1 and self._stepping.acquire(blocking=False):
            try:
                self._scheduler.changed = {}
                self._take_inbox()
                self._report()
            finally:
                self._stepping.release()

    def _take_inbox(self) -> None:
        self._scheduler.take(*self.inbox.take(self._new_jobs))

    def _report(self) -> None:
        for sequence in self._scheduler.changed:
            if sequence.on_change is not None:
                sequence.on_change(sequence)
