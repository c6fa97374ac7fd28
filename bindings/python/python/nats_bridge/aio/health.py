"""Health checks, for asyncio."""

from .._native import HealthCheck as NativeHealthCheck
from ..health import Health, read_health
from .mailbox import Mailbox

__all__ = ["HealthCheck"]


class HealthCheck:
    """Looks at what a service needs; see `nats_bridge.HealthCheck`."""

    __slots__ = ("_mailbox", "_native")

    def __init__(self, native: NativeHealthCheck, mailbox: Mailbox) -> None:
        self._native = native
        self._mailbox = mailbox

    async def look(self) -> Health:
        """Looks now; see `nats_bridge.HealthCheck.look`."""
        return read_health(await self._mailbox.wait(self._native.look_start))
