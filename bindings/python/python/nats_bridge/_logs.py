"""Passes what the core logs on to `logging`."""

import atexit
import logging
import threading
import traceback

from ._native import close_logs, collect_logs, next_logs

ROOT = logging.getLogger("nats_bridge")
LEVELS = {"ERROR": logging.ERROR, "WARN": logging.WARNING, "INFO": logging.INFO, "DEBUG": logging.DEBUG}
# What a handler may take at exit for what was logged before.
EXIT_SECONDS = 2.0

# Nothing is written until the application configures `logging`.
ROOT.addHandler(logging.NullHandler())


def start() -> None:
    """Begins; the native module calls it once in each process, with its first connection."""
    collect_logs(ROOT.isEnabledFor(logging.DEBUG))
    thread = threading.Thread(target=_pass_on, name="nats-bridge-logging", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        # The interpreter is ending.
        close_logs()
        return
    atexit.register(_end, thread)


def _end(thread: threading.Thread) -> None:
    # A thread that waits outside of the interpreter while that ends would not come back.
    close_logs()
    thread.join(EXIT_SECONDS)


def _pass_on() -> None:
    while (batch := next_logs()) is not None:
        records, dropped = batch
        for level, name, text, fields, at in records:
            _log(LEVELS.get(level, logging.DEBUG), name, text, fields, at)
        if dropped > 0:
            count = {"dropped": str(dropped)}
            _log(logging.WARNING, "nats_bridge.logging", f"records were dropped: the handlers are too slow {dropped=}", count)


def _log(level: int, name: str, text: str, fields: dict[str, str], at: float | None = None) -> None:
    logger = logging.getLogger(name)
    if not logger.isEnabledFor(level):
        return
    record = logger.makeRecord(name, level, "nats_bridge", 0, text, (), None, extra={"fields": fields})
    if at is not None:
        record.created = at
        record.msecs = at % 1 * 1000
    try:
        logger.handle(record)
    except Exception:
        # As `logging` does with what its handlers raise.
        if logging.raiseExceptions:
            traceback.print_exc()
