"""`Engine`, the one decode path: requests join a running batch, and leave it when they end.

`generate`, streaming and a server are the same loop around it:

    engine = Engine(model, tokenizer, max_batch_size=8, max_seq_len=2048)
    sequence = engine.add(Sequence(prompt_tokens, max_gen_len=64))
    while sequence.finish_reason is None:
        for changed in engine.step():
            print(changed.take_text(), end="")

Each running sequence has a row of the KV cache, and rows 0 to n - 1 are those of the n that run:
when one leaves, the last row moves into its place. Each prompt is computed whole and alone, so that
its answer cannot depend on the others; tokens after that are decoded for all rows at once.
"""

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

from llama import distributed
from llama.cache import KVCache
from llama.engine.cuda_graphs import DecodeGraphs, graphs_run_on, read_later
from llama.engine.request import Sequence
from llama.engine.sampling import NonFiniteLogitsError, sample
from llama.engine.sampling_params import expect_integer
from llama.errors import InputError
from llama.model import Transformer
from llama.tokenizer import Tokenizer

# Prompts are scored in chunks of so many tokens: at a vocabulary of 128,256 the float32 logits of
# one chunk are 256 MB, those of a prompt of 8192 tokens would be 4 GB.
_SCORING_CHUNK = 512

# Attention reads keys in whole blocks, those past a row's end masked. Kernels add up what they read
# block by block, so a row's sums come out alike whatever the length of the rows beside it; with
# lengths as they are, bfloat16 answers of the bundled model changed with the batch.
_KEY_BLOCK = 64


