"""The one decode path: requests join, take turns in a batch, and leave.

`generate`, streaming and a server are the same loop around it:

    engine = Engine(model, tokenizer, max_batch_size=8, max_seq_len=2048)
    sequence = engine.add(Sequence(prompt_tokens, max_gen_len=64))
    while sequence.finish_reason is None:
        for running in engine.step():
            print(running.take_text(), end="")

The KV cache has a row a running request. Rows 0 to n - 1 are the n that run: one that leaves hands
its row to the last. Each prompt is run whole and alone, so that what it answers cannot depend on
who came with it; tokens after that are decoded for all rows at once.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from llama import distributed
from llama.cache import KVCache
from llama.engine.cuda_graphs import DecodeGraphs, read_later
from llama.engine.sampling import NonFiniteLogitsError, SamplerState, SamplingParams, sample
from llama.errors import InputError
from llama.model import Transformer
from llama.tokenizer import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]

# Prompts are scored in parts of so many tokens: at a vocabulary of 128,256 the float32 logits of
# one part are 256 MB, those of a prompt of 8192 would be 4 GB.
_SCORED_AT_ONCE = 512

# Keys are attended to in whole blocks, those past a row's end masked. Kernels add up what they read
# block by block, so a row's sums come out alike whatever the length of the rows beside it; with
# lengths as they are, bfloat16 answers of the bundled model changed with the batch.
_KEY_BLOCK = 64


@dataclass(eq=False)
class Sequence:
    """One request and what has come of it.

    `max_gen_len` None goes on to the end of the context. Text that holds one of the `stop` strings
    ends before it. With `echo` the text begins with the prompt's, and with `score_prompt`
    `prompt_logprobs` gets the natural log of each prompt token's probability, 0.0 for the first.
    """

    prompt: list[int]
    max_gen_len: int | None = None
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    echo: bool = False
    score_prompt: bool = False

    tokens: list[int] = field(default_factory=list)  # generated, without a stop token
    logprobs: list[float] = field(default_factory=list)  # of those
    prompt_logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)  # the text that each token completed
    prompt_pieces: list[str] = field(default_factory=list)  # with echo
    text: str = ""  # all pieces; until the end it may still lose a stop string's beginning
    finish_reason: FinishReason | None = None  # None while it waits or runs

    _taken: int = 0  # characters that take_text has handed out

    def take_text(self) -> str:
        """Text that is certain and that an earlier call has not returned."""
        certain = len(self.text) - (0 if self.finish_reason else self._held_back())
        new = self.text[self._taken : certain]
        self._taken = max(self._taken, certain)
        return new

    def _held_back(self) -> int:
        """How many characters at the end of the answer may turn out to begin a stop string."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for size in range(min(longest, len(self.text) - self._answer_start), 0, -1):
            if any(stop.startswith(self.text[-size:]) for stop in self.stop):
                return size
        return 0

    def _start(self, decoder: StreamDecoder, max_gen_len: int) -> None:
        self._decoder, self.max_gen_len = decoder, max_gen_len
        self._sampler = SamplerState(self.params, self.prompt)
        if self.echo:
            self.prompt_pieces = [decoder.feed(token) for token in self.prompt]
            self.text = "".join(self.prompt_pieces)
        self._answer_start = len(self.text)

    def _append(self, token: int, logprob: float, stop_tokens: set[int]) -> None:
        """Takes a chosen token, and ends the sequence if it was the last."""
        if token in stop_tokens:
            self._finish("stop")
            return
        self._sampler.record(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.pieces.append(self._decoder.feed(token))
        self.text += self.pieces[-1]
        if self._cut_at_stop():
            self.finish_reason = "stop"  # what the decoder still holds lies after the cut
        elif len(self.tokens) == self.max_gen_len:
            self._finish("length")

    def _cut_at_stop(self) -> bool:
        """Ends the text before the first stop string in it and drops the tokens after that."""
        # A match ends in the newest piece, so it begins at most so far before its end.
        reach = max(map(len, self.stop), default=0) + len(self.pieces[-1])
        near = max(self._answer_start, len(self.text) - reach)
        found = [at for stop in self.stop if (at := self.text.find(stop, near)) >= 0]
        if not found:
            return False
        surplus = len(self.text) - min(found)
        self.text = self.text[: min(found)]
        while self.pieces and len(self.pieces[-1]) <= surplus:
            surplus -= len(self.pieces.pop())
            self.tokens.pop()
            self.logprobs.pop()
        if self.pieces:
            self.pieces[-1] = self.pieces[-1][: len(self.pieces[-1]) - surplus]
        return True

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if last := self.pieces or self.prompt_pieces:
            rest = self._decoder.flush()
            last[-1] += rest
            self.text += rest


class Engine:
    """Runs sequences on a model, at most `max_batch_size` at a time.

    Every rank has one and makes the same calls in the same order; the tokens are those that the
    first rank chose.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, max_batch_size: int, max_seq_len: int
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_batch_size, self.max_seq_len = max_batch_size, max_seq_len
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the place in the list is the row in the cache
        self._cache: KVCache | None = None
        self._graphs: DecodeGraphs | None = None  # on a GPU that has the model to itself
        # The logits of a step that was started before it was known who goes on, a row each.
        self._ahead: tuple[list[Sequence], torch.Tensor] | None = None

    @property
    def idle(self) -> bool:
        """True when there is nothing left to do."""
        return not self.waiting and not self.running

    def check(self, sequence: Sequence) -> None:
        """Raises ValueError or TypeError for a request that cannot be run, saying why."""
        prompt, limit = sequence.prompt, self.max_seq_len
        if not prompt:
            raise InputError(
                "is empty; it needs at least one token, such as the tokenizer's bos_id"
            )
        if len(prompt) > limit:
            raise InputError(
                f"has {len(prompt)} tokens, but the context is {limit} (max_seq_len); shorten it "
                "or build with a larger max_seq_len"
            )
        vocab_size = self.model.vocab_size
        for token in prompt:
            if not isinstance(token, int) or not 0 <= token < vocab_size:
                raise InputError(f"holds {token!r}, which is no token id of 0 to {vocab_size - 1}")
        size = sequence.max_gen_len
        if size is not None and (not isinstance(size, int) or size < 0):
            raise InputError(f"has max_gen_len={size!r}; it should be 0 or more, or None")
        if not all(isinstance(stop, str) and stop for stop in sequence.stop):
            raise InputError(f"has stop={sequence.stop!r}; stop strings may not be empty")
        sequence.params.check_vocab(vocab_size)

    def add(self, sequence: Sequence) -> Sequence:
        """Lets a new sequence wait for its turn. Raises as `check` does."""
        self.check(sequence)
        room = self.max_seq_len - len(sequence.prompt)
        wanted = room if sequence.max_gen_len is None else min(sequence.max_gen_len, room)
        sequence._start(self.tokenizer.stream_decoder(), wanted)
        if wanted or sequence.score_prompt:
            self.waiting.append(sequence)
        else:
            sequence._finish("length")
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence that waits or runs, keeping what it has; nothing happens to others."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
            sequence._finish("cancelled")
        elif sequence in self.running:
            sequence._finish("cancelled")
            self._release()

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """Runs waiting prompts if there is room for any, else a token of each running sequence.

        Returns the sequences that changed. Raises NonFiniteLogitsError if the model's output is
        broken; what runs then should be cancelled.
        """
        joined = [] if self._ahead else self._admit()
        if joined:
            first = len(self.running) - len(joined)
            logits = torch.cat([self._prefill(s, first + i) for i, s in enumerate(joined)])
            changed = joined
        elif self.running:
            changed = list(self.running)
            logits = self._decode()
        else:
            return []
        logits = logits[:, : self.tokenizer.n_words]  # an embedding may be padded beyond
        writing = [i for i, sequence in enumerate(changed) if sequence.max_gen_len]
        for sequence in changed:
            if not sequence.max_gen_len:  # only scored
                sequence._finish("length")
        if writing:
            if len(writing) < len(changed):
                logits = logits[writing]
            try:
                tokens, logprobs = sample(logits, [changed[i]._sampler for i in writing])
            except NonFiniteLogitsError as error:
                assert self._cache is not None
                for row in error.rows:  # so that the next one there does not suffer
                    self._cache.clear_row(len(self.running) - len(changed) + writing[row])
                raise
            distributed.broadcast(tokens)
            read = read_later(tokens, logprobs)
            if len(writing) == len(self.running):
                self._run_ahead(tokens)
            for i, token, logprob in zip(writing, *read(), strict=True):
                changed[i]._append(token, logprob, self.tokenizer.stop_tokens)
        self._release()
        return changed

    def _admit(self) -> list[Sequence]:
        """Gives free rows to those who have waited longest."""
        joined = []
        while self.waiting and len(self.running) < self.max_batch_size:
            joined.append(self.waiting.popleft())
            self.running.append(joined[-1])
        if joined:
            longest = max(len(s.prompt) + (s.max_gen_len or 0) for s in self.running)
            self._reserve(len(self.running), longest)
        return joined

    def _reserve(self, rows: int, length: int) -> None:
        """Lets the cache grow to hold at least so much, by doubling up to the engine's limits."""
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
        if (
            self._graphs is None
            and self._cache.k.is_cuda
            and distributed.model_parallel_size() == 1
        ):
            self._graphs = DecodeGraphs(self.model)
        if self._graphs is not None:
            self._graphs.use(self._cache)

    def _prefill(self, sequence: Sequence, row: int) -> torch.Tensor:
        """Runs a prompt in its row, scores it if wanted; logits after its last token (1, vocab)."""
        assert self._cache is not None
        prompt = torch.tensor([sequence.prompt], device=self._cache.k.device)  # (1, n)
        cache = self._cache.view(row, 1, prompt.shape[1])
        if not sequence.score_prompt:
            last = torch.full((1, 1), prompt.shape[1] - 1, device=prompt.device)
            return self.model(prompt, 0, cache=cache, logits_at=last)[:, -1]
        sequence.prompt_logprobs = [0.0]
        for start in range(0, prompt.shape[1], _SCORED_AT_ONCE):
            logits = self.model(prompt[:, start : start + _SCORED_AT_ONCE], start, cache=cache)[0]
            after = prompt[0, start + 1 : start + 1 + len(logits)]
            scores = -F.cross_entropy(logits[: len(after)], after, reduction="none")
            sequence.prompt_logprobs += scores.tolist()
        return logits[-1:]

    def _decode(self) -> torch.Tensor:
        """Runs the newest token of each running sequence; logits after it (n, vocab)."""
        assert self._cache is not None
        if self._ahead is not None:
            (sequences, started), self._ahead = self._ahead, None
            if len(sequences) == len(self.running):
                return started
            return started[[sequences.index(s) for s in self.running]]
        tokens = [s.tokens[-1] for s in self.running]
        positions = [len(s.prompt) + len(s.tokens) - 1 for s in self.running]
        if self._graphs is not None:
            logits = self._graphs.run(torch.tensor(tokens), positions)
            if logits is not None:
                return logits
        device = self._cache.k.device
        newest = torch.tensor(tokens, device=device).unsqueeze(1)  # (n, 1)
        cache = self._cache.view(0, len(self.running), _whole_blocks(max(positions) + 1))
        return self.model(newest, torch.tensor(positions, device=device), cache=cache)[:, -1]

    def _run_ahead(self, tokens: torch.Tensor) -> None:
        """On a GPU, starts the next step before the CPU has seen `tokens` (n,), the newest.

        The GPU computes while the CPU makes text of them and looks for stops. A sequence that ends
        with its token has a row in vain, which at most overwrites what it leaves behind.
        """
        joins = self.waiting and len(self.running) < self.max_batch_size
        ends = [len(s.tokens) + 1 == s.max_gen_len for s in self.running]
        if self._graphs is None or joins or all(ends):
            return
        positions = [
            0 if end else len(s.prompt) + len(s.tokens)
            for s, end in zip(self.running, ends, strict=True)
        ]
        logits = self._graphs.run(tokens, positions)
        self._ahead = None if logits is None else (list(self.running), logits)

    def _release(self) -> None:
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
            self._ahead = None


def _whole_blocks(length: int) -> int:
    return -(-length // _KEY_BLOCK) * _KEY_BLOCK
