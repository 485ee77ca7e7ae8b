"""What happens to every request before its route sees it."""

import json

import httpx
import pytest

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/x-www-form-urlencoded"},  # curl -d
        {"Content-Type": "text/plain;charset=UTF-8"},
        {},
    ],
)
def test_a_body_is_json_whatever_its_type(url: str, headers: dict[str, str]) -> None:
    content = json.dumps(BODY).encode()
    response = httpx.post(f"{url}/v1/chat/completions", content=content, headers=headers)
    assert (response.status_code, response.json()["object"]) == (200, "chat.completion")
