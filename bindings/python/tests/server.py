"""A real nats-server with JetStream for one test: free port, own folder, stopped by its own process id."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict

WORKSPACE = Path(__file__).resolve().parents[3]


class _Ports(TypedDict):
    nats: list[str]


def find_nats_server() -> Path:
    """``$NATS_SERVER``, else the project's tools folder, else PATH."""
    named = os.environ.get("NATS_SERVER")
    if named:
        return Path(named)
    ours = WORKSPACE / ".tools" / "nats-server"
    if ours.exists():
        return ours
    on_path = shutil.which("nats-server")
    if on_path is None:
        raise FileNotFoundError("no nats-server: set NATS_SERVER, or run `cargo xtask tools`")
    return Path(on_path)


def eventually(holds: Callable[[], bool], what: str, seconds: float = 15) -> None:
    """Polls until ``holds()``, or fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.02)


class NatsServer:
    """The server, with ``more`` arguments. ``stop`` and ``start`` keep port and data."""

    def __init__(self, *more: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nats-bridge-test-"))
        # Else the server takes three quarters of what the disk has left, and refuses streams that reserve more.
        config = self._folder / "server.conf"
        config.write_text("jetstream { max_file_store: 64GB }")
        self._more = more if "--config" in more else ("--config", str(config), *more)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = -1
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of its process, while it runs."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    def start(self) -> None:
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    find_nats_server(),
                    *("--addr", "127.0.0.1", "--port", str(self.port), "--jetstream"),
                    *("--store_dir", str(self._folder / "store"), "--ports_file_dir", str(ports)),
                    *self._more,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(lambda: self._read_port(ports), f"nats-server is up; see {self._folder / 'log'}")

    def _read_port(self, ports: Path) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"nats-server ended with {code}: {(self._folder / 'log').read_text()}"
        for file in ports.iterdir():
            try:
                read: _Ports = json.loads(file.read_text())
            except ValueError:
                return False  # still being written
            self.port = int(read["nats"][0].rsplit(":", 1)[1])
            return True
        return False

    def stop(self) -> None:
        """Kills it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
