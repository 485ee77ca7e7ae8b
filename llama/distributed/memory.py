"""Bytes that a process may have, of a GPU or of main memory.

    main_memory()                           # in all
    free_memory(torch.device("cpu"))        # that may still be allocated

A container is a control group (cgroup, of version 1 or 2), whose limit may be less than what the
machine has; a limit of a group holds for the groups in it.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def main_memory() -> int:
    """Bytes of the machine, or the limit of this process's container if that is less."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([whole, *(limit for limit, _ in _limits())])


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still allocate on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return max(0, min([_free_of_machine(), *(limit - used for limit, used in _limits())]))


def _free_of_machine() -> int:
    try:
        return _fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024
    except (OSError, KeyError):  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _limits() -> Iterator[tuple[int, int]]:
    """The limit and the use of each control group that this process is in and that has a limit.

    Files that are cached and not in use do not count: the kernel drops them where it needs memory.
    """
    try:
        lines = _OWN.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, limit, use, cached = _ROOT, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limit = _ROOT / "memory", "memory.limit_in_bytes"
            use, cached = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        group = mount / path.strip("/")  # a container may not see its own path, only the mount
        for folder in (group, *group.parents):
            if folder.is_relative_to(mount) and (folder / limit).is_file():
                text = (folder / limit).read_text().strip()
                if text.isdecimal():  # else "max"
                    used = int((folder / use).read_text())
                    yield int(text), used - _fields(folder / "memory.stat").get(cached, 0)


def _fields(path: Path) -> dict[str, int]:
    """The lines of a file as names and numbers."""
    return {words[0]: int(words[1]) for words in map(str.split, path.open()) if len(words) > 1}
