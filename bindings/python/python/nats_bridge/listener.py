"""AMQP 0-9-1 on JetStream inside the process, for threads: RabbitMQ clients connect to it as to a broker."""

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, Unpack

from ._native import AmqpListener as NativeListener
from .bridge import server_list
from .errors import Closed, Conflict, described
from .options import AmqpListenerOptions

__all__ = ["AmqpListener", "ListenerState", "STOP_BUDGET_MS"]

STOP_BUDGET_MS = 5_000

ListenerState = Literal["new", "running", "draining", "stopped", "failed"]
"""``failed``: another gateway has taken the NATS account over."""


class ListenerFacts:
    """What a listener was asked for, and what it says of itself: the same for threads and for asyncio."""

    __slots__ = ("_native", "_options", "_servers")

    def __init__(
        self, nats: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[AmqpListenerOptions]
    ) -> None:
        self._servers = server_list(nats, "nats")
        self._options = options
        self._native: NativeListener | None = None

    def __repr__(self) -> str:
        def here() -> str:
            if self._native is None:
                return "new"
            host, port = self._native.address
            return f"{self.state} {host}:{port} connections={self._native.connections}"

        return described(self, "", here)

    @property
    def url(self) -> str:
        """The URL for clients on this machine: the first user, with the password, on the first virtual host."""
        return running(self._native).url

    @property
    def address(self) -> tuple[str, int]:
        """Host and port for AMQP clients."""
        return running(self._native).address

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """Host and port for AMQPS clients, if ``listen_tls`` was given."""
        return running(self._native).tls_address

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return running(self._native).connections

    @property
    def state(self) -> ListenerState:
        """How it is."""
        return "new" if self._native is None else self._native.state[0]

    @property
    def trouble(self) -> str | None:
        """Why it ``failed``."""
        return None if self._native is None else self._native.state[1]


class AmqpListener(ListenerFacts):
    """An AMQP listener over JetStream in this process: what ``nats-bridge serve`` is, without a program of its own.

    In a ``with`` block it gives the URL that clients connect to::

        with AmqpListener(nats="nats://127.0.0.1:4222") as url:
            connection = pika.BlockingConnection(pika.URLParameters(url))

    One listener (or ``nats-bridge serve``) at a time serves a NATS account. It runs on threads of its own that never wait
    for Python, and works in the process that started it: in a forked child every call raises `Forked`.
    """

    __slots__ = ()

    def start(self) -> Self:
        """Starts it; when it returns, clients can connect. A listener is started once.

        Raises:
            InvalidConfig: an option is wrong; ``context["field"]`` names it.
            Conflict: the address is taken, another gateway serves this NATS account, or it was started before.
            Unreachable, Denied, Unsupported: as `nats_bridge.connect`.
        """
        if self._native is not None:
            raise started_before()
        self._native = NativeListener.start(self._servers, self._options)
        return self

    def stop(self, budget_ms: int = STOP_BUDGET_MS) -> None:
        """Takes no more clients, answers what was published, and closes the connections of clients with 320
        ``CONNECTION_FORCED``; those that have not ended after ``budget_ms`` are cut. Stopping twice is fine.
        """
        if self._native is not None:
            self._native.stop(budget_ms)

    def wait(self) -> None:
        """Waits until it was stopped; Ctrl-C ends the wait.

        Raises:
            Closed: it ended by itself, because another gateway has taken the NATS account over.
        """
        running(self._native).wait()

    def __enter__(self) -> str:
        return self.start().url

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def running(native: NativeListener | None) -> NativeListener:
    """The started listener."""
    if native is None:
        raise Closed("closed: the listener was not started", code="closed")
    return native


def started_before() -> Conflict:
    """The error for a second start."""
    return Conflict("conflict: the listener was started before; make another one", code="conflict")
