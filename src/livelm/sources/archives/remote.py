"""An archive on a web server, read as it comes and continued by Range after every interruption."""

import http.client
import logging
import queue
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from livelm.errors import SourceError
from livelm.sources.web.address import AddressPolicy

CHUNK_BYTES = 64 << 10
QUEUE_CHUNKS = 16
"""Chunks that are read ahead: 1 MiB."""
MAX_REDIRECTS = 5
TRIES = 6
"""Interruptions in a row, without a byte between them, after which it is given up."""
POLL_S = 0.2

log = logging.getLogger(__name__)


class Remote:
    """The bytes of an http(s) URL. A thread fetches, so that whoever reads can be stopped whatever the network does.

    Only addresses that `policy` lets through are connected to, at every redirect again. A server that does not know
    Range is read from the start, up to the byte where reading goes on.
    """

    def __init__(self, url: str, policy: AddressPolicy, timeout_s: float, closed: threading.Event) -> None:
        """`timeout_s` is how long a connection may be silent; `closed` ends a waiting `read`."""
        self._url, self._policy, self._timeout_s, self._closed = url, policy, timeout_s, closed
        self._fetching: _Fetching | None = None
        self._chunk = b""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes. Raises SourceError naming the URL when it cannot be had."""
        if self._fetching is None:
            self.seek(0)
        if not self._chunk and self._fetching is not None:
            self._chunk = self._fetching.take(self._closed)
        data, self._chunk = self._chunk[:size], self._chunk[size:]
        return data

    def seek(self, offset: int, /) -> None:
        """Fetch from this byte on."""
        self.close()
        self._fetching = _Fetching(self._url, offset, self._policy, self._timeout_s)

    def close(self) -> None:
        """End the fetching."""
        if self._fetching is not None:
            self._fetching.stopped.set()
        self._fetching, self._chunk = None, b""


class _Fetching:
    """One walk through the bytes, in a thread of its own."""

    def __init__(self, url: str, offset: int, policy: AddressPolicy, timeout_s: float) -> None:
        self.stopped = threading.Event()
        self._url, self._offset, self._policy, self._timeout_s = url, offset, policy, timeout_s
        self._version: str | None = None  # ETag or date of the first answer; a later one must be the same
        self._chunks: queue.Queue[bytes | SourceError] = queue.Queue(QUEUE_CHUNKS)
        threading.Thread(target=self._run, name="livelm-archive", daemon=True).start()

    def take(self, closed: threading.Event) -> bytes:
        """The next chunk; empty at the end, and when closed. Raises SourceError."""
        while not closed.is_set():
            with suppress(queue.Empty):
                item = self._chunks.get(timeout=POLL_S)
                if not item or isinstance(item, SourceError):
                    self._put(item)  # the same answer for whoever asks again
                if isinstance(item, SourceError):
                    raise item
                return item
        return b""

    def _put(self, item: bytes | SourceError) -> bool:
        while not self.stopped.is_set():
            with suppress(queue.Full):
                self._chunks.put(item, timeout=POLL_S)
                return True
        return False

    def _run(self) -> None:
        n_failures = 0
        while not self.stopped.is_set():
            begin = self._offset
            try:
                for chunk in self._fetch():
                    self._offset += len(chunk)
                    if not self._put(chunk):
                        return
                self._put(b"")
                return
            except SourceError as error:
                self._put(error)
                return
            except ssl.SSLCertVerificationError as error:
                self._put(self._failed(f"its certificate is not valid ({error.verify_message})"))
                return
            except (OSError, http.client.HTTPException, ValueError) as error:
                n_failures = 1 if self._offset > begin else n_failures + 1
                if n_failures >= TRIES:
                    self._put(self._failed(f"{type(error).__name__}: {error}, {TRIES} times in a row"))
                    return
                log.warning("%s: interrupted at byte %d (%s); trying again", self._url, self._offset, error)
                self.stopped.wait(0.1 * 4 ** (n_failures - 1))  # 0.1 s to 26 s

    def _fetch(self) -> Iterator[bytes]:
        """What follows byte `_offset`. Raises OSError and HTTPException for what another try may cure."""
        connection, response = self._follow()
        try:
            skip = self._skip(response)
            while chunk := response.read(CHUNK_BYTES):
                dropped = min(skip, len(chunk))
                skip -= dropped
                if len(chunk) > dropped:
                    yield chunk[dropped:]
            if response.length:  # reading by size does not tell that the connection died early
                raise ConnectionError(f"the connection ended {response.length} bytes early")
        finally:
            connection.close()

    def _skip(self, response: http.client.HTTPResponse) -> int:
        """How much of the answer was read before. Raises SourceError when it is not what it was."""
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if self._version is not None and version != self._version:
            raise self._failed("it was changed while it was being read")
        self._version = version
        if response.status == 200:
            return self._offset
        found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != self._offset:
            raise self._failed(f"the answer is another range, {response.headers.get('Content-Range')!r}")
        return 0

    def _follow(self) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer to the request, redirects followed."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise self._failed(f"it leads to {url!r}, which is not http")
            connection = self._connect(parts)
            try:
                headers = {"Accept-Encoding": "identity", "User-Agent": "livelm"}
                if self._offset:
                    headers["Range"] = f"bytes={self._offset}-"
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("GET", path, headers=headers)
                response = connection.getresponse()
            except BaseException:
                connection.close()
                raise
            if response.status in (200, 206):
                return connection, response
            connection.close()
            target = response.headers.get("Location")
            if response.status == 416 and self._offset:
                raise self._failed(f"it has no byte {self._offset} any more")
            if response.status in (408, 429) or response.status >= 500:
                raise ConnectionError(f"the server answers {response.status}")
            if response.status not in (301, 302, 303, 307, 308) or not target:
                raise self._failed(f"the server answers {response.status} {response.reason}")
            url = urljoin(url, target)
        raise self._failed(f"more than {MAX_REDIRECTS} redirects")

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        """A connection to an address that was checked; no name is looked up a second time."""
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._policy.check_name(host, port)
        addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        for address in addresses:
            self._policy.check_address(host, port, address)
        failure: OSError = ConnectionError(f"{host} has no address")
        for address in dict.fromkeys(addresses):
            try:
                plain = socket.create_connection((address, port), self._timeout_s)
                if parts.scheme == "http":
                    connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
                    connection.sock = plain
                else:
                    context = ssl.create_default_context()
                    connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)
                    connection.sock = context.wrap_socket(plain, server_hostname=host)
                return connection
            except OSError as error:
                failure = error
        raise failure

    def _failed(self, why: str) -> SourceError:
        return SourceError(f"{self._url!r} cannot be read at byte {self._offset}: {why}. Check it, then resume.")
