"""Models by the names that clients call them, loaded when they are asked for.

    registry = ModelRegistry({"tiny": "params/tiny"}, keep_alive=300)
    async with registry.use("tiny") as served:
        served.llama, served.engine

A model that nobody has used for `keep_alive` seconds is unloaded, and sooner where another one
needs its place. One model at a time is loaded or unloaded; requests that ask for the same one wait
for the same load, and where it fails, it fails for them. All of this runs in the event loop, and
the loading itself in a thread.
"""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama import distributed
from llama.checkpoint.info import need, read_facts
from llama.engine.async_engine import AsyncEngine
from llama.errors import InputError
from llama.generation import Llama
from llama.serving.http_errors import RETRY_LATER, HttpError
from llama.serving.server_metrics import Metrics, ModelMetrics
from llama.storage.files import short_size
from llama.storage.model_names import model_name

Models = Mapping[str, str | Path]


@dataclass(frozen=True)
class Limits:
    """How much a server takes on.

    max_queue: requests for a model besides those that it can run at once; more are refused.
    max_queue_tokens: tokens of prompts that wait; where some wait, more are refused.
    timeout: seconds that the model may take for a request; None for any time.
    """

    max_queue: int = 256
    max_queue_tokens: int | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class ServedModel:
    """A loaded model, and the adapter that the name stands for, if it is an adapter's."""

    name: str
    llama: Llama
    engine: AsyncEngine
    metrics: ModelMetrics
    limits: Limits
    adapter: str | None = None

    @property
    def max_model_len(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self.llama.engine.max_seq_len


@dataclass(frozen=True)
class LoadedModel:
    """What is in memory: a model by its first name, and when it is unloaded if nobody uses it.

    `expires_at` is in seconds since 1970, None for never or while it is used.
    """

    name: str
    llama: Llama
    engine: AsyncEngine
    expires_at: float | None


@dataclass(frozen=True)
class KnownModel:
    """What a name stands for: a model's folder; an adapter is of the model `parent`."""

    name: str
    folder: str
    created: int
    parent: str | None = None


@dataclass(eq=False)
class _Entry:
    """A folder; while it is loaded, the model, and how many requests use it or wait for it."""

    name: str
    folder: str
    keep_alive: float
    llama: Llama | None = None
    engine: AsyncEngine | None = None
    loading: asyncio.Task[None] | None = None
    num_users: int = 0
    last_used: float = 0.0
    timer: asyncio.TimerHandle | None = None

    @property
    def expires_at(self) -> float | None:
        if self.num_users or self.keep_alive < 0 or self.engine is None:
            return None
        return self.last_used + self.keep_alive


class ModelRegistry:
    """The models of a server.

    models: name to folder, or a function that returns those that there are now.
    adapters: name to the folder of a LoRA adapter for the one model.
    keep_alive: seconds that an unused model stays loaded; a negative number is forever.
    max_loaded_models: how many may be in memory; as many as fit if None.
    options: arguments of `Llama.build`.

    `chats` are names that more than a model answers, each with a function from a `ChatRequest` to
    an `Answer` (see `llama.serving.answers`); the chats of all dialects have them as models.
    `may_change` says whether there may be other models at another time.
    """

    def __init__(
        self,
        models: Models | Callable[[], Models],
        adapters: Models | None = None,
        keep_alive: float = 300,
        max_loaded_models: int | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        self._models = models if callable(models) else lambda: models
        self.may_change = callable(models)
        self._keep_alive, self._max_loaded = keep_alive, max_loaded_models
        self._limits, self._options = limits or Limits(), options
        self.chats: dict[str, Callable[[Any], Any]] = {}
        self._entries: dict[str, _Entry] = {}  # by folder: several names may be one model's
        self._adapters = {name: str(folder) for name, folder in (adapters or {}).items()}
        self._changing = asyncio.Lock()
        self._unloading: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self.metrics = Metrics(lambda: {m.name: m.llama.engine.stats for m in self.loaded})
        if self._adapters:
            if callable(models) or len(models) != 1:
                raise InputError("adapters need one model: name it, as in llama serve MODEL")
            if both := sorted(models.keys() & self._adapters.keys()):
                raise InputError(f"a model and an adapter have the same name, {both[0]!r}")

    @property
    def names(self) -> dict[str, int]:
        """Every model's and adapter's name, with the second it was created."""
        return {name: _created(folder) for name, folder in self._folders().items()}

    @property
    def loaded(self) -> list[LoadedModel]:
        """The models in memory."""
        return [
            LoadedModel(entry.name, entry.llama, entry.engine, entry.expires_at)
            for entry in self._entries.values()
            if entry.llama is not None and entry.engine is not None
        ]

    @property
    def only_model(self) -> str | None:
        """The name of the model where there is one; None where there are several or none."""
        models = [name for name in self._folders() if name not in self._adapters]
        return models[0] if len(models) == 1 else None

    def max_model_len(self, name: str) -> int | None:
        """The most tokens of a prompt and its answer, of a model that is loaded.

        Raises HttpError 404 for a name that nothing has.
        """
        entry, _ = self._find(name)
        return entry.llama.engine.max_seq_len if entry.llama is not None else None

    @property
    def known(self) -> dict[str, KnownModel]:
        """What each name stands for."""
        folders = {name: str(folder) for name, folder in self._models().items()}
        known = {n: KnownModel(n, folder, _created(folder)) for n, folder in folders.items()}
        for name, folder in self._adapters.items():
            ((parent, its_folder),) = folders.items()
            known[name] = KnownModel(name, its_folder, _created(folder), parent)
        return known

    def find(self, name: str) -> KnownModel:
        """What a name stands for, in any of its spellings.

        Raises HttpError 404 for one that nothing has.
        """
        entry, adapter = self._find(name)
        return self.known[adapter or entry.name]

    def chat(self, name: str) -> Callable[[Any], Any] | None:
        """What `chats` has of a name, in any of its spellings."""
        return self.chats.get(name) or self.chats.get(name.removesuffix(":latest"))

    def is_loaded(self, name: str) -> bool:
        """Whether the model of that name is in memory. Raises as `find`."""
        return self._find(name)[0].engine is not None

    def load(self, name: str) -> None:
        """Loads a model now, in this thread. Raises as `Llama.build` does."""
        self._build(self._find(name)[0])

    async def preload(self, name: str) -> None:
        """Loads a model before anybody asks for it. Raises as `use` does."""
        await self._load(self._find(name)[0])

    def follow(self) -> None:
        """On a rank besides the first: computes what the first one's model does, until it ends."""
        (entry,) = (self._find(name)[0] for name in self._models())
        self._llama(entry.folder).engine.follow()

    @contextlib.asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None) -> AsyncIterator[ServedModel]:
        """The model of that name, which stays loaded at least until the context ends.

        keep_alive: seconds that it stays loaded afterwards, instead of the registry's.

        Raises HttpError: 404 for a name that nothing has, 503 where too many requests wait for the
        model or others have its memory; and what `Llama.build` raises where it can't be loaded.
        """
        entry, adapter = self._find(name)
        self._check_queue(entry)
        entry.num_users += 1
        try:
            if entry.engine is None:
                await self._load(entry)
            if entry.llama is None or entry.engine is None:
                raise HttpError(503, "the server is shutting down", headers=RETRY_LATER)
            metrics = self.metrics.of(entry.name)
            yield ServedModel(name, entry.llama, entry.engine, metrics, self._limits, adapter)
        finally:
            entry.num_users -= 1
            entry.last_used = time.time()
            entry.keep_alive = self._keep_alive if keep_alive is None else keep_alive
            self._unload_later(entry)

    def close(self) -> None:
        """Unloads all models, in this thread; their requests are cancelled."""
        self._is_closed = True
        for entry in self._entries.values():
            engine, entry.engine, entry.llama = entry.engine, None, None
            if engine is not None:
                engine.close()

    def _folders(self) -> dict[str, str]:
        models = {name: str(folder) for name, folder in self._models().items()}
        return models | self._adapters

    def _find(self, name: str) -> tuple[_Entry, str | None]:
        """The entry of a name, and the adapter if it is one's."""
        folders = self._folders()
        spellings = (name, name.removesuffix(":latest"), model_name(name))
        known = next((spelling for spelling in spellings if spelling in folders), None)
        if known is None and self.chat(name) is not None:
            text = f"{name!r} is no model of its own; it answers chats alone"
            raise HttpError(400, text, param="model", code="invalid_value")
        if known is None:
            names = ", ".join([*folders, *self.chats]) or "none: llama pull fetches one"
            raise HttpError(
                404,
                f"there is no model {name[:200]!r}; there are {names}",
                param="model",
                code="model_not_found",
            )
        adapter = known if known in self._adapters else None
        if adapter is not None:
            known = next(iter(folders))
        folder = folders[known]
        entry = self._entries.setdefault(folder, _Entry(known, folder, self._keep_alive))
        return entry, adapter

    def _check_queue(self, entry: _Entry) -> None:
        running = 1 if entry.llama is None else entry.llama.engine.max_batch_size
        if entry.num_users >= running + self._limits.max_queue:
            raise HttpError(
                503,
                f"{entry.num_users} requests run or wait for {entry.name}; try again later",
                code="queue_full",
                headers=RETRY_LATER,
            )

    async def _load(self, entry: _Entry) -> None:
        """Waits until a model is loaded; begins with it if no other request has.

        A client that goes away does not stop a load: others may wait for it.
        """
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load_alone(entry))
            entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(entry.loading)

    async def _load_alone(self, entry: _Entry) -> None:
        try:
            async with self._changing:
                await self._make_room(entry)
                await _in_daemon_thread(lambda: self._build(entry))
        finally:
            entry.loading = None
            self._unload_later(entry)

    def _llama(self, folder: str) -> Llama:
        llama = Llama.build(folder, **self._options)
        for name, adapter in self._adapters.items():
            llama.engine.load_adapter(name, adapter)
        return llama

    def _build(self, entry: _Entry) -> None:
        llama = self._llama(entry.folder)
        llama.engine.inbox.is_followed = distributed.model_parallel_size() > 1
        if not self._is_closed:
            entry.llama, entry.engine = llama, AsyncEngine(llama.engine)
            entry.last_used = time.time()

    async def _make_room(self, entry: _Entry) -> None:
        """Unloads idle models, the least recently used first, until there is room for one more."""
        while True:
            loaded = [e for e in self._entries.values() if e.engine is not None]
            lack = None
            if self._max_loaded is not None and len(loaded) >= self._max_loaded:
                lack = f"{len(loaded)} models are loaded (max_loaded_models)"
            else:
                lack = await asyncio.to_thread(self._lack_of_memory, entry.folder)
            if lack is None:
                return
            idle = [e for e in loaded if not e.num_users]
            if idle:
                await self._unload(min(idle, key=lambda e: e.last_used))
            elif loaded:
                text = f"{entry.name} has to wait: {lack}; those that are loaded are in use"
                raise HttpError(503, text, code="no_room", headers=RETRY_LATER)
            else:  # and would be next time
                raise InputError(f"{entry.name} can't be loaded: {lack}")

    def _lack_of_memory(self, folder: str) -> str | None:
        """Why the weights in a folder do not fit into memory; None if they do."""
        options = self._options
        device = distributed.select_device(options.get("device"))
        facts = read_facts(folder)
        dtype = distributed.select_dtype(device, options.get("dtype"), facts.parameters())
        keeps_format = device.type == "cpu" and options.get("dtype") in (None, "bfloat16")
        default = facts.default_format(keeps_format, str(dtype).removeprefix("torch."))
        form = facts.quantize or options.get("quantize") or default
        needed = need(facts, form, 1, 1, 1, device.type == "cuda").weights
        free = distributed.free_memory(device)
        if needed <= free:
            return None
        return f"its weights take {short_size(needed)}, and {short_size(free)} of memory are free"

    def _unload_later(self, entry: _Entry) -> None:
        """Unloads a model when nobody has used it for its `keep_alive`."""
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.num_users or entry.keep_alive < 0 or entry.engine is None:
            return

        def unload() -> None:
            task = asyncio.ensure_future(self._unload_if_idle(entry))
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)

        entry.timer = asyncio.get_running_loop().call_later(entry.keep_alive, unload)

    async def _unload_if_idle(self, entry: _Entry) -> None:
        async with self._changing:
            if not entry.num_users:
                await self._unload(entry)

    async def _unload(self, entry: _Entry) -> None:
        engine, entry.engine, entry.llama = entry.engine, None, None
        if engine is not None:
            await asyncio.to_thread(engine.close)
        del engine
        gc.collect()  # modules and the engine's callbacks refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


async def _in_daemon_thread(function: Callable[[], None]) -> None:
    """Waits for `function` in a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error = None
        try:
            function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(finish, error)

    threading.Thread(target=run, name="llama loading", daemon=True).start()
    await done


def _created(folder: str) -> int:
    path = Path(folder)
    return int(path.stat().st_mtime) if path.exists() else int(time.time())
