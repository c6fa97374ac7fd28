"""Whether what a service needs is there, whether it keeps up, and what this process counts."""

import json
from dataclasses import dataclass
from typing import Literal

from ._native import HealthCheck as NativeHealthCheck
from ._native import render_metrics as metrics
from .arguments import as_json
from .options import HealthOptions

__all__ = ["Health", "HealthCheck", "Lag", "MirrorLag", "Stats", "metrics", "read_health", "read_stats", "required"]


@dataclass(frozen=True, slots=True)
class Stats:
    """A connection as it is now."""

    connected: bool
    """Whether a server is connected."""
    connects: int
    """How often a connection was made, the first one included."""
    disconnects: int
    """How often it was lost."""
    closed: bool
    """Whether it was closed for good."""
    outstanding: int
    """How many messages are published and not confirmed."""
    breaker: Literal["closed", "open", "half_open"]
    """The publisher's circuit breaker; always ``closed`` when the option ``breaker`` was not given."""
    server_version: str
    """The version of the server, such as ``2.15.1``."""
    api_level: int
    """JetStream's API level when the connection was made."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer is."""

    stream: str
    """Its stream."""
    consumer: str
    """Its name."""
    pending: int
    """Messages that it has still to deliver."""
    ack_pending: int
    """Messages that are delivered and not settled."""
    redelivered: int
    """Messages that are being delivered again."""
    pending_per_second: float | None
    """Messages by which ``pending`` grows in a second, over the last looks; above 0 it falls behind. ``None`` until there were two."""


@dataclass(frozen=True, slots=True)
class MirrorLag:
    """How far a mirror is."""

    stream: str
    """The mirror."""
    lag: int
    """Messages of its origin that it does not have yet."""
    silent_ms: int | None
    """Milliseconds since it heard of its origin last."""


@dataclass(frozen=True, slots=True)
class Health:
    """What a health check found."""

    ready: bool
    """Whether there is no problem."""
    problems: list[str]
    """What is wrong, one sentence each."""
    server_version: str
    """The server that is connected."""
    consumers: list[Lag]
    """How far each required consumer is."""
    mirrors: list[MirrorLag]
    """How far each required stream that is a mirror lags behind."""


class HealthCheck:
    """Looks at what a service needs. Made by `nats_bridge.Bridge.health_check`; keep it, as it remembers how the lag develops."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeHealthCheck) -> None:
        self._native = native

    def look(self) -> Health:
        """Looks now. What is wrong is in the answer; asking itself does not fail."""
        return read_health(self._native.look())


def required(options: HealthOptions) -> str:
    """What is required, as the core reads it."""
    return as_json(**options)


def read_health(found: str) -> Health:
    """What was found, of what the core says."""
    given = json.loads(found)
    consumers = [Lag(**lag) for lag in given.pop("consumers")]
    return Health(consumers=consumers, mirrors=[MirrorLag(**lag) for lag in given.pop("mirrors")], **given)


def read_stats(answer: str) -> Stats:
    """Figures, of what the core says."""
    return Stats(**json.loads(answer))
