"""What happens to every request before its route sees it."""

import json
from collections.abc import Iterator

import httpx
import pytest
from pydantic import ValidationError
from serving.conftest import running
from starlette.testclient import TestClient

from llama.serving.app import create_app
from llama.serving.lifecycle import Lifecycle
from llama.serving.openai_chat import ChatCompletionRequest
from llama.serving.registry import ModelRegistry

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def lifecycle() -> Lifecycle:
    return Lifecycle()


@pytest.fixture(scope="module")
def guarded(models: ModelRegistry, lifecycle: Lifecycle) -> Iterator[str]:
    """A server with keys, a page that may call it, and small bodies."""
    app = create_app(
        models,
        lifecycle,
        api_keys=["first", "clé"],
        cors=["https://chat.example"],
        max_body_size=300,
    )
    with running(app) as url:
        yield url


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
    response = httpx.post(f"{url}{CHAT}", content=content, headers=headers)
    assert (response.status_code, response.json()["object"]) == (200, "chat.completion")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first"},
        {"authorization": "bearer  first"},
        {"x-api-key": "first"},
        {"x-api-key": "clé".encode()},
    ],
)
def test_a_key_opens(guarded: str, headers: dict) -> None:
    assert httpx.get(f"{guarded}/props", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic first"},
        {"Authorization": "Bearer"},
        {"x-api-key": "firs"},
        {"x-api-key": b"\xff"},
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/props", "/metrics", "/openapi.json", "/v1/nothing"])
def test_without_a_key_nothing_is_said(guarded: str, path: str, headers: dict) -> None:
    response = httpx.get(guarded + path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.json()["error"]["code"] == "invalid_api_key"


def test_errors_before_the_route_have_its_dialect(guarded: str) -> None:
    anthropic = httpx.post(f"{guarded}/v1/messages", json={}).json()
    assert anthropic["type"] == "error"
    assert anthropic["error"]["type"] == "authentication_error"
    assert isinstance(httpx.post(f"{guarded}/api/chat", json={}).json()["error"], str)


def test_the_health_is_open(guarded: str) -> None:
    assert httpx.get(f"{guarded}/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("http://[::1]:8080", 200),
        ("http://app.localhost:5173", 200),
        ("https://chat.example", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://localhost:3000.evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_of_other_origins_are_refused(guarded: str, origin: str, status: int) -> None:
    headers = {"Origin": origin, "x-api-key": "first"}
    response = httpx.post(f"{guarded}{CHAT}", json=BODY, headers=headers)
    assert response.status_code == status
    allowed = response.headers.get("access-control-allow-origin")
    assert allowed == (origin if status == 200 else None)


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://192.168.1.5:8000", "192.168.1.5:8000", 200),
        ("http://[fd00::5]:8000", "[fd00::5]:8000", 200),
        ("http://192.168.1.5", "192.168.1.5", 200),
        ("http://192.168.1.5:3000", "192.168.1.5:8000", 403),
        ("http://192.168.1.6:8000", "192.168.1.5:8000", 403),
        # A name that means this machine since a moment ago (DNS rebinding).
        ("http://evil.example:8000", "evil.example:8000", 403),
    ],
)
def test_the_page_of_an_address_may_use_it(
    guarded: str, origin: str, host: str, status: int
) -> None:
    headers = {"Origin": origin, "Host": host, "x-api-key": "first"}
    assert httpx.post(f"{guarded}{CHAT}", json=BODY, headers=headers).status_code == status


def test_what_is_no_request_goes_through() -> None:
    """An application that is mounted or extended begins and ends by events of its lifespan."""
    with TestClient(create_app(ModelRegistry({}), api_keys=["first"])) as client:
        assert client.get("/health").status_code == 200


def test_what_a_browser_asks_first_needs_no_key(guarded: str) -> None:
    headers = {
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    response = httpx.options(f"{guarded}{CHAT}", headers=headers)
    assert response.status_code == 200
    assert "authorization" in response.headers["access-control-allow-headers"]
    headers["Origin"] = "https://evil.example"
    assert httpx.options(f"{guarded}{CHAT}", headers=headers).status_code == 403


def test_errors_can_be_read_by_the_page_that_may_call(guarded: str) -> None:
    response = httpx.post(f"{guarded}{CHAT}", headers={"Origin": "https://chat.example"})
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == "https://chat.example"


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_large_body_is_refused(guarded: str, is_declared: bool) -> None:
    content = b'{"model": "' + b"x" * 500 + b'"}'

    def pieces() -> Iterator[bytes]:
        for i in range(0, len(content), 100):
            yield content[i : i + 100]

    response = httpx.post(
        f"{guarded}{CHAT}",
        content=content if is_declared else pieces(),
        headers={"x-api-key": "first"},
    )
    assert response.status_code == 413
    assert "larger than 300 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize(("phase", "code"), [("loading", "loading"), ("draining", "draining")])
def test_a_server_that_loads_or_ends_takes_no_requests(
    guarded: str, lifecycle: Lifecycle, monkeypatch: pytest.MonkeyPatch, phase: str, code: str
) -> None:
    monkeypatch.setattr(lifecycle, "phase", phase)
    for method, path in (("GET", "/health"), ("POST", CHAT), ("GET", "/v1/models")):
        response = httpx.request(method, guarded + path, headers={"x-api-key": "first"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert response.json()["error"]["code"] == code
    assert httpx.get(f"{guarded}/metrics", headers={"x-api-key": "first"}).status_code == 200


def test_a_defect_is_an_answer_and_not_the_end(
    guarded: str, models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise KeyError("x" * 5000)

    with monkeypatch.context() as patch:
        patch.setattr(models, "_find", broken)
        response = httpx.get(f"{guarded}/props", headers={"x-api-key": "first"})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert len(response.content) < 500
    assert httpx.get(f"{guarded}/props", headers={"x-api-key": "first"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (CHAT, {"é" * 100000: 1}),
        (CHAT, {"model": "é" * 100000}),
        (CHAT, {"messages": "é" * 100000}),
        (CHAT, {"stop": [1] * 100000}),
        (CHAT, {"response_format": {"type": "é" * 100000}}),
        ("/v1/messages", {"é" * 100000: 1}),
        ("/api/chat", {"options": {"é" * 100000: 1}}),
        ("/" + "é" * 5000, {}),
    ],
)
def test_an_error_does_not_repeat_what_was_sent(url: str, path: str, wrong: dict) -> None:
    response = httpx.post(url + path, json={**BODY, **wrong})
    assert response.status_code in (400, 404)
    assert len(response.content) < 6000


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop": [1] * 100_000},
        {"messages": [{"role": "user", "content": [3] * 100_000}]},
        {"logit_bias": {str(i): "x" for i in range(100_000)}},
        {f"unknown_{i}": 1 for i in range(100_000)},
    ],
)
def test_many_wrong_items_are_few_errors(wrong: dict) -> None:
    """Each error costs memory and time of the event loop."""
    with pytest.raises(ValidationError) as info:
        ChatCompletionRequest(**{**BODY, **wrong})
    assert info.value.error_count() <= 2
