"""The side of `llama bench` that asks: a process for each contender, and whose turn it is."""

import dataclasses
import os
import random
import subprocess
import sys
from contextlib import ExitStack, suppress
from json import dumps, loads
from pathlib import Path
from typing import Any

import tqdm

from llama.bench.plan import Plan
from llama.bench.report import BITS, Request, Times


class Failed(Exception):
    """A contender ended; the message says why."""


class Worker:
    """A contender's process; `contenders.py` says what goes through its pipes."""

    def __init__(self, name: str, plan: Plan, spec: dict[str, Any], folder: Path) -> None:
        self._log = folder / f"{name}.log"
        own_tokenizer = folder / "tokenizer.model"
        spec = {
            **spec,
            "device": str(plan.device),
            "threads": plan.threads,
            "lengths": plan.lengths,
            "tokenizer": str(own_tokenizer) if own_tokenizer.exists() else None,
        }
        root = str(Path(__file__).parents[2])
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": str(plan.threads),
        }
        if plan.device.type == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""  # llama.cpp gives a GPU work even so
        script = Path(__file__).with_name("contenders.py")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=env,
                text=True,
            )
        self._tell(spec)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises Failed."""
        self._tell(request)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """What it says next. Raises Failed with the reason, or the last line that it printed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer = loads(line)
            if "failed" in answer:
                raise Failed(answer["failed"])
            return answer
        code = self._process.wait()
        said = [text.strip() for text in self._log.read_text(errors="replace").splitlines()]
        last = next((text for text in reversed(said) if text), "it said nothing")
        if code < 0:
            last = f"ended by signal {-code}" + ", out of memory perhaps" * (code == -9)
        raise Failed(last)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and `answer` will find out why
            self._process.stdin.write(dumps(message) + "\n")
            self._process.stdin.flush()


def start(
    plan: Plan, paths: dict[str, str], folder: Path, failures: dict[str, str], stack: ExitStack
) -> tuple[dict[str, Worker], dict[str, float]]:
    """Loads one after the other and warms it up; the workers, and seconds that loading took.

    `paths` is where they read. What goes wrong is told to `failures`; `stack` will end them.
    """
    workers: dict[str, Worker] = {}
    seconds: dict[str, float] = {}
    for name, path in tqdm.tqdm(paths.items(), "Loading", disable=None, leave=False):
        worker = Worker(name, plan, {**plan.contenders[name], "path": path}, folder)
        stack.callback(worker.end)
        try:
            seconds[name] = worker.answer()["load"]
            for request in plan.requests:
                if _answers(name, request):
                    short = min(request.prompt, 64), min(request.tokens, 2)
                    few = dataclasses.replace(request, prompt=short[0], tokens=short[1])
                    worker.ask(_message(few, plan, seed=0))
            workers[name] = worker
        except Failed as failed:
            failures[name] = str(failed)
    return workers, seconds


def take_turns(
    plan: Plan, workers: dict[str, Worker], failures: dict[str, str]
) -> tuple[dict[str, dict[Request, Times]], dict[str, dict[str, int]]]:
    """Round after round each contender's times, and the most memory it has taken.

    One that fails is out, also of the rounds before.
    """
    times: dict[str, dict[Request, Times]] = {name: {} for name in workers}
    peaks: dict[str, dict[str, int]] = {}
    with tqdm.tqdm(
        total=plan.rounds * len(plan.requests) * len(workers), disable=None, leave=False
    ) as bar:
        for number in range(plan.rounds):
            for request in plan.requests:
                message = _message(request, plan, seed=number + 1)
                for name in list(times):
                    bar.set_description(f"Round {number + 1}: {name}")
                    bar.update()
                    if not _answers(name, request):
                        continue
                    try:
                        answer = workers[name].ask(message)
                    except Failed as failed:
                        failures[name] = str(failed)
                        del times[name]
                        continue
                    pair = (answer["first"], answer["rest"])
                    times[name].setdefault(request, []).append(pair)
                    peaks[name] = {key: answer[key] for key in ("peak", "device_peak")}
    return times, peaks


def _answers(name: str, request: Request) -> bool:
    return name in BITS or not request.sampled


def _message(request: Request, plan: Plan, seed: int) -> dict[str, Any]:
    """The request with random prompts, others each round: nobody shall know them by heart."""
    draw = random.Random(f"{seed} {request}")
    size = plan.facts.args.vocab_size
    prompts = [[draw.randrange(size) for _ in range(request.prompt)] for _ in range(request.rows)]
    return {"prompts": prompts, "tokens": request.tokens, "sampled": request.sampled}
