"""A small run of what `cargo xtask bench bindings --memory` does at length: memory and handles stay what they are."""

import subprocess
import sys

import pytest

from server import WORKSPACE, NatsServer


@pytest.mark.parametrize("face", ["threads", "asyncio"])
def test_messages_and_connections_leave_nothing_behind(server: NatsServer, face: str) -> None:
    program = WORKSPACE / "bench" / "bindings" / "memory.py"
    command = [sys.executable, program, face, server.url, "10000", "50"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert ran.stdout.count(": flat: ") == 2
