//! `--listen-tls` and what belongs to it.

use std::net::SocketAddr;
use std::path::PathBuf;

use amqp_compat::listener::{Listener, Tls, TlsError, TlsFiles};
use clap::Args;

use super::{Failure, remedy};

/// Where AMQPS is served, and with which certificates.
#[derive(Debug, Args)]
pub struct TlsArgs {
    /// Where AMQPS clients connect to (`amqps://`), besides --listen; port 0 takes a free one. The usual port is 5671.
    #[arg(long, value_name = "HOST:PORT", value_parser = super::host_port, requires = "tls_cert", requires = "tls_key")]
    pub listen_tls: Option<String>,
    /// The server's certificate and those between it and its CA's, as PEM. Read again when the file changes.
    #[arg(long, value_name = "FILE", requires = "listen_tls")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, as PEM. Read again when the file changes.
    #[arg(long, value_name = "FILE", requires = "listen_tls")]
    pub tls_key: Option<PathBuf>,
    /// CAs of clients, as PEM: a client without a certificate of one of them is refused. `serve` lets one that has it log in by
    /// EXTERNAL, as the user (--user) whom the certificate's common name names.
    #[arg(long, value_name = "FILE", requires = "listen_tls")]
    pub tls_client_ca: Option<PathBuf>,
    /// With --tls-client-ca, let in clients without any certificate as well, as RabbitMQ does with `fail_if_no_peer_cert = false`.
    #[arg(long, requires = "tls_client_ca")]
    pub tls_client_optional: bool,
}

impl TlsArgs {
    /// Binds the socket for AMQPS, where one is asked for, and gives its address.
    ///
    /// # Errors
    /// `cannot_run`, naming the flag or file at fault.
    pub(super) async fn bind(&self, listener: &mut Listener) -> Result<Option<SocketAddr>, Failure> {
        let Some((place, files)) = self.place() else { return Ok(None) };
        let tls = Tls::load(files).map_err(|error| self.refused(&error))?;
        let failed = |error| remedy::bind("--listen-tls", &place, &error);
        listener.bind_tls(&place, tls).await.map(Some).map_err(failed)
    }
    /// Where, and with which files.
    pub(super) fn place(&self) -> Option<(String, TlsFiles)> {
        let (Some(place), Some(certificate), Some(key)) = (&self.listen_tls, &self.tls_cert, &self.tls_key) else {
            return None;
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: self.tls_client_ca.clone(),
            client_optional: self.tls_client_optional,
        };
        Some((place.clone(), files))
    }

    /// A file that cannot be used, with its flag.
    pub(super) fn refused(&self, error: &TlsError) -> Failure {
        let flag = if Some(&error.file) == self.tls_key.as_ref() {
            "--tls-key"
        } else if Some(&error.file) == self.tls_client_ca.as_ref() {
            "--tls-client-ca"
        } else {
            "--tls-cert"
        };
        Failure::cannot_run(format!("{flag} {error}"))
    }
}
