"""Requests to a hub: with retries, and such that another thread can end them.

    with HubSession(print) as session:
        response = session.get(url, headers)                  # all of a small answer
        with session.stream(url, headers, start=1000) as r:   # a large one from byte 1000 on
            ...

A connection that is refused or cut, an answer that takes too long, and the statuses 408, 425, 429
and 5xx are tried again, after 1 to 16 seconds or what `Retry-After` asks for. Other statuses are
the caller's to explain. httpx follows redirects and leaves the token behind at another host.
"""

from __future__ import annotations

import contextlib
import email.utils
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llama.errors import InputError

if TYPE_CHECKING:
    import httpx

DELAYS = (1, 2, 4, 8, 16)  # seconds before each further attempt
_LONGEST_WAIT = 300  # seconds that Retry-After may ask for
_SILENCE = 30  # seconds without a byte that end an attempt
_RETRIED = (408, 425, 429)


class CancelledError(Exception):
    """Another thread has ended the session."""


class HubSession:
    """A client whose requests end when `cancel` is called. `notice` gets a line for each retry."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        import httpx  # changes the state of `random` when it is imported

        self.notice = notice
        self.client = httpx.Client(
            follow_redirects=True,
            timeout=httpx.Timeout(_SILENCE, connect=10),
            headers={"User-Agent": "llama", "Accept-Encoding": "identity"},
        )
        self._cancelled = threading.Event()
        self._responses: set[httpx.Response] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> HubSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        self.client.close()

    def cancel(self) -> None:
        """Ends requests and waits; they raise CancelledError. May be called by any thread."""
        with self._lock:
            self._cancelled.set()
            for response in self._responses:
                stream = response.extensions.get("network_stream")
                connection = stream and stream.get_extra_info("socket")
                if connection is not None:
                    with contextlib.suppress(OSError):  # wakes the thread that reads from it
                        connection.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raises CancelledError after `cancel`."""
        if self._cancelled.is_set():
            raise CancelledError

    def get(
        self, url: str, headers: Mapping[str, str], params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """All of an answer. Raises ConnectionError when there is none after the last attempt."""
        retries = Retries(self, url)
        while True:
            with retries.after_failure():
                request = self.client.build_request("GET", url, headers=headers, params=params)
                with self._open(request, retries) as response:
                    response.read()
                    return response

    @contextlib.contextmanager
    def stream(
        self, url: str, headers: Mapping[str, str], retries: Retries, start: int = 0
    ) -> Iterator[httpx.Response]:
        """An answer to read block by block, from byte `start` on if the server can do that.

        To be used within `retries.after_failure()`.
        """
        ranged = {"Range": f"bytes={start}-"} if start else {}
        request = self.client.build_request("GET", url, headers={**headers, **ranged})
        with self._open(request, retries) as response:
            yield response

    @contextlib.contextmanager
    def _open(self, request: httpx.Request, retries: Retries) -> Iterator[httpx.Response]:
        self.check()
        response = self.client.send(request, stream=True)
        with self._lock:
            self._responses.add(response)
        try:
            self.check()
            if response.status_code in _RETRIED or response.status_code >= 500:
                status = f"its server answers {response.status_code} {response.reason_phrase}"
                raise _TryAgainError(status, _seconds(response.headers.get("Retry-After")))
            yield response
        finally:
            with self._lock:
                self._responses.discard(response)
            response.close()


class _TryAgainError(Exception):
    """A status that may be another one later; `seconds` is how long the server asks to wait."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Retries:
    """The attempts of one request, of which messages say that it is for `what`."""

    def __init__(self, session: HubSession, what: str) -> None:
        self._session = session
        self._what = what.partition("?")[0]  # of a URL the rest may be a signature
        self._failures = 0

    def start_over(self) -> None:
        """Some bytes have arrived: further failures are counted from here."""
        self._failures = 0

    @contextlib.contextmanager
    def after_failure(self) -> Iterator[None]:
        """Waits if the block fails for a while; the caller runs it again.

        Raises ConnectionError after the last attempt, InputError for what is no address, and
        CancelledError.
        """
        import httpx

        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise InputError(f"{self._what} is no address of a hub: {error}") from error
        except httpx.TooManyRedirects as error:
            raise ConnectionError(f"{self._what} redirects without end") from error
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            self._session.check()
            self.wait("the connection was cut")
        except httpx.ReadTimeout:
            self.wait(f"no answer for {_SILENCE} s")
        except httpx.TransportError as error:
            self.wait(str(error) or type(error).__name__)
        except _TryAgainError as error:
            self.wait(str(error), error.seconds)

    def wait(self, reason: str, seconds: float = 0) -> None:
        """Waits before the next attempt; raises ConnectionError if there is none."""
        if seconds > _LONGEST_WAIT:
            raise ConnectionError(
                f"{self._what}: {reason} and asks to wait {seconds:.0f} s; the same command "
                "continues then"
            )
        if self._failures == len(DELAYS):
            raise ConnectionError(
                f"{self._what}: {reason}, {self._failures + 1} times; check the network, or use "
                "a mirror (--mirror); the same command continues"
            )
        seconds = max(seconds, DELAYS[self._failures])
        self._failures += 1
        self._session.notice(f"{self._what}: {reason}; again in {seconds:.0f} s")
        if self._session._cancelled.wait(seconds):
            raise CancelledError


def _seconds(retry_after: str | None) -> float:
    """What the header asks for, as a number of seconds or as a date; 0 without it."""
    if not retry_after:
        return 0
    if retry_after.isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError):
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0)
    return 0
