"""The names and types of options. Every option that is left out, or `None`, has the default that its text names.

Times are whole milliseconds, as the names say.
"""

from array import array
from collections.abc import Callable, Mapping
from mmap import mmap
from os import PathLike
from typing import Literal, TypeAlias, TypedDict

__all__ = ["AmqpListenerOptions", "BreakerOptions", "BucketOptions", "Buffer", "ConnectOptions", "ConsumeOptions", "ConsumerOptions", "DeadLetterFilter", "Headers", "HealthOptions", "PublishOptions", "RetryPolicy", "SidecarOptions", "StreamOptions"]

Buffer: TypeAlias = "bytes | bytearray | memoryview | array[int] | mmap"
"""A payload. The buffer protocol has no type of its own before Python 3.12; any contiguous buffer of bytes will do."""

Headers = Mapping[str, str | list[str]]
"""Headers by name; a list for a name that comes more than once. Names that start with ``Nats-`` are the server's."""


class BreakerOptions(TypedDict, total=False):
    """When a publisher stops taking messages because none is confirmed; then it raises `BreakerOpen`."""

    trip_after_ms: int | None
    """Opens when something waits for its confirm and nothing was confirmed for this long; default 2 000."""
    probe_every_ms: int | None
    """How often one message is let through while it is open; default 1 000."""


class PublishOptions(TypedDict, total=False):
    """The bounds of publishing."""

    max_in_flight: int | None
    """Messages handed over and not confirmed; 1 to 32 768; default 4 096. At the bound, publishing waits."""
    max_in_flight_bytes: int | None
    """Bytes (subject, headers, payload) of those; default 32 MiB. A message larger than that goes alone."""
    ack_wait_ms: int | None
    """How long to wait for a confirm before sending again; default 5 000."""
    attempts: int | None
    """How often one message is sent, the first time included; default 10."""
    deadline_ms: int | None
    """How long one message is tried in all, connected or not; default 60 000. Keep it below the duplicate window."""
    no_stream_wait_ms: int | None
    """How long a subject on which nobody answers is taken for a leader election and tried again; default 5 000. Where the server says that no
    stream takes the subject, nothing is tried again."""
    breaker: BreakerOptions | None
    """Fails at once while NATS confirms nothing; default none: publishing waits."""
    encrypt: str | PathLike[str] | None
    """Encrypts every payload under the current key of a directory with a file for each key, or of ``env:NAME``; default none."""
    schemas: str | None
    """Checks every payload against the schema that its message names, by the registry in this bucket; default none."""


class ConnectOptions(TypedDict, total=False):
    """How to reach NATS and how to behave when it is away."""

    name: str | None
    """The connection's name, shown by the server's ``/connz``; default ``nats-bridge``."""
    user: str | None
    """A user name, with ``password`` or ``password_file``; default: what the URL says. One way to log in is given, whole, or none."""
    password: str | None
    """The password of ``user``."""
    password_file: str | PathLike[str] | None
    """A file with the password of ``user``. Like the other files of a login it is read again for each connection that is made."""
    token: str | None
    """A shared token to log in with."""
    token_file: str | PathLike[str] | None
    """A file with a shared token to log in with."""
    nkey: str | None
    """The seed of an nkey (``SU...``) to log in with."""
    nkey_file: str | PathLike[str] | None
    """A file with the seed of an nkey to log in with."""
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
    publish: PublishOptions | None
    """The bounds of publishing."""


class AmqpListenerOptions(TypedDict, total=False):
    """What an AMQP listener serves, and where. Messages have to fit the ``max_payload`` of nats-server, of which 256 KiB are kept for headers: by default
    bodies of up to 786 432 bytes."""

    listen: str | None
    """``HOST:PORT`` for AMQP clients; default ``127.0.0.1:0``, a free port."""
    listen_tls: str | None
    """``HOST:PORT`` for AMQPS clients, with ``tls_cert`` and ``tls_key``; default none."""
    tls_cert: str | PathLike[str] | None
    """The file of the certificate (PEM) for AMQPS clients; read again when it changes."""
    tls_key: str | PathLike[str] | None
    """The file of the key (PEM) of ``tls_cert``."""
    tls_client_ca: str | PathLike[str] | None
    """The file of the authorities (PEM) of clients' certificates: a client without one is refused, one that has it may log in
    by ``EXTERNAL``."""
    tls_client_optional: bool | None
    """With ``tls_client_ca``: clients without any certificate are let in as well, as with RabbitMQ's ``fail_if_no_peer_cert = false``; default
    false."""
    users: Mapping[str, str] | None
    """Who may log in: passwords by name; default ``guest`` with ``guest``, on loopback addresses only."""
    vhosts: list[str] | None
    """The virtual hosts that exist; default ``/``."""
    replicas: int | None
    """How many servers of a cluster hold a durable classic queue that is made from now on; 1 to 5; default 1."""
    connect: ConnectOptions | None
    """How to log in to NATS, and the rest that `nats_bridge.connect` takes."""


