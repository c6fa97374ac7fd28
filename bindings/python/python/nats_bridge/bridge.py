"""The connection, for threads. `nats_bridge.aio` has the same for asyncio."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Literal, Self, Unpack

from ._native import Bridge as NativeBridge
from ._native import Published
from .arguments import as_json, wrong_type
from .consumer import Consumer
from .dead_letters import DeadLetters
from .errors import Error, described
from .health import HealthCheck, Stats, read_stats, required
from .ledger import Ledger
from .manifest import Plan, read_plan
from .message import Message
from .options import (
    BucketOptions,
    Buffer,
    ConnectOptions,
    ConsumeOptions,
    ConsumerOptions,
    Headers,
    HealthOptions,
    StreamOptions,
)
from .schemas import Schemas

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


def spec(options: StreamOptions | ConsumerOptions | BucketOptions, **names: str) -> str:
    """What should be, as the core reads it."""
    return as_json(**options, **names)


def server_list(servers: str | Sequence[str], name: str = "servers") -> list[str]:
    """The URLs of ``servers`` one by one."""
    given = servers.split(",") if isinstance(servers, str) else servers
    try:
        return [str.strip(server) for server in given]
    except TypeError:
        raise wrong_type(name, "a URL, several separated by commas, or a list of URLs", servers) from None


def connection(stats: Stats) -> str:
    """A connection in a few words."""
    state = "closed" if stats.closed else "connected" if stats.connected else "not connected"
    return f"{state} server={stats.server_version} outstanding={stats.outstanding}"


class Bridge:
    """A connection to NATS with JetStream. Threads may share it. It works in the process that made it, not after a fork."""

    __slots__ = ("_native",)

    def __init__(self, native: NativeBridge) -> None:
        self._native = native

    def __repr__(self) -> str:
        return described(self, "", lambda: connection(self.stats()))

    def publish(
        self,
        subject: str,
        payload: Buffer,
        *,
        id: str | Literal[False] | None = None,
        headers: Headers | None = None,
        schema: str | None = None,
    ) -> Published:
        """Publishes one message and waits until JetStream has stored it.

        ``id`` is what the stream recognises duplicates by, inside its duplicate window (default 120 s); ``None`` makes a
        fresh one, ``False`` sends none. What has no answer is sent again with the same id, within the bounds of the
        option ``publish`` of `connect`: for 60 s in all, unless its ``deadline_ms`` says otherwise, also while NATS is away. ``schema`` names what the payload has to fit (``order``, or ``order/3`` for one version), for
        connections that check. Ctrl-C raises ``KeyboardInterrupt``; the message may then be stored.

        Raises:
            InvalidMessage, TooLarge: it cannot be sent as it is. Nothing landed.
            SchemaViolation: it does not fit its schema, or names none. Nothing landed.
            Rejected: JetStream refused it. Nothing landed, unless an earlier attempt had no answer.
            Denied: this user may not publish to the subject.
            NotFound: no stream takes the subject: `ensure_stream`, or a manifest, makes one. Nothing landed.
            Unreachable: the subject's stream has no leader.
            Timeout: not confirmed within the deadline. It may have landed: resend with the same id.
            Closed: the connection was closed. ``landed`` says whether it may be stored.
        """
        return self._native.publish(subject, payload, id, headers, schema)

    def publish_many(self, messages: Iterable[Message | tuple[str, Buffer]]) -> list[Published | Error]:
        """Publishes messages in their order, and gives the outcome of each in the same order once all have one.

        An outcome is a `Published`, or the `Error` that `publish` would have raised; both have ``landed``: ``"yes"``, ``"no"``
        or ``"unknown"``. One that fails holds none of the others back. As many as the window takes (the option ``publish`` of
        `connect`) are under way at once, in one call that does not hold the GIL::

            outcomes = bridge.publish_many([("orders.new", b"one"), Message("orders.new", b"two", id="order-2")])
            failed = [outcome for outcome in outcomes if outcome.landed != "yes"]

        All that is given is in memory at once: give what is endless in parts. Ctrl-C raises ``KeyboardInterrupt``; some of the
        messages may then be stored.

        Raises:
            TypeError: something is not a message; nothing was sent.
        """
        return self._native.publish_many(messages)

    def consume(self, stream: str, name: str, **options: Unpack[ConsumeOptions]) -> Consumer:
        """Starts consuming ``stream`` as the durable consumer ``name``, which all instances of a service share.

        The consumer and, unless another is named, the dead-letter stream ``{stream}_DLQ`` are made if they do not exist::

            with bridge.consume("ORDERS", "billing", retry={"attempts": 3}) as deliveries:
                for delivery in deliveries:
                    delivery.ack()

        Raises:
            InvalidConfig: an option is out of range.
            NotFound: there is no such stream, or the dead-letter stream that was named.
            Conflict: the consumer exists and differs in what cannot be changed; or the stream is a work queue, and the consumer in
                ``context["other"]`` reads the same subjects.
        """
        return Consumer(self._native.consume(stream, name, options), stream, name)

    def ensure_stream(self, name: str, **options: Unpack[StreamOptions]) -> None:
        """Makes a stream as it should be: creates it, changes it in place, or leaves it.

        Raises:
            InvalidConfig: it is unbounded and does not say so, or an option is wrong.
            Conflict: it exists and cannot be changed in place, or its subjects belong to another stream.
        """
        self._native.ask("ensure_stream", spec(options, name=name))

    def ensure_consumer(self, stream: str, name: str, **options: Unpack[ConsumerOptions]) -> None:
        """Makes a durable consumer as it should be. `consume` does so too; this is for set-up beforehand.

        Raises:
            InvalidConfig: an option is wrong.
            NotFound: there is no such stream.
            Conflict: it exists and cannot be changed in place.
        """
        self._native.ask("ensure_consumer", spec(options, stream=stream, name=name))

    def ensure_bucket(self, name: str, **options: Unpack[BucketOptions]) -> None:
        """Makes a key-value bucket as it should be.

        Raises:
            InvalidConfig: it is unbounded and does not say so, or an option is wrong.
            Conflict: it exists and cannot be changed in place.
        """
        self._native.ask("ensure_bucket", spec(options, name=name))

    def plan(self, manifest: str) -> Plan:
        """Compares a manifest (TOML, as ``nats-bridge provision`` reads it) with what is on the server, and changes nothing.

        Raises:
            InvalidConfig: the manifest is wrong.
        """
        return read_plan(self._native.ask("plan", as_json(manifest=manifest)))

    def apply(self, manifest: str, *, allow_removal: bool = False) -> Plan:
        """Makes everything as the manifest says, and gives what was done. What it does not name is not touched, and no stored message
        is removed, unless ``allow_removal`` lets a lower limit do so.

        Raises:
            InvalidConfig: the manifest is wrong.
            Conflict: something cannot be changed in place; nothing was changed.
            WouldRemove: stored messages are beyond a limit that it lowers; nothing was changed.
        """
        return read_plan(self._native.ask("apply", as_json(manifest=manifest, allow_removal=allow_removal)))

    def dead_letters(self, stream: str) -> DeadLetters:
        """The dead letters in this stream, such as ``ORDERS_DLQ``.

        Raises:
            NotFound: there is no such stream.
        """
        return DeadLetters(self._native, stream)

    def schemas(self, bucket: str) -> Schemas:
        """Opens the registry of schemas in this bucket, which is made if it does not exist.

        Raises:
            InvalidConfig: the bucket's name is not legal.
        """
        return Schemas(self._native, bucket)

    def ledger(self, bucket: str, *, keep_ms: int, lease_ms: int) -> Ledger:
        """Opens the ledger in this bucket, which is made if it does not exist.

        ``keep_ms`` is how long a message may come again: longer than its stream keeps it. ``lease_ms`` is how long an entry that was
        begun and not done is left to the worker that began it; longer than a handler runs.

        Raises:
            InvalidConfig: the bucket's name or a time is not legal.
        """
        return Ledger(self._native.ledger(bucket, keep_ms, lease_ms))

    def health_check(self, **options: Unpack[HealthOptions]) -> HealthCheck:
        """A check of what a service needs; keep it, and ask it to `look` now and then."""
        return HealthCheck(self._native.health_check(required(options)))

    def stats(self) -> Stats:
        """The connection as it is now. `nats_bridge.metrics` has what the whole process counts."""
        return read_stats(self._native.stats())

    @property
    def server_version(self) -> str:
        """The version of the server that is connected now, such as ``2.15.1``."""
        return self._native.server_version

    def close(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Waits at most ``budget_ms`` for what is not confirmed yet, and until the server has back what consumers fetched and did not hand out;
        then closes the connection. Deliveries that are not settled are not waited for: drain their consumers first. A consumer that was not
        drained ends with `Closed`. Closing twice is fine.

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
