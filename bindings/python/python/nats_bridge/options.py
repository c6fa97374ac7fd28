"""The names and types of options. Every option that is left out, or `None`, has the default that its text names.

Times are whole milliseconds, as the names say.
"""

from os import PathLike
from typing import TypedDict

__all__ = ["ConnectOptions"]


class ConnectOptions(TypedDict, total=False):
    """How to reach NATS and how to behave when it is away."""

    name: str | None
    """The connection's name, shown by the server's ``/connz``; default ``nats-bridge``."""
    user: str | None
    """A user name, with ``password``; default: what the URL says."""
    password: str | None
    """The password of ``user``."""
    token: str | None
    """A shared token to log in with."""
    nkey: str | None
    """The seed of an nkey (``SU...``) to log in with."""
    credentials_file: str | PathLike[str] | None
    """A file with a JWT and a seed, as ``nsc`` writes it, to log in with."""
    root_certificates: list[str | PathLike[str]] | None
    """Files of certificate authorities (PEM) in addition to the system's."""
    client_certificate: str | PathLike[str] | None
    """The file of a client certificate (PEM) for mutual TLS, with ``client_key``."""
    client_key: str | PathLike[str] | None
    """The file of the key (PEM) of ``client_certificate``."""
    require_tls: bool | None
    """Refuses a connection without TLS; default false."""
    connect_timeout_ms: int | None
    """The longest wait for one connection attempt; default 5 000."""
    request_timeout_ms: int | None
    """The longest wait for an answer of JetStream's API; default 5 000."""
    ping_interval_ms: int | None
    """Time between pings that detect a dead connection (two unanswered ones end it); default 10 000."""
    reconnect_pause_max_ms: int | None
    """The longest pause between reconnect attempts, which go on for ever; default 4 000."""
    region: str | None
    """A word that generated message ids start with; letters, digits, ``-``; default none."""
