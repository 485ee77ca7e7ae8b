"""What two hubs have: Hugging Face, or a mirror of it, and ModelScope.

    hub = HuggingFace(session, "meta-llama/Llama-3.2-1B-Instruct")
    listing = hub.listing()                # the files that are wanted, with sizes and checksums

The routes are those that `huggingface_hub` and `modelscope-hub` use:

    Hugging Face   /api/models/{repo}/revision/{name}, /api/models/{repo}/tree/{commit},
                   /{repo}/resolve/{commit}/{path}
    ModelScope     /api/v1/models/{repo}, /api/v1/models/{repo}/repo/files?Revision=...,
                   /api/v1/models/{repo}/repo?Revision=...&FilePath=...

Of several layouts in a repository one is wanted: safetensors before .bin before Meta's shards.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from llama.checkpoint.download import RemoteFile
from llama.checkpoint.hub_session import HubSession
from llama.errors import InputError, MissingFileError
from llama.storage.files import expand, what_it_is
from llama.storage.model_names import RELEASED, ReleasedModel

if TYPE_CHECKING:
    import httpx

# Which files are wanted: the weights of a layout, without which it is not there, and beside them.
_BESIDE = (
    r"LICENSE(\.\w+)?|tokenizer\.(json|model)|(config|generation_config|tokenizer_config"
    r"|special_tokens_map|added_tokens)\.json|chat_template\.jinja"
)
_LAYOUTS = (
    ("", r"model(-\d+-of-\d+)?\.safetensors", rf"model\.safetensors\.index\.json|{_BESIDE}"),
    ("", r"pytorch_model(-\d+-of-\d+)?\.bin", rf"pytorch_model\.bin\.index\.json|{_BESIDE}"),
    ("", r"consolidated\.\d+\.pth", r"params\.json|tokenizer\.model|LICENSE(\.\w+)?"),
    ("original/", r"consolidated\.\d+\.pth", r"params\.json|tokenizer\.model"),
    ("", r"adapter_model\.(safetensors|bin)", r"adapter_config\.json"),
)


@dataclass(frozen=True)
class Listing:
    """The wanted files of one revision; `revision` is its commit where the hub says it."""

    source: str
    revision: str | None
    license: str | None
    files: list[RemoteFile]


class Hub(Protocol):
    """Where models are: `headers` go with each request, `refuse` explains a status."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def listing(self) -> Listing: ...

    def refuse(self, response: httpx.Response) -> Exception: ...

    def local_copies(self, file: RemoteFile) -> list[Path]: ...


