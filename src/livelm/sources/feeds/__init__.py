"""Feeds: streams of events that a server pushes, over connections that break and are made again."""

from livelm.sources.feeds.settings import SseSettings, WebSocketSettings
from livelm.sources.feeds.sse import Sse
from livelm.sources.feeds.websocket import WebSocket

__all__ = ["Sse", "SseSettings", "WebSocket", "WebSocketSettings"]
