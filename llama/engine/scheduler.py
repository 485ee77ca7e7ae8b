"""The decode loop: requests join, their prompts are computed in chunks, and they decode together.

`generate`, streaming, evaluation and a server are the same loop around it:

    engine = Engine(model, tokenizer, max_batch_size=8, max_seq_len=2048)
    sequence = engine.add(Sequence(prompt_tokens, max_gen_len=64))
    while sequence.finish_reason is None:
        for running in engine.step():
            print(running.take_text(), end="")

A step runs a token of each request that decodes, and then at most one chunk of a prompt, in turns
where several prompts wait; beside requests that decode only some of the chunk's layers, the others
in later steps. Chunks begin at multiples of `chunk`, so that a prompt always takes the same matrix
shapes; the rows of a decode step do not depend on each other. So an answer follows from its request
alone, whatever else runs.

`add` and `cancel` may be called from any thread; one thread at a time steps (`run` is for several
threads that each wait for their own requests). What goes wrong with a request ends that request:
its `finish_reason` is "error" and `error` the exception.
"""

import bisect
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
from llama.engine.request import FinishReason, Sequence
from llama.engine.sampling_params import check_limits
from llama.engine.stats import EngineStats
from llama.errors import InputError
from llama.model import Transformer
from llama.tokenizer import Tokenizer

