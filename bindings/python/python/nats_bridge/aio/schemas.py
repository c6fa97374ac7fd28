"""Schemas, for asyncio."""

import json
from collections.abc import Sequence

from .._native import Bridge as NativeBridge
from ..arguments import as_json
from ..schemas import Compatibility, Registered, Schema, SchemaDifference, SchemaText, draft, read_differences
from .mailbox import Mailbox

__all__ = ["Schemas"]


class Schemas:
    """A registry of schemas; see `nats_bridge.Schemas`. Made by `nats_bridge.aio.Bridge.schemas`."""

    __slots__ = ("_bucket", "_mailbox", "_native")

    def __init__(self, native: NativeBridge, mailbox: Mailbox, bucket: str) -> None:
        self._native = native
        self._mailbox = mailbox
        self._bucket = bucket

    async def _ask(self, verb: str, given: str) -> str:
        return await self._mailbox.wait(self._native.ask_start, f"schemas.{verb}", given)

    async def register(
        self,
        name: str,
        schema: SchemaText,
        *,
        compatibility: Compatibility | None = None,
        subjects: Sequence[str] | None = None,
        format: str | None = None,
    ) -> Registered:
        """Registers a schema as the next version; see `nats_bridge.Schemas.register`."""
        asked = draft(self._bucket, name, schema, compatibility, subjects, format)
        return Registered(**json.loads(await self._ask("register", asked)))

    async def differences(
        self, name: str, schema: SchemaText, *, compatibility: Compatibility | None = None, format: str | None = None
    ) -> list[SchemaDifference]:
        """What would not be compatible, if this schema were registered now."""
        asked = draft(self._bucket, name, schema, compatibility, format=format)
        return read_differences(await self._ask("differences", asked))

    async def get(self, name: str, version: int | None = None) -> Schema:
        """One version, or the newest."""
        return Schema(**json.loads(await self._ask("get", as_json(bucket=self._bucket, name=name, version=version))))

    async def names(self) -> list[str]:
        """The names of all schemas, in their order."""
        names: list[str] = json.loads(await self._ask("names", as_json(bucket=self._bucket)))
        return names

    async def set_compatibility(self, name: str, compatibility: Compatibility) -> None:
        """Changes what new versions owe to older ones."""
        await self._ask("set_compatibility", as_json(bucket=self._bucket, name=name, compatibility=compatibility))
