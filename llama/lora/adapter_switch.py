"""Several adapters beside one model, of which one at a time, or none, takes part in a forward pass.

    switch = AdapterSwitch.of(model)
    switch.load("polite", "adapters/polite")
    with switch.using("polite"):    # None is the model by itself
        model(...)

All engines that run the model share its switch.
"""

import contextlib
import hashlib
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama.errors import InputError
from llama.lora.adapter_layers import LoRALinear, adapter_shards
from llama.model import Transformer


class SwitchedLinear(nn.Module):
    """A layer with adapters by name; what is active computes its output."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapters: dict[str, LoRALinear] = {}  # not submodules: each has the base as well
        self.active: Any = base

    def __getattr__(self, name: str) -> Any:
        """The base's attributes, such as the matrix that native kernels read."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor) -> Tensor:
        return self.active(x)


_switches: "weakref.WeakKeyDictionary[Transformer, AdapterSwitch]" = weakref.WeakKeyDictionary()


class AdapterSwitch:
    """The adapters of a model that are loaded for inference; of all engines that run the model."""

    @classmethod
    def of(cls, model: Transformer) -> "AdapterSwitch":
        """The one of a model."""
        return _switches.setdefault(model, cls(model))

    def __init__(self, model: Transformer) -> None:
        self._reference = weakref.ref(model)
        self._lock = threading.RLock()  # one forward pass at a time
        self._layers: dict[str, SwitchedLinear] = {}
        self._active: str | None = None
        self.fingerprints: dict[str, str] = {}  # of each adapter's numbers

    def load(self, name: str, path: str | Path) -> None:
        """Puts the adapter in a folder, here or remote, beside the model.

        Raises what `open_adapter` raises, and InputError for a name that is taken, or a model that
        has an adapter of its own.
        """
        if name in self.fingerprints:
            raise InputError(f"there is an adapter {name!r} already; give another name")
        model = self._model
        if any(isinstance(module, LoRALinear) for module in model.modules()):
            raise InputError("the model has an adapter of its own; build it without")
        shards, scale = adapter_shards(model, path, model.norm.weight.dtype)
        digest = hashlib.blake2b(str(scale).encode(), digest_size=16)
        device = model.norm.weight.device
        for layer_name, (a, b) in shards.items():
            for tensor in (a, b):
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
            layer = self._layers.get(layer_name)
            if layer is None:
                layer = SwitchedLinear(model.get_submodule(layer_name))
                self._layers[layer_name] = layer
                model.set_submodule(layer_name, layer)
            adapter = LoRALinear(layer.base, a.to(device), b.to(device), scale)
            layer.adapters[name] = adapter.requires_grad_(False)
        self.fingerprints[name] = digest.hexdigest()

    def unload(self, name: str) -> None:
        """Takes an adapter away; InputError if there is none of that name."""
        self._check(name)
        with self._lock:
            self._activate(None)
            del self.fingerprints[name]
            for layer_name, layer in list(self._layers.items()):
                layer.adapters.pop(name, None)
                if not layer.adapters:
                    self._model.set_submodule(layer_name, layer.base)
                    del self._layers[layer_name]

    def _check(self, name: str) -> None:
        if name not in self.fingerprints:
            names = ", ".join(self.fingerprints) or "none"
            raise InputError(f"no adapter {name!r} is loaded; there are {names}")

    @property
    def _model(self) -> Transformer:
        model = self._reference()
        assert model is not None
        return model

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Lets the adapter `name`, or none, take part; with adapters, other threads wait.

        Raises InputError if there is none of that name.
        """
        if name is not None:
            self._check(name)
        if not self._layers:
            yield
            return
        with self._lock:
            self._activate(name)
            yield

    def _activate(self, name: str | None) -> None:
        if name == self._active:
            return
        self._active = name
        for layer in self._layers.values():
            layer.active = layer.adapters.get(name or "", layer.base)
        for block in self._model.layers:
            if hasattr(block, "is_adapted"):
                block.is_adapted = name is not None  # type: ignore[assignment]
