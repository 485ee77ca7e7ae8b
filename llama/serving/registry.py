"""Models by the names that clients call them, loaded when they are asked for.

    registry = ModelRegistry({"tiny": "params/tiny"}, keep_alive=300)
    async with registry.use("tiny") as served:
        served.llama, served.engine

A model that nobody has used for `keep_alive` seconds is unloaded.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.engine.async_engine import AsyncEngine
from llama.errors import InputError
from llama.generation import Llama
from llama.serving.http_errors import HttpError


@dataclass(frozen=True)
class ServedModel:
    """A loaded model, and the adapter that the name stands for, if it is an adapter's."""

    name: str
    llama: Llama
    engine: AsyncEngine
    adapter: str | None = None

    @property
    def max_model_len(self) -> int:
        """The most tokens of a prompt and its answer."""
        return self.llama.engine.max_seq_len


@dataclass
class _Entry:
    """A name's folder; while it is loaded, the model, and how many requests use it."""

    name: str
    folder: str
    created: int
    llama: Llama | None = None
    engine: AsyncEngine | None = None
    num_users: int = 0
    last_used: float = 0.0
    keep_alive: float = 0.0
    unload: asyncio.TimerHandle | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ModelRegistry:
    """The models of a server.

    models: name to folder.
    adapters: name to the folder of a LoRA adapter, each beside every model that it fits.
    keep_alive: seconds that an unused model stays loaded; a negative number is forever.
    options: arguments of `Llama.build`.
    """

    def __init__(
        self,
        models: Mapping[str, str | Path],
        adapters: Mapping[str, str | Path] | None = None,
        keep_alive: float = 300,
        **options: Any,
    ) -> None:
        self._keep_alive, self._options = keep_alive, options
        self._entries = {
            name: _Entry(name, str(folder), _created(folder)) for name, folder in models.items()
        }
        self._adapters = {name: str(folder) for name, folder in (adapters or {}).items()}
        if both := sorted(self._entries.keys() & self._adapters.keys()):
            raise InputError(f"a model and an adapter have the same name, {both[0]!r}")
        if self._adapters and len(self._entries) > 1:
            raise InputError("adapters need one model: name it, as in llama serve MODEL")

    @property
    def names(self) -> dict[str, int]:
        """Every model's and adapter's name, with the second it was created."""
        adapters = {name: _created(folder) for name, folder in self._adapters.items()}
        return {name: entry.created for name, entry in self._entries.items()} | adapters

    def max_model_len(self, name: str) -> int | None:
        """The most tokens of a prompt and its answer, of a model that is loaded.

        Raises HttpError 404 for a name that nothing has.
        """
        entry, _ = self._find(name)
        return entry.llama.engine.max_seq_len if entry.llama is not None else None

    def load(self, name: str) -> None:
        """Loads a model now; blocks."""
        self._load(self._entries[name])

    @contextlib.asynccontextmanager
    async def use(self, name: str, keep_alive: float | None = None) -> AsyncIterator[ServedModel]:
        """The model of that name, which stays loaded at least until the context ends.

        Raises HttpError 404 for a name that nothing has.
        """
        entry, adapter = self._find(name)
        async with entry.lock:
            if entry.llama is None:
                await asyncio.to_thread(self._load, entry)
            entry.num_users += 1
        if entry.unload is not None:
            entry.unload.cancel()
        assert entry.llama is not None
        assert entry.engine is not None
        try:
            yield ServedModel(name, entry.llama, entry.engine, adapter)
        finally:
            entry.num_users -= 1
            entry.last_used = time.time()
            entry.keep_alive = self._keep_alive if keep_alive is None else keep_alive
            if not entry.num_users and entry.keep_alive >= 0:
                loop = asyncio.get_running_loop()
                entry.unload = loop.call_later(entry.keep_alive, self._unload, entry)

    def close(self) -> None:
        """Unloads all models; their requests are cancelled."""
        for entry in self._entries.values():
            self._close(entry)

    def _find(self, name: str) -> tuple[_Entry, str | None]:
        known = name if name in self.names else name.removesuffix(":latest")
        if known in self._adapters:
            return next(iter(self._entries.values())), known
        if known in self._entries:
            return self._entries[known], None
        names = ", ".join(self.names) or "none"
        raise HttpError(
            404,
            f"there is no model {name[:200]!r}; there are {names}",
            param="model",
            code="model_not_found",
        )

    def _load(self, entry: _Entry) -> None:
        llama = Llama.build(entry.folder, **self._options)
        for name, folder in self._adapters.items():
            llama.engine.load_adapter(name, folder)
        entry.llama, entry.engine = llama, AsyncEngine(llama.engine)

    def _unload(self, entry: _Entry) -> None:
        if not entry.num_users:
            threading.Thread(target=self._close, args=(entry,)).start()

    def _close(self, entry: _Entry) -> None:
        engine, entry.engine, entry.llama = entry.engine, None, None
        if engine is not None:
            engine.close()


def _created(folder: str | Path) -> int:
    path = Path(folder)
    return int(path.stat().st_mtime) if path.exists() else int(time.time())
