//! What an operator can do about a start that failed: errors that name the flag at fault and a way out.

use std::io::{self, ErrorKind};

use nats_bridge::ErrorKind as NatsError;

use super::Failure;
pub(super) use crate::running::without_password;

/// A socket that cannot be bound; `flag` was given as `given`.
pub(super) fn bind(flag: &str, given: &str, error: &io::Error) -> Failure {
    let way_out = match error.kind() {
        ErrorKind::AddrInUse => {
            "another program listens there (RabbitMQ, or another nats-bridge?): stop it, or choose another port; port 0 \
             takes a free one"
        }
        ErrorKind::AddrNotAvailable => "no interface of this machine has that address; 0.0.0.0 takes them all",
        ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose a higher one",
        _ => "HOST:PORT is expected, such as 127.0.0.1:5672",
    };
    Failure::cannot_run(format!("{flag} {given}: {error}; {way_out}"))
}

/// A NATS that cannot be used; `given` may have passwords, which are not shown.
pub(super) fn nats(given: &str, error: &nats_bridge::Error) -> Failure {
    let why = error.context().iter().find(|(key, _)| *key == "why").map(|(_, why)| why.as_str());
    let url = without_password(given);
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    Failure::cannot_run(match error.kind() {
        NatsError::Unreachable => format!(
            "--nats {url}: no NATS server answers there{why}; start one with JetStream (`nats-server -js`), name another \
             with --nats, or let `nats-bridge serve --embedded DIR` start its own"
        ),
        NatsError::Denied => {
            format!(
                "--nats {url}: the login was refused{why}; give it in the URL, as \
                 nats://USER:PASSWORD@HOST:PORT, or with --nats-creds or --nats-nkey"
            )
        }
        NatsError::Unsupported => format!(
            "--nats {url}: it cannot be used{why}; nats-server 2.10.26 or newer with JetStream is needed (`nats-server -js`)"
        ),
        // A file of the login or of a certificate.
        NatsError::Config if error.context().iter().any(|(key, _)| *key == "field") => format!("--nats {url}: {error}"),
        NatsError::Config => format!("--nats {url}: not understood{why}; nats://HOST:PORT is expected"),
        _ => format!("--nats {url}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_cannot_be_bound_names_its_flag_and_a_way_out() {
        for (kind, way_out) in [
            (ErrorKind::AddrInUse, "choose another port"),
            (ErrorKind::PermissionDenied, "choose a higher one"),
            (ErrorKind::InvalidInput, "HOST:PORT is expected"),
        ] {
            let text = bind("--listen", "a:1", &io::Error::from(kind)).text;
            assert!(text.starts_with("--listen a:1: ") && text.contains(way_out), "{text}");
        }
    }
}