_LEAST_COST = 64  # positions: what a short prompt counts of a step's chunk: weights are read for it
_MARGIN = 64  # positions that a new row has beyond its prompt


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
        self._waiting: list[Job] = []  # by order
        self._prompts: deque[Job] = deque()  # admitted, their prompt not computed to its end
        self._running: list[Job] = []
        self._jobs: dict[Sequence, Job] = {}
        self._num_arrived = 0
        self._totals = EngineStats()
        self.inbox = Inbox()
        self._stepping = threading.RLock()
        self._threads = distributed.adaptive_threads()
        self._stepped = threading.Condition()
        self._num_steps = 0

    @property
    def idle(self) -> bool:
        """True when there is nothing left to do."""
        return not self._jobs and not self.inbox

    @property
    def waiting(self) -> list[Sequence]:
        """Requests that are not admitted, the next one first."""
        return [job.sequence for job in self._waiting]

    @property
    def running(self) -> list[Sequence]:
        """Requests that are admitted, those that decode first."""
        return [job.sequence for job in (*self._running, *self._prompts)]

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
            self._totals,
            running=len(jobs) - len(waiting),
            waiting=len(waiting),
            waiting_prompt_tokens=sum(waiting),
            kv_positions=memory.positions,
            kv_positions_used=memory.used // memory.position_bytes,
            finished=self._totals.finished.copy(),
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
            if self._jobs and self._runner.decoder.owns_rows:
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
        has_prompts = bool(self.inbox or self._waiting or self._prompts)
        varies = self._runner.may_vary_threads(has_prompts)
        with self._stepping, self._threads if varies else contextlib.nullcontext():
            changed: dict[Sequence, None] = {}
            self._changed = changed
            self._take_inbox()
            self._admit()
            self._decode()
            self._run_prompts()
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

    def _take_inbox_if_idle(self) -> None:
        """Acts at once where no thread steps, so that one thread sees what it asked for."""
        if distributed.model_parallel_size() == 1 and self._stepping.acquire(blocking=False):
            try:
                self._changed = {}
                self._take_inbox()
                self._report()
            finally:
                self._stepping.release()

    def _report(self) -> None:
        for sequence in self._changed:
            if sequence.on_change is not None:
                sequence.on_change(sequence)

    def _take_inbox(self) -> None:
        added, cancelled = self.inbox.take(self._new_jobs)
        for job in added:
            self._num_arrived += 1
            job.order = (job.order[0], self._num_arrived)
            sequence = job.sequence
            self._jobs[sequence] = job
            if sequence.max_gen_len or sequence.score_prompt or sequence.pool_from is not None:
                bisect.insort(self._waiting, job, key=lambda job: job.order)
            else:
                self._end(job, "length")
        for job in cancelled:
            if job.sequence in self._jobs:
                self._end(job, "cancelled")

    def _admit(self) -> None:
        """Gives rows to the requests that have waited longest, as far as memory goes."""
        while self._waiting and len(self._running) + len(self._prompts) < self.max_batch_size:
            job = self._waiting[0]
            sequence = job.sequence
            limit = len(sequence.prompt) + (sequence.max_gen_len or 0)
            wanted = len(sequence.prompt) + len(sequence.tokens)
            job.row = self.memory.new_row(min(wanted + _MARGIN, limit))
            if job.row is None:
                return
            self._waiting.pop(0)
            job.is_admitted = True
            sequence.times.setdefault("started", time.monotonic())
            self._prompts.append(job)
            try:
                self._totals.prefix_queries += self._runner.copy_stored(job)
                self._totals.prefix_hits += job.length
            except Exception as error:
                self._end(job, "error", error)

    def _run_prompts(self) -> None:
        """Runs layers of a prompt's chunk; then, if the budget is for more, of the next one's."""
        budget = left = max(self._runner.chunk, _LEAST_COST) * self._num_prompt_layers()
        while self._prompts:
            job = self._prompts[0]
            cost = max(self._runner.chunk_size(job), _LEAST_COST)  # of a layer
            if cost > left < budget:
                return
            num_layers = min(left // cost, self.model.n_layers - job.num_layers)
            left -= cost * num_layers
            try:
                logits = self._runner.run_chunk(job, num_layers)
            except Exception as error:
                self._end(job, "error", error)
                continue
            if job.num_layers:
                return
            self._prompts.popleft()
            self._changed[job.sequence] = None
            if job.length < len(job.sequence.prompt):
                self._prompts.append(job)
            else:
                self._finish_prompt(job, logits)

    def _num_prompt_layers(self) -> int:
        """How many layers of a chunk run between two decode steps.

        All where nothing decodes. Beside a stream one, which takes about as long as its token; the
        more prompts there are for each stream, the more, since a larger batch decodes faster.
        """
        all_layers, num_running = self.model.n_layers, len(self._running)
        if not num_running or self._runner.decoder.owns_rows:
            return all_layers
        share = all_layers * (len(self._prompts) - 1) // num_running
        return min(max(share, 1), all_layers)

    def _finish_prompt(self, job: Job, logits: Tensor | None) -> None:
        """Chooses the first token of a request, and of admitted ones with the same prompt.

        Without `logits` nothing is generated, and they end.
        """
        jobs = [job]
        for other in job.siblings:
            if other in self._prompts and other.row is not None and other is not job:
                assert job.row is not None
                other.row.view(0, 1, job.length).copy_from(job.row.view(0, 1, job.length))
                other.sequence.num_cached_tokens = other.length = job.length
                other.num_layers, other.hidden = 0, None
                other.sequence.copy_prompt_results(job.sequence)
                self._prompts.remove(other)
                jobs.append(other)
        started = []
        for each in jobs:
            if not each.sequence.tokens:  # a preempted one has its first token
                self._totals.prompt_tokens += len(each.sequence.prompt)
            if logits is None:
                self._end(each, "length")
                continue
            self._runner.decoder.join(each)
            if self._runner.decoder.owns_rows and each.row is not None:
                self.memory.free(each.row)
                each.row = None
            self._running.append(each)
            if not each.sequence.tokens:  # a preempted one has its first token
                started.append(each)
        if started and logits is not None:
            self._choose(started, logits.expand(len(started), -1))

    def _decode(self) -> None:
        """Runs the newest token of each request, and guesses after it, and chooses what follows."""
        feeds: list[tuple[Job, list[int]]] = []
        limit = self._runner.decoder.max_tokens // max(len(self._running), 1) - 1  # guesses
        for job in list(self._running):
            tokens = job.pending[: self._runner.decoder.max_tokens]
            if job not in self._running or not self._make_room(job, job.length + len(tokens)):
                continue  # it is preempted
            if tokens == job.pending and job.row is not None:
                room = min(limit, job.row.seq_len - job.length - len(tokens), job.num_left - 1)
                tokens += job.guess(room, self.draft)
            feeds.append((job, tokens))
        feeds = [(job, tokens) for job, tokens in feeds if job in self._running]
        if not feeds:
            return
        logits, errors = self._runner.run_tokens(feeds)
        active: list[tuple[Job, list[int], int]] = []  # with its guesses and a row of the logits
        end = 0
        for job, tokens in feeds:
            end += len(tokens)
            if job in errors:
                self._end(job, "error", errors[job])
                continue
            num_pending = min(len(job.pending), len(tokens))
            guesses = tokens[num_pending:]
            job.length += num_pending
            if not job.pending:  # else tokens from before it was preempted are still to be run
                active.append((job, guesses, end - len(guesses) - 1))
        num_accepted = {job: 0 for job, guesses, _ in active if guesses}
        while active:
            rows = [row for _, _, row in active]
            all_rows = rows == list(range(len(logits)))
            chosen = self._choose(
                [job for job, _, _ in active], logits if all_rows else logits[rows]
            )
            going_on = []
            for job, guesses, row in active:
                if guesses and chosen.get(job) == guesses[0]:
                    job.length += 1
                    num_accepted[job] += 1
                    going_on.append((job, guesses[1:], row + 1))
            active = going_on
        for job, count in num_accepted.items():
            job.sequence.num_accepted_tokens += count
            job.record_guess(count)

    def _make_room(self, job: Job, length: int) -> bool:
        """Grows a row to `length` positions; without memory the last in order is preempted."""
        limit = len(job.sequence.prompt) + (job.sequence.max_gen_len or 0)
        while job.row is not None and length > job.row.seq_len:
            row = self.memory.longer_row(job.row, length, limit)
            if row is not None:
                job.row = row
                break
            last = max((*self._running, *self._prompts), key=lambda job: job.order)
            self._preempt(last)
            if last is job:
                return False
        return True

    def _preempt(self, job: Job) -> None:
        """Takes a request's memory. Its prompt and its tokens are run again when there is room."""
        self._leave(job)
        job.length, job.is_admitted = 0, False
        job.sequence.num_preemptions += 1
        self._totals.preemptions += 1
        bisect.insort(self._waiting, job, key=lambda job: job.order)

    def _choose(self, jobs: list[Job], logits: Tensor) -> dict[Job, int]:
        """Chooses the next token of each job by its row of `logits`, and adds it to the answer.

        Returns the tokens of the jobs that go on.
        """
        is_all = len(jobs) == len(self._running) and not self._prompts and not self._waiting
        found, errors = self._runner.sample(jobs, logits, prelaunch=is_all)
        for job, error in errors.items():
            self._end(job, "error", error)
        chosen = {}
        for job, token, logprob, row in found:
            sequence = job.sequence
            self._changed[sequence] = None
            self._totals.generated_tokens += 1
            try:
                sequence.append(token, logprob, row)
            except Exception as error:
                self._end(job, "error", error)
            if sequence.finish_reason is None:
                job.extend(token)
                chosen[job] = token
            elif sequence in self._jobs:
                self._end(job)
        return chosen

    def _end(
        self, job: Job, reason: FinishReason | None = None, error: Exception | None = None
    ) -> None:
        """Ends a request, if it has not ended by itself, and frees what it had."""
        if job.sequence.finish_reason is None:
            assert reason is not None
            job.sequence.error = error
            job.sequence.finish(reason)
        assert job.sequence.finish_reason is not None
        self._totals.finished[job.sequence.finish_reason] += 1
        job.siblings = []  # a circle, which would keep what a request has until it is collected
        self._changed[job.sequence] = None
        self._leave(job)
        del self._jobs[job.sequence]
        self.inbox.forget(job)

    def _leave(self, job: Job) -> None:
        for jobs in (self._waiting, self._prompts, self._running):
            if job in jobs:
                jobs.remove(job)
        self._runner.decoder.leave(job)
        if job.row is not None:
            self.memory.free(job.row)
            job.row = None
        job.num_layers, job.hidden = 0, None
