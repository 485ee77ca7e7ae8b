"""Ollama's models: GET /api/tags, /api/ps, /api/version, and POST /api/show.

`tags` lists all that are there, `ps` those in memory, `show` what a model is. Nothing is loaded for
them: the shape of a model is in its folder. What changes them is in `ollama_pull`.
"""

import asyncio
import hashlib
import time
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from llama.checkpoint.info import Facts, read_facts, short_count
from llama.errors import InputError
from llama.serving.json_output import JSONResponse
from llama.serving.ollama_fields import NamedModel, timestamp
from llama.serving.registry import KnownModel, LoadedModel, ModelRegistry
from llama.storage import pulled

# The release of Ollama whose routes these are. Clients refuse to work with one that is too old for
# them: VS Code asks for 0.6.4.
VERSION = "0.20.0"

_NEVER = 2**40  # seconds since 1970
_NO_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


class ShowFields(NamedModel):
    """The body of POST /api/show."""

    verbose: Literal[False] | None = None


class Version(BaseModel):
    """Which release of Ollama has these routes."""

    version: str


class Details(BaseModel):
    """What a model is, in words. `parent_model` is what an adapter is for."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ListedModel(BaseModel):
    """A model that is there; `size` is that of its files."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class ModelList(BaseModel):
    """The models that are there."""

    models: list[ListedModel]


class RunningModel(BaseModel):
    """A model in memory. `size` is that of its weights there, `size_vram` what a GPU has of it."""

    name: str
    model: str
    size: int
    digest: str
    details: Details
    expires_at: str
    size_vram: int
    context_length: int


class RunningList(BaseModel):
    """The models in memory."""

    models: list[RunningModel]


class Shown(BaseModel):
    """What a model is and can do."""

    license: str
    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


def routes(models: ModelRegistry) -> APIRouter:
    """The routes that change nothing."""
    router = APIRouter()
    started = int(time.time())

    @router.get("/api/version", response_model=Version)
    async def version() -> JSONResponse:
        """The release of Ollama that this server is compatible with."""
        return JSONResponse({"version": VERSION})

    @router.get("/api/tags", response_model=ModelList)
    async def tags() -> JSONResponse:
        """Every model that a request may name."""
        known = models.known.values()
        listed = await asyncio.to_thread(lambda: [_listed(model) for model in known])
        return JSONResponse(
            {"models": listed + [_listed_chat(name, started) for name in models.chats]}
        )

    @router.get("/api/ps", response_model=RunningList)
    async def ps() -> JSONResponse:
        """The models in memory, and when they leave it."""
        known = models.known
        loaded = [(known[each.name], each) for each in models.loaded if each.name in known]
        running = await asyncio.to_thread(lambda: [_running(*each) for each in loaded])
        return JSONResponse({"models": running})

    @router.post("/api/show", response_model=Shown)
    async def show(body: ShowFields) -> JSONResponse:
        """What a model is and can do."""
        if models.chat(body.named) is not None:
            return JSONResponse(_shown_chat(body.named, started))
        length = models.max_model_len(body.named)
        return JSONResponse(await asyncio.to_thread(_shown, models.find(body.named), length))

    return router


def _listed(model: KnownModel) -> dict[str, Any]:
    try:
        facts = read_facts(model.folder)
    except InputError:  # a damaged model is in the list too; what is wrong, a request is told
        facts = None
    files = facts.checkpoint.files if facts and facts.checkpoint else ()
    return {
        **_names(model.name),
        "modified_at": timestamp(model.created),
        "size": sum(file.size for file in files),
        "digest": _digest(model, facts),
        "details": _details(model, facts),
    }


def _listed_chat(name: str, started: int) -> dict[str, Any]:
    """What more than a model answers; it has no files."""
    return {
        **_names(name),
        "modified_at": timestamp(started),
        "size": 0,
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "details": _NO_DETAILS,
    }


def _running(model: KnownModel, loaded: LoadedModel) -> dict[str, Any]:
    facts = read_facts(model.folder)
    tensors = (*loaded.llama.model.parameters(), *loaded.llama.model.buffers())
    return {
        **_names(model.name),
        "size": sum(tensor.nbytes for tensor in tensors),
        "digest": _digest(model, facts),
        "details": _details(model, facts),
        "expires_at": timestamp(_NEVER if loaded.expires_at is None else loaded.expires_at),
        "size_vram": sum(tensor.nbytes for tensor in tensors if tensor.is_cuda),
        "context_length": loaded.llama.engine.max_seq_len,
    }


def _shown(model: KnownModel, max_model_len: int | None) -> dict[str, Any]:
    facts = read_facts(model.folder)
    args, record = facts.args, pulled.find(model.name)
    return {
        "license": (record.license if record else None) or "",
        "modelfile": f"FROM {model.name}\n",
        "parameters": "",
        "template": "",  # Ollama's are Go's, of which Llama needs none
        "details": _details(model, facts),
        "model_info": {
            "general.architecture": "llama",
            "general.basename": model.name,
            "general.parameter_count": facts.parameters(),
            "llama.attention.head_count": args.n_heads,
            "llama.attention.head_count_kv": args.kv_heads,
            "llama.attention.key_length": args.head_dim,
            "llama.block_count": args.n_layers,
            "llama.context_length": max_model_len or args.max_seq_len,
            "llama.embedding_length": args.dim,
            "llama.feed_forward_length": args.hidden_dim,
            "llama.rope.freq_base": args.rope_theta,
            "llama.vocab_size": args.vocab_size,
        },
        "capabilities": ["completion", "tools"],
        "modified_at": timestamp(model.created),
    }


def _shown_chat(name: str, started: int) -> dict[str, Any]:
    return {
        "license": "",
        "modelfile": f"FROM {name}\n",
        "parameters": "",
        "template": "",
        "details": _NO_DETAILS,
        "model_info": {},
        "capabilities": ["completion"],
        "modified_at": timestamp(started),
    }


def _names(name: str) -> dict[str, str]:
    """A name as Ollama writes it, with a tag."""
    is_tagged = ":" in name.rpartition("/")[2]
    name = name if is_tagged else f"{name}:latest"
    return {"name": name, "model": name}


def _details(model: KnownModel, facts: Facts | None) -> dict[str, Any]:
    if facts is None:
        return _NO_DETAILS
    stored = facts.checkpoint
    dtypes = {str(weight.dtype) for weight in stored.weights.values()} if stored else set()
    form = {"torch.bfloat16": "BF16", "torch.float16": "F16"}.get("".join(dtypes), "F32")
    if facts.is_bf12:
        form = "BF12"
    return {
        "parent_model": model.parent or "",
        "format": "safetensors" if stored and stored.layout != "meta" else "pth",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": short_count(facts.parameters()),
        "quantization_level": facts.quantize.upper() if facts.quantize else form,
    }


def _digest(model: KnownModel, facts: Facts | None) -> str:
    """A sha256 in hexadecimal, of a pulled model over its files' checksums.

    Of another one over their names and sizes, and its name: no file is read for a list.
    """
    record = pulled.find(model.name)
    if record is not None and str(record.folder) == model.folder:
        return record.digest
    files = facts.checkpoint.files if facts and facts.checkpoint else ()
    lines = [f"{file.name} {file.size}\n" for file in files]
    return hashlib.sha256("".join([model.name, *lines]).encode()).hexdigest()
