"""What an agent did, step by step: a JSON object for each, in a line of a file if there is one.

    trace = Trace("trace.jsonl")
    with trace.step("execute_tool", {"gen_ai.tool.name": "clock"}) as step:
        step["gen_ai.tool.call.result"] = "..."

Attributes have the names of OpenTelemetry's conventions for generative AI
(https://opentelemetry.io/docs/specs/semconv/gen-ai/); operations are `invoke_agent`, `chat` and
`execute_tool`. A step is written when it ends, so what it is part of follows it: `parent_span_id`
says what that is. `llama agents trace FILE` shows them as a table.
"""

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama import console
from llama.errors import InputError, MissingFileError, message
from llama.storage.files import expand

Step = dict[str, Any]


class Trace:
    """The steps of a question, in the order of their ends.

    file: gets a line for each step; it is appended to.
    on_step: is called with each step.

    Raises InputError for a file that can't be written.
    """

    def __init__(
        self, file: str | Path | None = None, on_step: Callable[[Step], None] | None = None
    ) -> None:
        self.trace_id = secrets.token_hex(16)
        self.steps: list[Step] = []
        self._file = None if file is None else Path(expand(file))
        self._on_step = on_step
        if self._file is not None:
            try:
                _append(self._file, "")
            except OSError as error:
                raise InputError(f"no trace can be written: {message(error)}") from None

    @contextlib.contextmanager
    def step(
        self, operation: str, attributes: Mapping[str, Any], parent: str | None = None
    ) -> Iterator[Step]:
        """A step that takes as long as the context; more attributes may be added to it.

        Its `error.type` is the exception that ends it.
        """
        began, start = datetime.now(UTC), time.monotonic()
        step: Step = {"trace_id": self.trace_id, "span_id": secrets.token_hex(8)}
        if parent is not None:
            step["parent_span_id"] = parent
        step["start_time"] = began.isoformat(timespec="milliseconds")
        step |= {"gen_ai.operation.name": operation, **attributes}
        try:
            yield step
        except BaseException as error:
            step["error.type"] = type(error).__name__
            if text := str(error):
                step["error.message"] = text
            raise
        finally:
            step["duration"] = round(time.monotonic() - start, 4)  # seconds
            self._end(step)

    def _end(self, step: Step) -> None:
        self.steps.append(step)
        if self._file is not None:
            _append(self._file, json.dumps(step, ensure_ascii=False, default=str) + "\n")
        if self._on_step is not None:
            self._on_step(step)


_appending = threading.Lock()


def _append(file: Path, line: str) -> None:
    """A line in one write, so that those of several processes do not mix."""
    with _appending:
        number = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(number, line.encode())
        finally:
            os.close(number)


def show_trace(file: str, /, *, width: int = 100) -> None:
    """Shows the steps that a file of traces has.

    Args:
        file: Written by `llama agents --trace FILE`.
        width: Characters of what went in and came out.
    """
    console.say(trace_table(read_trace(file), width))


def read_trace(file: str | Path) -> list[Step]:
    """The steps in a file. Raises MissingFileError, or InputError for a line that is none."""
    path = Path(expand(file))
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}")
    steps = []
    for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            step = json.loads(line)
            if not isinstance(step, dict) or "gen_ai.operation.name" not in step:
                raise ValueError
        except ValueError:
            raise InputError(f"{path}, line {number}: no step of a trace: {line[:80]!r}") from None
        steps.append(step)
    return steps


def trace_table(steps: Iterable[Step], width: int = 100) -> str:
    """A table with a line for each step, in the order of their beginnings; parts are indented."""
    steps = list(steps)
    children: dict[str | None, list[Step]] = {}
    known = {step.get("span_id") for step in steps}
    for step in steps:
        parent = step.get("parent_span_id")
        children.setdefault(parent if parent in known else None, []).append(step)
    rows: list[tuple[object, ...]] = []

    def add(parent: str | None, depth: int) -> None:
        for step in sorted(children.pop(parent, ()), key=lambda s: str(s.get("start_time"))):
            tokens = [step.get(f"gen_ai.usage.{kind}_tokens") for kind in ("input", "output")]
            rows.append(
                (
                    f"{'  ' * depth}{_name(step)}",
                    f"{step.get('duration', 0):.2f} s",
                    " + ".join(str(count) for count in tokens if count is not None),
                    f"  {_shown(step, width)}",
                )
            )
            add(step.get("span_id"), depth + 1)

    add(None, 0)
    return _left_last(rows)


def _left_last(rows: list[tuple[object, ...]]) -> str:
    """`console.table`, but its last column is aligned to the left, as text is."""
    head = console.table([("", "time", "tokens"), *(row[:-1] for row in rows)]).splitlines()
    size = max(map(len, head))
    tails = ["", *(str(row[-1]) for row in rows)]
    return "\n".join(f"{a:<{size}}{b}".rstrip() for a, b in zip(head, tails, strict=True))


def _name(step: Step) -> str:
    kind = {"invoke_agent": "agent", "execute_tool": "tool", "chat": "model"}
    names = ("gen_ai.tool.name", "gen_ai.agent.name", "gen_ai.request.model")
    operation = str(step["gen_ai.operation.name"])
    if operation == "chat":
        names = names[::-1]
    name = next((step[name] for name in names if name in step), "")
    return f"{kind.get(operation, operation)} {name}"


def _shown(step: Step, width: int) -> str:
    """What went in, what came out, and what went wrong."""
    went_in = step.get("gen_ai.tool.call.arguments", step.get("gen_ai.input.messages"))
    came_out = step.get("gen_ai.tool.call.result", step.get("gen_ai.output.messages"))
    texts = [_cut(value, width) for value in (went_in, came_out) if value is not None]
    if "error.type" in step:
        texts.append(_cut(f"{step['error.type']}: {step.get('error.message', '')}", width))
    return " -> ".join(texts)


def _cut(value: Any, width: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
