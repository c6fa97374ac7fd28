"""Schemas: what payloads have to be, kept in a registry."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ._native import Bridge as NativeBridge
from .arguments import as_json, crossing

__all__ = ["Compatibility", "Registered", "Schema", "SchemaDifference", "SchemaText", "Schemas", "draft", "read_differences"]

Compatibility: TypeAlias = Literal[
    "NONE", "BACKWARD", "BACKWARD_TRANSITIVE", "FORWARD", "FORWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"
]
"""What a new version owes to those before it: ``BACKWARD`` reads what they wrote, ``FORWARD`` is read by them, ``FULL`` both; without
``_TRANSITIVE``, only of the one before."""

SchemaText: TypeAlias = str | Mapping[str, object] | bool
"""A JSON Schema: its text, or what the text means."""

# The classes below have methods that are named as a type.
Names: TypeAlias = list[str]


@dataclass(frozen=True, slots=True)
class Registered:
    """Where a schema is."""

    version: int
    """Its version."""
    known: bool
    """Whether it was there already."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One version of a schema."""

    name: str
    """Its name."""
    version: int
    """Its version, from 1."""
    format: str
    """What language it is in: ``json``."""
    schema: str
    """Its text, as it was registered."""
    compatibility: Compatibility
    """What new versions owe to older ones."""
    subjects: list[str]
    """Subjects on which messages may have it; none: everywhere."""


@dataclass(frozen=True, slots=True)
class SchemaDifference:
    """A demand of the reader's schema that does not follow from the writer's."""

    path: str
    """Where in the value: a JSON Pointer in which ``*`` means any other name or index."""
    rule: str
    """Which rule, such as ``MAXIMUM_DECREASED``."""
    detail: str
    """What the reader demands, or a value that it refuses."""


class Schemas:
    """A registry of schemas in a key-value bucket. Made by `nats_bridge.Bridge.schemas`."""

    __slots__ = ("_bucket", "_native")

    def __init__(self, native: NativeBridge, bucket: str) -> None:
        self._native = native
        self._bucket = bucket
        self._native.ask("schemas.open", as_json(bucket=bucket))

    def register(
        self,
        name: str,
        schema: SchemaText,
        *,
        compatibility: Compatibility | None = None,
        subjects: Sequence[str] | None = None,
        format: str | None = None,
    ) -> Registered:
        """Registers a schema as the next version under this name, if it is compatible. One that is there already stays what it is.

        ``compatibility`` (default as it was, ``BACKWARD`` for the first) and ``subjects`` (default as they were, everywhere for the first)
        hold from now on.

        Raises:
            InvalidConfig: the name, the schema or a subject is not legal.
            Conflict: it is not compatible; ``context`` has ``reader``, ``writer``, ``path`` and ``rule``.
            InvalidConfig: ``format`` is not ``json``, ``avro`` or ``protobuf``.
        """
        asked = draft(self._bucket, name, schema, compatibility, subjects, format)
        return Registered(**json.loads(self._native.ask("schemas.register", asked)))

    def differences(
        self, name: str, schema: SchemaText, *, compatibility: Compatibility | None = None, format: str | None = None
    ) -> list[SchemaDifference]:
        """What would not be compatible, if this schema were registered now."""
        asked = draft(self._bucket, name, schema, compatibility, format=format)
        return read_differences(self._native.ask("schemas.differences", asked))

    def get(self, name: str, version: int | None = None) -> Schema:
        """One version, or the newest.

        Raises:
            NotFound: there is no such schema or version.
        """
        return Schema(**json.loads(self._native.ask("schemas.get", as_json(bucket=self._bucket, name=name, version=version))))

    def names(self) -> Names:
        """The names of all schemas, in their order."""
        names: Names = json.loads(self._native.ask("schemas.names", as_json(bucket=self._bucket)))
        return names

    def set_compatibility(self, name: str, compatibility: Compatibility) -> None:
        """Changes what new versions owe to older ones; those that are there are not looked at."""
        self._native.ask("schemas.set_compatibility", as_json(bucket=self._bucket, name=name, compatibility=compatibility))


def draft(
    bucket: str,
    name: str,
    schema: SchemaText,
    compatibility: Compatibility | None,
    subjects: Sequence[str] | None = None,
    format: str | None = None,
) -> str:
    """The arguments of a verb about a schema that is not registered yet."""
    text = schema if isinstance(schema, str) else json.dumps(crossing({"schema": schema})["schema"])
    return as_json(bucket=bucket, name=name, schema=text, compatibility=compatibility, subjects=subjects, format=format)


def read_differences(answer: str) -> list[SchemaDifference]:
    """Differences, of what the core says."""
    return [SchemaDifference(**difference) for difference in json.loads(answer)]
