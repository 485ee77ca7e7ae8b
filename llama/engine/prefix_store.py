"""Keys and values of full prompt chunks, kept for later prompts that begin with the same tokens.

Prompts run in chunks on a fixed grid, so the keys and values of a full chunk follow from the tokens
up to its end. A store holds them under the hash of those tokens:

    store = PrefixStore(budget=2**30, chunk=256, identity="tiny bfloat16 ...")
    store.put(prompt, 0, read)                 # what read() returns, of positions 0 to 255
    found = store.find(other_prompt)           # [keys_and_values] if its first 256 tokens are equal

`identity` names everything else that the values depend on: weights, their format, adapter, dtype of
the cache, kernels. The chunk that holds the last token of a prompt is never taken from the store,
because its logits are wanted. With a `folder` chunks outlive the process. Files are written under
another name and renamed, named by their content's key and checked when they are read, so that two
processes may share a folder and a killed one leaves nothing that is taken for a chunk.
"""

import array
import contextlib
import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llama.kernels.compiler import processor
from llama.model import Transformer
from llama.storage.files import atomic_path, expand

Chunk = tuple[Tensor, ...]  # a layer cache's tensors, (layers, n_kv_heads, chunk, ...) each

_CHECKSUM = 16  # bytes at the beginning of a file


class PrefixStore:
    """Least recently used chunks are dropped when `budget` bytes are exceeded.

    `folder_budget` bounds the files in `folder` in the same way, by the time of their last use.
    All methods may be called from any thread.
    """

    def __init__(
        self,
        budget: int,
        chunk: int,
        identity: str,
        folder: str | Path | None = None,
        folder_budget: int = 10 * 2**30,
    ) -> None:
        self.budget, self.chunk = budget, chunk
        self.used = 0  # bytes in memory
        self._root = hashlib.blake2b(identity.encode(), digest_size=16).digest()
        self._entries: OrderedDict[bytes, tuple[bytes, Chunk]] = OrderedDict()
        self._lock = threading.Lock()
        self._folder = None if folder is None else Path(expand(folder)) / self._root.hex()
        self._folder_budget = folder_budget
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)

    def find(self, prompt: Sequence[int], adapter: str = "") -> list[Chunk]:
        """The stored chunks from the beginning of the prompt on, up to the first that is missing.

        Tokens are compared, besides their hash. `adapter` is the fingerprint of the one in use.
        """
        found: list[Chunk] = []
        keys = self._keys(prompt, (len(prompt) - 1) // self.chunk, adapter)
        for index, key in enumerate(keys):
            chunk = self._find(key, _as_bytes(prompt[: (index + 1) * self.chunk]))
            if chunk is None:
                break
            found.append(chunk)
        self._touch(keys[: len(found)])
        return found

    def put(
        self, prompt: Sequence[int], index: int, read: Callable[[], Chunk], adapter: str = ""
    ) -> None:
        """Keeps chunk number `index` of a prompt: what `read` returns, if it is not there yet."""
        keys = self._keys(prompt, index + 1, adapter)
        with self._lock:
            is_new = keys[-1] not in self._entries
        if is_new:
            tokens, chunk = _as_bytes(prompt[: (index + 1) * self.chunk]), read()
            if self._remember(keys[-1], tokens, chunk) and self._folder is not None:
                self._write(self._folder / keys[-1].hex(), tokens, chunk)
        self._touch(keys)

    def _keys(self, prompt: Sequence[int], count: int, adapter: str) -> list[bytes]:
        """The keys of the first `count` chunks: hashes of the key before and the chunk's tokens."""
        keys, key = [], self._root + adapter.encode()
        for start in range(0, count * self.chunk, self.chunk):
            tokens = _as_bytes(prompt[start : start + self.chunk])
            key = hashlib.blake2b(key + tokens, digest_size=16).digest()
            keys.append(key)
        return keys

    def _find(self, key: bytes, tokens: bytes) -> Chunk | None:
        with self._lock:
            entry = self._entries.get(key)
        if entry is None and self._folder is not None:
            chunk = self._read(self._folder / key.hex(), tokens)
            if chunk is not None:
                self._remember(key, tokens, chunk)
            return chunk
        return entry[1] if entry is not None and entry[0] == tokens else None

    def _remember(self, key: bytes, tokens: bytes, chunk: Chunk) -> bool:
        """Keeps a chunk in memory; False if it was there."""
        size = sum(tensor.nbytes for tensor in chunk)
        with self._lock:
            if key in self._entries:
                return False
            if size <= self.budget:
                self._entries[key] = tokens, chunk
                self.used += size
                while self.used > self.budget:
                    self._drop()
            return True

    def _touch(self, keys: list[bytes]) -> None:
        """Marks the chunks of a prompt as used, its first one last: the others need it."""
        with self._lock:
            for key in reversed(keys):
                if key in self._entries:
                    self._entries.move_to_end(key)

    def _drop(self) -> None:
        _, (_, chunk) = self._entries.popitem(last=False)
        self.used -= sum(tensor.nbytes for tensor in chunk)

    def _write(self, path: Path, tokens: bytes, chunk: Chunk) -> None:
        """Writes a checksum of the rest, the number of token bytes, the tokens and the tensors."""
        if path.exists():
            return
        tensors = io.BytesIO()
        torch.save(list(chunk), tensors)
        content = len(tokens).to_bytes(8, "little") + tokens + tensors.getvalue()
        with atomic_path(path) as partial:
            partial.write_bytes(_checksum(content) + content)
        self._trim_folder()

    def _read(self, path: Path, tokens: bytes) -> Chunk | None:
        """The chunk in a file; None if it is not there, damaged or of other tokens."""
        try:
            data = memoryview(path.read_bytes())
        except FileNotFoundError:  # never written, or dropped by another process just now
            return None
        content = data[_CHECKSUM:]
        if data[:_CHECKSUM] != _checksum(content):
            path.unlink(missing_ok=True)
            return None
        end = 8 + int.from_bytes(content[:8], "little")
        if content[8:end] != tokens:
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        return tuple(torch.load(io.BytesIO(content[end:]), weights_only=True))

    def _trim_folder(self) -> None:
        assert self._folder is not None
        files = []
        for entry in os.scandir(self._folder):
            try:
                files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
            except FileNotFoundError:  # another process trims too
                continue
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._folder_budget:
                break
            Path(path).unlink(missing_ok=True)
            total -= size


def fingerprint(model: Transformer) -> str:
    """What the keys and values of a model's prompts depend on besides the tokens, as text.

    Those are the weights and their format, the dtype of the cache, and what computes them. The
    weights' bytes are added up by rows and by columns, which takes about as long as reading them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(_tensors(model)):
        words = tensor.detach().contiguous().view(torch.uint8).flatten()
        words = F.pad(words, (0, -len(words) % 8192)).view(torch.int32).view(-1, 2048)
        sums = words.sum(0, dtype=torch.int64), words.sum(1, dtype=torch.int64)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for total in sums:
            digest.update(total.cpu().numpy().tobytes())
    device = model.norm.weight.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    settings = model.params, model.cache_type.__name__, torch.__version__, device.type, machine
    return f"{digest.hexdigest()} {settings} {os.environ.get('LLAMA_KERNELS')}"


def _tensors(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model, packed ones too."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for part in getattr(module, "packed", None) or ():
            if isinstance(part, Tensor):
                yield f"{name}.packed", part


def _as_bytes(tokens: Sequence[int]) -> bytes:
    return array.array("q", tokens).tobytes()


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest()
