"""Ranks, process groups, devices and dtypes; nothing prints here.

`devices.py` chooses a device and a dtype, `memory.py` says how much memory there is,
`process_groups.py` starts and ends the groups, `model_parallel.py` is the one file that knows
fairscale, `hardware_peak.py` measures the machine.
"""

from llama.distributed.cpu_threads import CpuThreads, adaptive_threads
from llama.distributed.devices import DTYPES, cpu_multiplies_bfloat16, select_device, select_dtype
from llama.distributed.memory import free_memory, main_memory
from llama.distributed.model_parallel import (
    ParallelLayersOnMeta,
    copy_to_model_parallel_region,
    data_parallel_group,
    data_parallel_rank,
    data_parallel_size,
    gather_from_model_parallel_region,
    model_parallel_group,
    model_parallel_rank,
    model_parallel_size,
    reduce_from_model_parallel_region,
)
from llama.distributed.process_groups import (
    broadcast,
    broadcast_object,
    initialize,
    shutdown,
    sum_over_ranks,
    under_torchrun,
)

__all__ = [
    "DTYPES",
    "CpuThreads",
    "ParallelLayersOnMeta",
    "adaptive_threads",
    "broadcast",
    "broadcast_object",
    "copy_to_model_parallel_region",
    "cpu_multiplies_bfloat16",
    "data_parallel_group",
    "data_parallel_rank",
    "data_parallel_size",
    "free_memory",
    "gather_from_model_parallel_region",
    "initialize",
    "main_memory",
    "model_parallel_group",
    "model_parallel_rank",
    "model_parallel_size",
    "reduce_from_model_parallel_region",
    "select_device",
    "select_dtype",
    "shutdown",
    "sum_over_ranks",
    "under_torchrun",
]
