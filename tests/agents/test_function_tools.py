"""Schemas of functions, and how functions are called."""

import asyncio
import threading
from typing import Any, Literal

import pytest

from llama import InputError
from llama.agents import Run, Tool, ToolError, tool


def result(made: Tool, **arguments: Any) -> Any:
    return asyncio.run(made.call(arguments, Run.starting()))  # type: ignore[arg-type]


@tool
def population(city: str, year: int = 2024, unit: Literal["people", "millions"] = "people") -> int:
    """How many people live in a city.

    By the census.

    Args:
        city: Its English name.
        year: Of the census.
    """
    return len(city) * year


def test_the_schema_follows_from_signature_and_docstring() -> None:
    assert population.definition == {
        "type": "function",
        "function": {
            "name": "population",
            "description": "How many people live in a city.\nBy the census.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its English name."},
                    "year": {"type": "integer", "description": "Of the census.", "default": 2024},
                    "unit": {
                        "type": "string",
                        "enum": ["people", "millions"],
                        "default": "people",
                    },
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


def test_names_of_parameters_are_free() -> None:
    @tool(name="odd")
    def function(model_config: int, schema: int, title: int, self: int, _x: int) -> list[int]:
        """Odd names."""
        return [model_config, schema, title, self, _x]

    parameters = function.definition["function"]["parameters"]
    assert parameters is not None
    assert list(parameters["properties"]) == ["model_config", "schema", "title", "self", "_x"]
    assert result(function, model_config=1, schema=2, title=3, self=4, _x=5) == [1, 2, 3, 4, 5]


def test_arguments_are_checked_and_converted() -> None:
    assert result(population, city="Rome", year="2") == 8
    for arguments, reason in [
        ({}, "city: Field required"),
        ({"city": "Rome", "year": "x"}, "year: Input should be a valid integer"),
        ({"city": "Rome", "unit": "tons"}, "unit: Input should be 'people' or 'millions'"),
        ({"city": "Rome", "county": "x"}, "county: Extra inputs are not permitted"),
    ]:
        with pytest.raises(ToolError, match=f"wrong arguments: {reason}"):
            result(population, **arguments)


def test_functions_without_what_is_needed() -> None:
    def silent(x: int) -> int:
        return x

    def untyped(x) -> int:  # type: ignore[no-untyped-def]
        """Untyped."""
        return x

    def several(*x: int) -> int:
        """Several."""
        return x[0]

    def thread(x: threading.Thread) -> None:
        """No schema."""

    for function, reason in [
        (silent, "silent needs a docstring"),
        (untyped, "its parameter x needs a type"),
        (several, r"\*x: int can't be called by name"),
        (thread, "no schema for its parameters"),
    ]:
        with pytest.raises(InputError, match=reason):
            tool(function)


def test_a_function_runs_in_a_thread_and_a_coroutine_in_the_loop() -> None:
    @tool
    def where() -> str:
        """Which thread."""
        return threading.current_thread().name

    @tool
    async def here() -> str:
        """Which thread."""
        return threading.current_thread().name

    assert result(where) == "tool where"
    assert result(here) == threading.current_thread().name


def test_many_calls_run_at_a_time() -> None:
    all_of_them = threading.Barrier(8, timeout=10)

    @tool
    def meet() -> int:
        """Waits for the others."""
        return all_of_them.wait()

    async def calls() -> list[int]:
        return await asyncio.gather(*(meet.call({}, Run.starting()) for _ in range(8)))

    assert sorted(asyncio.run(calls())) == [*range(8)]


def test_only_a_few_calls_may_hang() -> None:
    go_on = threading.Event()

    @tool
    def hang() -> str:
        """Hangs."""
        go_on.wait()
        return "done"

    async def call() -> str:
        async with asyncio.timeout(0.01):
            return await hang.call({}, Run.starting())

    async def calls() -> None:
        for _ in range(4):
            with pytest.raises(TimeoutError):
                await call()
        with pytest.raises(ToolError, match="4 earlier calls of hang have not returned"):
            await call()
        go_on.set()
        while True:  # until the threads are done
            try:
                assert await hang.call({}, Run.starting()) == "done"
                return
            except ToolError:
                await asyncio.sleep(0)

    asyncio.run(calls())


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_what_a_function_raises_ends_its_call_alone(error: BaseException) -> None:
    @tool
    def leave() -> None:
        """Leaves."""
        raise error

    with pytest.raises(ToolError, match=type(error).__name__):
        result(leave)
