"""Which device, which dtype, which rank: what a process must know about itself before it computes.

`model.py` is written on fairscale's parallel layers, which need process groups even where there
is one process. `initialize` makes them from what it finds: under `torchrun`, on one host or
several, the groups that its environment describes; in plain `python` or a notebook, a group of
one that opens no port. It is the only place that starts a group, and `shutdown` (which also runs
at exit) ends what it started and nothing else.
"""

import atexit
import contextlib
import importlib
import io
import os
import sys

import torch
import torch.distributed as dist
import tqdm
from fairscale.nn.model_parallel import initialize as fairscale_groups
from torch import Tensor

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_started = False
_store: dist.Store | None = None  # where ranks find each other; it outlives the groups
_groups = 0  # made through that store so far
_FEW_PARAMETERS = 2**24  # 64 MB of float32

DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}


def select_device(device: str | torch.device | None = None) -> torch.device:
    """The device of this rank: the one asked for, else the best of `cuda`, `mps` and `cpu`.

    A plain `cuda` becomes the GPU with this rank's number on its host. Raises ValueError for a
    device that this machine does not have, or where a host has more ranks than GPUs.
    """
    if device is None:
        best = "cpu"
        if torch.cuda.is_available():
            best = "cuda"
        elif torch.backends.mps.is_available():
            best = "mps"
        chosen = torch.device(best)
    else:
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device {device!r} is none of cuda, mps and cpu") from error
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(os.environ.get("LOCAL_RANK", "0")) if chosen.index is None else chosen.index
        if index >= count:
            raise ValueError(
                f"this rank needs GPU {index}, but torch sees {count} on this host; "
                "start fewer processes or ask for device='cpu'"
            )
        return torch.device("cuda", index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' was asked for, but this machine has no Apple GPU; use 'cpu'")
    if chosen.type not in ("cpu", "mps"):
        raise ValueError(f"device {str(chosen)!r} is none of cuda, mps and cpu")
    return chosen


def select_dtype(
    device: torch.device, dtype: str | torch.dtype | None = None, parameters: int | None = None
) -> torch.dtype:
    """The dtype to compute in: the one asked for, else bfloat16 where `device` multiplies it.

    Where it does not, a GPU takes float16 and a CPU float32. A model that is to run on a CPU, of so
    many `parameters`, is bfloat16 all the same, for decoding is a matter of bytes that are read;
    but float32 where it is so small that it stays in the cache: half as many bytes gain nothing
    there, and without bfloat16's rounding the answers are the same on any number of ranks. Raises
    ValueError for a dtype that is none of bfloat16, float16 and float32.
    """
    if dtype is not None:
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen is None or chosen not in DTYPES.values():
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    if parameters is not None:
        return torch.float32 if parameters <= _FEW_PARAMETERS else torch.bfloat16
    return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32


def cpu_multiplies_bfloat16() -> bool:
    """Whether torch's products of bfloat16 on this CPU are as fast as those of float32.

    Where the processor has nothing for it (before AVX-512), they take about eight times as long.
    """
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def initialize(model_parallel_size: int | None = None, device: torch.device | None = None) -> None:
    """Makes sure that torch's and fairscale's process groups stand; may be called again.

    `model_parallel_size` is the number of ranks that share one model, by default all of them.
    Groups that the caller has started already are used as they are. Raises ValueError where the
    size does not divide the number of processes, or differs from that of standing groups.
    """
    global _started
    if not dist.is_initialized():
        # fairscale's groups outlive torch's: what is left of them belongs to no one.
        fairscale_groups.destroy_model_parallel()
        if all(name in os.environ for name in _TORCHRUN):
            backend = "gloo"
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)
                backend = "cpu:gloo,cuda:nccl"
            _join(backend)
        else:
            # gloo listens on a port even with nobody to talk to. torch's "fake" backend copies
            # what a collective is given to what it returns: for a group of one, the truth.
            importlib.import_module("torch.testing._internal.distributed.fake_pg")
            dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=1)
        _started = True
        atexit.register(shutdown)
    world = dist.get_world_size()
    if fairscale_groups.model_parallel_is_initialized():
        standing = fairscale_groups.get_model_parallel_world_size()
        if model_parallel_size not in (None, standing):
            raise ValueError(
                f"model_parallel_size={model_parallel_size}, but this process already runs models "
                f"over {standing} ranks; one process keeps one size"
            )
        return
    size = world if model_parallel_size is None else model_parallel_size
    if size < 1 or world % size:
        raise ValueError(
            f"model_parallel_size={size} does not divide the {world} running process(es); "
            f"start it with torchrun --nproc_per_node {max(size, 1)}, or leave the argument out"
        )
    # fairscale announces its groups on rank 0's standard output, which belongs to the caller.
    with contextlib.redirect_stdout(io.StringIO()):
        fairscale_groups.initialize_model_parallel(size)


