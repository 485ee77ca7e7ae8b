"""JSON as it is sent: compact, and always UTF-8.

JSON's escapes can hold half a surrogate pair, which a client gets by cutting an emoji in two. UTF-8
has no bytes for it, so where it comes back in an answer it is U+FFFD, as in a prompt.
"""

import json
import re
from typing import Any

from starlette import responses

_HALF_PAIR = re.compile("[\ud800-\udfff]")


def compact_json(data: Any) -> str:
    """JSON without white space, in which characters beyond ASCII are themselves."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _HALF_PAIR.sub("\ufffd", text)


class JSONResponse(responses.JSONResponse):
    """A response of such JSON."""

    def render(self, content: Any) -> bytes:
        return compact_json(content).encode()