class SidecarOptions(TypedDict, total=False):
    """How a sidecar goes from RabbitMQ to JetStream."""

    rabbit_management: str | None
    """RabbitMQ's management API, as ``http://USER:PASSWORD@HOST:15672``, whose user needs the ``monitoring`` tag: before the weight
    is raised, RabbitMQ's bindings and policies are compared with what was declared through the sidecar. This or
    ``trust_declared`` is needed for a weight above 0."""
    trust_declared: bool | None
    """Raises the weight without asking: you vouch that all bindings were declared through this sidecar and that no policy matters.
    Default false."""
    listen: str | None
    """``HOST:PORT`` for AMQP clients; default ``127.0.0.1:0``, a free port."""
    replicas: int | None
    """How many servers of a cluster hold a durable classic queue that is made from now on; 1 to 5; default 1."""
    quorum_fallback: bool | None
    """Makes a quorum queue with fewer replicas where three cannot be held; false lists it as unmapped. Default true."""
    consumer_timeout_ms: int | None
    """How long a client may take to settle a delivery of JetStream's; 0: as long as it likes; default 1 800 000."""
    fence_timeout_ms: int | None
    """How long deliveries may wait for what was published before a change of weight; default 30 000."""
    gate_soak_ms: int | None
    """How long a phase or weight has to be in force before the gate says yes; default 60 000."""
    gate_messages: int | None
    """How many messages have to be compared, or confirmed by JetStream, before the gate says yes; default 100."""
    gate_latency_factor: float | None
    """How many times RabbitMQ's 99th percentile of confirm times JetStream's may be; 1 to 1000; default 1.5."""
    standby: Literal["both", "nats", "off"] | None
    """Of whose messages the other broker keeps copies, so that a broker can be lost for good: of either's, of those that NATS owns,
    or of nobody's. A publish is confirmed when both have it; in ``shadow``, when RabbitMQ has it. Default ``"both"``."""
    rollback_after_ms: int | None
    """How long JetStream may be silent at a weight above 0 before the sidecar rolls back by itself; default 10 000."""
    auto_rollback: bool | None
    """Whether it rolls back by itself at all, also for messages that JetStream corrupts, drops, reorders or duplicates; default
    true."""
    otlp_endpoint: str | None
    """A collector of OpenTelemetry that takes OTLP over HTTP, as ``http://HOST:4318``. It gets a span of each publish and each delivery of
    messages with a ``traceparent`` header that says "sampled", with the broker that had it; messages are passed on as they came.
    Default none."""
    shared: bool | None
    """Serves the NATS account together with other sidecars that say so too, in other processes or on other machines: one leads, the others
    take clients and pass them on to it, and one of them takes its place when it stops or dies. Default false: a second one is a
    `Conflict`."""
    advertise: str | None
    """With ``shared``: the host under which the others reach this one, where that is not the one of ``listen``."""
    http: str | None
    """With ``shared``: ``HOST:PORT`` for status and control, which the sidecars pass on to the one that leads; ``nats-bridge status`` works
    there too. Default ``127.0.0.1:0``, a free port. Sidecars on other machines need an address that they reach, and a token."""
    http_token: str | None
    """With ``shared``: what a change over ``http`` has to carry; the same for all. Default none: changes are taken from this machine only."""
    connect: ConnectOptions | None
    """How to log in to NATS, and the rest that `nats_bridge.connect` takes."""


class RetryPolicy(TypedDict, total=False):
    """How often and after which pauses something that failed is tried again. There is no endless policy."""

    attempts: int | None
    """Attempts in all, the first included; at least 1; default 5."""
    first_pause_ms: int | None
    """The pause after the first failure, before jitter; default 1 000."""
    factor: float | None
    """What each pause is multiplied by to give the next; at least 1; default 2."""
    max_pause_ms: int | None
    """The longest pause; default 60 000."""
    max_elapsed_ms: int | None
    """No further attempt starts later than this after the first failure; default none."""
    jitter: bool | None
    """Whether pauses are drawn from zero to their full length; default true."""


