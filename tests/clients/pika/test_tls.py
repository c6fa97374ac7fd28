"""What AMQPS is promised."""

import ssl

import pika
import pika.exceptions
import pytest
from conftest import CERTIFICATES


def parameters(server, certificate="client", **options):
    context = ssl.create_default_context(cafile=CERTIFICATES / "ca.pem")
    if certificate:
        context.load_cert_chain(CERTIFICATES / f"{certificate}.pem", CERTIFICATES / f"{certificate}.key")
    host, port = server.ready["listen_tls"].split(":")
    return pika.ConnectionParameters(host, int(port), ssl_options=pika.SSLOptions(context, "localhost"), **options)


@pytest.mark.parametrize(
    "credentials", [pika.PlainCredentials("app", "secret"), pika.credentials.ExternalCredentials()], ids=["plain", "external"]
)
def test_messages_go_through(tls_server, name, credentials):
    with pika.BlockingConnection(parameters(tls_server, credentials=credentials)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(name, durable=True)
        body = bytes(range(256)) * 2000
        for _ in range(10):
            channel.basic_publish("", name, body, pika.BasicProperties(user_id="app"))
        for _ in range(10):
            assert channel.basic_get(name, auto_ack=True)[2] == body


def test_a_password_is_checked_over_tls_too(tls_server):
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(parameters(tls_server, credentials=pika.PlainCredentials("app", "wrong")))


@pytest.mark.parametrize("certificate", [None, "stranger"])
def test_a_client_without_a_certificate_of_the_ca_is_refused(tls_server, certificate):
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        pika.BlockingConnection(parameters(tls_server, certificate, credentials=pika.PlainCredentials("app", "secret")))


def test_a_client_on_the_wrong_port_fails_at_once_and_the_log_says_why(tls_server):
    host, port = tls_server.ready["listen_tls"].split(":")
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.ConnectionParameters(host, int(port)))
    tls_on_plain = parameters(tls_server)
    tls_on_plain.port = int(tls_server.listen.split(":")[1])
    with pytest.raises((pika.exceptions.AMQPConnectionError, ssl.SSLError)):
        pika.BlockingConnection(tls_on_plain)
    log = tls_server.log()
    assert "speaks no TLS on the port for it" in log
    assert "speaks TLS on the port for plain AMQP" in log
