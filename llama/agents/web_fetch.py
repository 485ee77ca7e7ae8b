"""Fetching a web page for a model, which nobody gets who has not named the tool `fetch`.

The address is a text that a model wrote, and perhaps one that it read on another page. So that it
reaches nothing but the public internet:

- only http and https, without a user's name in the address;
- the host is resolved first, and refused if any of its addresses is private, loopback, link-local,
  shared (CGNAT), multicast or reserved, also where IPv6 wraps such an IPv4 address;
- the connection goes to the address that was checked, whatever the name means a moment later;
- redirects are followed by the same rules, a few of them; proxies of the environment are not used;
- at most 1 MiB is read, of text, HTML, JSON or XML.
"""

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx

from llama.agents.function_tools import ToolError, tool
from llama.retrieval.parsing import parse_html

MAX_BYTES = 2**20
_MAX_REDIRECTS = 5
_SECONDS = 20
_PAGE_CHARS = 8000
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml+xml")
_UNICAST = ipaddress.ip_network("2000::/3")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@tool
async def fetch(url: str, start: int = 0) -> str:
    """The text of a web page.

    Args:
        url: Its whole address, which begins with https:// or http://
        start: From which character on; long pages come in parts
    """
    page = await fetch_page(url)
    start = max(start, 0)
    text = page.text[start:]
    if len(text) > _PAGE_CHARS:
        more = start + _PAGE_CHARS
        note = f"\n[characters {start} to {more} of {len(page.text)}; start={more} has more]"
        return text[:_PAGE_CHARS] + note
    return text


@dataclass(frozen=True)
class Page:
    """A page's text, and the address that it was at after redirects."""

    url: str
    text: str


async def fetch_page(url: str) -> Page:
    """A page by its address. Raises ToolError for what is refused, too large or does not come."""
    try:
        async with asyncio.timeout(_SECONDS):
            for _ in range(_MAX_REDIRECTS + 1):
                page = await _get(url)
                if isinstance(page, Page):
                    return page
                url = page
    except (TimeoutError, httpx.TimeoutException):
        raise ToolError(f"{url[:200]} did not answer within {_SECONDS} s") from None
    except httpx.HTTPError as error:
        raise ToolError(f"{url[:200]} can't be fetched: {error or type(error).__name__}") from None
    raise ToolError(f"more than {_MAX_REDIRECTS} redirects, the last one to {url[:200]}")


async def _get(url: str) -> Page | str:
    """The page, or the address that it redirects to."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ToolError(f"{url[:200]!r} is no address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ToolError(f"{url[:200]!r}: only http:// and https:// are fetched")
    if parsed.userinfo:
        raise ToolError(f"{parsed.host}: addresses with a user's name are not fetched")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    address = await public_address(parsed.host, port)
    host = f"[{address}]" if address.version == 6 else str(address)
    headers = {
        "Host": parsed.netloc.decode("ascii"),
        "Accept-Encoding": "identity",  # so that bytes read are bytes kept
        "User-Agent": "llama-agents",
    }
    async with (
        httpx.AsyncClient(trust_env=False, timeout=_SECONDS) as client,
        client.stream(
            "GET",
            parsed.copy_with(host=host),
            headers=headers,
            extensions={"sni_hostname": parsed.raw_host.decode("ascii")},
        ) as response,
    ):
        if response.has_redirect_location:
            return urljoin(url, response.headers["location"])
        if response.status_code != 200:
            raise ToolError(f"{url[:200]} answered {response.status_code}")
        kind = response.headers.get("content-type", "text/plain").split(";")[0].strip().lower()
        if not kind.startswith(_TEXT_TYPES):
            raise ToolError(f"{url[:200]} is {kind[:100]}, and only text is fetched")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ToolError(f"{url[:200]} comes compressed, though it was asked not to")
        data = bytearray()
        async for part in response.aiter_raw():
            data += part
            if len(data) > MAX_BYTES:
                raise ToolError(f"{url[:200]} has more than {MAX_BYTES:,} bytes")
        text = data.decode(response.charset_encoding or "utf-8", errors="replace")
    return Page(url, parse_html(text).text if "html" in kind else text)


async def public_address(host: str, port: int) -> Address:
    """An address of a host, all of whose addresses are public. Raises ToolError for any other."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolError(f"{host[:200]} has no address: {error}") from None
    addresses = [ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in found]
    for address in addresses:
        if not is_public(address):
            raise ToolError(f"{host[:200]} is at {address}, which is not public: refused")
    return addresses[0]


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, also the IPv4 address in an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address not in _UNICAST or address.sixtofour or address.teredo:
            # What is left reaches this machine or its network, or an IPv4 address.
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)
