//! How a verb logs in to NATS, beyond what the URL says.

use std::fs::File;
use std::path::PathBuf;

use clap::Args;
use nats_bridge::{Bridge, Config, Login};

use super::{Failure, remedy};

/// How to log in to NATS, and whom to trust. User and password may stand in the URLs.
#[derive(Debug, Clone, Default, Args)]
pub struct NatsLogin {
    /// Log in to NATS with this credentials file, as `nsc` writes it (a JWT and a seed).
    #[arg(long, global = true, value_name = "FILE", group = "nats_login")]
    pub nats_creds: Option<PathBuf>,
    /// Log in to NATS with the nkey whose seed (`SU...`) is in this file.
    #[arg(long, global = true, value_name = "FILE", group = "nats_login")]
    pub nats_nkey: Option<PathBuf>,
    /// Log in to NATS with the token in this file.
    #[arg(long, global = true, value_name = "FILE", group = "nats_login")]
    pub nats_token_file: Option<PathBuf>,
    /// Log in to NATS as this user, with --nats-password-file.
    #[arg(long, global = true, value_name = "NAME", requires = "nats_password_file")]
    pub nats_user: Option<String>,
    /// The file with the password of --nats-user. Like the other files it is read again for each connection that is made.
    #[arg(long, global = true, value_name = "FILE", group = "nats_login", requires = "nats_user")]
    pub nats_password_file: Option<PathBuf>,
    /// Take NATS servers whose certificates are of this CA (PEM), besides the system's.
    #[arg(long, global = true, value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,
    /// The certificate (PEM) to show to NATS servers that ask for one.
    #[arg(long, global = true, value_name = "FILE", requires = "nats_key")]
    pub nats_cert: Option<PathBuf>,
    /// The private key (PEM) of --nats-cert.
    #[arg(long, global = true, value_name = "FILE", requires = "nats_cert")]
    pub nats_key: Option<PathBuf>,
}

impl NatsLogin {
    fn files(&self) -> [(&'static str, Option<&PathBuf>); 7] {
        [
            ("--nats-creds", self.nats_creds.as_ref()),
            ("--nats-nkey", self.nats_nkey.as_ref()),
            ("--nats-token-file", self.nats_token_file.as_ref()),
            ("--nats-password-file", self.nats_password_file.as_ref()),
            ("--nats-ca", self.nats_ca.as_ref()),
            ("--nats-cert", self.nats_cert.as_ref()),
            ("--nats-key", self.nats_key.as_ref()),
        ]
    }

    /// Refuses it where it has no use, and says why it has none.
    ///
    /// # Errors
    /// `cannot_run`, naming the flag.
    pub(super) fn none_because(&self, why: &str) -> Result<(), Failure> {
        match self.files().into_iter().find(|(_, file)| file.is_some()) {
            Some((flag, _)) => Err(Failure::cannot_run(format!("{flag}: {why}"))),
            None => Ok(()),
        }
    }

    /// Connects to these servers, separated by commas, under this name.
    ///
    /// # Errors
    /// `cannot_run`, naming the flag at fault, with a way out.
    pub(super) async fn connect(&self, urls: &str, name: &str) -> Result<Bridge, Failure> {
        let config = self.config(urls, name)?;
        Bridge::connect_with(config).await.map_err(|error| remedy::nats(urls, &error))
    }

    /// The settings for these servers under this name.
    ///
    /// # Errors
    /// `cannot_run`, naming the flag whose file cannot be read.
    pub(super) fn config(&self, urls: &str, name: &str) -> Result<Config, Failure> {
        for (flag, file) in self.files() {
            // Opened here, so that the error names the flag.
            if let Some(file) = file
                && let Err(error) = File::open(file)
            {
                return Err(Failure::cannot_run(format!("{flag} {}: {error}", file.display())));
            }
        }
        let login = match self {
            NatsLogin { nats_creds: Some(file), .. } => Login::CredentialsFile(file.clone()),
            NatsLogin { nats_nkey: Some(file), .. } => Login::NkeyFile(file.clone()),
            NatsLogin { nats_token_file: Some(file), .. } => Login::TokenFile(file.clone()),
            NatsLogin { nats_user: Some(user), nats_password_file: Some(file), .. } => {
                Login::PasswordFile { user: user.clone(), file: file.clone() }
            }
            _ => Login::FromUrl,
        };
        Ok(Config {
            servers: urls.split(',').map(|url| url.trim().to_owned()).collect(),
            name: name.to_owned(),
            login,
            root_certificates: self.nats_ca.iter().cloned().collect(),
            client_certificate: self.nats_cert.clone().zip(self.nats_key.clone()),
            ..Config::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_named_with_its_flag() {
        let missing = || Some(PathBuf::from("/does/not/exist"));
        let logins = [
            ("--nats-creds", NatsLogin { nats_creds: missing(), ..NatsLogin::default() }),
            ("--nats-nkey", NatsLogin { nats_nkey: missing(), ..NatsLogin::default() }),
            ("--nats-token-file", NatsLogin { nats_token_file: missing(), ..NatsLogin::default() }),
            ("--nats-password-file", NatsLogin { nats_password_file: missing(), ..NatsLogin::default() }),
            ("--nats-ca", NatsLogin { nats_ca: missing(), ..NatsLogin::default() }),
            ("--nats-cert", NatsLogin { nats_cert: missing(), ..NatsLogin::default() }),
            ("--nats-key", NatsLogin { nats_key: missing(), ..NatsLogin::default() }),
        ];
        for (flag, login) in logins {
            let text = login.config("nats://127.0.0.1:4222", "test").expect_err(flag).text;
            assert!(text.starts_with(&format!("{flag} /does/not/exist: ")), "{text}");
            assert!(login.none_because("it has no use").expect_err(flag).text.starts_with(flag));
        }
        assert!(NatsLogin::default().none_because("it has no use").is_ok());
    }
}
