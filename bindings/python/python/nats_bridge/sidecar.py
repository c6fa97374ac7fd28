"""The way from RabbitMQ to JetStream and back inside the process, for threads: existing RabbitMQ clients connect to it."""

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from ._native import Sidecar as NativeSidecar
from .cutover import (
    Adopted,
    ChangeRecord,
    CutoverStatus,
    Verdict,
    asked,
    read_adopted,
    read_changes,
    read_status,
    read_verdict,
)
from .errors import Closed
from .listener import STOP_BUDGET_MS, ListenerFacts, started_before
from .options import ConnectOptions, SidecarOptions

__all__ = ["Sidecar", "SidecarFacts"]


class SidecarFacts(ListenerFacts):
    """What a sidecar was asked for: the same for threads and for asyncio."""

    __slots__ = ("_connect", "_given", "_sidecar")

    def __init__(
        self, rabbit: str, nats: str | Sequence[str] = "nats://127.0.0.1:4222", **options: Unpack[SidecarOptions]
    ) -> None:
        super().__init__(nats)
        for name in options.keys() - SidecarOptions.__annotations__.keys():
            raise TypeError(f"there is no option '{name}'")
        self._connect: ConnectOptions = options.pop("connect", None) or {}
        given = {name: value for name, value in options.items() if value is not None}
        self._given = json.dumps({"rabbit": rabbit, **given})
        self._sidecar: NativeSidecar | None = None

    def _control(self) -> NativeSidecar:
        if self._sidecar is None:
            raise Closed("closed: the sidecar was not started", code="closed")
        return self._sidecar


class Sidecar(SidecarFacts):
    """A sidecar between this application's RabbitMQ client and two brokers: what ``nats-bridge sidecar`` is, without a program
    of its own. RabbitMQ does everything until `shadow` and `weight` say otherwise, and gets everything back by `rollback`::

        sidecar = Sidecar(rabbit="amqp://user:password@rabbit/", nats="nats://127.0.0.1:4222")
        with sidecar as url:
            connection = pika.BlockingConnection(pika.URLParameters(url))

    The user of ``rabbit`` is the sidecar's own and counts and publishes fences; clients log in with the users of RabbitMQ. One sidecar
    (or ``nats-bridge``) at a time serves a NATS account: a second one is a `Conflict` whose ``context["holder"]`` names the first. So
    an application of several processes has one ``nats-bridge sidecar`` beside them instead.
    """

    __slots__ = ()

    def start(self) -> Self:
        """Starts it; when it returns, clients can connect. A sidecar is started once, and takes the cutover up where it stands.

        Raises:
            InvalidConfig: an option is wrong; ``context["field"]`` names it.
            Conflict: the address is taken, another gateway serves this NATS account, or it was started before.
            Denied: RabbitMQ refuses the user of ``rabbit``, or NATS the login.
            Unreachable, Unsupported: as `nats_bridge.connect`. A RabbitMQ that does not answer is no error: it is waited for.
        """
        if self._sidecar is not None:
            raise started_before()
        self._sidecar = NativeSidecar.start(self._servers, self._connect, self._given)
        self._native = self._sidecar.listener
        return self

    def status(self) -> CutoverStatus:
        """Where the cutover stands: phase, weight, both brokers, every queue, and what was compared (``parity``)."""
        return read_status(self._control().ask("status", "{}"))

    def gate(self) -> Verdict:
        """May the cutover go on?"""
        return read_verdict(self._control().ask("gate", "{}"))

    def changes(self) -> list[ChangeRecord]:
        """The last changes, newest first."""
        return read_changes(self._control().ask("changes", "{}"))

    def observe(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """RabbitMQ does everything, and nothing is compared; see `shadow`."""
        return read_adopted(self._control().ask("observe", asked(by, reason)))

    def shadow(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """RabbitMQ does everything; copies go to JetStream and are compared with what RabbitMQ delivers.

        ``by`` (default this process) and ``reason`` are kept with the change.

        Raises:
            ChangeRefused: the state is as it was; ``code`` says why, ``context["fix"]`` what to do.
            Conflict: somebody else has changed it at the same time.
        """
        return read_adopted(self._control().ask("shadow", asked(by, reason)))

    def weight(
        self, percent: float, *, by: str | None = None, reason: str = "", force: bool = False, unrehearsed: bool = False
    ) -> Adopted:
        """Gives JetStream this share of the ordering keys, 0 to 100 per cent, and returns when that is in force.

        Raises:
            ChangeRefused: ``gate``: the gate says no to more weight, for ``context["reasons"]``, unless ``force``; ``not_rehearsed``: 100 per
                cent before a rehearsed rollback has passed, unless ``unrehearsed``; ``unmapped``, ``side_down``, ``wrong_phase``: as they say.
            InvalidConfig: ``percent`` is not such a number.
        """
        return read_adopted(self._control().ask("weight", asked(by, reason, percent=percent, force=force, unrehearsed=unrehearsed)))

    def rollback(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Gives everything back to RabbitMQ at once; what JetStream holds is delivered still. See `shadow`."""
        return read_adopted(self._control().ask("rollback", asked(by, reason)))

    def detach(self, *, by: str | None = None, reason: str = "") -> Adopted:
        """Lets go of RabbitMQ for good. Refused (``not_drained``, ``wrong_phase``) until JetStream owns all and RabbitMQ's queues are
        empty; see `shadow`.
        """
        return read_adopted(self._control().ask("detach", asked(by, reason)))

    def stop(self, budget_ms: int = STOP_BUDGET_MS) -> None:
        """Stops it, as `nats_bridge.AmqpListener.stop`; the next one takes the cutover up where it stands."""
        if self._native is not None:
            self._native.stop(budget_ms)

    def wait(self) -> None:
        """Waits until it was stopped, as `nats_bridge.AmqpListener.wait`."""
        self._control().listener.wait()

    def __enter__(self) -> str:
        return self.start().url

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