class ConsumeOptions(TypedDict, total=False):
    """How to consume."""

    filter_subjects: list[str] | None
    """Which subjects; default all of the stream."""
    retry: RetryPolicy | None
    """When to try again and when to give up."""
    ack_wait_ms: int | None
    """How long the server waits for a sign of life before it delivers again; default 30 000."""
    max_run_ms: int | None
    """How long one delivery may be handled; default 600 000. Then it comes again, and that counts as a failure."""
    max_messages: int | None
    """The most messages that are here and not settled, waiting ones included; default 256."""
    max_bytes: int | None
    """The most bytes of those; default 16 MiB. A message larger than that is taken alone."""
    dead_letter_stream: str | None
    """Where messages go that are given up; default ``{stream}_DLQ``, which is made if it does not exist."""
    dead_letter_max_bytes: int | None
    """The most bytes that ``{stream}_DLQ`` may hold when this makes it, which the server sets aside at once; default 1 GiB. One that exists stays
    as it is. Not together with ``dead_letter_stream``."""
    advisories: bool | None
    """Keeps the server's advisories in ``{stream}_ADVISORIES``, so that what it gave up itself becomes a dead letter; default true."""
    stalled_after_ms: int | None
    """When messages are pending and none came for this long, the pull is made anew; default 30 000."""
    heartbeat_ms: int | None
    """How often the server gives a sign of life on a waiting pull; default 5 000."""
    decrypt: str | PathLike[str] | None
    """Decrypts payloads with the keys of a directory, or of ``env:NAME``; default none: they are handed out as they are. What cannot
    be decrypted becomes a dead letter with reason ``decrypt``."""
    schemas: str | None
    """Checks payloads against the schemas that their messages name, by the registry in this bucket; default none. What does not fit becomes
    a dead letter with reason ``schema``."""
    accept_without_schema: bool | None
    """With ``schemas``: hands out messages that name no schema, too; default false: they become dead letters."""
    upcast: Mapping[str, Mapping[int, Callable[[bytes], Buffer]]] | None
    """With ``schemas``: hands out payloads of older versions as the version that the last step leads to; default none. Steps by schema and by
    the version that they begin with: ``{"order": {1: to_second, 2: to_third}}``. A payload is checked before and after; one that has no
    step, or fails in one, becomes a dead letter with reason ``schema``, as it was stored. A step runs on any thread, possibly more
    than once for a message; what it raises goes into the dead letter."""
    single_active: bool | None
    """Of all instances that consume under this name with this set, one at a time gets messages, in the stream's order; default false. One
    that was drained is followed at once; one that died, or cannot reach the server, after twice ``ack_wait_ms``, when what it held comes
    again first. All need the same ``ack_wait_ms``, at least 1 000. See ``Received.fencing_number``."""
    accept_unencrypted: bool | None
    """With ``decrypt``: hands out messages that are not encrypted, too; default false: they become dead letters."""


class StreamOptions(TypedDict, total=False):
    """What a stream should be."""

    subjects: list[str] | None
    """The subjects that it stores, with wildcards; default ``{name in lower case}.>``."""
    retention: Literal["limits", "work_queue", "interest"] | None
    """When a message leaves it; default ``limits``. It cannot be changed later."""
    storage: Literal["file", "memory"] | None
    """Where it is kept; default ``file``. It cannot be changed later."""
    replicas: int | None
    """Copies on different servers; default 1."""
    max_bytes: int | None
    """The most bytes it may hold. Needed unless ``unbounded``."""
    max_messages: int | None
    """The most messages it may hold."""
    max_age_ms: int | None
    """The longest a message is kept. Needed with retention ``limits`` unless ``unbounded``."""
    discard: Literal["new", "old"] | None
    """What happens at a limit: ``new`` refuses new messages (default), ``old`` drops the oldest, delivered or not."""
    duplicate_window_ms: int | None
    """How long an id is remembered; default 120 000. At most ``max_age_ms``."""
    unbounded: bool | None
    """Allows a stream without the limits that are otherwise demanded; default false."""


class BucketOptions(TypedDict, total=False):
    """What a key-value bucket should be."""

    history: int | None
    """How many values of each key are kept; 1 to 64; default 1."""
    ttl_ms: int | None
    """How long a value lives; default without end."""
    max_bytes: int | None
    """The most bytes it may hold. Needed unless ``unbounded``."""
    storage: Literal["file", "memory"] | None
    """Where it is kept; default ``file``. It cannot be changed later."""
    replicas: int | None
    """Copies on different servers; default 1."""
    unbounded: bool | None
    """Allows a bucket without ``max_bytes``; default false."""


class DeadLetterFilter(TypedDict, total=False):
    """Which dead letters are meant; all that is given must fit. Nothing given means all."""

    reason: str | None
    """The reason, such as ``handler_error``."""
    fingerprint: str | None
    """The fingerprint."""
    consumer: str | None
    """The consumer that gave it up."""
    stream: str | None
    """The stream that it was in."""
    sequences: tuple[int, int] | None
    """The first and the last sequence in the dead-letter stream, from 1."""


class HealthOptions(TypedDict, total=False):
    """What a service needs to work."""

    streams: list[str] | None
    """Streams that must exist and have a leader."""
    consumers: list[tuple[str, str]] | None
    """Consumers that must exist, as stream and name."""
    dead_letters: list[str] | None
    """Dead-letter streams that must exist and have room."""
    max_pending: int | None
    """How many messages may wait for a consumer; default no bound."""
    max_mirror_lag: int | None
    """How far a mirror may lag behind, in messages; default no bound."""


class ConsumerOptions(TypedDict, total=False):
    """What a durable consumer should be."""

    filter_subjects: list[str] | None
    """Which subjects it reads; default all."""
    ack_wait_ms: int | None
    """How long a delivery may stay without a sign of life; default 30 000."""
    max_deliver: int | None
    """How often the server delivers a message at most: a net below the retry policy, not the policy; default 15."""
