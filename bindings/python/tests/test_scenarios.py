"""The scenarios that every language does, with both faces."""

import asyncio
import json
from pathlib import Path

import pytest

import nats_bridge
from nats_bridge import ConnectOptions, aio
from scenario import Scenario, World
from server import WORKSPACE, NatsServer

FILES = sorted((WORKSPACE / "tests" / "scenarios").glob("*.json"))
OPTIONS: ConnectOptions = {"reconnect_pause_max_ms": 100, "publish": {"no_stream_wait_ms": 500}}


def read(file: Path) -> Scenario:
    scenario: Scenario = json.loads(file.read_text())
    return scenario


def test_there_are_scenarios() -> None:
    assert len(FILES) > 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_with_threads(server: NatsServer, file: Path, tmp_path: Path) -> None:
    with nats_bridge.connect(server.url, **OPTIONS) as bridge:
        # The calls of this face wait; nothing else runs in the loop.
        asyncio.run(World(server, bridge, tmp_path).run(read(file)))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
async def test_with_asyncio(server: NatsServer, file: Path, tmp_path: Path) -> None:
    async with aio.connect(server.url, **OPTIONS) as bridge:
        await World(server, bridge, tmp_path).run(read(file))
