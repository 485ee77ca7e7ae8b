"""`llama serve` as it is started and ended: a process, its port, its signals."""

import contextlib
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.conftest import TINY

from llama import Llama
from llama.serving.serve import serve

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
STORY: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "ignore_eos": True,
}
Command = Callable[..., tuple[int, str, str]]


@contextlib.contextmanager
def serving(
    *flags: str | Path, command: tuple[str, ...] = ("-m", "llama", "serve"), **env: str
) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that serves, and its address, once it has said so."""
    process = subprocess.Popen(
        [sys.executable, *command, *map(str, flags), "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        match = re.match(r"(http://\S+) serves ", line)
        assert match, line + process.stderr.read()
        yield process, match[1]
    finally:
        process.kill()
        process.wait()


def running_requests(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return float(re.search(r"num_requests_running\{.*\} (\S+)", text)[1])  # type: ignore[index]


def begin(url: str, results: list[Any], **body: Any) -> threading.Thread:
    """Sends a request from a thread, and waits until it runs."""

    def send() -> None:
        results.append(httpx.post(f"{url}{CHAT}", json={**STORY, **body}, timeout=120))

    thread = threading.Thread(target=send)
    thread.start()
    while running_requests(url) == 0:
        time.sleep(0.01)
    return thread


def wait_until_draining(url: str) -> httpx.Response:
    while (health := httpx.get(f"{url}/health")).status_code == 200:
        time.sleep(0.01)
    return health


@pytest.mark.slow
def test_a_server_from_its_first_line_to_its_last() -> None:
    """On SIGTERM what runs is finished, what is new is refused, and the exit status is 0."""
    with serving(TINY, "--max_seq_len", "8192", LLAMA_SERVE_NAME="tiny") as (process, url):
        assert httpx.get(f"{url}/health").json() == {"status": "ok"}
        results: list[httpx.Response] = []
        thread = begin(url, results, max_tokens=1500)
        process.send_signal(signal.SIGTERM)
        health = wait_until_draining(url)
        assert (health.status_code, health.headers["retry-after"]) == (503, "5")
        refused = httpx.post(f"{url}{CHAT}", json=STORY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        thread.join()
        assert results[0].json()["usage"]["completion_tokens"] == 1500
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_what_is_not_done_in_time_ends_with_an_error() -> None:
    with serving(TINY, "--max_seq_len", "60000", "--drain_seconds", "0.2") as (process, url):
        results: list[Any] = []
        thread = begin(url, results)
        lines: list[str] = []

        def read_stream() -> None:
            body = {**STORY, "stream": True}
            with httpx.stream("POST", f"{url}{CHAT}", json=body, timeout=120) as response:
                lines.extend(response.iter_lines())

        stream = threading.Thread(target=read_stream)
        stream.start()
        while running_requests(url) < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        thread.join()
        stream.join()
        assert results[0].status_code == 503
        assert results[0].json()["error"]["message"] == "the server is shutting down"
        last = json.loads([line for line in lines if line][-1].removeprefix("data: "))
        assert last["error"]["message"] == "the server is shutting down"
        assert process.wait(60) == 0


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once() -> None:
    body = {**STORY, "stream": True}
    with (
        serving(TINY, "--max_seq_len", "60000", "--drain_seconds", "600") as (process, url),
        httpx.stream("POST", f"{url}{CHAT}", json=body) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        wait_until_draining(url)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


@pytest.mark.slow
def test_two_ranks_serve_one_model() -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = (*torchrun, "-m", "llama", "serve")
    body = {**STORY, "max_tokens": 20, "seed": 3, "logprobs": True, "temperature": 0.9}
    answers = []
    with serving(TINY, "--device", "cpu", command=command) as (process, url):
        for _ in range(2):
            answers.append(httpx.post(f"{url}{CHAT}", json=body, timeout=120).json()["choices"])
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    with serving(TINY, "--device", "cpu") as (_, url):
        answers.append(httpx.post(f"{url}{CHAT}", json=body, timeout=120).json()["choices"])
    assert answers[0] == answers[1]
    assert answers[0][0]["message"] == answers[2][0]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such/folder"], "no/such/folder is not there"),
        ([TINY, "--adapter", "polite"], "--adapter 'polite': write NAME=FOLDER"),
        ([TINY, "--adapter", "a=x", "--adapter", "a=y"], "two adapters are called 'a'"),
        ([TINY, "--adapter", "tiny=x"], "same name, 'tiny'"),
        ([TINY, "--api_keys_file", "no.txt"], "there is no file no.txt"),
        ([TINY, "--dtype", "int3"], "dtype 'int3' is none of"),
        ([TINY, "--host", "no.such.host.invalid"], "can't listen on no.such.host.invalid"),
        (["--name", "x"], "--name needs a model"),
        (["--adapter", "a=x"], "--adapter needs a model"),
    ],
)
def test_what_is_wrong_ends_in_one_line(
    run_command: Command, arguments: list[str], message: str
) -> None:
    code, out, err = run_command("serve", *arguments, "--port", "0")
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken(run_command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run_command("serve", TINY, "--port", str(port))
    assert (code, err) == (
        1,
        f"error: can't listen on 127.0.0.1, port {port}: Address already in use\n",
    )


def test_a_file_of_keys_without_keys(run_command: Command, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# none yet\n\n")
    code, _, err = run_command("serve", TINY, "--port", "0", "--api_keys_file", keys)
    assert (code, err) == (1, f"error: --api_keys_file: {keys} has no key\n")


@pytest.mark.slow
def test_all_pulled_models_are_served_on_demand(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# mine\nsecret\n")
    with serving(
        LLAMA_MODELS=str(tmp_path), LLAMA_SERVE_API_KEYS_FILE=str(keys), LLAMA_API_KEYS="a,b c"
    ) as (process, url):
        for key in ("secret", "a", "b", "c"):
            headers = {"x-api-key": key}
            answer = httpx.post(f"{url}{CHAT}", json={**STORY, "max_tokens": 3}, headers=headers)
            assert answer.json()["usage"]["completion_tokens"] == 3
        assert httpx.post(f"{url}{CHAT}", json=STORY).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_a_model_is_built_with_are_flags() -> None:
    flags = inspect.signature(serve).parameters
    for name in inspect.signature(Llama.build).parameters:
        if name not in ("ckpt_dir", "model_parallel_size"):  # MODEL, and all ranks of torchrun
            assert name in flags
