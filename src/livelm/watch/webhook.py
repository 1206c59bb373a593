"""Send surprises to a URL that the user named: in order, in the background, without ever holding the stream up."""

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from livelm.errors import ConfigError

MAX_WAITING = 256
"""Records that wait at most; the oldest is dropped for a new one."""
TIMEOUT_S = 5.0
"""For connecting, and for each read and write."""
DEADLINE_S = 15.0
"""For one attempt in all: a server that answers a byte at a time is cut off."""
RETRIES_S = (0.5, 2.0, 8.0)
"""Waits before each further attempt."""
AGAIN = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
"""Answers below 500 after which another attempt makes sense."""


class Refused(Exception):
    """The receiver does not want this record: no further attempt."""


class Webhook:
    """POSTs each record as a JSON object; what 2xx answers is delivered.

    Redirects are not followed, proxies not asked. The host may be private or loopback, since the user named it; but a
    name that stood for public addresses only when the watch began is not followed to a private one later.
    """

    def __init__(self, url: str, retries_s: tuple[float, ...] = RETRIES_S) -> None:
        """Raises ConfigError for a URL that nothing can be sent to."""
        self._target = _Target(url)
        self._retries_s = retries_s
        self.delivered = self.dropped = 0
        self.trouble: str | None = None
        """Why the last record that was dropped was."""
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="livelm-webhook", daemon=True)
        self._thread.start()

    def take(self, record: Mapping[str, Any]) -> None:
        """Queue a record, unless it only sums up; never waits."""
        if record.get("kind") == "watched":
            return
        body = json.dumps(record, allow_nan=False).encode()
        with self._changed:
            if len(self._waiting) >= MAX_WAITING:
                self._waiting.popleft()
                self._drop(f"more than {MAX_WAITING} records were waiting")
            self._waiting.append(body)
            self._changed.notify_all()

    def close(self, patience_s: float = 10.0) -> None:
        """Wait until what is queued is sent, but not longer than `patience_s`; the rest counts as dropped."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, patience_s)
            self._closing.set()
            left = len(self._waiting) + self._busy
            self._waiting.clear()
            self._changed.notify_all()
            self.dropped += left
            if left:
                self.trouble = "the watch ended before they were sent"
        self._thread.join(timeout=1)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
                if self._closing.is_set():
                    return
                body, self._busy = self._waiting.popleft(), True
            failure = self._deliver(body)
            with self._changed:
                self._busy = False
                if self._closing.is_set():
                    return  # counted as dropped by `close`
                if failure is None:
                    self.delivered += 1
                else:
                    self._drop(failure)
                self._changed.notify_all()

    def _deliver(self, body: bytes) -> str | None:
        """Send one record, more than once if need be; why it could not be delivered, or None."""
        failure = ""
        for wait_s in (0.0, *self._retries_s):
            if self._closing.wait(wait_s):
                return "the watch ended"
            try:
                self._target.post(body)
                return None
            except Refused as error:
                return str(error)
            except (OSError, ValueError, http.client.HTTPException) as error:
                failure = f"{type(error).__name__}: {error}"
        return failure

    def _drop(self, why: str) -> None:
        self.dropped += 1
        self.trouble = why


class _Target:
    """Where the URL leads, and which addresses it may lead to."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--webhook {url!r} is not a URL: {error}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--webhook {url!r} is not a web address. Write http://HOST/PATH or https://HOST/PATH.")
        if parts.username is not None or parts.password is not None:
            raise ConfigError("--webhook has a user name or password in its URL; put a token into its path or query.")
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise ConfigError(f"--webhook {url!r} has characters that a URL cannot have. Write them as %XX.")
        self.host: str = parts.hostname
        self.port = port if port is not None else (443 if parts.scheme == "https" else 80)
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            self._may_be_private = any(map(_is_private, self._addresses()))
        except OSError:  # nobody knows the name yet: then it must turn out to be public
            self._may_be_private = False
        except UnicodeError as error:
            raise ConfigError(f"--webhook {url!r}: {self.host!r} cannot be the name of a host: {error}.") from None

    def post(self, body: bytes) -> None:
        """One attempt. Raises Refused, or OSError and HTTPException where another may succeed."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        connection.sock = self._connect()
        timer = threading.Timer(DEADLINE_S, _cut, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            if self._context is not None:
                connection.sock = self._context.wrap_socket(connection.sock, server_hostname=self.host)
            headers = {"Content-Type": "application/json", "User-Agent": "livelm", "Connection": "close"}
            connection.request("POST", self._path, body, headers)
            answer = connection.getresponse()
            status = answer.status
            if 200 <= status < 300:
                return
            location = answer.getheader("Location") if 300 <= status < 400 else None
            said = f"{self.host} answered {status}" + (f" (redirects are not followed: {location})" if location else "")
            if status >= 500 or status in AGAIN:
                raise OSError(said)
            raise Refused(said)
        finally:
            timer.cancel()
            connection.close()

    def _connect(self) -> socket.socket:
        addresses = self._addresses()
        if not self._may_be_private and any(map(_is_private, addresses)):
            raise Refused(f"{self.host} now leads to a private address ({addresses[0]}), which it did not at first")
        failure: OSError = OSError(f"{self.host} has no address")
        end = time.monotonic() + DEADLINE_S
        for address in addresses:
            try:
                return socket.create_connection((address, self.port), timeout=min(TIMEOUT_S, end - time.monotonic()))
            except OSError as error:
                failure = error
            if time.monotonic() >= end - 0.1:
                break
        raise failure

    def _addresses(self) -> list[str]:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(place[4][0]) for place in found))


def _is_private(address: str) -> bool:
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


def _cut(sock: Any) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
