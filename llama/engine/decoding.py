"""Decode steps: the newest tokens of several requests through the model at once.

On a CPU each request has a row of its own length, and a call of the model takes up to 16 tokens, of
any requests: native kernels compute a row of so few in one way whatever the other rows are. On a
GPU requests share one batched cache whose shapes CUDA graphs can record.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from llama.cache import KVCache, RaggedKVCache
from llama.engine.cuda_graphs import DecodeGraphs, graphs_run_on
from llama.engine.kv_memory import whole_blocks
from llama.engine.request import Sequence
from llama.engine.speculation import DraftGuesses, PromptLookup
from llama.kernels import MAX_ROWS
from llama.model import Transformer


@dataclass(eq=False)
class Job:
    """A request that is not finished, and where its keys and values are."""

    sequence: Sequence
    order: tuple[int, int]  # by priority, then by arrival; the least is served first
    row: KVCache | None = None  # one row, while it is admitted
    length: int = 0  # positions whose keys and values are computed
    num_layers: int = 0  # blocks that the next chunk of the prompt has been through
    hidden: Tensor | None = None  # (1, n, dim) after those
    is_admitted: bool = False
    # Requests of the same prompt that were added together: one computes it, the others copy it.
    siblings: list["Job"] = field(default_factory=list)
    guessers: "list[PromptLookup | DraftGuesses]" = field(default_factory=list)
    guessed_by: "PromptLookup | DraftGuesses | None" = None

    @property
    def pending(self) -> list[int]:
        """Generated tokens whose keys and values are not computed yet."""
        return self.sequence.tokens[self.length - len(self.sequence.prompt) :]

    @property
    def num_left(self) -> int:
        """How many tokens the answer may still get."""
        assert self.sequence.max_gen_len is not None
        return self.sequence.max_gen_len - len(self.sequence.tokens)

    def guess(self, limit: int, draft: Transformer | None) -> list[int]:
        """At most `limit` tokens that may come next, by the first that has a guess."""
        if limit < 1 or not self.sequence.speculate:
            return []
        if not self.guessers:
            tokens = self.sequence.prompt + self.sequence.tokens
            self.guessers.append(PromptLookup(tokens))
            if draft is not None:
                self.guessers.append(DraftGuesses(draft, tokens))
        for guesser in self.guessers:
            if guesses := guesser.guess(limit):
                self.guessed_by = guesser
                return guesses
        return []

    def extend(self, token: int) -> None:
        """Takes a token of the answer."""
        for guesser in self.guessers:
            guesser.extend(token)

    def record_guess(self, num_accepted: int) -> None:
        """Takes how many tokens of the last guess were right."""
        if self.guessed_by is not None:
            self.guessed_by.record(num_accepted)


def takes_ragged_rows(model: Transformer) -> bool:
    """Whether the model's blocks take a `RaggedKVCache`."""
    return getattr(model.layers[0], "takes_ragged_rows", False)


class Decoder(Protocol):
    """Runs the newest tokens of jobs, whose prompts are computed."""

    max_tokens: int  # of one job in a step
    is_native: bool  # whether its results come from native kernels
    owns_rows: bool  # whether a job that joined has its keys and values in the decoder

    def join(self, job: Job) -> None:
        """Takes a job whose prompt is computed."""

    def leave(self, job: Job) -> None:
        """Gives up a job that ended or is preempted."""

    def run(self, feeds: list[tuple[Job, list[int]]]) -> Tensor:
        """The logits (n, vocab) after each of the n tokens, which follow each job's positions."""

    def prelaunch(self, jobs: list[Job], tokens: Tensor) -> None:
        """May start the next step of `jobs` by their newest `tokens` (n,), before they are read."""


class RaggedDecoder:
    """Rows of different lengths. Without native kernels each runs alone, so that it is the same."""

    max_tokens = MAX_ROWS
    owns_rows = False

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self.is_native = takes_ragged_rows(model)

    def join(self, job: Job) -> None: ...

    def leave(self, job: Job) -> None: ...

    def run(self, feeds: list[tuple[Job, list[int]]]) -> Tensor:
        rows = [
            (job.row, token, job.length + i)
            for job, tokens in feeds
            for i, token in enumerate(tokens)
        ]
        self.is_native = takes_ragged_rows(self._model)
        at_once = MAX_ROWS if self.is_native else 1
        logits = [self._run(rows[i : i + at_once]) for i in range(0, len(rows), at_once)]
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def _run(self, rows: list[tuple[KVCache | None, int, int]]) -> Tensor:
        caches, tokens, positions = zip(*rows, strict=True)
        device = self._model.norm.weight.device
        ids = torch.tensor(tokens, device=device).unsqueeze(1)  # (n, 1)
        if len(rows) == 1 and not self.is_native:
            cache = caches[0].view(0, 1, positions[0] + 1)
            return self._model(ids, positions[0], cache=cache)[:, -1]
        start = torch.tensor(positions, device=device)
        return self._model(ids, start, cache=RaggedKVCache(list(caches)))[:, -1]

    def prelaunch(self, jobs: list[Job], tokens: Tensor) -> None: ...


