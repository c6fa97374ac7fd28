"""The package for asyncio: the same verbs as `nats_bridge`, awaited. Errors and options are the same."""

from .bridge import Bridge, connect
from .consumer import Consumer, Delivery

__all__ = ["Bridge", "Consumer", "Delivery", "connect"]
