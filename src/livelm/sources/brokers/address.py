"""Where a broker is and how to prove who asks: `scheme://[user@]host[:port]/…`, with every secret in a file."""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pydantic import Field

from livelm.config import Settings
from livelm.errors import ConfigError

CONNECT_S = 5
"""How long one attempt to connect may take."""


class BrokerSettings(Settings):
    """What every broker needs to be told."""

    credentials_file: str = ""
    """A file with the password (with `user@` in the URI), the token, or a NATS .creds file; empty: none."""
    tls: bool = False
    """Encrypt the connection and check the certificate of the broker."""
    ca_file: str = ""
    """The certificate authority that the broker's certificate is checked against; empty: those of the system."""
    until_empty: bool = False
    """Stop once everything that is there has been read, instead of waiting for more."""
    dedupe_messages: int = Field(default=10_000, ge=0, le=1_000_000)
    """A message with the id of one of so many before it is skipped; 0: none is."""
    patience_s: float = Field(default=3600.0, ge=0, le=1e7)
    """How long a broker that was reached once may be away before this is an error."""


@dataclass(frozen=True, slots=True)
class Address:
    """A broker, and what to read there."""

    scheme: str
    host: str
    port: int
    user: str
    path: str
    """What follows the slash after the port, percent-decoded; never empty."""

    @property
    def place(self) -> str:
        """Host and port as they are written."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}/{self.path}"


def parse_address(target: str, scheme: str, port: int, path: str) -> Address:
    """Read a whole URI; `path` says in capitals what must follow the host, such as STREAM/SUBJECT.

    Raises ConfigError for anything else and for a password, which it does not repeat.
    """
    match = re.fullmatch(rf"{scheme}://(?:([^@/]*)@)?(\[[0-9a-fA-F:.]+\]|[^:/@\[\]]+)(?::([0-9]{{1,5}}))?/(.+)", target)
    if match is None:
        safe = re.sub(r"//.*@", "//…@", target)
        raise ConfigError(f"{safe!r} is not an address. Write it as {scheme}://[user@]host:port/{path}.")
    user, host, written, rest = match.groups(default="")
    if ":" in user:
        raise ConfigError(
            f"{scheme}://…@{host}/{rest}: a password does not belong into a URI, which is stored and shown. "
            f"Write {scheme}://{user.partition(':')[0]}@{host}/{rest}, put the password into a file that only you can "
            "read, and name that in `credentials_file`."
        )
    number = int(written or port)
    if not 0 < number < 65536:
        raise ConfigError(f"{target!r}: there is no port {number}; give one from 1 to 65535.")
    return Address(scheme, host.strip("[]"), number, unquote(user), unquote(rest))


def read_secret(settings: BrokerSettings) -> str:
    """What `credentials_file` holds, without space around it; empty when none is named. Raises ConfigError."""
    if not settings.credentials_file:
        return ""
    try:
        secret = Path(settings.credentials_file).expanduser().read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credentials_file {settings.credentials_file!r} cannot be read: {error}.") from None
    if not secret:
        raise ConfigError(f"credentials_file {settings.credentials_file!r} is empty. Write the password into it.")
    return secret


def tls_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    """How to encrypt, always with verification; None when `tls` is off. Raises ConfigError for a bad `ca_file`."""
    if not settings.tls:
        return None
    try:
        return ssl.create_default_context(cafile=settings.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file {settings.ca_file!r} cannot be used: {error}.") from None