class BatchDecoder:
    """Rows of one length in a batched cache, on a GPU: the jobs are its first rows, in order."""

    max_tokens = 1
    is_native = False
    owns_rows = True

    def __init__(
        self, model: Transformer, max_rows: int, max_seq_len: int, cuda_graphs: bool
    ) -> None:
        self._model, self._max_rows, self._max_seq_len = model, max_rows, max_seq_len
        self._jobs: list[Job] = []
        self._cache: KVCache | None = None
        self._graphs: DecodeGraphs | None = None
        self._allow_graphs = cuda_graphs
        # The logits of a step that was started before it was known who goes on, a row for each.
        self._prelaunched: tuple[list[Job], Tensor] | None = None

    def join(self, job: Job) -> None:
        assert job.row is not None
        self._jobs.append(job)
        longest = max(len(j.sequence.prompt) + (j.sequence.max_gen_len or 0) for j in self._jobs)
        self._reserve(len(self._jobs), longest)
        assert self._cache is not None
        last = self._cache.view(len(self._jobs) - 1, 1, job.length)
        last.copy_from(job.row.view(0, 1, job.length))
        if self._graphs is not None:
            self._graphs.check_weights()
        self._prelaunched = None

    def leave(self, job: Job) -> None:
        if job not in self._jobs:
            return
        row, last = self._jobs.index(job), self._jobs.pop()
        if row < len(self._jobs):
            assert self._cache is not None
            self._jobs[row] = last
            # With its newest token, which a prelaunched step may have run already.
            length = min(last.length + 1, self._cache.seq_len)
            self._cache.copy_row(len(self._jobs), row, length)
        if job.sequence.finish_reason == "error" and self._cache is not None:
            self._cache.clear_row(len(self._jobs))  # a masked NaN still spreads
        if not self._jobs:
            self._prelaunched = None

    def run(self, feeds: list[tuple[Job, list[int]]]) -> Tensor:
        assert self._cache is not None
        by_job = {job: tokens[0] for job, tokens in feeds}
        if self._prelaunched is not None:
            (jobs, started), self._prelaunched = self._prelaunched, None
            return started[[jobs.index(job) for job, _ in feeds]]
        # Rows that do not decode in this step compute a token that is not used.
        tokens = [by_job.get(job, 0) for job in self._jobs]
        positions = [job.length for job in self._jobs]
        logits = None
        if self._graphs is not None:
            logits = self._graphs.run(torch.tensor(tokens), positions)
        if logits is None:
            device = self._cache.k.device
            ids = torch.tensor(tokens, device=device).unsqueeze(1)  # (n, 1)
            cache = self._cache.view(0, len(self._jobs), whole_blocks(max(positions) + 1))
            logits = self._model(ids, torch.tensor(positions, device=device), cache=cache)[:, -1]
        return logits[[self._jobs.index(job) for job, _ in feeds]]

    def prelaunch(self, jobs: list[Job], tokens: Tensor) -> None:
        """Starts the next step of all jobs before the CPU has read `tokens` (n,), their newest.

        The GPU computes while the CPU turns them into text and looks for stops. A job that ends
        with its token has a row in vain, which at most overwrites what it leaves behind.
        """
        ends = [len(j.sequence.tokens) + 1 == j.sequence.max_gen_len for j in jobs]
        if self._graphs is None or jobs != self._jobs or all(ends):
            return
        positions = [0 if end else job.length for job, end in zip(jobs, ends, strict=True)]
        logits = self._graphs.run(tokens, positions)
        self._prelaunched = None if logits is None else (list(jobs), logits)

    def _reserve(self, rows: int, length: int) -> None:
        """Grows the cache to at least so much, by doubling up to the engine's limits."""
        old = self._cache
        if old is not None and rows <= old.batch_size and length <= old.seq_len:
            return
        if old is not None:
            rows = max(rows, min(2 * old.batch_size, self._max_rows))
            length = max(length, old.seq_len)
        length = whole_blocks(min(self._max_seq_len, 1 << (length - 1).bit_length()))
        self._cache = self._model.new_cache(rows, length)
        if old is not None:
            self._cache.copy_from(old)
        if self._graphs is None and self._allow_graphs and graphs_run_on(self._cache.k.device):
            self._graphs = DecodeGraphs(self._model)
        if self._graphs is not None:
            self._graphs.use(self._cache)
