"""Messaging over NATS JetStream that does not lose a message. For asyncio, import `nats_bridge.aio`."""

from . import errors
from ._native import Published, Settled, original_name
from .bridge import Bridge, connect
from .consumer import Consumer, ConsumerState, Delivery
from .errors import (
    AlreadySettled,
    BreakerOpen,
    Closed,
    Conflict,
    Denied,
    Error,
    Forked,
    InvalidConfig,
    InvalidMessage,
    Landed,
    NotFound,
    Rejected,
    Timeout,
    TooLarge,
    Unreachable,
    Unsupported,
    WindowFull,
)
from .options import Buffer, ConnectOptions, ConsumeOptions, ConsumerOptions, Headers, PublishOptions, RetryPolicy, StreamOptions
from .received import Reason, Why

__all__ = [
    "AlreadySettled",
    "BreakerOpen",
    "Bridge",
    "Buffer",
    "Closed",
    "Conflict",
    "ConnectOptions",
    "ConsumeOptions",
    "Consumer",
    "ConsumerOptions",
    "ConsumerState",
    "Delivery",
    "Denied",
    "Error",
    "Forked",
    "Headers",
    "InvalidConfig",
    "InvalidMessage",
    "Landed",
    "NotFound",
    "PublishOptions",
    "Published",
    "Reason",
    "Rejected",
    "RetryPolicy",
    "Settled",
    "StreamOptions",
    "Timeout",
    "TooLarge",
    "Unreachable",
    "Unsupported",
    "Why",
    "WindowFull",
    "connect",
    "errors",
    "original_name",
]
