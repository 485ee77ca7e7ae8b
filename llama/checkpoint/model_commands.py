"""`llama pull`, `llama list`, `llama show` and `llama rm`: models from hubs, by name.

llama pull llama3.2:1b                        # a short name of a released model
llama pull hf:owner/repository@revision       # Hugging Face; ms:owner/repository: ModelScope
llama pull 'https://llama3-2.llamameta.net/*?Policy=...' --model llama3.2:1b
"""

import contextlib
import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

import tqdm
from cyclopts import Parameter

from llama import console
from llama.checkpoint import pulling
from llama.checkpoint.info import describe, read_facts
from llama.errors import InputError
from llama.storage import pulled
from llama.storage.files import Folder, read_json, short_size
from llama.storage.model_names import RELEASED, released
from llama.storage.pulled import PulledModel
from llama.storage.tensor_files import open_tensors

_Json = Annotated[bool, Parameter(name="--json", negative="")]


def pull(
    name: str,
    /,
    *,
    model: str | None = None,
    hub: Literal["hf", "ms"] = "hf",
    mirror: str | None = None,
) -> None:
    """Downloads a model, or what is missing of it; the same command continues after a stop.

    Args:
        name: llama3.2:1b, hf:OWNER/NAME, ms:OWNER/NAME, with @REVISION, or Meta's signed URL.
        model: Short name of the model that a signed URL is for.
        hub: Where short names are looked up: Hugging Face (hf) or ModelScope (ms).
        mirror: Address of a mirror of the hub.
    """
    try:
        with _Bars() as bars:
            for event in pulling.pull(name, model=model, hub=hub, mirror=mirror):
                bars.show(event)
    except KeyboardInterrupt:
        console.notice("stopped; what is here is kept, and the same command continues")
        raise
    found = pulled.find(model or name)
    assert found is not None
    console.say(f"{found.name}: {len(found.files)} files, {short_size(found.size)}")


def list_models(
    *, aliases: Annotated[bool, Parameter(negative="")] = False, as_json: _Json = False
) -> None:
    """Shows the models that are here, or those that have short names.

    Args:
        aliases: Show short names instead, and where hubs have these models.
        as_json: Print one JSON object.
    """
    if aliases:
        _list_aliases(as_json)
        return
    models, unfinished = pulled.pulled_models(), pulled.unfinished_pulls()
    if as_json:
        found = {"models": [_as_json(model) for model in models], "unfinished": unfinished}
        console.say(json.dumps({"folder": str(pulled.models_root())} | found))
        return
    rows = [["name", "size", "format", "pulled"]]
    for model in models:
        when = "bundled" if model.source == "bundled" else f"{model.pulled_at:%Y-%m-%d}"
        rows.append([model.name, short_size(model.size), _format(model), when])
    for name, size in unfinished.items():
        rows.append([name, short_size(size), "-", "unfinished"])
    if not rows[1:]:
        console.say("no models are here; `llama pull llama3.2:1b` gets one, for instance")
        return
    console.say(console.table(rows))
    console.say(f"\nThey are in {pulled.models_root()} (LLAMA_MODELS).")
    if unfinished:
        console.say("`llama pull` continues what is unfinished, `llama rm` removes it.")


def show(name: str, /, *, as_json: _Json = False) -> None:
    """Shows what a pulled model is, where it is from, and its files with their checksums.

    Args:
        name: A name that `llama list` shows.
        as_json: Print one JSON object.
    """
    model = pulled.find(name)
    if model is None:
        raise pulled.unknown(name)
    if as_json:
        console.say(json.dumps(_as_json(model)))
        return
    rows = {
        "kind": _kind(model),
        "source": model.source,
        "revision": model.revision or "not known",
        "license": model.license or "not known",
        "pulled": f"{model.pulled_at:%Y-%m-%d %H:%M} UTC",
        "folder": str(model.folder),
    }
    about = f"{model.name}: {_kind(model)}\n"
    if _kind(model) != "adapter":
        about = describe(read_facts(model.name))
    files = [["files", "bytes", "sha256"]]
    files += [[f"  {file.name}", f"{file.size:,}", file.sha256] for file in model.files]
    lines = "\n".join(f"  {key:<12}{text}" for key, text in rows.items())
    console.say(f"{about}\n{lines}\n\n{console.table(files)}")


def rm(*names: str) -> None:
    """Removes pulled models, or what is here of unfinished ones, and prints what is free now.

    Args:
        names: Names that `llama list` shows.
    """
    if not names:
        raise InputError("give the name of a model that `llama list` shows")
    for name in names:
        console.say(f"removed {name}: {short_size(pulled.remove(name))} are free again")


def _list_aliases(as_json: bool) -> None:
    if as_json:
        console.say(json.dumps([m._asdict() | {"license": m.license} for m in RELEASED.values()]))
        return
    for model in RELEASED.values():
        kind = "chat" if model.is_chat else "base"
        console.say(f"{model.name:<20}{model.parameters:>7} {kind}  {model.license}")
        for place in (f"hf:{model.repo}", f"ms:{model.modelscope}"):
            console.say(f"    {place}")
        if model.open_copy:
            console.say(f"    hf:{model.open_copy}  (open copy)")


def _as_json(model: PulledModel) -> dict[str, Any]:
    fields = asdict(model) | {"folder": str(model.folder), "pulled_at": model.pulled_at.isoformat()}
    return fields | {"size": model.size, "digest": model.digest, "kind": _kind(model)}


def _format(model: PulledModel) -> str:
    """Layout and dtype, in short."""
    folder = Folder(model.folder)
    endings = (".safetensors", ".pth", ".bin")
    weights = next((name for name in folder.names if name.endswith(endings)), None)
    if weights is None:
        return "damaged"
    with contextlib.suppress(InputError, OSError):
        dtype = str(next(iter(open_tensors(folder, weights).tensors.values())).dtype)
        if "params.json" in folder.names:
            dtype = read_json(folder.where("params.json")).get("quantize", dtype)
        layout = "hf" if "config.json" in folder.names else "meta"
        layout = "adapter" if "adapter_config.json" in folder.names else layout
        return f"{layout} {dtype.removeprefix('torch.')}"
    return "damaged"


def _kind(model: PulledModel) -> str:
    """chat, base or adapter; of Meta's layout, which does not say, by the name of its source."""
    names = {file.name for file in model.files}
    if "adapter_config.json" in names:
        return "adapter"
    if short := released(model.name):
        return "chat" if short.is_chat else "base"
    if model.source == "bundled" or "chat_template.jinja" in names:
        return "chat"
    settings = model.folder / "tokenizer_config.json"
    if settings.is_file() and "chat_template" in read_json(str(settings)):
        return "chat"
    said = any(word in model.source.lower() for word in ("instruct", "chat"))
    return "chat" if said else "base"


class _Bars:
    """A progress bar for all files, and one for each that is on its way; notices above them."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm.tqdm] = {}
        self._held = contextlib.ExitStack()
        self._last = ""

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def show(self, event: pulling.PullEvent) -> None:
        if event.overall is None or event.file is None:
            if event.status != self._last and event.status not in pulling.STAGES:
                console.notice(event.status)
            self._last = event.status
            return
        self._update("all files", *event.overall)
        self._update(event.file, event.completed or 0, event.total or 0)

    def _update(self, name: str, done: int, total: int) -> None:
        if name not in self._bars:
            bar = console.progress(total, name, done=done)
            self._bars[name] = self._held.enter_context(bar)
        bar = self._bars[name]
        bar.update(done - bar.n)
        if done == total:
            bar.close()
