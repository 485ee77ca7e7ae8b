"""The process groups that a model's ranks talk through.

`initialize` makes them from what it finds: under `torchrun`, on one host or several, the groups
that its environment describes; in plain `python` or a notebook, a group of one that opens no port.
It is the only function that starts a group. `shutdown` (also run at exit) ends what it started and
nothing else.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llama.distributed import model_parallel
from llama.errors import InputError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_started = False
_store: dist.Store | None = None  # where ranks find each other; it outlives the groups
_groups = 0  # made through that store so far


def initialize(model_parallel_size: int | None = None, device: torch.device | None = None) -> None:
    """Makes sure that torch's and fairscale's process groups exist; may be called again.

    `model_parallel_size` is the number of ranks that share one model, by default all of them.
    Groups that the caller has started are used as they are. Raises ValueError where the size does
    not divide the number of processes or differs from that of existing groups, and where the
    environment has only one of RANK and WORLD_SIZE.
    """
    global _started
    if not dist.is_initialized():
        model_parallel.drop_groups()
        if under_torchrun():
            backend = "gloo"
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)
                backend = "cpu:gloo,cuda:nccl"
            _join(backend)
        else:
            model_parallel.start_one_process()
        _started = True
        atexit.register(shutdown)
    world = dist.get_world_size()
    if model_parallel.has_groups():
        current = model_parallel.model_parallel_size()
        if model_parallel_size not in (None, current):
            raise InputError(
                f"model_parallel_size={model_parallel_size}, but this process already runs models "
                f"over {current} ranks; one process keeps one size"
            )
        return
    size = world if model_parallel_size is None else model_parallel_size
    if size < 1 or world % size:
        raise InputError(
            f"model_parallel_size={size} does not divide the {world} running process(es); "
            f"start it with torchrun --nproc_per_node {max(size, 1)}, or leave the argument out"
        )
    model_parallel.make_groups(size)


def under_torchrun() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started this process.

    Some clusters set RANK and WORLD_SIZE and no address: their processes work alone. Raises
    ValueError where only one of these two is set.
    """
    missing = [name for name in _TORCHRUN if name not in os.environ]
    if ("RANK" in missing) != ("WORLD_SIZE" in missing):
        raise InputError(
            f"the environment has one of RANK and WORLD_SIZE but lacks {', '.join(missing)}: start "
            "the program with torchrun, which sets all of them, or unset the one for one process"
        )
    return not missing


def _join(backend: str) -> None:
    """Makes torch's group of the ranks that torchrun's environment names, a first or a later one.

    All groups meet in one store, each under a name of its own: with a second store on the same port
    a rank could still find the first one, if its owner is slower to end its group.
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
    model_parallel.drop_groups()
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast(tensor: Tensor) -> Tensor:
    """Gives every rank of a model the first one's `tensor`, in place, and returns it."""
    if model_parallel.model_parallel_size() > 1:
        group = model_parallel.model_parallel_group()
        dist.broadcast(tensor, src=dist.get_global_rank(group, 0), group=group)
    return tensor


def broadcast_object(value: Any) -> Any:
    """The first rank's `value`, which can be pickled, on every rank of a model."""
    box = [value]
    if model_parallel.model_parallel_size() > 1:
        group, cpu = model_parallel.model_parallel_group(), torch.device("cpu")
        dist.broadcast_object_list(box, dist.get_global_rank(group, 0), group, cpu)
    return box[0]


def sum_over_ranks(partial_sum: Tensor) -> Tensor:
    """The sum of the ranks' partial sums, added in pairs: (0 + 1) + (2 + 3).

    Collectives add in an order of their own. With this one, and partial sums that are themselves
    branches of such a tree, as the native kernels' are, 2 or 4 ranks get what one rank gets to the
    last bit.
    """
    size = model_parallel.model_parallel_size()
    if size == 1:
        return partial_sum
    sums = [torch.empty_like(partial_sum) for _ in range(size)]
    dist.all_gather(sums, partial_sum.contiguous(), group=model_parallel.model_parallel_group())
    while len(sums) > 1:
        pairs = [a + b for a, b in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(sums) - len(sums) % 2 :]
    return sums[0]
