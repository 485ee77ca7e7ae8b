"""`llama serve`: the application of `app` under uvicorn.

    llama serve llama3.2:1b
    llama serve                        # all models that were pulled, loaded when they are asked for
    torchrun --nproc_per_node 2 -m llama serve params/tiny

Under torchrun the ranks share the model, and the first one serves it.
"""

import os
import re
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from cyclopts import Parameter
from cyclopts.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, UInt16

from llama import console, distributed
from llama.dialog import ToolFormat
from llama.errors import InputError, MissingFileError
from llama.retrieval.index import Index
from llama.serving.app import MAX_BODY_SIZE, create_app
from llama.serving.lifecycle import Lifecycle, Server
from llama.serving.registry import Limits, ModelRegistry
from llama.storage.files import expand
from llama.storage.pulled import pulled_models

_SEVERAL = Parameter(consume_multiple=True, negative=())


def serve(
    model: str | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: UInt16 = 8000,
    name: str | None = None,
    adapter: Annotated[Sequence[str], _SEVERAL] = (),
    rag: Annotated[Sequence[str], _SEVERAL] = (),
    keep_alive: float | None = None,
    max_loaded_models: PositiveInt | None = None,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    max_seq_len: PositiveInt | None = None,
    max_batch_size: PositiveInt | None = None,
    kv_cache_dtype: str | None = None,
    kv_memory: PositiveInt | None = None,
    prefix_memory: NonNegativeInt | None = None,
    prefix_folder: str | None = None,
    draft: str | None = None,
    tokenizer_path: str | None = None,
    tool_format: ToolFormat | None = None,
    seed: int = 1,
    api_keys_file: str | None = None,
    cors: Annotated[Sequence[str], _SEVERAL] = (),
    max_body_size: PositiveInt = MAX_BODY_SIZE,
    max_queue: NonNegativeInt = 256,
    max_queue_tokens: PositiveInt | None = None,
    timeout: PositiveFloat | None = None,
    ping_seconds: NonNegativeFloat = 30,
    drain_seconds: NonNegativeFloat = 30,
) -> None:
    """Serves models over HTTP, to OpenAI, Anthropic and Ollama clients.

    Keys that clients have to give are also read from LLAMA_API_KEYS and LLAMA_API_KEY.

    Args:
        model: Checkpoint folder or pulled model; default: all pulled models, loaded on demand.
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        name: What clients call the model; default: its name or that of its folder.
        adapter: NAME=FOLDER of LoRA adapters, which clients call as models.
        rag: Indexes of documents (`llama rag`), which clients call as rag:NAME, the file's name
            without its ending; a file that does not exist becomes an empty index.
        keep_alive: Seconds before an unused model is unloaded, -1 for never; default: 300, and
            never for a named model.
        max_loaded_models: Models in memory at a time; default: as many as fit.
        device: cuda, mps or cpu; default: the best there is.
        dtype: bfloat16, float16 or float32; default: by device and size.
        quantize: bf12, which rounds nothing, int8 or int4.
        max_seq_len: Tokens of a prompt and its answer; default: the model's context.
        max_batch_size: Requests that run at a time; default: 8.
        kv_cache_dtype: int8 for a KV cache of half the size.
        kv_memory: Bytes for keys and values; default: half of the free memory.
        prefix_memory: Bytes for prompts that later ones may begin with; 0 for none.
        prefix_folder: Folder that keeps them for later processes.
        draft: Smaller model with the same tokenizer, which makes decoding faster.
        tokenizer_path: Tokenizer; default: the one in the model's folder.
        tool_format: How prompts offer functions, json or pythonic; default: by the model.
        seed: What the draws of requests without a seed follow from.
        api_keys_file: File with a key in each line.
        cors: Origins of web pages that may call the server, besides this machine's; * is all.
        max_body_size: Bytes of a request.
        max_queue: Requests for a model that may wait; more are answered 503.
        max_queue_tokens: Tokens of prompts that may wait; default: any number.
        timeout: Seconds for a request; default: any time.
        ping_seconds: Silence before a stream gets a comment, 0 for never.
        drain_seconds: Time for running requests when a signal ends the server.
    """
    options: dict[str, Any] = {
        "tokenizer_path": tokenizer_path,
        "tool_format": tool_format,
        "max_seq_len": max_seq_len,
        "max_batch_size": max_batch_size,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
        "kv_cache_dtype": kv_cache_dtype,
        "kv_memory": kv_memory,
        "prefix_memory": prefix_memory,
        "prefix_folder": prefix_folder,
        "draft": draft,
    }
    limits = Limits(max_queue, max_queue_tokens, timeout)
    adapters = _adapters(adapter)
    if model is None:
        of_one = {"name": name, "adapter": adapter, "rag": rag}
        of_one["tokenizer_path"] = tokenizer_path
        if flags := [flag for flag, value in of_one.items() if value]:
            raise InputError(f"--{flags[0]} needs a model: llama serve MODEL --{flags[0]} ...")
        if distributed.under_torchrun():
            raise InputError("under torchrun name one model: llama serve MODEL")
        keep_alive = 300 if keep_alive is None else keep_alive
        models = ModelRegistry(_pulled, None, keep_alive, max_loaded_models, limits, **options)
    else:
        name = name or _name(model)
        keep_alive = -1 if keep_alive is None else keep_alive
        models = ModelRegistry(
            {name: expand(model)}, adapters, keep_alive, max_loaded_models, limits, **options
        )
    if not console.is_main():
        for number in (signal.SIGINT, signal.SIGTERM):  # the first rank decides when all end
            signal.signal(number, signal.SIG_IGN)
        models.follow()
        return
    keys = api_keys(api_keys_file)
    indexes = _indexes(rag, model, tokenizer_path) if model is not None else {}
    listener = listen(host, port)
    lifecycle = Lifecycle("loading")
    app = create_app(
        models,
        lifecycle,
        api_keys=keys,
        cors=cors,
        max_body_size=max_body_size,
        ping_seconds=ping_seconds,
        indexes=indexes,
    )

    async def load() -> None:
        if name is not None:
            await models.preload(name)
        what = ", ".join([*models.names, *models.chats]) or "no model yet (llama pull fetches one)"
        console.say(f"{url_of(listener)} serves {what}; Ctrl-C ends it")

    config = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False)
    server = Server(config, lifecycle, models, load, drain_seconds)
    try:
        server.run_on(listener)
    finally:
        for index in indexes.values():
            index.close()


