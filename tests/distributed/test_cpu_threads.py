"""Fewer threads while threads lose their cores, by a clock and counts that the test makes up."""

import threading
from collections.abc import Iterator

import pytest
import torch

from llama.distributed import cpu_threads
from llama.distributed.cpu_threads import CpuThreads


class Machine:
    """Time, CPU time and preemptions of a process."""

    def __init__(self) -> None:
        self.now, self.cpu, self.preempted = 0.0, 0.0, 0

    def usage(self) -> tuple[float, float, int]:
        return self.now, self.cpu, self.preempted


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    monkeypatch.setattr(CpuThreads, "_usage", lambda self: machine.usage())
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield machine
    torch.set_num_threads(before)


def run(machine: Machine, threads: CpuThreads, seconds: float, rate: float) -> list[int]:
    """The threads of steps of 10 ms, with so many preemptions a second of CPU time."""
    counts = []
    for _ in range(round(seconds / 0.01)):
        with threads:
            counts.append(torch.get_num_threads())
        assert torch.get_num_threads() == 8
        machine.now += 0.01
        machine.cpu += 0.01
        machine.preempted += round(machine.cpu * rate) - round((machine.cpu - 0.01) * rate)
    return counts


def test_a_quiet_machine_keeps_all_threads(machine: Machine) -> None:
    assert set(run(machine, CpuThreads(), 2, rate=9)) == {8}


def test_threads_fall_while_others_compete_and_come_back_afterwards(machine: Machine) -> None:
    threads = CpuThreads()
    busy = run(machine, threads, 1, rate=250)
    assert busy[-1] == 1
    assert busy.index(1) <= 20
    assert threads.is_busy
    after = run(machine, threads, 3, rate=0)
    assert after[-1] == 8
    assert not threads.is_busy


def test_while_others_go_on_more_threads_are_tried_less_and_less_often(machine: Machine) -> None:
    threads = CpuThreads()
    tries = []
    for _ in range(4000):
        rate = 250 if threads.count > 1 else 0  # a core is free, the other is not
        tries += run(machine, threads, 0.01, rate)
    first, last = tries[:1000], tries[-1000:]
    assert sum(count > 1 for count in last) < sum(count > 1 for count in first) / 2


def test_python_threads_in_steps_at_once_get_their_own_numbers_back(machine: Machine) -> None:
    threads = CpuThreads()
    run(machine, threads, 1, rate=250)
    threads.__enter__()
    assert torch.get_num_threads() == 1

    def step_meanwhile() -> None:
        torch.set_num_threads(8)
        run(machine, threads, 3, rate=0)

    other = threading.Thread(target=step_meanwhile)
    other.start()
    other.join()
    assert not threads.is_busy  # the machine is quiet again
    assert threads.full == 8
    threads.__exit__(None, None, None)
    assert torch.get_num_threads() == 8


def test_one_thread_stays_one(machine: Machine) -> None:
    torch.set_num_threads(1)
    with CpuThreads() as threads:
        assert threads.count == 1
    torch.set_num_threads(8)


def test_without_counts_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_threads, "resource", None)
    before = torch.get_num_threads()
    with CpuThreads() as threads:
        assert (threads.count, torch.get_num_threads()) == (before, before)
