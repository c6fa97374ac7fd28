"""An application's own record of what it did: one JSON object a line, appended and flushed.

The verdict of `cargo xtask demo` is computed from these files alone.
"""

import json
import time


class Ledger:
    """The file of one application."""

    def __init__(self, path, app):
        self._file = open(path, "a", encoding="utf-8")
        # Two clocks at one moment: the first never jumps, the second can be compared with other programs.
        self.write("started", app=app, unix_ns=time.time_ns())

    def write(self, what, **facts):
        """Records one event; it is with the operating system when this returns."""
        self.write_all(what, [facts])

    def write_all(self, what, events):
        """Records several events of the same moment."""
        now = time.monotonic_ns()
        for facts in events:
            self._file.write(json.dumps({"t": now, "what": what, **facts}, separators=(",", ":")) + "\n")
        self._file.flush()
