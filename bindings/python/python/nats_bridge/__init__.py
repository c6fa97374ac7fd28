"""Messaging over NATS JetStream that does not lose a message. For asyncio, import `nats_bridge.aio`."""

from .errors import Error

__all__ = ["Error"]
