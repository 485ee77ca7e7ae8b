"""Models that are loaded and unloaded while requests come and go."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving.conftest import TINY

from llama import Llama
from llama.errors import InputError
from llama.serving import registry
from llama.serving.http_errors import HttpError
from llama.serving.registry import Limits, ModelRegistry


class Builds:
    """Counts calls of Llama.build, which fail or wait where they are told to."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.error: Exception | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.llamas: list[weakref.ref[Llama]] = []
        self._build = Llama.build

    def __call__(self, folder: str, **options: Any) -> Llama:
        self.folders.append(folder)
        assert self.may_go_on.wait(60)
        if self.error is not None:
            raise self.error
        llama = self._build(folder, **options)
        self.llamas.append(weakref.ref(llama))
        return llama


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    builds = Builds()
    monkeypatch.setattr(Llama, "build", builds)
    return builds


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Makes a registry of models that are all the bundled one; closes it after the test."""
    made = []

    def make(*names: str, **settings: Any) -> ModelRegistry:
        for name in names:
            (tmp_path / name).symlink_to(TINY)
        folders = {name: tmp_path / name for name in names}
        made.append(ModelRegistry(folders, device="cpu", **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def loaded(models: ModelRegistry) -> list[str]:
    return [model.name for model in models.loaded]


def test_two_requests_at_once_load_once(make: Any, builds: Builds) -> None:
    models = make("a")

    async def use() -> object:
        async with models.use("a") as served:
            return served.llama

    async def main() -> None:
        first, second = await asyncio.gather(use(), use())
        assert first is second is not None

    asyncio.run(main())
    assert len(builds.folders) == 1


def test_a_load_that_fails_fails_for_its_requests_only(make: Any, builds: Builds) -> None:
    models = make("a")
    builds.error = InputError("damaged")

    async def use() -> None:
        async with models.use("a"):
            pass

    async def main() -> None:
        errors = await asyncio.gather(use(), use(), return_exceptions=True)
        assert [str(error) for error in errors] == ["damaged"] * 2
        builds.error = None
        await use()
        assert loaded(models) == ["a"]

    asyncio.run(main())
    assert len(builds.folders) == 2


def test_a_client_that_goes_does_not_stop_a_load(make: Any, builds: Builds) -> None:
    models = make("a")
    builds.may_go_on.clear()

    async def use() -> None:
        async with models.use("a"):
            pass

    async def main() -> None:
        gone = asyncio.create_task(use())
        await until(lambda: len(builds.folders) == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        patient = asyncio.create_task(use())
        await asyncio.sleep(0)
        builds.may_go_on.set()
        await patient

    asyncio.run(main())
    assert len(builds.folders) == 1


def test_an_unused_model_gives_its_memory_back(make: Any, builds: Builds) -> None:
    models = make("a", keep_alive=300)

    async def main() -> None:
        async with models.use("a", keep_alive=0) as served:
            assert served.max_model_len == 1024
            async with models.use("a"):  # it stays for the longest user
                pass
            assert models.loaded[0].expires_at is None
        del served
        await until(lambda: not models.loaded)
        await until(lambda: (gc.collect(), builds.llamas[0]() is None)[1])
        async with models.use("a"):
            pass
        assert models.loaded[0].expires_at is not None

    asyncio.run(main())
    assert len(builds.folders) == 2


def test_a_request_that_comes_during_an_unload_loads_again(
    make: Any, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make("a", keep_alive=0)
    closing, may_close = threading.Event(), threading.Event()
    close = registry.AsyncEngine.close

    def slow_close(engine: Any) -> None:
        closing.set()
        assert may_close.wait(60)
        close(engine)

    monkeypatch.setattr(registry.AsyncEngine, "close", slow_close)

    async def use() -> None:
        async with models.use("a", keep_alive=60) as served:
            assert served.engine is models.loaded[0].engine

    async def main() -> None:
        async with models.use("a"):
            pass
        await until(closing.is_set)
        late = asyncio.create_task(use())
        await asyncio.sleep(0)
        assert len(builds.folders) == 1
        may_close.set()
        await late
        assert loaded(models) == ["a"]

    asyncio.run(main())
    assert len(builds.folders) == 2


def test_the_least_recently_used_idle_model_makes_room(make: Any, builds: Builds) -> None:
    models = make("a", "b", "c", max_loaded_models=2)

    async def main() -> None:
        for name in ("a", "b", "a"):
            async with models.use(name):
                pass
        async with models.use("c"):
            assert sorted(loaded(models)) == ["a", "c"]
            async with models.use("a"):
                with pytest.raises(HttpError, match="b has to wait: 2 models are loaded") as info:
                    async with models.use("b"):
                        pass
                assert (info.value.status, info.value.headers) == (503, {"Retry-After": "5"})
        async with models.use("b"):
            assert "b" in loaded(models)

    asyncio.run(main())


def test_a_model_that_does_not_fit(
    make: Any, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = make("a", "b")
    free = {"bytes": 2**40}
    monkeypatch.setattr(registry.distributed, "free_memory", lambda device: free["bytes"])
    build = builds._build

    def take(folder: str, **options: Any) -> Llama:
        free["bytes"] = 2**20
        return build(folder, **options)

    builds._build = take

    async def main() -> None:
        async with models.use("a"):
            with pytest.raises(HttpError, match="b has to wait: its weights take") as info:
                async with models.use("b"):
                    pass
            assert info.value.status == 503
        with pytest.raises(InputError, match=r"b can't be loaded: .* 1.0 MB of memory are free"):
            async with models.use("b"):
                pass
        assert not models.loaded

    asyncio.run(main())


def test_a_queue_has_an_end(make: Any, builds: Builds) -> None:
    models = make("a", max_batch_size=2, limits=Limits(max_queue=1))

    async def main() -> None:
        async with models.use("a"), models.use("a"), models.use("a"):
            with pytest.raises(HttpError, match="3 requests run or wait for a") as info:
                async with models.use("a"):
                    pass
            assert (info.value.status, info.value.headers) == (503, {"Retry-After": "5"})
        async with models.use("a"):
            pass

    asyncio.run(main())


def test_names_that_come_and_go(tmp_path: Path, builds: Builds) -> None:
    folders = {"a": str(TINY)}
    models = ModelRegistry(lambda: folders, device="cpu")

    async def main() -> None:
        async with models.use("a:latest"):
            pass
        folders["again"] = str(TINY)
        async with models.use("again"):  # the same files
            assert loaded(models) == ["a"]
        assert [*models.names] == ["a", "again"]
        del folders["a"]
        with pytest.raises(HttpError, match="there is no model 'a'; there are again"):
            async with models.use("a"):
                pass

    asyncio.run(main())
    models.close()
    assert len(builds.folders) == 1


def test_adapters_need_one_model_and_names_of_their_own() -> None:
    with pytest.raises(InputError, match="adapters need one model"):
        ModelRegistry({"a": TINY, "b": TINY}, {"c": "c"})
    with pytest.raises(InputError, match="adapters need one model"):
        ModelRegistry(lambda: {"a": TINY}, {"c": "c"})
    with pytest.raises(InputError, match="have the same name, 'a'"):
        ModelRegistry({"a": TINY}, {"a": "c"})


def test_a_load_that_ends_after_the_server_has(make: Any, builds: Builds) -> None:
    models = make("a")
    builds.may_go_on.clear()

    async def use() -> None:
        async with models.use("a"):
            pass

    async def main() -> None:
        waiting = asyncio.create_task(use())
        await until(lambda: len(builds.folders) == 1)
        models.close()
        builds.may_go_on.set()
        with pytest.raises(HttpError, match="shutting down"):
            await waiting
        assert not models.loaded

    asyncio.run(main())
