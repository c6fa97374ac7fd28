"""Why a call failed, and whether the message may have landed anyway."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

__all__ = [
    "AlreadySettled",
    "BreakerOpen",
    "ChangeRefused",
    "Closed",
    "Conflict",
    "Corrupt",
    "Decrypt",
    "Denied",
    "DiskError",
    "Error",
    "Forked",
    "InUse",
    "InvalidConfig",
    "InvalidMessage",
    "Landed",
    "NotFound",
    "OutboxFull",
    "Rejected",
    "SchemaViolation",
    "Timeout",
    "TooLarge",
    "UnknownKey",
    "Unreachable",
    "Unsupported",
    "WindowFull",
    "WouldRemove",
]

Landed = Literal["no", "unknown"]
"""``"no"``: it is not stored, a resend cannot duplicate. ``"unknown"``: resend only with the same id."""


class Error(Exception):
    """The base of every exception that this package raises about messages, streams and connections.

    Wrong Python types raise ``TypeError``, as everywhere.
    """

    code: str
    """What went wrong, as one word in snake case: ``"timeout"``, ``"already_settled"``; the same in every language."""
    landed: Landed
    """Whether the message may be stored although the call failed; ``"no"`` for calls that store nothing."""
    context: Mapping[str, str]
    """What is known about the failure, such as ``{"stream": "ORDERS"}``."""

    _classes: ClassVar[dict[str, type["Error"]]] = {}

    is_temporary: bool
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(
        self,
        text: str,
        *,
        code: str,
        landed: Landed = "no",
        is_temporary: bool = False,
        context: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.landed = landed
        self.is_temporary = is_temporary
        self.context = MappingProxyType(dict(context or {}))

    def __init_subclass__(cls, *, code: str | tuple[str, ...] = ()) -> None:
        super().__init_subclass__()
        for each in (code,) if isinstance(code, str) else code:
            Error._classes[each] = cls

    def __reduce__(self) -> tuple[object, ...]:
        return build, (self.code, self.landed, self.is_temporary, str(self), dict(self.context))


class AlreadySettled(Error, code="already_settled"):
    """The delivery was settled before; nothing was sent."""


class BreakerOpen(Error, code="breaker_open"):
    """The publisher's circuit breaker is open; nothing was sent."""


class ChangeRefused(Error, code=("gate", "not_drained", "not_rehearsed", "side_down", "unmapped", "wrong_phase")):
    """A sidecar refuses a change, and the state is as it was. ``context["fix"]`` says what to do; for ``gate``,
    ``context["reasons"]`` has the codes of the reasons that `nats_bridge.Sidecar.gate` explains.
    """


class Closed(Error, code="closed"):
    """The connection or the consumer was closed."""


class InvalidConfig(Error, code="config"):
    """A setting is wrong or contradicts another."""


class Conflict(Error, code="conflict"):
    """What exists on the server differs from what was asked for and cannot be changed in place."""


class Corrupt(Error, code="corrupt"):
    """A file is damaged, or is not what it is taken for."""


class Decrypt(Error, code="decrypt"):
    """The message is not encrypted, was altered, or is not the one that was encrypted."""


class Denied(Error, code="denied"):
    """The server refuses this user the subject or the call."""


class DiskError(Error, code="disk"):
    """A file cannot be read or written: the disk is full, the directory is not there, access is refused."""


class Forked(Error, code="forked"):
    """The connection was made in another process: after a fork, connect again in the child."""


class InUse(Error, code="in_use"):
    """A file is open in another process, or twice in this one."""


class InvalidMessage(Error, code="invalid_message"):
    """The message cannot be sent as it is: bad subject, reserved or illegal header, empty id."""


class NotFound(Error, code="not_found"):
    """The stream or consumer does not exist, or no stream takes the subject."""


class OutboxFull(Error, code="outbox_full"):
    """The outbox has as many entries or bytes as it may have. Nothing was accepted."""


class Rejected(Error, code="rejected"):
    """JetStream refused to store the message, or refused the call."""


class SchemaViolation(Error, code="schema"):
    """The payload does not fit its schema, or names none; ``context`` has ``path``, ``value`` and ``why``."""


class Timeout(Error, code="timeout"):
    """No answer within the time allowed."""


class TooLarge(Error, code="too_large"):
    """Headers and payload exceed the server's ``max_payload``."""


class UnknownKey(Error, code="unknown_key"):
    """The key-encryption key that the message names is not there; ``context["key"]`` says which one."""


class Unreachable(Error, code="unreachable"):
    """No server could be reached, or nobody answers for this subject."""


class Unsupported(Error, code="unsupported"):
    """The server is too old for what was asked."""


class WindowFull(Error, code="window_full"):
    """The window of unconfirmed messages is full."""


class WouldRemove(Error, code="would_remove"):
    """A limit would be lowered so that stored messages are removed, which was not allowed; nothing was changed. ``context`` has
    ``stream`` or ``bucket``, ``limit``, ``is``, ``should`` and ``messages``, how many would go.
    """


def build(code: str, landed: Landed, is_temporary: bool, text: str, context: Mapping[str, str]) -> Error:
    """The exception for an error of the core; a code that is new to this file gives the base class."""
    made = Error._classes.get(code, Error)  # pyright: ignore[reportPrivateUsage]
    return made(text, code=code, landed=landed, is_temporary=is_temporary, context=context)


def described(of: object, name: str, state: Callable[[], str]) -> str:
    """What ``repr`` says of an object of the core: never an exception, and nothing secret."""
    try:
        now = state()
    except Error as error:
        now = error.code
    package = "nats_bridge.aio" if ".aio." in type(of).__module__ else "nats_bridge"
    return f"<{' '.join(part for part in (f'{package}.{type(of).__name__}', name, now) if part)}>"