def _join(backend: str) -> None:
    """Makes torch's group of the ranks that torchrun's environment names, a first or a later one.

    All groups meet in one store, each under a name of its own: a second store on the same port
    would lose a rank that still finds the first one, whose owner was slower to end its group.
    """
    global _store, _groups
    if _store is None:
        _store, _, _ = next(dist.rendezvous("env://"))
    _groups += 1
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"llama/{_groups}", _store),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )


def shutdown() -> None:
    """Ends the process groups if `initialize` started them. Models built on them stop working."""
    global _started
    if not _started:
        return
    _started = False
    atexit.unregister(shutdown)
    fairscale_groups.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def model_parallel_size() -> int:
    """How many ranks share one model: 1 as long as no groups stand."""
    if not fairscale_groups.model_parallel_is_initialized():
        return 1
    return int(fairscale_groups.get_model_parallel_world_size())


def model_parallel_rank() -> int:
    """This process's place among the ranks that share its model."""
    if not fairscale_groups.model_parallel_is_initialized():
        return 0
    return int(fairscale_groups.get_model_parallel_rank())


def model_parallel_group() -> dist.ProcessGroup:
    """The ranks that share a model with this one."""
    return fairscale_groups.get_model_parallel_group()


def data_parallel_size() -> int:
    """How many models are trained as one, each on a part of a batch."""
    return int(fairscale_groups.get_data_parallel_world_size())


def data_parallel_rank() -> int:
    """The place of this process's model among those."""
    return int(fairscale_groups.get_data_parallel_rank())


def data_parallel_group() -> dist.ProcessGroup:
    """The ranks that hold the same part of a model as this one."""
    return fairscale_groups.get_data_parallel_group()


def is_main() -> bool:
    """True in the one process that speaks for all, under torchrun also before `initialize`."""
    if dist.is_initialized():
        return dist.get_rank() == 0
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "", end: str = "\n") -> None:
    """Prints, at once, in the process that speaks for all; the others stay silent."""
    if is_main():
        print(text, end=end, flush=True)


def notice(text: str) -> None:
    """A line on standard error, in the process that speaks for all."""
    if is_main():
        print(text, file=sys.stderr)


def progress(
    total: int, description: str, *, done: int = 0, any_rank: bool = False, unit: str = "B"
) -> tqdm.tqdm:
    """A bar for work on `total` bytes, of which `done` were there before: `with` it, `update` it.

    It is for someone who waits, so it shows after a second and leaves nothing behind, on standard
    error and only where that is a terminal: a log or a pipe gets no bars. As with `say`, one
    process draws; `any_rank` is for work that a single process does, whichever it is. Where it is
    not bytes, `unit` says what it is.
    """
    return tqdm.tqdm(
        total=total,
        initial=done,
        desc=description,
        unit=unit,
        unit_scale=True,
        unit_divisor=1000,
        delay=1,
        leave=False,
        disable=None if any_rank or is_main() else True,
    )


def broadcast(tensor: Tensor) -> Tensor:
    """Gives every rank of a model the first one's `tensor`, in place, and returns it."""
    if model_parallel_size() > 1:
        dist.broadcast(
            tensor,
            src=fairscale_groups.get_model_parallel_src_rank(),
            group=model_parallel_group(),
        )
    return tensor


def add_up(part: Tensor) -> Tensor:
    """The sum of the ranks' parts, added in pairs: (0 + 1) + (2 + 3).

    Collectives add in an order of their own. With this one, and parts that are themselves such
    branches, as the native kernels' sums are, 2 or 4 ranks get what one rank gets to the last bit.
    """
    size = model_parallel_size()
    if size == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part.contiguous(), group=model_parallel_group())
    while len(parts) > 1:
        pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(parts) - len(parts) % 2 :]
    return parts[0]
