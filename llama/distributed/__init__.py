"""Ranks, process groups, devices and dtypes; nothing prints here."""

from llama.distributed.devices import (
    DTYPES,
    cpu_multiplies_bfloat16,
    select_device,
    select_dtype,
)
from llama.distributed.process_groups import (
    ParallelLayersOnMeta,
    add_up,
    broadcast,
    data_parallel_group,
    data_parallel_rank,
    data_parallel_size,
    initialize,
    model_parallel_group,
    model_parallel_rank,
    model_parallel_size,
    shutdown,
)

__all__ = [
    "DTYPES",
    "ParallelLayersOnMeta",
    "add_up",
    "broadcast",
    "cpu_multiplies_bfloat16",
    "data_parallel_group",
    "data_parallel_rank",
    "data_parallel_size",
    "initialize",
    "model_parallel_group",
    "model_parallel_rank",
    "model_parallel_size",
    "select_device",
    "select_dtype",
    "shutdown",
]
