"""One `nats-bridge serve --embedded` for the whole run; a connection for each test."""

import json
import os
import pathlib
import signal
import subprocess
import time
import uuid

import pika
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
CERTIFICATES = ROOT / "tests/clients/certificates"


class Server:
    """`nats-bridge serve --embedded`, which can be stopped and started again on the same directory and port."""

    def __init__(self, directory, *options):
        self.directory = directory
        self.options = options
        self.listen = "127.0.0.1:0"
        self.process = None
        self.start()

    def start(self):
        ready = self.directory / "ready.json"
        ready.unlink(missing_ok=True)
        binary = os.environ.get("NATS_BRIDGE", str(ROOT / "target/debug/nats-bridge"))
        command = [binary, "serve", "--embedded", str(self.directory / "data"), "--listen", self.listen, *self.options]
        with open(self.directory / "serve.log", "ab") as log:
            self.process = subprocess.Popen([*command, "--ready-file", str(ready)], stdout=log, stderr=log)
        limit = time.monotonic() + 30
        while not ready.exists():
            assert self.process.poll() is None, f"serve ended: {self.log()}"
            assert time.monotonic() < limit, f"serve is not ready after 30 s: {self.log()}"
            time.sleep(0.02)
        self.ready = json.loads(ready.read_text())
        self.listen = self.ready["listen"]

    def stop(self):
        """Asks it to end, as a supervisor would."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, self.log()

    def kill(self):
        self.process.kill()
        self.process.wait()

    @property
    def url(self):
        return f"amqp://guest:guest@{self.listen}/%2f"

    def log(self):
        return (self.directory / "serve.log").read_text(errors="replace")[-4000:]


@pytest.fixture(scope="session")
def url(tmp_path_factory):
    """The AMQP URL that the tests connect to."""
    if "AMQP_URL" in os.environ:
        yield os.environ["AMQP_URL"]
        return
    server = Server(tmp_path_factory.mktemp("serve"))
    yield server.url
    server.stop()


@pytest.fixture
def own_server(tmp_path):
    """A server of its own for a test that stops or kills it."""
    server = Server(tmp_path)
    yield server
    if server.process.poll() is None:
        server.kill()


@pytest.fixture(scope="session")
def tls_server(tmp_path_factory):
    """A server with AMQPS that knows the user `app` and demands certificates."""
    files = ["--tls-cert", CERTIFICATES / "server.pem", "--tls-key", CERTIFICATES / "server.key"]
    options = ["--listen-tls", "127.0.0.1:0", *files, "--tls-client-ca", CERTIFICATES / "ca.pem", "--user", "app:secret"]
    server = Server(tmp_path_factory.mktemp("serve-tls"), *options)
    yield server
    server.stop()


@pytest.fixture
def connect(url):
    """Opens connections that are closed after the test."""
    opened = []

    def connect(**options):
        parameters = pika.URLParameters(url)
        for name, value in options.items():
            setattr(parameters, name, value)
        connection = pika.BlockingConnection(parameters)
        opened.append(connection)
        return connection

    yield connect
    for connection in opened:
        if connection.is_open:
            connection.close()


@pytest.fixture
def channel(connect):
    return connect().channel()


@pytest.fixture
def name():
    """A name that no other test uses."""
    return f"test.{uuid.uuid4().hex[:12]}"
