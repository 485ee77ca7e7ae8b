"""What fairscale needs and costs, in one file.

`model.py` is built from fairscale's parallel layers, as Meta's is. Nothing else knows of fairscale;
its oddities are dealt with here:

- Its layers need process groups even where there is one process: `start_one_process`.
- It prints to rank 0's standard output, which is the caller's: `make_groups` discards that.
- Its groups outlive `torch.distributed.destroy_process_group`: `drop_groups`.
- Its layers ignore torch's meta device, and on several ranks each first makes the whole weight:
  `ParallelLayersOnMeta`.
"""

import contextlib
import importlib
import io

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel import initialize as fairscale_groups
from fairscale.nn.model_parallel import mappings
from torch.utils._python_dispatch import TorchDispatchMode

# Their gradients are the sum, the shard and a copy of the ranks' gradients.
copy_to_model_parallel_region = mappings.copy_to_model_parallel_region
gather_from_model_parallel_region = mappings.gather_from_model_parallel_region
reduce_from_model_parallel_region = mappings.reduce_from_model_parallel_region

has_groups = fairscale_groups.model_parallel_is_initialized
# Also forgets groups left over from a torch group that is gone.
drop_groups = fairscale_groups.destroy_model_parallel
# The ranks that share a model with this one; and those that hold the same shard of a model, each
# of which trains on a part of a batch.
model_parallel_group = fairscale_groups.get_model_parallel_group
data_parallel_group = fairscale_groups.get_data_parallel_group
data_parallel_size = fairscale_groups.get_data_parallel_world_size
data_parallel_rank = fairscale_groups.get_data_parallel_rank


def start_one_process() -> None:
    """Starts torch's process group for a single process, without a port.

    gloo listens on a port even with one process. torch's "fake" backend copies a collective's
    input to its output, which is right for a group of one.
    """
    importlib.import_module("torch.testing._internal.distributed.fake_pg")  # registers the backend
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=1)


def make_groups(model_parallel_size: int) -> None:
    """Makes fairscale's groups on top of torch's; the size has to divide the number of ranks."""
    with contextlib.redirect_stdout(io.StringIO()):
        fairscale_groups.initialize_model_parallel(model_parallel_size)


def model_parallel_size() -> int:
    """How many ranks share one model: 1 while there are no groups."""
    return int(fairscale_groups.get_model_parallel_world_size()) if has_groups() else 1


def model_parallel_rank() -> int:
    """This process's rank among those that share its model."""
    return int(fairscale_groups.get_model_parallel_rank()) if has_groups() else 0


class ParallelLayersOnMeta(TorchDispatchMode):
    """Makes fairscale's layers without memory; other tensors made meanwhile are real.

    The layers call `torch.Tensor(...)`, which ignores `torch.device("meta")`, so their allocations
    are caught one level below, at the dispatcher.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True makes torch import its compiler, which takes a second

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        # Initial values, and the copy of this rank's shard out of the whole weight: no memory yet.
        if func is torch.ops.aten.normal_.default:
            return args[0]
        if func is torch.ops.aten.cat.out:
            return kwargs["out"]
        if func is torch.ops.aten.empty.memory_format:
            kwargs = {**(kwargs or {}), "device": "meta"}
        return func(*args, **(kwargs or {}))
