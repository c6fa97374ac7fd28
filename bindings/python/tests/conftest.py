from collections.abc import Iterator

import pytest

from rabbit import RabbitMq
from server import NatsServer


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbit() -> Iterator[RabbitMq]:
    with RabbitMq() as node:
        yield node