class Engine:
    """Runs sequences on a model, at most `max_batch_size` at a time, of `max_seq_len` tokens each.

    Every rank has one and makes the same calls in the same order; the tokens are those that the
    first rank chose. On a GPU that has the whole model, decoding is recorded as CUDA graphs;
    `cuda_graphs=False` is for a model whose forward pass can't be, as FSDP's with its collectives.
    A new tensor may be assigned to a weight while nothing runs.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        max_batch_size: int,
        max_seq_len: int,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        check_limits(max_batch_size, max_seq_len)
        self.max_batch_size, self.max_seq_len = int(max_batch_size), int(max_seq_len)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # a sequence's index is its row in the cache
        self._cache: KVCache | None = None
        self._allow_graphs = cuda_graphs
        self._graphs: DecodeGraphs | None = None
        # The sequences and the logits, a row each, of a step that was started before the tokens of
        # the step before it had been looked at.
        self._prelaunched: tuple[list[Sequence], Tensor] | None = None

    @property
    def idle(self) -> bool:
        """True when nothing waits and nothing runs."""
        return not self.waiting and not self.running

    def check(self, sequence: Sequence, name: str = "the prompt") -> None:
        """Raises InputError for a request that this engine cannot run; `name` is its prompt's."""
        prompt, vocab_size = sequence.prompt, self.tokenizer.n_words
        if not prompt:
            raise InputError(
                f"{name} is empty; it needs at least one token, such as the tokenizer's bos_id"
            )
        if len(prompt) > self.max_seq_len:
            raise InputError(
                f"{name} has {len(prompt)} tokens, but the context is {self.max_seq_len} "
                "(max_seq_len); shorten it or build with a larger max_seq_len"
            )
        if wrong := [token for token in prompt if not 0 <= token < vocab_size]:
            raise InputError(f"{name} holds {wrong[0]}, no token id of 0 to {vocab_size - 1}")
        sequence.params.check_vocab(vocab_size)

    def add(self, sequence: Sequence) -> Sequence:
        """Puts a new sequence at the end of those that wait. Raises as `check` does."""
        self.check(sequence)
        room = self.max_seq_len - len(sequence.prompt)
        wanted = room if sequence.max_gen_len is None else min(sequence.max_gen_len, room)
        sequence.start(self.tokenizer.stream_decoder(), wanted)
        if wanted or sequence.score_prompt:
            self.waiting.append(sequence)
        else:
            sequence.finish("length")
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence that waits or runs, keeping what it has; the others do not notice."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            sequence.finish("cancelled")
        elif sequence in self.running:
            sequence.finish("cancelled")
            self._remove_finished()

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """Computes waiting prompts if there is room for any, else a token of each running sequence.

        Returns the sequences that changed. Raises NonFiniteLogitsError if the model's output is
        broken; what runs then should be cancelled.
        """
        if not self._prelaunched and (admitted := self._admit()):
            changed, first = admitted, len(self.running) - len(admitted)
            logits = torch.cat([self._prefill(s, first + i) for i, s in enumerate(admitted)])
        elif self.running:
            changed, logits = list(self.running), self._decode()
        else:
            return []
        generating = [row for row, sequence in enumerate(changed) if sequence.max_gen_len]
        if len(generating) < len(changed):
            logits = logits[generating]
            for sequence in changed:
                if not sequence.max_gen_len:  # its prompt is scored, and that was all
                    sequence.finish("length")
        if generating:
            self._choose_tokens([changed[row] for row in generating], logits)
        self._remove_finished()
        return changed

    def _choose_tokens(self, sequences: list[Sequence], logits: Tensor) -> None:
        """Appends to each sequence the next token, from its row of `logits`."""
        logits = logits[:, : self.tokenizer.n_words]  # an embedding may be padded beyond
        try:
            tokens, logprobs = sample(logits, [sequence.sampler for sequence in sequences])
        except NonFiniteLogitsError as error:
            assert self._cache is not None
            for row in error.rows:  # the next sequence there must not read NaN
                self._cache.clear_row(self.running.index(sequences[row]))
            raise
        distributed.broadcast(tokens)
        read = read_later(tokens, logprobs)
        if len(sequences) == len(self.running):
            self._prelaunch(tokens)
        for sequence, token, logprob in zip(sequences, *read(), strict=True):
            sequence.append(token, logprob, self.tokenizer.stop_tokens)

    def _admit(self) -> list[Sequence]:
        """Gives free rows to the sequences that have waited longest, and returns those."""
        admitted = []
        while self.waiting and len(self.running) < self.max_batch_size:
            admitted.append(self.waiting.popleft())
            self.running.append(admitted[-1])
        if admitted:
            longest = max(len(s.prompt) + (s.max_gen_len or 0) for s in self.running)
            self._reserve(len(self.running), longest)
            if self._graphs is not None:
                self._graphs.check_weights()
        return admitted

    def _reserve(self, rows: int, length: int) -> None:
        """Makes the cache hold at least that much, by doubling up to the engine's limits."""
        old = self._cache
        if old is not None and rows <= old.batch_size and length <= old.seq_len:
            return
        if old is not None:
            rows = max(rows, min(2 * old.batch_size, self.max_batch_size))
            length = max(length, old.seq_len)
        length = _whole_blocks(min(self.max_seq_len, 1 << (length - 1).bit_length()))
        self._cache = self.model.new_cache(rows, length)
        if old is not None:
            self._cache.copy_from(old)
        if self._graphs is None and self._allow_graphs and graphs_run_on(self._cache.k.device):
            self._graphs = DecodeGraphs(self.model)
        if self._graphs is not None:
            self._graphs.use(self._cache)

    def _prefill(self, sequence: Sequence, row: int) -> Tensor:
        """Computes a prompt in its row, scores it if asked; its last token's logits (1, vocab)."""
        assert self._cache is not None
        prompt = torch.tensor([sequence.prompt], device=self._cache.k.device)  # (1, n)
        cache = self._cache.view(row, 1, prompt.shape[1])
        if not sequence.score_prompt:
            last = torch.full((1, 1), prompt.shape[1] - 1, device=prompt.device)
            return self.model(prompt, 0, cache=cache, logits_at=last)[:, -1]
        sequence.prompt_logprobs = [0.0]
        for start in range(0, prompt.shape[1], _SCORING_CHUNK):
            logits = self.model(prompt[:, start : start + _SCORING_CHUNK], start, cache=cache)[0]
            targets = prompt[0, start + 1 : start + 1 + len(logits)]
            scores = -F.cross_entropy(logits[: len(targets)], targets, reduction="none")
            sequence.prompt_logprobs += scores.tolist()
        return logits[-1:]

    def _decode(self) -> Tensor:
        """Computes the newest token of each running sequence; logits after it (n, vocab)."""
        assert self._cache is not None
        if self._prelaunched is not None:
            (sequences, logits), self._prelaunched = self._prelaunched, None
            if len(sequences) == len(self.running):
                return logits
            return logits[[sequences.index(s) for s in self.running]]
        tokens = [s.tokens[-1] for s in self.running]
        positions = [len(s.prompt) + len(s.tokens) - 1 for s in self.running]
        if self._graphs is not None:
            graph_logits = self._graphs.run(torch.tensor(tokens), positions)
            if graph_logits is not None:
                return graph_logits
        device = self._cache.k.device
        newest = torch.tensor(tokens, device=device).unsqueeze(1)  # (n, 1)
        cache = self._cache.view(0, len(self.running), _whole_blocks(max(positions) + 1))
        return self.model(newest, torch.tensor(positions, device=device), cache=cache)[:, -1]

    def _prelaunch(self, tokens: Tensor) -> None:
        """On a GPU, starts the next step before the CPU has seen `tokens` (n,), the newest.

        The GPU computes while the CPU makes text of them and looks for stops. The row of a sequence
        that ends with its token is computed for nothing: it overwrites only what is left behind.
        """
        may_admit = self.waiting and len(self.running) < self.max_batch_size
        ends = [len(s.tokens) + 1 == s.max_gen_len for s in self.running]
        if self._graphs is None or may_admit or all(ends):
            return
        positions = [
            0 if end else len(s.prompt) + len(s.tokens)
            for s, end in zip(self.running, ends, strict=True)
        ]
        logits = self._graphs.run(tokens, positions)
        self._prelaunched = None if logits is None else (list(self.running), logits)

    def _remove_finished(self) -> None:
        """Takes finished sequences out; the last row moves into each row that gets free."""
        for row in reversed(range(len(self.running))):
            if self.running[row].finish_reason is None:
                continue
            last = self.running.pop()
            if row < len(self.running):
                assert self._cache is not None
                self.running[row] = last
                self._cache.copy_row(len(self.running), row, len(last.prompt) + len(last.tokens))
        if not self.running:
            self._prelaunched = None


def check_limits(max_batch_size: int | None, max_seq_len: int | None) -> None:
    """Raises InputError or InputTypeError for limits of an engine that are no positive integers."""
    for name, value in (("max_batch_size", max_batch_size), ("max_seq_len", max_seq_len)):
        if value is not None:
            expect_integer(name, value, at_least=1)


def _whole_blocks(length: int) -> int:
    return -(-length // _KEY_BLOCK) * _KEY_BLOCK
