"""`llama agents`: a team from a file over HTTP, and the view of a trace.

llama agents examples/team/team.toml
llama agents trace trace.jsonl
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import cyclopts
import uvicorn
from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveInt

from llama import console, distributed
from llama.agents.agent_app import team_app
from llama.agents.team import Team
from llama.agents.team_file import read_team
from llama.agents.traces import show_trace
from llama.errors import InputError
from llama.serving.app import MAX_BODY_SIZE
from llama.serving.lifecycle import Lifecycle, Server
from llama.serving.serve import api_keys, listen, url_of

_SEVERAL = Parameter(consume_multiple=True, negative=())

agents = cyclopts.App("agents")
agents.command(show_trace, name="trace", help="The steps that a file of traces has.")


@agents.default
def serve_team(
    team: str,
    /,
    *,
    host: str = "127.0.0.1",
    port: NonNegativeInt = 8000,
    hosts: Annotated[Sequence[str], _SEVERAL] = (),
    model: str | None = None,
    trace: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    max_seq_len: PositiveInt | None = None,
    max_batch_size: PositiveInt | None = None,
    prefix_memory: NonNegativeInt | None = None,
    prefix_folder: str | None = None,
    seed: int = 1,
    api_keys_file: str | None = None,
    cors: Annotated[Sequence[str], _SEVERAL] = (),
    max_body_size: PositiveInt = MAX_BODY_SIZE,
    ping_seconds: NonNegativeFloat = 30,
    drain_seconds: NonNegativeFloat = 30,
) -> None:
    """Serves a team of agents over HTTP, and the models that they share as llama serve does.

    Keys that clients have to give are also read from LLAMA_API_KEYS and LLAMA_API_KEY.

    Args:
        team: File of the team, in TOML.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        hosts: Names by which the server may be called, besides localhost and addresses; * is all.
        model: Checkpoint folder or pulled model; default: the one in the file.
        trace: File that gets a line for each step of each question.
        device: cuda, mps or cpu; default: the best there is.
        dtype: bfloat16, float16 or float32; default: by device and size.
        quantize: bf12, which rounds nothing, int8 or int4.
        max_seq_len: Tokens of a prompt and its answer; default: the model's context.
        max_batch_size: Requests that run at a time; default: 8.
        prefix_memory: Bytes for prompts that later ones may begin with; 0 for none.
        prefix_folder: Folder that keeps them for later processes.
        seed: What the draws of requests without a seed follow from.
        api_keys_file: File with a key in each line.
        cors: Origins of web pages that may call the server, besides this machine's; * is all.
        max_body_size: Bytes of a request.
        ping_seconds: Silence before a stream gets a comment, 0 for never.
        drain_seconds: Time for running requests when a signal ends the server.
    """
    options: dict[str, Any] = {
        "max_seq_len": max_seq_len,
        "max_batch_size": max_batch_size,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "prefix_memory": prefix_memory,
        "prefix_folder": prefix_folder,
    }
    if distributed.under_torchrun():
        raise InputError("a team runs in one process: start llama agents without torchrun")
    members = read_team(team, model, trace_file=trace, **options)
    asyncio.run(_connect(members))  # what is wrong is said here, in one line
    keys = api_keys(api_keys_file)
    listener = listen(host, port)
    lifecycle = Lifecycle("loading")
    app = team_app(
        members,
        lifecycle,
        hosts=hosts,
        api_keys=keys,
        cors=cors,
        max_body_size=max_body_size,
        ping_seconds=ping_seconds,
    )

    async def load() -> None:
        await members.warm()
        names = ", ".join(members.agents)
        console.say(f"{url_of(listener)}/chat asks {members.entry}; there are {names}")

    config = uvicorn.Config(app, log_level="warning", lifespan="on", access_log=False)
    server = Server(config, lifecycle, members.models, load, drain_seconds)
    try:
        server.run_on(listener)
    finally:
        members.close()


async def _connect(team: Team) -> None:
    async with team.running():
        pass
