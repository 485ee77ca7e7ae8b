"""Tools from Python functions: what a model sees of them, and how they are called.

    @tool
    def population(city: str, year: int = 2024) -> int:
        \"\"\"How many people live in a city.

        Args:
            city: Its English name.
            year: Of the census.
        \"\"\"

    @tool(side_effects=True)
    def delete_all() -> str:
        \"\"\"Deletes everything.\"\"\"

The schema of the arguments follows from the signature, what they mean from the docstring (of
Google's, NumPy's or Sphinx's style). Arguments are checked against it before a call. A function may
be a coroutine; any other runs in a thread.
"""

import asyncio
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, overload

import docstring_parser
from pydantic import ConfigDict, Field, PydanticUserError, ValidationError, create_model

from llama import dialog
from llama.agents.limits import Run
from llama.dialog import checked_tools
from llama.errors import InputError

_MAX_HANGING = 4  # calls of one tool that go on in threads after their time


class ToolError(Exception):
    """Why a call has no result, in words for the model."""


@dataclass(frozen=True)
class Tool:
    """What an agent may call.

    definition: name, description and schema, in OpenAI's shape.
    call: takes the arguments, checked where they can be, and the run that the call is part of.
    side_effects: whether a call changes something: it needs approval then.
    trusted: whether its results are from this program, and not texts that anybody may have
        written; others are marked as data.
    """

    definition: dialog.Tool
    call: Callable[[dict[str, Any], Run], Awaitable[Any]]
    side_effects: bool = False
    trusted: bool = False

    def __post_init__(self) -> None:
        checked_tools([self.definition])

    @property
    def name(self) -> str:
        """What the model calls it."""
        return self.definition["function"]["name"]


def tool_definition(name: str, description: str, parameters: dict[str, Any]) -> dialog.Tool:
    """A definition in OpenAI's shape."""
    function: dialog.Function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, side_effects: bool = False, trusted: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    side_effects: bool = False,
    trusted: bool = False,
) -> Any:
    """The tool that a function is; also a decorator. See the module, and `Tool`.

    Raises InputError for a function without a docstring, or whose parameters have no schema.
    """
    if function is None:
        return lambda function: _function_tool(function, name, side_effects, trusted)
    return _function_tool(function, name, side_effects, trusted)


def _function_tool(
    function: Callable[..., Any], name: str | None, side_effects: bool, trusted: bool
) -> Tool:
    name = name or function.__name__
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    description = "\n".join(filter(None, (doc.short_description, doc.long_description)))
    if not description:
        raise InputError(f"the tool {name} needs a docstring: it tells the model what it is for")
    model = _arguments_model(function, name, {p.arg_name: p.description for p in doc.params})
    schema = _without_titles(model.model_json_schema())
    runner = _Runner(function, name)

    async def call(arguments: dict[str, Any], run: Run) -> Any:
        try:
            checked = model.model_validate(arguments)
        except ValidationError as error:
            reasons = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise ToolError(f"wrong arguments: {'; '.join(reasons)}") from None
        return await runner.run(
            {str(f.alias): getattr(checked, key) for key, f in model.model_fields.items()}
        )

    return Tool(tool_definition(name, description, schema), call, side_effects, trusted)


def _arguments_model(
    function: Callable[..., Any], name: str, descriptions: Mapping[str, str | None]
) -> Any:
    """A pydantic model with a field for each parameter, whose alias it is: any name is allowed."""
    fields: dict[str, Any] = {}
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    for index, parameter in enumerate(parameters):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(f"the tool {name}: its parameter {parameter} can't be called by name")
        if parameter.annotation is parameter.empty:
            raise InputError(f"the tool {name}: its parameter {parameter.name} needs a type")
        default = ... if parameter.default is parameter.empty else parameter.default
        description = descriptions.get(parameter.name)
        described = Field(default, alias=parameter.name, description=description)
        fields[f"argument_{index}"] = (parameter.annotation, described)
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticUserError, NameError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the tool {name}: no schema for its parameters: {reason}") from error


def _without_titles(schema: Any) -> Any:
    """A schema without the titles that pydantic makes of names; a property may be named so."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            kept[key] = {name: _without_titles(part) for name, part in value.items()}
        elif key != "title":
            kept[key] = _without_titles(value)
    return kept


@dataclass
class _Runner:
    """Calls a function, in a thread unless it is a coroutine.

    A thread can't be ended: one whose time is up goes on until the function returns. So that a
    function which never does can't fill the machine with threads, only a few may.
    """

    function: Callable[..., Any]
    name: str
    hanging: set[threading.Thread] = field(default_factory=set)

    async def run(self, arguments: dict[str, Any]) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(**arguments)
        if len(self.hanging) >= _MAX_HANGING:
            raise ToolError(f"{len(self.hanging)} earlier calls of {self.name} have not returned")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()

        def finish(result: Any, error: BaseException | None) -> None:
            self.hanging.discard(thread)
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)

        def work() -> None:
            result: Any = None
            error: BaseException | None = None
            try:
                result = self.function(**arguments)
            except Exception as raised:
                # A future takes no StopIteration.
                error = ToolError("StopIteration") if isinstance(raised, StopIteration) else raised
            except BaseException as raised:  # SystemExit and its like end no server
                error = ToolError(type(raised).__name__)
            try:
                loop.call_soon_threadsafe(finish, result, error)
            except RuntimeError:  # the loop has ended
                self.hanging.discard(thread)

        thread = threading.Thread(target=work, name=f"tool {self.name}", daemon=True)
        thread.start()
        try:
            return await done
        except asyncio.CancelledError:
            if thread.is_alive():
                self.hanging.add(thread)
            raise


def result_text(result: Any) -> str:
    """A tool's result as a text: JSON unless it is one. Raises ToolError where there is none."""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolError(f"its result is no text and no JSON: {error}") from None
