"""Which addresses are fetched, and which are refused."""

import asyncio
import gzip
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from llama.agents import Run, ToolError, fetch, web_fetch
from llama.agents.web_fetch import fetch_page, is_public

Serve = Callable[[FastAPI], str]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",  # CGNAT
        "198.18.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:100.64.0.1",
        "64:ff9b::7f00:1",  # NAT64
        "2002:7f00:1::",  # 6to4
        "2001:0:7f00:1::",  # Teredo
        "fe80::1",
        "fc00::1",
        "ff02::1",
        "fec0::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def refusal(url: str) -> str:
    with pytest.raises(ToolError) as raised:
        asyncio.run(fetch_page(url))
    return str(raised.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/", "is at 127.0.0.1, which is not public: refused"),
        ("http://localhost/", "which is not public"),
        ("http://[::1]/", "is at ::1, which is not public"),
        ("http://[::ffff:10.0.0.1]/", "which is not public"),
        ("http://169.254.169.254/latest/meta-data", "which is not public"),
        ("http://2130706433/", "which is not public"),  # 127.0.0.1 as one number
        ("http://0x7f.1/", "which is not public"),
        ("http://127.1/", "which is not public"),
        ("file:///etc/passwd", "only http:// and https:// are fetched"),
        ("ftp://example.org/", "only http:// and https:// are fetched"),
        ("example.org", "only http:// and https:// are fetched"),
        ("http:///path", "only http:// and https:// are fetched"),
        ("http://user:pass@example.org/", "addresses with a user's name"),
        ("http://example.org:port/", "is no address"),
        ("http://no-such-host.invalid/", "has no address"),
    ],
)
def test_what_is_refused_before_anything_is_sent(url: str, reason: str) -> None:
    assert reason in refusal(url)


def test_a_name_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*args: Any, **options: Any) -> Any:
        return [(0, 0, 0, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert "is at 10.0.0.1, which is not public" in refusal("http://example.org/")


@pytest.fixture
def site(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> str:
    """A site on this machine, which counts as public under the name public.example."""
    app = FastAPI()

    @app.get("/page")
    def page(request: Request) -> Response:
        host = request.headers["host"]
        html = f"<html><head><title>T</title><script>x()</script></head><p>Hello {host}!</p></html>"
        return Response(html, media_type="text/html")

    @app.get("/kinds/{kind}")
    def kind(kind: str) -> Response:
        if kind == "zipped":
            return Response(
                gzip.compress(b"x"), media_type="text/plain", headers={"Content-Encoding": "gzip"}
            )
        if kind == "image":
            return Response(b"x", media_type="image/png")
        size = {"large": 2**20 + 1, "long": 20_000}[kind]
        return Response("".join(f"{i:04d}" for i in range(size // 4 + 1)), media_type="text/plain")

    @app.get("/to")
    def to(url: str) -> RedirectResponse:
        return RedirectResponse(url)

    @app.get("/loop")
    def loop() -> RedirectResponse:
        return RedirectResponse("/loop")

    port = serve(app).rpartition(":")[2]
    resolved = socket.getaddrinfo

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        if host == "public.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]
        return resolved(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    public = web_fetch.is_public
    monkeypatch.setattr(
        web_fetch, "is_public", lambda address: str(address) == "127.0.0.1" or public(address)
    )
    return f"http://public.example:{port}"


def test_a_page_becomes_text_and_sees_its_own_name(site: str) -> None:
    text = asyncio.run(fetch_page(f"{site}/page")).text
    assert text.strip().endswith(f"Hello {site.removeprefix('http://')}!")
    assert "x()" not in text
    assert "<p>" not in text


def test_redirects_are_followed_by_the_same_rules(site: str) -> None:
    assert asyncio.run(fetch_page(f"{site}/to?url=/page")).url == f"{site}/page"
    assert "10.0.0.1, which is not public" in refusal(f"{site}/to?url=http://10.0.0.1/")
    assert "only http" in refusal(f"{site}/to?url=file:///etc/passwd")
    assert "more than 5 redirects" in refusal(f"{site}/loop")


def test_what_is_no_text_or_too_large(site: str) -> None:
    assert "has more than 1,048,576 bytes" in refusal(f"{site}/kinds/large")
    assert "is image/png, and only text is fetched" in refusal(f"{site}/kinds/image")
    assert "comes compressed" in refusal(f"{site}/kinds/zipped")
    assert "answered 404" in refusal(f"{site}/none")


def test_a_long_page_comes_in_parts(site: str) -> None:
    def part(**arguments: Any) -> str:
        arguments = {"url": f"{site}/kinds/long", **arguments}
        return str(asyncio.run(fetch.call(arguments, Run.starting())))

    first = part()
    assert first.startswith("00000001")
    assert first.endswith("[characters 0 to 8000 of 20004; start=8000 has more]")
    assert part(start=8000).startswith("2000")
    assert part(start=19_996) == "49995000"


def test_the_connection_goes_to_the_address_that_was_checked(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that means another address a moment later (DNS rebinding) changes nothing."""
    resolve, asked = socket.getaddrinfo, []

    def rebind(host: str, *args: Any, **options: Any) -> Any:
        asked.append(host)
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # would resolve it again
    asyncio.run(fetch_page(f"{site}/page"))
    assert asked.count("public.example") == 1
    assert {*asked} <= {"public.example", "127.0.0.1"}
