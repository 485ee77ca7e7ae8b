"""Decoding as CUDA graphs: a step's hundreds of kernels started by one call.

A token takes a GPU less time than Python needs to launch its kernels one by one. A graph is the
list of kernels that one forward pass launched; replayed, it does the same to the same memory. So
its shapes are fixed, and what it reads and writes stays in place:

    inputs     (2, batch) of the whole cache: the newest tokens, and their positions
    rows       1, 2, 4, ... and at most the cache's; those that do not run are padding
    positions  256, 512, 1024, ... and at most the cache's; masked beyond each row's own

There is a graph for each number of rows and of positions that has come up. Three rows, the longest
at its 300th position, in a cache of 8 rows of 2048 positions: the graph for 4 rows of 512. The
fourth row computes token 0 at position 0 and writes there, which is harmless: a prompt that gets
the row starts at position 0.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llama import console, distributed
from llama.cache import KVCache
from llama.model import Transformer

_MIN_POSITIONS = 256  # fewer would save next to nothing

Step = Callable[[], Tensor]


def graphs_run_on(device: torch.device) -> bool:
    """Whether decoding is recorded there: on an NVIDIA GPU that has the whole model."""
    return device.type == "cuda" and distributed.model_parallel_size() == 1


class Recorder:
    """Records steps on a GPU, all in one memory pool apart from their results."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """What replays `step`, and returns the tensor that the recorded run wrote to.

        `step` runs four times; what it writes to the cache is the same each time.
        """
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        # The outer context restores the stream, which a recording that fails does not.
        with torch.cuda.device(self._device), torch.cuda.stream(current):
            self._stream.wait_stream(current)
            with torch.cuda.stream(self._stream):
                for _ in range(3):  # libraries set up at first use what can't be recorded
                    step()
            current.wait_stream(self._stream)
            with torch.cuda.graph(graph, self._pool, self._stream, "thread_local"):
                output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class DecodeGraphs:
    """Runs decoding steps over a cache; the `recorder` of its device makes the graphs.

    A graph reads the weights where they were when it was recorded. They may change in place; after
    a new tensor is assigned to one, `check_weights` has to be called.
    """

    def __init__(
        self,
        model: Transformer,
        recorder: Callable[[torch.device], Callable[[Step], Step]] = Recorder,
    ) -> None:
        self._model, self._recorder = model, recorder
        self._graphs: dict[tuple[int, int], Step] = {}
        self._failed = False
        self._weights = [(m._parameters, name) for m in model.modules() for name in m._parameters]
        self._addresses: list[int] = []

    def use(self, cache: KVCache) -> None:
        """Switches to another cache, and drops the graphs that were made for the last one."""
        device = cache.k.device
        self._graphs.clear()
        self._cache, self._record = cache, self._recorder(device)
        self._inputs = torch.zeros(2, cache.batch_size, dtype=torch.int64, device=device)
        self._model.freqs = self._model.freqs.to(device)  # a copy to there can't be recorded

    def check_weights(self) -> None:
        """Drops the graphs if a weight is no longer where it was when they were recorded."""
        # Not by model.parameters(), which takes a millisecond for a large model.
        weights = (parameters[name] for parameters, name in self._weights)
        addresses = [weight.data_ptr() for weight in weights if weight is not None]
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses

    def run(self, tokens: Tensor, positions: list[int]) -> Tensor | None:
        """The logits (n, vocab) after `tokens` (n,), the newest of the cache's first n rows.

        Tokens may be on the GPU, and are not waited for. Logits are overwritten by the next call.
        None where a graph can't be made: then and from then on the caller runs the model itself.
        """
        if self._failed:
            return None
        n, cache = len(tokens), self._cache
        rows = min(_power_of_two(n), cache.batch_size)
        length = min(max(_power_of_two(max(positions) + 1), _MIN_POSITIONS), cache.seq_len)
        self._inputs.copy_(F.pad(torch.tensor([[0] * n, positions]), (0, cache.batch_size - n)))
        self._inputs[0, :n] = tokens
        if (rows, length) not in self._graphs:
            try:
                self._graphs[rows, length] = self._recorded(rows, length)
            except RuntimeError as error:  # what torch raises for all that can't be recorded
                self._failed = True
                self._graphs.clear()
                reason = str(error.__context__ or error).strip().partition("\n")[0]
                console.notice(f"no CUDA graphs, decoding is slower: {reason:.200}")
                return None
        return self._graphs[rows, length]()[:n]

    def _recorded(self, rows: int, length: int) -> Step:
        tokens, positions = self._inputs[:, :rows]
        cache = self._cache.view(0, rows, length)
        return self._record(lambda: self._model(tokens.unsqueeze(1), positions, cache=cache)[:, -1])


def read_later(*tensors: Tensor) -> Callable[[], list[list[Any]]]:
    """Copies the tensors now; the result waits for the copy, not for work a GPU got since."""
    if not tensors[0].is_cuda:
        return lambda: [tensor.tolist() for tensor in tensors]
    copies = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensors[0].device))

    def read() -> list[list[Any]]:
        copied.synchronize()
        return [copy.tolist() for copy in copies]

    return read


def _power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()
