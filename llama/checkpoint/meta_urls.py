"""The signed URLs that Meta sends by mail: valid for 24 hours, for one family of models.

    https://llama3-2.llamameta.net/*?Policy=eyJTd...&Signature=...&Key-Pair-Id=...

A file's path takes the place of the star. A model's folder there has Meta's layout, and a
`checklist.chk` with the md5 of each file; Llama 2's tokenizer lies beside the folders, with a list
of its own. A file that is not there is answered like an expired URL: 403.
"""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from llama.checkpoint.download import RemoteFile
from llama.checkpoint.hub_session import HubSession, Retries
from llama.checkpoint.hubs import Listing, remote_file
from llama.errors import InputError, MissingFileError
from llama.storage.model_names import ReleasedModel

if TYPE_CHECKING:
    import httpx

_FORM = "https://www.llama.com/llama-downloads/"
_FILES = r"consolidated\.\d+\.pth|params\.json|tokenizer\.model"


class MetaUrl:
    """The files of a released model behind a signed URL."""

    def __init__(self, session: HubSession, url: str, model: ReleasedModel) -> None:
        self._session = session
        self._url = url
        self._model = model
        self.headers: dict[str, str] = {}

    def listing(self) -> Listing:
        """Raises PermissionError, MissingFileError, InputError and ConnectionError."""
        for folder in self._model.meta_folders:
            answer = self._session.get(self._at(f"{folder}/checklist.chk"), {})
            if answer.is_success:
                break
        else:
            raise self.refuse(answer)
        found = {name: (f"{folder}/{name}", md5) for name, md5 in _md5s(answer).items()}
        if "tokenizer.model" not in found:
            beside = self._session.get(self._at("tokenizer_checklist.chk"), {})
            if beside.is_error:
                raise self.refuse(beside)
            found |= {name: (name, md5) for name, md5 in _md5s(beside).items()}
        files = [
            remote_file(name, self._size(path), "md5", md5, self._at(path))
            for name, (path, md5) in found.items()
        ]
        names = {file.name for file in files}
        if missing := {"consolidated.00.pth", "params.json", "tokenizer.model"} - names:
            raise MissingFileError(f"{folder} at Meta lists no {' and no '.join(sorted(missing))}")
        source = f"https://{urlsplit(self._url).hostname}/{folder}"  # without the signature
        return Listing(source, None, self._model.license, files)

    def local_copies(self, file: RemoteFile) -> list[Path]:
        return []

    def refuse(self, response: httpx.Response) -> Exception:
        if response.status_code not in (403, 404):
            at = str(response.url).partition("?")[0]
            return ConnectionError(f"{at} answers {response.status_code}; try again later")
        name, expires = self._model.name, _expires(self._url)
        if expires is not None and expires < time.time():
            ago = (time.time() - expires) / 3600
            return PermissionError(
                f"the signed URL expired {ago:.1f} hours ago: it is valid for 24 hours. Ask for "
                f"another one at {_FORM}; with it the download continues"
            )
        host = self._model.family.replace(".", "-")
        return PermissionError(
            f"{urlsplit(self._url).hostname} refuses {name}: the URL is incomplete (put it in "
            "single quotes), has expired (after 24 hours), or is of another family than "
            f"{self._model.family} (whose URLs begin with https://{host}.llamameta.net or as in "
            f"Meta's mail). Ask for another one at {_FORM}"
        )

    def _at(self, path: str) -> str:
        return self._url.replace("*", path)

    def _size(self, path: str) -> int:
        """Of a file, from the answer to a request for its first byte: HEAD is refused there."""
        retries = Retries(self._session, self._at(path))
        while True:
            first = {"Range": "bytes=0-0"}
            with (
                retries.after_failure(),
                self._session.stream(self._at(path), first, retries) as answer,
            ):
                if answer.is_error:
                    raise self.refuse(answer)
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                return int(total if answer.status_code == 206 else answer.headers["Content-Length"])


def _md5s(answer: httpx.Response) -> dict[str, str]:
    lines = re.findall(r"^([0-9a-fA-F]{32})\s+\*?(?:\./)?(\S+)\s*$", answer.text, re.MULTILINE)
    found = {name: md5 for md5, name in lines if re.fullmatch(_FILES, name)}
    if not found:
        at = str(answer.url).partition("?")[0]
        raise InputError(f"{at} is no list of checksums: {answer.text:.60}")
    return found


def _expires(url: str) -> float | None:
    """When a signed URL ends, in seconds since 1970; None if it does not say."""
    policy = parse_qs(urlsplit(url).query).get("Policy", [""])[0]
    try:
        text = base64.b64decode(policy.translate(str.maketrans("-_~", "+=/")))
        return json.loads(text)["Statement"][0]["Condition"]["DateLessThan"]["AWS:EpochTime"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
