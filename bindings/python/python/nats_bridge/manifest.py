"""What an application needs on the server, as one document."""

import json
from dataclasses import dataclass
from typing import Literal

__all__ = ["Change", "Plan", "read_plan"]


@dataclass(frozen=True, slots=True)
class Change:
    """One stream, consumer or bucket that is not as it should be."""

    object: str
    """Such as ``stream ORDERS``."""
    action: Literal["create", "update", "conflict"]
    """``conflict``: it differs in something that cannot be changed in place; applying refuses."""
    fields: list[str]
    """The fields that differ, by the manifest's words."""
    cost: str
    """What it would cost, and what going back would cost, for people; how many messages it would remove."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What applying a manifest would do."""

    changes: list[Change]
    """In the order in which they would be made; none when everything is as it should be."""
    warnings: list[str]
    """What is allowed and may surprise."""


def read_plan(answer: str) -> Plan:
    """A plan, of what the core says."""
    changes: list[Change] = []
    given = json.loads(answer)
    for change in given["changes"]:
        # "create", or {"update": [differences]}.
        action = change["action"]
        if action == "create":
            changes.append(Change(object=change["object"], action="create", fields=[], cost=change["cost"]))
            continue
        for word, differences in action.items():
            fields: list[str] = [difference["field"] for difference in differences]
            changes.append(Change(object=change["object"], action=word, fields=fields, cost=change["cost"]))
    return Plan(changes=changes, warnings=given["warnings"])
