"""What the package is made of. Private: use `nats_bridge` and `nats_bridge.aio`."""

from asyncio import Future
from typing import final

from .options import ConnectOptions

@final
class Completions:
    def __new__(cls) -> Completions: ...
    def fileno(self) -> int: ...
    def drain(self) -> None: ...
    def cancel(self, token: int) -> None: ...

@final
class Bridge:
    @staticmethod
    def connect(servers: list[str], options: ConnectOptions) -> Bridge: ...
    @staticmethod
    def connect_start(
        completions: Completions, future: Future[Bridge], servers: list[str], options: ConnectOptions
    ) -> int: ...
    @property
    def server_version(self) -> str: ...
