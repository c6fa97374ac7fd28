"""The connection, for asyncio."""

from collections.abc import Generator, Iterable, Sequence
from types import TracebackType
from typing import Literal, Unpack

from .._native import Bridge as NativeBridge
from .._native import Published
from ..arguments import as_json
from ..bridge import CLOSE_BUDGET_MS, connection, server_list, spec
from ..dead_letters import call
from ..errors import Error, described
from ..health import Stats, read_stats, required
from ..manifest import Plan, read_plan
from ..message import Message
from ..options import (
    BucketOptions,
    Buffer,
    ConnectOptions,
    ConsumeOptions,
    ConsumerOptions,
    Headers,
    HealthOptions,
    StreamOptions,
)
from .consumer import Consuming
from .dead_letters import DeadLetters
from .health import HealthCheck
from .ledger import Ledger
from .mailbox import Mailbox
from .schemas import Schemas

__all__ = ["Bridge", "connect"]


class connect:
    """Connects to NATS and checks that JetStream answers: ``async with connect(...) as bridge`` or ``await connect(...)``.

    Arguments and errors are those of `nats_bridge.connect`.
    """

    __slots__ = ("_bridge", "_options", "_servers")

    def __init__(
        self, servers: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[ConnectOptions]
    ) -> None:
        self._servers = server_list(servers)
        self._options = options
        self._bridge: Bridge | None = None

    def __await__(self) -> Generator[object, None, "Bridge"]:
        return self._connect().__await__()

    async def __aenter__(self) -> "Bridge":
        self._bridge = await self._connect()
        return self._bridge

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bridge is not None:
            await self._bridge.__aexit__(kind, raised, traceback)

    async def _connect(self) -> "Bridge":
        mailbox = Mailbox()
        native = await mailbox.wait_or_close(NativeBridge.connect_start, self._servers, self._options)
        return Bridge(native, mailbox)


class Bridge:
    """A connection to NATS with JetStream. It belongs to the event loop that it was made in."""

    __slots__ = ("_mailbox", "_native")

    def __init__(self, native: NativeBridge, mailbox: Mailbox) -> None:
        self._native = native
        self._mailbox = mailbox

    def __repr__(self) -> str:
        return described(self, "", lambda: connection(self.stats()))

    async def publish(
        self,
        subject: str,
        payload: Buffer,
        *,
        id: str | Literal[False] | None = None,
        headers: Headers | None = None,
        schema: str | None = None,
    ) -> Published:
        """Publishes one message and waits until JetStream has stored it; see `nats_bridge.Bridge.publish`.

        Cancelled while it waits, the message may be stored or not: publish it again with the same id.
        """
        return await self._mailbox.wait(self._native.publish_start, subject, payload, id, headers, schema)

    async def publish_many(self, messages: Iterable[Message | tuple[str, Buffer]]) -> list[Published | Error]:
        """Publishes messages in their order, and gives the outcome of each; see `nats_bridge.Bridge.publish_many`.

        Cancelled while it waits, some may be stored: publish them again with the same ids.
        """
        return await self._mailbox.wait(self._native.publish_many_start, messages)

    def consume(self, stream: str, name: str, **options: Unpack[ConsumeOptions]) -> Consuming:
        """Starts consuming ``stream`` as the durable consumer ``name``; see `nats_bridge.Bridge.consume`.

        What is returned is used in one of three ways::

            async with bridge.consume("ORDERS", "billing") as deliveries: ...
            async for delivery in bridge.consume("ORDERS", "billing"): ...
            consumer = await bridge.consume("ORDERS", "billing")
        """
        return Consuming(self._native, self._mailbox, stream, name, options)

    async def ensure_stream(self, name: str, **options: Unpack[StreamOptions]) -> None:
        """Makes a stream as it should be; see `nats_bridge.Bridge.ensure_stream`."""
        await self._mailbox.wait(self._native.ask_start, "ensure_stream", spec(options, name=name))

    async def ensure_consumer(self, stream: str, name: str, **options: Unpack[ConsumerOptions]) -> None:
        """Makes a durable consumer as it should be; see `nats_bridge.Bridge.ensure_consumer`."""
        await self._mailbox.wait(self._native.ask_start, "ensure_consumer", spec(options, stream=stream, name=name))

    async def ensure_bucket(self, name: str, **options: Unpack[BucketOptions]) -> None:
        """Makes a key-value bucket as it should be; see `nats_bridge.Bridge.ensure_bucket`."""
        await self._mailbox.wait(self._native.ask_start, "ensure_bucket", spec(options, name=name))

    async def plan(self, manifest: str) -> Plan:
        """Compares a manifest with what is on the server; see `nats_bridge.Bridge.plan`."""
        return read_plan(await self._mailbox.wait(self._native.ask_start, "plan", as_json(manifest=manifest)))

    async def apply(self, manifest: str, *, allow_removal: bool = False) -> Plan:
        """Makes everything as the manifest says; see `nats_bridge.Bridge.apply`."""
        arguments = as_json(manifest=manifest, allow_removal=allow_removal)
        return read_plan(await self._mailbox.wait(self._native.ask_start, "apply", arguments))

    async def dead_letters(self, stream: str) -> DeadLetters:
        """The dead letters in this stream; see `nats_bridge.Bridge.dead_letters`."""
        await self._mailbox.wait(self._native.ask_start, "dead_letters.open", call(stream, {}))
        return DeadLetters(self._native, self._mailbox, stream)

    async def schemas(self, bucket: str) -> Schemas:
        """Opens the registry of schemas in this bucket; see `nats_bridge.Bridge.schemas`."""
        await self._mailbox.wait(self._native.ask_start, "schemas.open", as_json(bucket=bucket))
        return Schemas(self._native, self._mailbox, bucket)

    async def ledger(self, bucket: str, *, keep_ms: int, lease_ms: int) -> Ledger:
        """Opens the ledger in this bucket; see `nats_bridge.Bridge.ledger`."""
        native = await self._mailbox.wait(self._native.ledger_start, bucket, keep_ms, lease_ms)
        return Ledger(native, self._mailbox)

    def health_check(self, **options: Unpack[HealthOptions]) -> HealthCheck:
        """A check of what a service needs; see `nats_bridge.Bridge.health_check`."""
        return HealthCheck(self._native.health_check(required(options)), self._mailbox)

    def stats(self) -> Stats:
        """The connection as it is now; see `nats_bridge.Bridge.stats`."""
        return read_stats(self._native.stats())

    @property
    def server_version(self) -> str:
        """The version of the server that is connected now, such as ``2.15.1``."""
        return self._native.server_version

    async def close(self, budget_ms: int = CLOSE_BUDGET_MS) -> None:
        """Waits at most ``budget_ms`` for what is not confirmed yet, and until the server has back what consumers fetched and did not hand out;
        then closes the connection. Deliveries that are not settled are not waited for: drain their consumers first. A consumer that was not
        drained ends with `Closed`. Closing twice is fine.

        Raises:
            Timeout: something was still not confirmed; it may have landed.
        """
        try:
            await self._mailbox.wait(self._native.close_start, budget_ms)
        finally:
            self._mailbox.close()

    async def __aenter__(self) -> "Bridge":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except Error as error:
            if raised is None:
                raise
            raised.add_note(f"closing the connection failed too: {error}")