class HuggingFace:
    """A repository on Hugging Face, or on a mirror: `endpoint`, else `$HF_ENDPOINT`.

    The token is `$HF_TOKEN`, or what `hf auth login` has stored.
    """

    def __init__(
        self, session: HubSession, repo: str, revision: str = "main", endpoint: str | None = None
    ) -> None:
        self._session = session
        self._repo = repo
        self._revision = revision
        self._endpoint = _address(
            endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        )
        self._token = _hugging_face_token()
        self.headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def listing(self) -> Listing:
        """Raises PermissionError, MissingFileError, InputError and ConnectionError.

        With HF_HUB_OFFLINE, or without an answer, it is what the cache of `huggingface_hub` has.
        """
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            if cached := self._cached_listing():
                return cached
            raise ConnectionError(
                f"HF_HUB_OFFLINE is set, and {_hugging_face_cache()} has not all of {self._repo}"
            )
        try:
            return self._current_listing()
        except ConnectionError as error:
            if cached := self._cached_listing():
                self._session.notice(f"{error}. All files are in {_hugging_face_cache()}")
                return cached
            raise

    def _current_listing(self) -> Listing:
        api = f"{self._endpoint}/api/models/{self._repo}"
        about = self._get(f"{api}/revision/{quote(self._revision, safe='')}")
        with _understood(about):
            commit = about.json()["sha"]
            card = about.json().get("cardData") or {}
        entries: dict[str, dict[str, Any]] = {}
        query: Mapping[str, Any] | None = {"recursive": True}
        while query is not None:
            page = self._get(f"{api}/tree/{commit}", query)
            with _understood(page):
                entries |= {e["path"]: e for e in page.json() if e["type"] == "file"}
            following = page.links.get("next")  # its host may be the hub's own, not the mirror's
            query = following and dict(parse_qsl(urlsplit(following["url"]).query))
        files = []
        for path, name in wanted(list(entries), self._repo).items():
            url = f"{self._endpoint}/{self._repo}/resolve/{commit}/{quote(path)}"
            with _understood(page):
                lfs = entries[path].get("lfs")
                kind, digest = ("sha256", lfs["oid"]) if lfs else ("git", entries[path]["oid"])
                files.append(remote_file(name, entries[path]["size"], kind, digest, url))
        license = card.get("license_name") or card.get("license")
        return Listing(f"hf:{self._repo}", commit, license, files)

    @property
    def _cached(self) -> Path:
        return _hugging_face_cache() / f"models--{self._repo.replace('/', '--')}"

    def _cached_listing(self) -> Listing | None:
        """The snapshot of this revision in the cache, if it is complete; else None."""
        ref = self._cached / "refs" / self._revision
        commit = ref.read_text().strip() if ref.is_file() else self._revision
        snapshot = self._cached / "snapshots" / commit
        blobs = {
            path.relative_to(snapshot).as_posix(): path.resolve()
            for path in snapshot.rglob("*")
            if path.is_symlink() and path.is_file()
        }
        try:
            names = wanted(list(blobs), self._repo)
            for index in (blobs[path] for path, name in names.items() if "index.json" in name):
                if not set(json.loads(index.read_bytes())["weight_map"].values()) <= set(blobs):
                    return None
            files = [
                remote_file(
                    name,
                    blobs[path].stat().st_size,
                    "sha256" if len(blobs[path].name) == 64 else "git",
                    blobs[path].name,
                    f"{self._endpoint}/{self._repo}/resolve/{commit}/{quote(path)}",
                )
                for path, name in names.items()
            ]
        except (KeyError, ValueError):  # not a cache that this understands, or no weights in it
            return None
        return Listing(f"hf:{self._repo}", commit, None, files)

    def local_copies(self, file: RemoteFile) -> list[Path]:
        """The file in the cache of `huggingface_hub`, which names files by their checksums."""
        blob = self._cached / "blobs" / file.checksum[1]
        return [blob] if blob.is_file() and blob.stat().st_size == file.size else []

    def refuse(self, response: httpx.Response) -> Exception:
        code = response.headers.get("X-Error-Code", "")
        status, repo = response.status_code, self._repo
        if code == "GatedRepo" or (status == 403 and code != "RepoNotFound"):
            return PermissionError(self._how_to_get_access())
        if code == "RevisionNotFound":
            return MissingFileError(
                f"{repo} has no revision {self._revision!r} on {self._endpoint}; see its branches "
                "and commits there"
            )
        if status == 401 and self._token and code != "RepoNotFound":
            return PermissionError(
                f"{self._endpoint} does not accept the token of HF_TOKEN or `hf auth login`; make "
                "another one at https://huggingface.co/settings/tokens"
            )
        if code == "EntryNotFound":
            return MissingFileError(f"{response.url.path} is not there; the repository has changed")
        if status in (401, 404):
            private = "" if self._token else ", or it is private: set HF_TOKEN to a token that may"
            return MissingFileError(
                f"no repository {repo} on {self._endpoint}{_near(repo, 'hf')}{private}"
            )
        return _unexpected(response)

    def _get(self, url: str, query: Mapping[str, Any] | None = None) -> httpx.Response:
        response = self._session.get(url, self.headers, query)
        if response.is_error:
            raise self.refuse(response)
        return response

    def _how_to_get_access(self) -> str:
        page = f"https://huggingface.co/{self._repo}"
        text = f"{self._repo} is gated: accept its license at {page}"
        if self._token:
            text += " with the account whose token is used here, and wait until access is granted"
        else:
            text += (
                ", then run `hf auth login`, or set HF_TOKEN to a token from "
                "https://huggingface.co/settings/tokens"
            )
        if model := next((m for m in RELEASED.values() if m.repo == self._repo), None):
            others = f"`llama pull {model.name} --hub ms` (ModelScope)"
            if model.open_copy:
                others += f" or `llama pull hf:{model.open_copy}`"
            text += f". Without an account: {others}"
        return text


