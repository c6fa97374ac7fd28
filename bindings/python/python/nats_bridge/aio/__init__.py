"""The package for asyncio: the same verbs as `nats_bridge`, awaited. Errors and options are the same."""

from .bridge import Bridge, connect
from .consumer import Consumer, Delivery
from .dead_letters import DeadLetters
from .health import HealthCheck
from .ledger import Ledger, LedgerEntry
from .listener import AmqpListener
from .outbox import Outbox, open_outbox
from .schemas import Schemas
from .sidecar import Sidecar

__all__ = [
    "AmqpListener",
    "Bridge",
    "Consumer",
    "DeadLetters",
    "Delivery",
    "HealthCheck",
    "Ledger",
    "LedgerEntry",
    "Outbox",
    "Schemas",
    "Sidecar",
    "connect",
    "open_outbox",
]
