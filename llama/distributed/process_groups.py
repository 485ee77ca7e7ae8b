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

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llama.errors import InputError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_started = False
_store: dist.Store | None = None  # where ranks find each other; it outlives the groups
_groups = 0  # made through that store so far


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
            raise InputError(
                f"model_parallel_size={model_parallel_size}, but this process already runs models "
                f"over {standing} ranks; one process keeps one size"
            )
        return
    size = world if model_parallel_size is None else model_parallel_size
    if size < 1 or world % size:
        raise InputError(
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


class ParallelLayersOnMeta(TorchDispatchMode):
    """Makes fairscale's layers without memory; what else a module makes is real.

    They ignore torch's meta device, so their allocations are caught one level below, at the
    dispatcher.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it, torch would import its compiler, for a second

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        # First values, and this rank's part of them: there is nothing to fill.
        if func is torch.ops.aten.normal_.default:
            return args[0]
        if func is torch.ops.aten.cat.out:
            return kwargs["out"]
        if func is torch.ops.aten.empty.memory_format:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
