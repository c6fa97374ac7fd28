//! AMQPS: certificates from files, read again when they change, and whom a client's certificate names.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tracing::{info, warn};

/// How often the files are looked at, at most; only when a client comes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where the certificates are.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its CA's, as PEM.
    pub certificate: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// The CAs of clients, as PEM. With them a client without a certificate of one of them is refused, and one that has it
    /// may log in by `EXTERNAL` as the user whom the certificate's common name names.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without any certificate is let in all the same: RabbitMQ's `fail_if_no_peer_cert = false`. One of another CA is
    /// refused as before. Means nothing without `client_ca`.
    pub client_optional: bool,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl TlsError {
    fn new(file: &Path, why: impl ToString) -> Self {
        Self { file: file.to_owned(), why: why.to_string() }
    }
}

/// When and how large each file was.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// The certificates of a listener.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// When the first of the server's certificates is not valid any more, in seconds since 1970.
    expires: Option<i64>,
    stamp: Stamp,
    looked: Instant,
}

impl Tls {
    /// Reads the certificates.
    ///
    /// # Errors
    /// The first file that cannot be used, and why.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        // Before they are read: what changes meanwhile is seen as a change.
        let stamp = files.stamp();
        let (config, expires) = files.config()?;
        Ok(Self { files, loaded: Mutex::new(Loaded { config, expires, stamp, looked: Instant::now() }) })
    }

    /// The configuration for a client that comes now. Files that have changed are read again; those that cannot be used are
    /// warned about, and the ones before stay in force.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.look().config.clone()
    }

    /// When the first of the server's certificates, or of those between it and its CA's, is not valid any more, in seconds
    /// since 1970; `None` when none of them can be read so far.
    pub fn expires(&self) -> Option<i64> {
        self.look().expires
    }

    fn look(&self) -> MutexGuard<'_, Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if loaded.looked.elapsed() >= LOOK_AGAIN {
            loaded.looked = Instant::now();
            let stamp = self.files.stamp();
            if stamp != loaded.stamp {
                match self.files.config() {
                    Ok((config, expires)) => {
                        info!(certificate = %self.files.certificate.display(), "certificates have changed and are in force");
                        loaded.config = config;
                        loaded.expires = expires;
                    }
                    Err(error) => warn!(%error, "certificates have changed and cannot be used; the ones before stay"),
                }
                loaded.stamp = stamp;
            }
        }
        loaded
    }
}

impl TlsFiles {
    fn stamp(&self) -> Stamp {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        let stamp = |file: &PathBuf| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        };
        files.into_iter().flatten().map(stamp).collect()
    }

    /// What the files say, and when the first certificate expires.
    fn config(&self) -> Result<(Arc<ServerConfig>, Option<i64>), TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&self.certificate)?;
        let end = |certificate: &CertificateDer<'_>| {
            let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
            Some(certificate.validity().not_after.timestamp())
        };
        let expires = chain.iter().filter_map(end).min();
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| TlsError::new(&self.key, error))?;
        let at_certificate = |error| TlsError::new(&self.certificate, error);
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| at_certificate(error.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| TlsError::new(file, error))?;
                }
                let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                if self.client_optional {
                    verifier = verifier.allow_unauthenticated();
                }
                builder.with_client_cert_verifier(verifier.build().map_err(|error| TlsError::new(file, error))?)
            }
        };
        let config = builder.with_single_cert(chain, key).map_err(|error| at_certificate(error.to_string()))?;
        Ok((Arc::new(config), expires))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::new(file, error);
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(file).map_err(failed)?.collect();
    match certificates.map_err(failed)? {
        none if none.is_empty() => Err(TlsError::new(file, "no certificate in it")),
        some => Ok(some),
    }
}

/// The common name of a client's certificate, which was verified; `None` without one.
pub(super) fn common_name(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates?.first()?).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// What a client's first bytes say that it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Tls,
    Amqp,
    Other,
}

/// Looks at the first bytes of a connection and leaves them there.
pub(super) async fn spoken(stream: &tokio::net::TcpStream) -> io::Result<Spoken> {
    let mut first = [0];
    Ok(match (stream.peek(&mut first).await?, first) {
        // A handshake record.
        (1, [0x16]) => Spoken::Tls,
        (1, [b'A']) => Spoken::Amqp,
        _ => Spoken::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_have_changed_and_cannot_be_used_leave_the_ones_before_in_force() {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/clients/certificates");
        let dir = tempfile::tempdir().expect("a directory");
        let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
        std::fs::copy(made.join("server.pem"), &certificate).expect("copied");
        std::fs::copy(made.join("server.key"), &key).expect("copied");
        let tls = Tls::load(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: None,
            client_optional: false,
        });
        let tls = tls.expect("valid");
        // As if the last look had been long ago.
        let now = || {
            tls.loaded.lock().expect("not poisoned").looked = Instant::now().checked_sub(LOOK_AGAIN).expect("later");
            tls.current()
        };
        let first = now();
        assert!(tls.expires().is_some_and(|at| at > 4_000_000_000), "a hundred years");
        std::fs::write(&certificate, "nonsense").expect("written");
        assert!(Arc::ptr_eq(&now(), &first));
        std::fs::remove_file(&certificate).expect("removed");
        assert!(Arc::ptr_eq(&now(), &first));
        std::fs::copy(made.join("server-renewed.pem"), &certificate).expect("copied");
        assert!(Arc::ptr_eq(&now(), &first), "the key is another one's");
        std::fs::copy(made.join("server-renewed.key"), &key).expect("copied");
        // The renewed key may have the length, and within a coarse clock the time, of the one before.
        std::fs::File::options()
            .append(true)
            .open(&key)
            .and_then(|mut file| io::Write::write_all(&mut file, b"\n"))
            .expect("written");
        assert!(!Arc::ptr_eq(&now(), &first));
    }
}
