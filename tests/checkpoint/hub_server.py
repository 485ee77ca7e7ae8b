"""A stand-in for the hubs on this machine: their routes, their redirects, and their failures.

    with HubServer() as hub:
        hub.models["owner/name"] = {"config.json": b"{}", "model.safetensors": weights}
        hub.faults["model.safetensors"] = [Cut(1000), Status(503, retry_after="3")]
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

The large files of Hugging Face (LFS, here all that ends in .safetensors, .pth, .bin or .model) are
redirected to another host, which knows no token: `localhost`, where the hub is `127.0.0.1`.
huggingface_hub and modelscope-hub run against it in test_hub_clients.py, to show that it is like
them.
"""

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

PAGE = 3  # entries of a page of the tree


class Status(NamedTuple):
    """Answers with a status instead of the file."""

    code: int
    retry_after: str | None = None


class Cut(NamedTuple):
    """Closes the connection after so many bytes of the body."""

    after: int


class Body(NamedTuple):
    """Sends other bytes, with the Content-Length of `length` or their own."""

    data: bytes
    length: int | None = None


class Hang(NamedTuple):
    """Sends so many bytes of the body, then nothing until the event."""

    after: int
    until: threading.Event


class IgnoreRange:
    """Sends the whole file, whatever was asked for."""


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".pth", ".bin", ".model"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer:
    """`models` has the files of each repository, on both hubs; `requests` what was asked."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bytes]] = {}
        self.meta: dict[str, bytes] = {}  # behind signed URLs, by path
        self.gated: set[str] = set()
        self.tokens = {"good"}
        self.faults: dict[str, list[Any]] = {}  # by file name; each is used once
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # method, path, headers
        self._server = _Server(("", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.pages_at = self.url  # some mirrors name the hub itself as the address of a next page
        self.signed_url = f"{self.url}/meta/*?Policy=x&Signature=secret"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str) -> str:
        content = sorted((path, sha256(data)) for path, data in self.models[repo].items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()

    def asked_for(self, name: str) -> list[dict[str, str]]:
        """Headers of the GET requests of a file's bytes."""
        return [
            headers
            for method, path, headers in self.requests
            if method == "GET" and path.endswith(name) and "/resolve/" not in path
        ]


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Clients that are killed reset their connections."""
        if not isinstance(sys.exception(), ConnectionError):
            raise


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        if self.headers.get("Authorization") == "Bearer expired":
            reason = "Invalid credentials in Authorization header"
            self.reply(401, b"{}", {"X-Error-Message": reason})
            return
        for pattern, route in _ROUTES.items():
            if match := re.fullmatch(pattern, path):
                try:
                    getattr(self, route)(**match.groupdict())
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                return
        self.reply(404, b"{}")

    # Hugging Face

    def hf_info(self, repo: str, revision: str = "main") -> None:
        if not self.is_known(repo):
            return
        commit = self.hub.commit(repo)
        if revision not in ("main", commit):
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        gated = "manual" if repo in self.hub.gated else False
        siblings = [{"rfilename": path} for path in self.hub.models[repo]]
        about = {"id": repo, "sha": commit, "gated": gated, "siblings": siblings}
        self.json(about | {"cardData": {"license": "llama3.2"}, "private": False})

    def hf_tree(self, repo: str, revision: str) -> None:
        if not self.is_known(repo):
            return
        entries: list[dict[str, Any]] = []
        for path, data in sorted(self.hub.models[repo].items()):
            entry = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
            if is_lfs(path):
                pointer = b"version https://git-lfs.github.com/spec/v1"
                entry["oid"] = git_sha1(pointer + data[:8])
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        folders = {path.rpartition("/")[0] for path in self.hub.models[repo]} - {""}
        entries += [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        start = int(self.query.get("cursor", 0))
        headers = {}
        if start + PAGE < len(entries):
            following = f"{self.hub.pages_at}{urlsplit(self.path).path}"
            headers["Link"] = f'<{following}?recursive=True&cursor={start + PAGE}>; rel="next"'
        self.json(entries[start : start + PAGE], headers)

    def hf_file(self, repo: str, revision: str, path: str) -> None:
        if not self.is_known(repo):
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo in self.hub.gated and token not in self.hub.tokens:
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"}
            self.reply(403 if token else 401, b"Access to this model is restricted.", headers)
            return
        data = self.hub.models[repo].get(path)
        if data is None:
            self.reply(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return
        commit = self.hub.commit(repo)
        if not is_lfs(path):
            self.file(path, data, {"ETag": f'"{git_sha1(data)}"', "X-Repo-Commit": commit})
            return
        elsewhere = f"http://localhost:{self.hub.port}/cdn/{quote(repo)}/{quote(path)}"
        headers = {"Location": elsewhere, "X-Repo-Commit": commit}
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256(data)}"'}
        self.reply(302, b"", headers | linked)

    def cdn(self, repo: str, path: str) -> None:
        data = self.hub.models[repo][path]
        self.file(path, data, {"ETag": f'"{sha256(data)}"'})

    def is_known(self, repo: str) -> bool:
        if repo in self.hub.models:
            return True
        token = self.headers.get("Authorization")
        self.reply(404 if token else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
        return False

    # ModelScope

    def ms_info(self, repo: str) -> None:
        if self.ms_is_known(repo):
            self.json({"Code": 200, "Data": {"Name": repo, "License": "llama3.2"}})

    def ms_files(self, repo: str) -> None:
        if not self.ms_is_known(repo):
            return
        files: list[dict[str, Any]] = []
        for path, data in sorted(self.hub.models[repo].items()):
            name = path.rpartition("/")[2]
            entry = {"Type": "blob", "Name": name, "Path": path, "Size": len(data)}
            revision = {"Revision": self.hub.commit(repo), "IsLFS": is_lfs(path)}
            files.append(entry | {"Sha256": sha256(data)} | revision)
        folders = {path.rpartition("/")[0] for path in self.hub.models[repo]} - {""}
        files += [{"Type": "tree", "Name": f, "Path": f, "Size": 0, "Sha256": ""} for f in folders]
        latest = {"Id": self.hub.commit(repo)}
        self.json({"Code": 200, "Data": {"Files": files, "LatestCommitter": latest}})

    def ms_file(self, repo: str) -> None:
        if not self.ms_is_known(repo):
            return
        path = self.query["FilePath"]
        data = self.hub.models[repo].get(path)
        if data is None:
            self.json({"Code": 404, "Message": "no such file"}, status=404)
        elif is_lfs(path):
            elsewhere = f"http://localhost:{self.hub.port}/cdn/{quote(repo)}/{quote(path)}"
            self.reply(302, b"", {"Location": elsewhere})
        else:
            self.file(path, data, {})

    def ms_is_known(self, repo: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo not in self.hub.models:
            self.json({"Code": 10010205001, "Message": "not found"}, status=404)
        elif repo in self.hub.gated and token not in self.hub.tokens:
            self.json({"Code": 403, "Message": "no permission"}, status=403)
        else:
            return True
        return False

    # Meta

    def meta(self, path: str) -> None:
        if self.command == "HEAD" or path not in self.hub.meta or "Signature" not in self.query:
            self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        self.file(path, self.hub.meta[path], {})

    # Answers

    def file(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        """A file, or the part of it that is asked for; or the next of its faults."""
        name = path.rpartition("/")[2]
        faults = self.hub.faults.get(name)
        fault = faults.pop(0) if faults and self.command == "GET" else None
        if isinstance(fault, Status):
            self.reply(fault.code, b"fault", {"Retry-After": fault.retry_after or "0"})
            return
        if isinstance(fault, Body):
            data = fault.data
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        stop = len(data)
        if asked and not isinstance(fault, IgnoreRange):
            start, status = int(asked[1]), 206
            stop = min(int(asked[2] or stop) + bool(asked[2]), stop)
            if start >= len(data):
                self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers = headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        length = stop - start
        if isinstance(fault, Body) and fault.length is not None:
            length = fault.length
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(fault, Cut | Hang):
            stop = min(start + fault.after, stop)
        self.wfile.write(data[start:stop])
        self.wfile.flush()
        if isinstance(fault, Hang):
            fault.until.wait(60)
        if isinstance(fault, Cut | Hang | Body):
            self.close_connection = True

    def json(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        about = {"Content-Type": "application/json", **(headers or {})}
        self.reply(status, json.dumps(content).encode(), about)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = {
    rf"/api/models/{_REPO}/revision/(?P<revision>.+)": "hf_info",
    rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)": "hf_tree",
    rf"/api/models/{_REPO}": "hf_info",
    rf"/api/v1/models/{_REPO}/repo/files": "ms_files",
    rf"/api/v1/models/{_REPO}/repo": "ms_file",
    rf"/api/v1/models/{_REPO}": "ms_info",
    rf"/cdn/{_REPO}/(?P<path>.+)": "cdn",
    r"/meta/(?P<path>.+)": "meta",
    rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "hf_file",
}
