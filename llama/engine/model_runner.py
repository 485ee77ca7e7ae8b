"""Runs prompts and tokens through the model, with the prefix store, adapters and a decoder.

Which request runs when is decided in `scheduler.py`.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

from llama import distributed
from llama.engine.cuda_graphs import read_later
from llama.engine.decoding import BatchDecoder, Decoder, Job, RaggedDecoder
from llama.engine.prefix_store import PrefixStore, fingerprint
from llama.engine.request import Sequence
from llama.engine.sampling import sample
from llama.lora.adapter_switch import AdapterSwitch
from llama.model import Transformer

_PREFIX_MEMORY = 2**30

Feeds = list[tuple[Job, list[int]]]  # jobs with the tokens that follow what is in their rows


class ModelRunner:
    """The model of an engine. Its arguments are those of `Engine`."""

    def __init__(
        self,
        model: Transformer,
        vocab_size: int,
        max_batch_size: int,
        max_seq_len: int,
        chunk: int | None,
        prefix_memory: int | None,
        prefix_folder: str | Path | None,
        cuda_graphs: bool,
    ) -> None:
        self.model = model
        self.device = model.norm.weight.device
        is_cpu = self.device.type == "cpu"
        self.chunk = chunk or (256 if is_cpu else 1024)
        if prefix_memory is None:
            prefix_memory = min(distributed.free_memory(self.device) // 8, _PREFIX_MEMORY)
        self.store: PrefixStore | None = None
        if prefix_memory or prefix_folder is not None:
            identity = "" if prefix_folder is None else fingerprint(model)
            self.store = PrefixStore(prefix_memory, self.chunk, identity, prefix_folder)
        self.decoder: Decoder = (
            RaggedDecoder(model)
            if is_cpu
            else BatchDecoder(model, max_batch_size, max_seq_len, cuda_graphs)
        )
        self.adapters = AdapterSwitch.of(model)
        self._vocab_size = vocab_size  # the tokenizer's; the model's may be padded

    def may_vary_threads(self, has_prompts: bool) -> bool:
        """Whether the results of a step are the same on any number of threads.

        Native kernels' are. Some of torch's are not, which multiplies prompts and adapted layers.
        Its products of bfloat16 are.
        """
        is_bfloat16 = self.model.norm.weight.dtype == torch.bfloat16
        is_native = self.decoder.is_native and not self.adapters.fingerprints
        return is_native and (is_bfloat16 or not has_prompts)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Loads an adapter; no job may be in a decoder that has the rows itself."""
        if isinstance(self.decoder, BatchDecoder):  # a batched step has one adapter for all rows
            self.decoder = RaggedDecoder(self.model)
        self.adapters.load(name, path)

    def copy_stored(self, job: Job) -> int:
        """Begins a job's row with the chunks of its prompt that are in the store.

        Chunks whose hidden states are wanted are computed. Returns how many tokens were looked up.
        """
        if self.store is None:
            return 0
        sequence = job.sequence
        prompt = sequence.prompt[: sequence.hidden_from + 1]
        for chunk in self.store.find(prompt, self._fingerprint(job)):
            assert job.row is not None
            job.row.write(job.length, chunk)
            job.length += self.chunk
        sequence.num_cached_tokens = job.length
        return len(sequence.prompt)

    def chunk_size(self, job: Job) -> int:
        """How many positions of a prompt lie before the next multiple of `chunk`, or its end."""
        return min(self.chunk, len(job.sequence.prompt) - job.length)

    def run_chunk(self, job: Job, num_layers: int) -> Tensor | None:
        """Runs a prompt up to the next multiple of `chunk`, through so many more blocks.

        Returns the logits (1, vocab) at the end of a prompt that tokens are generated after.
        """
        sequence, row = job.sequence, job.row
        assert row is not None
        prompt = sequence.prompt
        start, end = job.length, job.length + self.chunk_size(job)
        ids = torch.tensor([prompt[start:end]], device=self.device)  # (1, n)
        cache = row.view(0, 1, end)
        logits = None
        with self.adapters.using(sequence.adapter):
            layers = range(job.num_layers, min(job.num_layers + num_layers, self.model.n_layers))
            hidden = self.model.hidden(ids, start, cache=cache, layers=layers, h=job.hidden)
            job.num_layers, job.hidden = layers.stop, hidden
            if job.num_layers < self.model.n_layers:
                return None
            job.num_layers, job.hidden = 0, None
            if end > sequence.hidden_from:
                self._read_hidden(sequence, hidden, start)
            if end == len(prompt) and sequence.max_gen_len != 0:
                logits = self._logits(hidden[:, -1:])
        job.length = end
        if self.store is not None and end - start == self.chunk:
            index, read = start // self.chunk, functools.partial(row.read, start, end)
            self.store.put(prompt, index, read, self._fingerprint(job))
        return logits

    def _read_hidden(self, sequence: Sequence, hidden: Tensor, start: int) -> None:
        """Scores or pools a prompt, by `hidden` (1, n, dim) after its tokens from `start` on."""
        n = hidden.shape[1]
        if sequence.score_prompt and (first := max(sequence.score_from - 1 - start, 0)) < n:
            sequence.score(self._logits(hidden[:, first:])[:, : self._vocab_size], start + first)
        if sequence.pool_from is not None and (first := max(sequence.pool_from - start, 0)) < n:
            sequence.pool(self.model.norm(hidden[0, first:]), start + first)

    def _logits(self, hidden: Tensor) -> Tensor:
        """float32 (n, vocab) of the last block's output (1, n, dim)."""
        return self.model.output(self.model.norm(hidden))[0].float()

    def run_tokens(self, feeds: Feeds) -> tuple[Tensor, dict[Job, Exception]]:
        """The logits (n, vocab) after all tokens, and what went wrong with which job.

        If a step fails, each of its jobs runs alone, and fails alone; its logits are zero.
        """
        adapters = list(dict.fromkeys(job.sequence.adapter for job, _ in feeds))
        if len(adapters) > 1:
            # Each adapter's jobs together; the logits in the order of the feeds.
            found: dict[Job, Tensor] = {}
            errors: dict[Job, Exception] = {}
            for adapter in adapters:
                group = [feed for feed in feeds if feed[0].sequence.adapter == adapter]
                logits, failed = self.run_tokens(group)
                rows = logits.split([len(tokens) for _, tokens in group])
                found |= {feed[0]: each for feed, each in zip(group, rows, strict=True)}
                errors |= failed
            return torch.cat([found[job] for job, _ in feeds]), errors
        try:
            with self.adapters.using(adapters[0]):
                return self.decoder.run(feeds), {}
        except Exception as error:
            if distributed.model_parallel_size() > 1:  # the other ranks go on
                raise
            if len(feeds) == 1:
                job, tokens = feeds[0]
                zeros = torch.zeros(len(tokens), self.model.vocab_size, device=self.device)
                return zeros, {job: error}
        alone = [self.run_tokens([feed]) for feed in feeds]
        failures = [failed for _, failed in alone]
        return torch.cat([logits for logits, _ in alone]), {
            job: error for failed in failures for job, error in failed.items()
        }

    def sample(
        self, jobs: list[Job], logits: Tensor, prelaunch: bool
    ) -> tuple[list[tuple[Job, int, float, Tensor]], dict[Job, Exception]]:
        """Chooses a token for each job by its row of `logits` (n, vocab).

        Returns the job, the token, its log-probability and its logits, of those that went right,
        and what went wrong. With `prelaunch` the decoder may start the next step at once.
        """
        logits = logits[:, : self._vocab_size]
        try:
            tokens, logprobs = sample(logits, [job.sequence.sampler for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                return [], {jobs[0]: error}
            found: list[tuple[Job, int, float, Tensor]] = []
            errors: dict[Job, Exception] = {}
            for i, job in enumerate(jobs):
                right, wrong = self.sample([job], logits[i : i + 1], False)
                found += right
                errors |= wrong
            return found, errors
        distributed.broadcast(tokens)
        read = read_later(tokens, logprobs)
        if prelaunch:
            self.decoder.prelaunch(jobs, tokens)
        return list(zip(jobs, *read(), logits, strict=True)), {}

    def _fingerprint(self, job: Job) -> str:
        """Of the request's adapter."""
        return self.adapters.fingerprints.get(job.sequence.adapter or "", "")
