"""Who runs when: requests join, their prompts are computed in chunks, and they decode together.

A step runs a token of each request that decodes, and then at most one chunk of a prompt, in turns
where several prompts wait; beside requests that decode only some of the chunk's layers, the others
in later steps. Chunks begin at multiples of `chunk`, so that a prompt always takes the same matrix
shapes; the rows of a decode step do not depend on each other. So an answer follows from its request
alone, whatever else runs.
"""

import bisect
import time
from collections import deque

from torch import Tensor

from llama.engine.decoding import Job
from llama.engine.inbox import Inbox
from llama.engine.kv_memory import KVMemory
from llama.engine.model_runner import ModelRunner
from llama.engine.request import FinishReason, Sequence
from llama.engine.stats import EngineStats
from llama.model import Transformer

_LEAST_COST = 64  # positions: what a short prompt counts of a step's chunk: weights are read for it
_MARGIN = 64  # positions that a new row has beyond its prompt


class Scheduler:
    """The requests of an engine, from the inbox to their end; for the thread that steps.

    Its arguments are those of `Engine`. What goes wrong with a request ends that request.
    """

    def __init__(
        self,
        runner: ModelRunner,
        memory: KVMemory,
        inbox: Inbox,
        max_batch_size: int,
        draft: Transformer | None,
    ) -> None:
        self.waiting: list[Job] = []  # by order
        self.prompts: deque[Job] = deque()  # admitted, their prompt not computed to its end
        self.running: list[Job] = []
        self.jobs: dict[Sequence, Job] = {}
        self.changed: dict[Sequence, None] = {}  # in this step, in their order
        self.totals = EngineStats()
        self._runner, self._memory, self._inbox = runner, memory, inbox
        self._max_batch_size, self._draft = max_batch_size, draft
        self._num_arrived = 0

    def step(self) -> None:
        """A token of each request that decodes, then a chunk of a prompt, if any waits."""
        self._admit()
        self._decode()
        self._run_prompts()

    def take(self, added: list[Job], cancelled: list[Job]) -> None:
        """Queues new requests and ends others."""
        for job in added:
            self._num_arrived += 1
            job.order = (job.order[0], self._num_arrived)
            sequence = job.sequence
            self.jobs[sequence] = job
            if sequence.max_gen_len or sequence.score_prompt or sequence.pool_from is not None:
                bisect.insort(self.waiting, job, key=lambda job: job.order)
            else:
                self._end(job, "length")
        for job in cancelled:
            if job.sequence in self.jobs:
                self._end(job, "cancelled")

    def _admit(self) -> None:
        """Gives rows to the requests that have waited longest, as far as memory goes."""
        while self.waiting and len(self.running) + len(self.prompts) < self._max_batch_size:
            job = self.waiting[0]
            sequence = job.sequence
            limit = len(sequence.prompt) + (sequence.max_gen_len or 0)
            wanted = len(sequence.prompt) + len(sequence.tokens)
            job.row = self._memory.new_row(min(wanted + _MARGIN, limit))
            if job.row is None:
                return
            self.waiting.pop(0)
            job.is_admitted = True
            sequence.times.setdefault("started", time.monotonic())
            self.prompts.append(job)
            try:
                self.totals.prefix_queries += self._runner.copy_stored(job)
                self.totals.prefix_hits += job.length
            except Exception as error:
                self._end(job, "error", error)

    def _run_prompts(self) -> None:
        """Runs layers of a prompt's chunk; then, if the budget is for more, of the next one's."""
        budget = left = max(self._runner.chunk, _LEAST_COST) * self._num_prompt_layers()
        while self.prompts:
            job = self.prompts[0]
            cost = max(self._runner.chunk_size(job), _LEAST_COST)  # of a layer
            if cost > left < budget:
                return
            num_layers = min(left // cost, self._runner.model.n_layers - job.num_layers)
            left -= cost * num_layers
            try:
                logits = self._runner.run_chunk(job, num_layers)
            except Exception as error:
                self._end(job, "error", error)
                continue
            if job.num_layers:
                return
            self.prompts.popleft()
            self.changed[job.sequence] = None
            if job.length < len(job.sequence.prompt):
                self.prompts.append(job)
            else:
                self._finish_prompt(job, logits)

    def _num_prompt_layers(self) -> int:
        """How many layers of a chunk run between two decode steps.

        All where nothing decodes. Beside a stream one, which takes about as long as its token; the
        more prompts there are for each stream, the more, since a larger batch decodes faster.
        """
        all_layers, num_running = self._runner.model.n_layers, len(self.running)
        if not num_running or self._runner.decoder.owns_rows:
            return all_layers
        share = all_layers * (len(self.prompts) - 1) // num_running
        return min(max(share, 1), all_layers)

    def _finish_prompt(self, job: Job, logits: Tensor | None) -> None:
        """Chooses the first token of a request, and of admitted ones with the same prompt.

        Without `logits` nothing is generated, and they end.
        """
        jobs = [job]
        for other in job.siblings:
            if other in self.prompts and other.row is not None and other is not job:
                assert job.row is not None
                other.row.view(0, 1, job.length).copy_from(job.row.view(0, 1, job.length))
                other.sequence.num_cached_tokens = other.length = job.length
                other.num_layers, other.hidden = 0, None
                other.sequence.copy_prompt_results(job.sequence)
                self.prompts.remove(other)
                jobs.append(other)
        started = []
        for each in jobs:
            if not each.sequence.tokens:  # a preempted one has its first token
                self.totals.prompt_tokens += len(each.sequence.prompt)
            if logits is None:
                self._end(each, "length")
                continue
            self._runner.decoder.join(each)
            if self._runner.decoder.owns_rows and each.row is not None:
                self._memory.free(each.row)
                each.row = None
            self.running.append(each)
            if not each.sequence.tokens:  # a preempted one has its first token
                started.append(each)
        if started and logits is not None:
            self._choose(started, logits.expand(len(started), -1))

    def _decode(self) -> None:
        """Runs the newest token of each request, and guesses after it, and chooses what follows."""
        feeds: list[tuple[Job, list[int]]] = []
        limit = self._runner.decoder.max_tokens // max(len(self.running), 1) - 1  # guesses
        for job in list(self.running):
            tokens = job.pending[: self._runner.decoder.max_tokens]
            if job not in self.running or not self._make_room(job, job.length + len(tokens)):
                continue  # it is preempted
            if tokens == job.pending and job.row is not None:
                room = min(limit, job.row.seq_len - job.length - len(tokens), job.num_left - 1)
                tokens += job.guess(room, self._draft)
            feeds.append((job, tokens))
        feeds = [(job, tokens) for job, tokens in feeds if job in self.running]
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
            row = self._memory.longer_row(job.row, length, limit)
            if row is not None:
                job.row = row
                break
            last = max((*self.running, *self.prompts), key=lambda job: job.order)
            self.preempt(last)
            if last is job:
                return False
        return True

    def preempt(self, job: Job) -> None:
        """Takes a request's memory. Its prompt and its tokens are run again when there is room."""
        self._leave(job)
        job.length, job.is_admitted = 0, False
        job.sequence.num_preemptions += 1
        self.totals.preemptions += 1
        bisect.insort(self.waiting, job, key=lambda job: job.order)

    def _choose(self, jobs: list[Job], logits: Tensor) -> dict[Job, int]:
        """Chooses the next token of each job by its row of `logits`, and adds it to the answer.

        Returns the tokens of the jobs that go on.
        """
        is_all = len(jobs) == len(self.running) and not self.prompts and not self.waiting
        found, errors = self._runner.sample(jobs, logits, prelaunch=is_all)
        for job, error in errors.items():
            self._end(job, "error", error)
        chosen = {}
        for job, token, logprob, row in found:
            sequence = job.sequence
            self.changed[sequence] = None
            self.totals.generated_tokens += 1
            try:
                sequence.append(token, logprob, row)
            except Exception as error:
                self._end(job, "error", error)
            if sequence.finish_reason is None:
                job.extend(token)
                chosen[job] = token
            elif sequence in self.jobs:
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
        self.totals.finished[job.sequence.finish_reason] += 1
        job.siblings = []  # a circle, which would keep what a request has until it is collected
        self.changed[job.sequence] = None
        self._leave(job)
        del self.jobs[job.sequence]
        self._inbox.forget(job)

    def _leave(self, job: Job) -> None:
        for jobs in (self.waiting, self.prompts, self.running):
            if job in jobs:
                jobs.remove(job)
        self._runner.decoder.leave(job)
        if job.row is not None:
            self._memory.free(job.row)
            job.row = None
        job.num_layers, job.hidden = 0, None
