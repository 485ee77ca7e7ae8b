"""Engines of a small model, for the tests."""

from typing import Any

from llama import Engine, Llama


def engine_of(llama: Llama, rows: int = 3, **options: Any) -> Engine:
    return Engine(llama.model, llama.tokenizer, rows, 64, **options)


def finish(engine: Engine) -> None:
    for _ in range(1000):
        if engine.idle:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")
