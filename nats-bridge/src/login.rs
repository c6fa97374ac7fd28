//! How a connection logs in, and whom it trusts. What is in files is read again for each connection that is made.

use std::fmt;
use std::path::{Path, PathBuf};

use async_nats::{Auth, ConnectOptions};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::bridge::url_login;
use crate::config::Config;
use crate::error::{Error, Result};

/// How to log in to NATS. What is in a file is read again whenever a connection is made, so that a secret is renewed by writing the file: no
/// restart, and the connection that is there stays.
///
/// ```
/// use nats_bridge::{Config, Login};
///
/// let login = Login::PasswordFile { user: "orders".into(), file: "/run/secrets/nats-password".into() };
/// let config = Config { login, ..Config::default() };
/// # let _ = config;
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Login {
    /// With what the server URLs carry, or not at all.
    #[default]
    FromUrl,
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// User, and the password in a file.
    PasswordFile {
        /// The user.
        user: String,
        /// Where the password is; white space around it is not part of it.
        file: PathBuf,
    },
    /// A shared token.
    Token(String),
    /// A shared token in a file.
    TokenFile(PathBuf),
    /// The seed of an nkey (`SU...`).
    Nkey(String),
    /// The seed of an nkey in a file.
    NkeyFile(PathBuf),
    /// A credentials file with a JWT and a seed, as `nsc` writes it.
    CredentialsFile(PathBuf),
}

// Secrets stay out of logs.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Login::FromUrl => f.write_str("FromUrl"),
            Login::Password { user, .. } => write!(f, "Password {{ user: {user:?} }}"),
            Login::PasswordFile { user, file } => write!(f, "PasswordFile {{ user: {user:?}, file: {file:?} }}"),
            Login::Token(_) => f.write_str("Token"),
            Login::TokenFile(path) => write!(f, "TokenFile({path:?})"),
            Login::Nkey(_) => f.write_str("Nkey"),
            Login::NkeyFile(path) => write!(f, "NkeyFile({path:?})"),
            Login::CredentialsFile(path) => write!(f, "CredentialsFile({path:?})"),
        }
    }
}

/// The options with login and certificates.
///
/// # Errors
/// `Config`, naming the field: a file cannot be read, or is not what it is taken for.
pub(crate) fn options(config: &Config) -> Result<ConnectOptions> {
    check_certificates(config)?;
    let login = match &config.login {
        // The client itself does not look at these.
        Login::FromUrl => match url_login(&config.servers)? {
            Some((user, Some(password))) => Login::Password { user, password },
            Some((token, None)) => Login::Token(token),
            None => Login::FromUrl,
        },
        given => given.clone(),
    };
    // Once now, so that what is wrong is told at once and by name.
    login.sign(b"")?;
    let mut options = match login {
        Login::FromUrl => ConnectOptions::new(),
        login => ConnectOptions::with_auth_callback(move |nonce| {
            let signed = login.sign(&nonce).map_err(async_nats::AuthError::new);
            async move { signed }
        }),
    };
    // The client reads these files for each connection.
    for path in &config.root_certificates {
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &config.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(options)
}

impl Login {
    // What is said to a server that has sent this nonce.
    fn sign(&self, nonce: &[u8]) -> Result<Auth> {
        let mut auth = Auth::new();
        match self {
            Login::FromUrl => {}
            Login::Password { user, password } => {
                auth.username = Some(user.clone());
                auth.password = Some(password.clone());
            }
            Login::PasswordFile { user, file } => {
                auth.username = Some(user.clone());
                auth.password = Some(secret("password_file", file)?);
            }
            Login::Token(token) => auth.token = Some(token.clone()),
            Login::TokenFile(file) => auth.token = Some(secret("token_file", file)?),
            Login::Nkey(seed) => sign_with("nkey", seed, nonce, true, &mut auth)?,
            Login::NkeyFile(file) => {
                let seed = secret("nkey_file", file)?;
                sign_with("nkey_file", &seed, nonce, true, &mut auth).map_err(|e| e.with("file", file.display()))?;
            }
            Login::CredentialsFile(file) => {
                let field = "credentials_file";
                let text = secret(field, file)?;
                let part = |name: &str| {
                    let begin = text.lines().skip_while(|line| !(line.contains("BEGIN") && line.contains(name)));
                    begin.skip(1).map(str::trim).find(|line| !line.is_empty() && !line.starts_with('-'))
                };
                let (Some(jwt), Some(seed)) = (part("USER JWT"), part("NKEY SEED")) else {
                    let why = "a user's JWT and an nkey's seed are expected, each between its BEGIN and END";
                    return Err(Error::setting(field, why).with("file", file.display()));
                };
                sign_with(field, seed, nonce, false, &mut auth).map_err(|e| e.with("file", file.display()))?;
                auth.jwt = Some(jwt.to_owned());
            }
        }
        Ok(auth)
    }
}

fn sign_with(field: &'static str, seed: &str, nonce: &[u8], public: bool, auth: &mut Auth) -> Result<()> {
    let pair = nkeys::KeyPair::from_seed(seed)
        .map_err(|e| Error::setting(field, "it is not the seed of an nkey").because(e))?;
    let signature = pair.sign(nonce).map_err(|e| Error::setting(field, "it cannot sign: it is no seed").because(e))?;
    auth.signature = Some(signature);
    auth.nkey = public.then(|| pair.public_key());
    Ok(())
}

fn secret(field: &'static str, file: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(file).map_err(|e| Error::setting(field, &e).with("file", file.display()).because(e))?;
    match text.trim() {
        "" => Err(Error::setting(field, "it is empty").with("file", file.display())),
        secret => Ok(secret.to_owned()),
    }
}

fn check_certificates(config: &Config) -> Result<()> {
    for file in &config.root_certificates {
        certificates("root_certificates", file)?;
    }
    let Some((certificate, key)) = &config.client_certificate else { return Ok(()) };
    let chain = certificates("client_certificate", certificate)?;
    let field = "client_certificate.key";
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|e| Error::setting(field, &e).with("file", key.display()).because(e))?;
    let roots = rustls::RootCertStore::empty();
    let builder = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| Error::setting(field, &e))?;
    match builder.with_root_certificates(roots).with_client_auth_cert(chain, private) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::setting(field, &e).with("file", key.display()).because(e)),
    }
}

fn certificates(field: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    match read {
        Ok(chain) if chain.is_empty() => {
            Err(Error::setting(field, "it has no certificate (PEM)").with("file", file.display()))
        }
        Ok(chain) => Ok(chain),
        Err(e) => Err(Error::setting(field, &e).with("file", file.display()).because(e)),
    }
}
