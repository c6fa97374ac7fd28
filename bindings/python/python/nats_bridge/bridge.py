"""The connection, for threads. `nats_bridge.aio` has the same for asyncio."""

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, Unpack

from ._native import Bridge as NativeBridge
from ._native import Published
from .consumer import Consumer
from .errors import Error
from .options import Buffer, ConnectOptions, ConsumeOptions, ConsumerOptions, Headers, StreamOptions

__all__ = ["Bridge", "connect", "server_list", "spec"]

CLOSE_BUDGET_MS = 5_000


def connect(servers: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[ConnectOptions]) -> "Bridge":
    """Connects to NATS and checks that JetStream answers.

    ``servers`` is one URL, several separated by commas, or a list. Once connected, a lost connection is made again for
    ever. Use it as a context manager::

        with nats_bridge.connect("nats://127.0.0.1:4222") as bridge:
            bridge.publish("orders.new", b"one", id="order-1")

    Raises:
        InvalidConfig: a URL, certificate or credential cannot be read.
        Unreachable: no server answered, or it refuses TLS.
        Denied: the login was refused.
        Unsupported: JetStream is not enabled for this account, or the server is older than 2.10.26.
    """
    return Bridge(NativeBridge.connect(server_list(servers), options))


def spec(options: StreamOptions | ConsumerOptions, **names: str) -> str:
    """What should be, as the core reads it."""
    given = {option: value for option, value in options.items() if value is not None}
    return json.dumps(given | names)


def server_list(servers: str | Sequence[str]) -> list[str]:
    """The URLs of ``servers`` one by one."""
    given = servers.split(",") if isinstance(servers, str) else servers
    return [server.strip() for server in given]


class Bridge:
    """A connection to NATS with JetStream. Threads may share it. It works in the process that made it, not after a fork."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeBridge) -> None:
        self._native = native

    def publish(
        self,
        subject: str,
        payload: Buffer,
        *,
        id: str | Literal[False] | None = None,
        headers: Headers | None = None,
    ) -> Published:
        """Publishes one message and waits until JetStream has stored it.

        ``id`` is what the stream recognises duplicates by, inside its duplicate window (default 120 s); ``None`` makes a
        fresh one, ``False`` sends none. What has no answer is sent again with the same id, within the bounds of the
        option ``publish`` of `connect`. Ctrl-C raises ``KeyboardInterrupt``; the message may then be stored.

        Raises:
            InvalidMessage, TooLarge: it cannot be sent as it is. Nothing landed.
            Rejected: JetStream refused it. Nothing landed, unless an earlier attempt had no answer.
            Denied: this user may not publish to the subject.
            Unreachable: no stream listens on the subject.
            Timeout: not confirmed within the deadline. It may have landed: resend with the same id.
            Closed: the connection was closed. ``landed`` says whether it may be stored.
        """
        return self._native.publish(subject, payload, id, headers)

    def consume(self, stream: str, name: str, **options: Unpack[ConsumeOptions]) -> Consumer:
        """Starts consuming ``stream`` as the durable consumer ``name``, which all instances of a service share.

        The consumer and, unless another is named, the dead-letter stream ``{stream}_DLQ`` are made if they do not exist::

            with bridge.consume("ORDERS", "billing", retry={"attempts": 3}) as deliveries:
                for delivery in deliveries:
                    delivery.ack()

        Raises:
            InvalidConfig: an option is out of range.
            NotFound: there is no such stream, or the dead-letter stream that was named.
            Conflict: the consumer exists and differs in what cannot be changed.
        """
        return Consumer(self._native.consume(stream, name, options))

    def ensure_stream(self, name: str, **options: Unpack[StreamOptions]) -> None:
        """Makes a stream as it should be: creates it, changes it in place, or leaves it.

        Raises:
            InvalidConfig: it is unbounded and does not say so, or an option is wrong.
            Conflict: it exists and cannot be changed in place, or its subjects belong to another stream.
        """
        self._native.ensure("stream", spec(options, name=name))

    def ensure_consumer(self, stream: str, name: str, **options: Unpack[ConsumerOptions]) -> None:
        """Makes a durable consumer as it should be. `consume` does so too; this is for set-up beforehand.

        Raises:
            InvalidConfig: an option is wrong.
            NotFound: there is no such stream.
            Conflict: it exists and cannot be changed in place.
        """
        self._native.ensure("consumer", spec(options, stream=stream, name=name))

    @property
    def server_version(self) -> str:
        """The version of the server that is connected now, such as ``2.15.1``."""
        return self._native.server_version

    def close(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Waits at most ``budget_ms`` for what is not confirmed yet, then closes the connection. Closing twice is fine.

        Raises:
            Timeout: something was still not confirmed; it may have landed.
        """
        self._native.close(budget_ms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Error as error:
            if raised is None:
                raise
            raised.add_note(f"closing the connection failed too: {error}")
