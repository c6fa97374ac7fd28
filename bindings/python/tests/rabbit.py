"""A real RabbitMQ node for the whole run, which ends with it; a vhost of its own for each test."""

import base64
import json
import os
import subprocess
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

from server import WORKSPACE


class _Ready(TypedDict):
    url: str
    management: str


class RabbitMq:
    """The node. Its program is one of ours (`test-support`), built by ``cargo build -p test-support``."""

    def __init__(self) -> None:
        bridge = os.environ.get("NATS_BRIDGE")
        programs = Path(bridge).parent if bridge else WORKSPACE / "target" / "debug"
        self._process = subprocess.Popen(
            [programs / "rabbitmq-node"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        ready: _Ready = json.loads(self._process.stdout.readline())
        self._url = ready["url"].removesuffix("%2f").removesuffix("%2F").removesuffix("/")
        self._management = ready["management"]
        self._vhosts = 0

    @property
    def management(self) -> str:
        """The management API, with user and password."""
        return self._management.replace("//", "//guest:guest@")

    def fresh_vhost(self) -> str:
        """The URL of a vhost that nothing is in."""
        self._vhosts += 1
        vhost = f"test-{self._vhosts}"
        self._put(f"/api/vhosts/{vhost}", {})
        self._put(f"/api/permissions/{vhost}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return f"{self._url}/{vhost}"

    def _put(self, path: str, what: dict[str, str]) -> None:
        login = base64.b64encode(b"guest:guest").decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        asked = urllib.request.Request(
            self._management + path, data=json.dumps(what).encode(), headers=headers, method="PUT"
        )
        with urllib.request.urlopen(asked, timeout=10):
            pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)
