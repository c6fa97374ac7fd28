"""Handlers: functions that are given messages, and whose end settles them."""

import inspect
from collections.abc import Callable
from typing import get_args

from ._native import Job
from .arguments import wrong_type
from .received import Reason, Received, failure

__all__ = ["GiveUp", "Key", "answer", "refuse_unfinished", "tell_key"]

REASONS: tuple[str, ...] = get_args(Reason)

Key = Callable[[Received], str]
"""Which key a message has: messages of one key are handled one after the other, in the order of the stream."""


class GiveUp(Exception):
    """Raised by a handler: no further attempt can help, so the message becomes a dead letter at once, for this reason."""

    def __init__(self, why: str = "", *, reason: Reason = "rejected") -> None:
        super().__init__(why)
        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise wrong_type("reason", "str", reason)
        if reason not in REASONS:
            raise ValueError(f"reason: one of {', '.join(REASONS)}, not {reason!r}")
        self.reason: Reason = reason


def tell_key(job: Job, key: Key) -> None:
    """Answers which key the message has; an exception makes it a message that failed."""
    try:
        job.key(key(Received(job.message)))
    except Exception as error:
        answer(job, error)
    except BaseException:
        job.give_back()
        raise


def refuse_unfinished(returned: object) -> None:
    """Raises for what a handler returned that has not done its work yet, and never will."""
    if inspect.iscoroutine(returned):
        returned.close()
    if inspect.isawaitable(returned) or inspect.isgenerator(returned) or inspect.isasyncgen(returned):
        raise TypeError(f"the handler returned a {type(returned).__name__}, which nobody awaits: its work is not done")


def answer(job: Job, error: BaseException) -> None:
    """Says that handling failed with this exception."""
    give_up = error.reason if isinstance(error, GiveUp) else None
    # A subclass may have set a reason that is none: then it is a failure like others.
    job.failed(*failure(error), give_up if give_up in REASONS else None)