def _name(model: str) -> str:
    """What clients call a model: a pulled one by its name, a folder by its own."""
    return Path(model).resolve().name if Path(expand(model)).exists() else model


def _pulled() -> dict[str, str | Path]:
    return {model.name: model.folder for model in pulled_models()}


def _adapters(named: Sequence[str]) -> dict[str, str | Path]:
    adapters: dict[str, str | Path] = {}
    for text in named:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--adapter {text!r}: write NAME=FOLDER")
        if name in adapters:
            raise InputError(f"--adapter: two adapters are called {name!r}")
        adapters[name] = expand(folder)
    return adapters


def _indexes(files: Sequence[str], model: str, tokenizer_path: str | None) -> dict[str, Index]:
    indexes: dict[str, Index] = {}
    for file in files:
        name = Path(file).stem
        if name in indexes:
            raise InputError(f"--rag: two indexes are called {name!r}")
        indexes[name] = Index.open(file, expand(model), tokenizer_path=tokenizer_path)
    return indexes


def api_keys(file: str | None) -> list[str]:
    """The keys in the environment and in a file, where # begins a comment line."""
    texts = [os.environ.get("LLAMA_API_KEYS", ""), os.environ.get("LLAMA_API_KEY", "")]
    keys = [key for text in texts for key in re.split(r"[\s,]+", text) if key]
    if file is not None:
        path = Path(expand(file))
        if not path.is_file():
            raise MissingFileError(f"--api_keys_file: there is no file {path}")
        lines = (line.strip() for line in path.read_text().splitlines())
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise InputError(f"--api_keys_file: {path} has no key")
        keys += from_file
    return keys


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections from now on."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        # That of getaddrinfo has its own numbers; that of bind adds the address to the text.
        is_name = isinstance(error, socket.gaierror) or error.errno is None
        reason = error.strerror if is_name else os.strerror(error.errno or 0)
        raise InputError(f"can't listen on {host}, port {port}: {reason}") from None


def url_of(listener: socket.socket) -> str:
    """The address that clients call."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