class ModelScope:
    """A repository on ModelScope, or at `endpoint`, else `$MODELSCOPE_ENDPOINT`.

    The token is `$MODELSCOPE_API_TOKEN`. The one that `modelscope login` stores is a pickle, which
    could run code; it is not read.
    """

    def __init__(
        self, session: HubSession, repo: str, revision: str = "master", endpoint: str | None = None
    ) -> None:
        self._session = session
        self._repo = repo
        self._revision = revision
        given = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN")
        if given and "://" not in given:  # modelscope-hub takes a bare domain too
            given = f"https://{given}"
        self._endpoint = _address(endpoint or given or "https://www.modelscope.cn")
        self.headers: dict[str, str] = {}
        if token := os.environ.get("MODELSCOPE_API_TOKEN"):
            self.headers["Authorization"] = f"Bearer {token}"
            # Some routes know the cookie only.
            host = urlsplit(self._endpoint).hostname or ""
            session.client.cookies.set("m_session_id", token, domain=host)

    def listing(self) -> Listing:
        """Raises PermissionError, MissingFileError, InputError and ConnectionError."""
        api = f"{self._endpoint}/api/v1/models/{self._repo}"
        query = {"Revision": self._revision, "Recursive": "True"}
        page = self._get(f"{api}/repo/files", query)
        about = self._get(api)
        with _understood(page):
            data = page.json()["Data"]
            entries = {e["Path"]: e for e in data["Files"] or () if e["Type"] != "tree"}
            commit = (data.get("LatestCommitter") or {}).get("Id") or None
        with _understood(about):
            license = about.json()["Data"].get("License") or None
        files = []
        for path, name in wanted(list(entries), self._repo).items():
            url = f"{api}/repo?{urlencode({'Revision': self._revision, 'FilePath': path})}"
            with _understood(page):
                size, digest = entries[path]["Size"], entries[path]["Sha256"]
                files.append(remote_file(name, size, "sha256", digest, url))
        return Listing(f"ms:{self._repo}", commit, license, files)

    def local_copies(self, file: RemoteFile) -> list[Path]:
        return []

    def refuse(self, response: httpx.Response) -> Exception:
        status, repo = response.status_code, self._repo
        if status in (401, 403):
            return PermissionError(
                f"{self._endpoint} refuses access to {repo}: accept its terms at "
                f"https://www.modelscope.cn/models/{repo}, and set MODELSCOPE_API_TOKEN to a token "
                "from https://www.modelscope.cn/my/myaccesstoken"
            )
        if status == 404:
            return MissingFileError(
                f"no repository {repo} with a revision {self._revision!r} on {self._endpoint}"
                f"{_near(repo, 'ms')}"
            )
        return _unexpected(response)

    def _get(self, url: str, query: Mapping[str, Any] | None = None) -> httpx.Response:
        response = self._session.get(url, self.headers, query)
        if response.is_error:
            raise self.refuse(response)
        return response


def wanted(paths: Sequence[str], repo: str) -> dict[str, str]:
    """Those of a repository's files that are wanted, and their names here.

    Raises InputError if there are no weights that this package reads.
    """
    for folder, weights, beside in _LAYOUTS:
        names = {p: p.removeprefix(folder) for p in paths if p.startswith(folder)}
        if any(re.fullmatch(weights, name) for name in names.values()):
            found = {p: n for p, n in names.items() if re.fullmatch(f"{weights}|{beside}", n)}
            if "model.safetensors" in found.values():  # whole, beside the same in several files
                return {p: n for p, n in found.items() if not re.match(r"model-|.*index\.json", n)}
            return found
    shown = ", ".join(sorted(paths, key=lambda path: (not path.endswith(".gguf"), path))[:6])
    raise InputError(
        f"{repo} has no weights that this program reads: .safetensors, .bin or consolidated.00.pth "
        f"(it holds {shown or 'nothing'})"
    )


def remote_file(name: str, size: int, kind: str, digest: str, url: str) -> RemoteFile:
    """A file as a hub lists it. Raises ValueError for what is no size or no checksum."""
    digits = {"sha256": 64, "git": 40, "md5": 32}[kind]
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", digest.lower()) or size < 0:
        raise ValueError(f"{name} is listed with {size} bytes and {kind} {digest:.99}")
    return RemoteFile(name, size, (kind, digest.lower()), url)


@contextlib.contextmanager
def _understood(response: httpx.Response) -> Iterator[None]:
    """Names the URL whose answer has not the form that the hubs' answers have."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = what_it_is(response.content[:1000]) or f"is not a hub's: {error!r}"
        raise ConnectionError(
            f"the answer of {str(response.url).partition('?')[0]} {what}; check the address of the "
            "hub or mirror"
        ) from error


def _address(endpoint: str) -> str:
    if not re.match(r"https?://[^/]", endpoint):
        raise InputError(f"{endpoint} is no address of a hub: it begins with https://")
    return endpoint.rstrip("/")


def _near(repo: str, hub: str) -> str:
    """Released models' repositories with a similar name."""

    def known(model: ReleasedModel) -> list[str | None]:
        return [model.modelscope] if hub == "ms" else [model.repo, model.open_copy]

    repos = [name for model in RELEASED.values() for name in known(model) if name]
    near = difflib.get_close_matches(repo, repos, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _unexpected(response: httpx.Response) -> Exception:
    return ConnectionError(
        f"{str(response.url).partition('?')[0]} answers {response.status_code} "
        f"{response.reason_phrase}; try again later, or use a mirror (--mirror)"
    )


def _hugging_face_home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(expand(os.environ.get("HF_HOME") or Path(cache, "huggingface")))


def _hugging_face_cache() -> Path:
    return Path(expand(os.environ.get("HF_HUB_CACHE") or _hugging_face_home() / "hub"))


def _hugging_face_token() -> str | None:
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    stored = Path(expand(os.environ.get("HF_TOKEN_PATH") or _hugging_face_home() / "token"))
    return (stored.read_text().strip() or None) if stored.is_file() else None
