//! Where RabbitMQ is.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// Where RabbitMQ is, and how long to wait for it. Users, passwords and vhosts are the clients' own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RabbitMqConfig {
    /// Host name or address.
    pub host: String,
    /// Port; 5672, or 5671 with TLS, unless the URL names one.
    pub port: u16,
    /// TLS, for `amqps` URLs.
    pub tls: Option<Tls>,
    /// The longest that connecting and logging in may take together. Default 10 s.
    pub connect_timeout: Duration,
    /// The longest heartbeat interval to agree on; RabbitMQ may want a shorter one. A connection on which nothing was
    /// received for twice the interval is lost. Default 10 s.
    pub heartbeat: Duration,
}

/// How RabbitMQ's certificate is verified.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// A PEM file with the authorities to trust; the system's when `None`.
    pub ca_file: Option<PathBuf>,
}

impl RabbitMqConfig {
    /// Reads an `amqp://` or `amqps://` URL.
    ///
    /// User, password and vhost are left aside. Of the query parameters that RabbitMQ documents ("RabbitMQ URI Query
    /// Parameters"), `heartbeat` (s), `connection_timeout` (ms) and `cacertfile` are understood.
    ///
    /// # Errors
    /// A text for people when it is no such URL, or has a parameter that is not understood.
    pub fn from_url(url: &str) -> Result<Self, String> {
        let url = Url::parse(url).map_err(|e| format!("not an AMQP URL: {e}"))?;
        let tls = match url.scheme() {
            "amqp" => None,
            "amqps" => Some(Tls::default()),
            other => return Err(format!("not an AMQP URL: the scheme is {other}, not amqp or amqps")),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or("the AMQP URL names no host")?;
        let mut config = Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(if tls.is_some() { 5671 } else { 5672 }),
            tls,
            connect_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(10),
        };
        for (name, value) in url.query_pairs() {
            let number = || value.parse::<u64>().map_err(|_| format!("{name}={value} in the AMQP URL is no number"));
            match (&*name, &mut config.tls) {
                ("heartbeat", _) => config.heartbeat = Duration::from_secs(number()?),
                ("connection_timeout", _) => config.connect_timeout = Duration::from_millis(number()?),
                ("cacertfile", Some(tls)) => tls.ca_file = Some(PathBuf::from(&*value)),
                _ => return Err(format!("the parameter {name} of the AMQP URL is not understood here")),
            }
        }
        Ok(config)
    }
}

/// The address, without user and password: `amqp://host:port`.
impl fmt::Display for RabbitMqConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "amqps" } else { "amqp" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amqp_url_says_where_rabbitmq_is() {
        let config =
            RabbitMqConfig::from_url("amqp://u:p@rabbit/%2f?heartbeat=5&connection_timeout=250").expect("valid");
        assert_eq!((config.host.as_str(), config.port, &config.tls), ("rabbit", 5672, &None));
        assert_eq!((config.heartbeat, config.connect_timeout), (Duration::from_secs(5), Duration::from_millis(250)));
        assert_eq!(config.to_string(), "amqp://rabbit:5672");

        let config = RabbitMqConfig::from_url("amqps://[::1]/?cacertfile=/etc/ca.pem").expect("valid");
        assert_eq!((config.host.as_str(), config.port), ("::1", 5671));
        assert_eq!(config.tls, Some(Tls { ca_file: Some("/etc/ca.pem".into()) }));
        assert_eq!(config.to_string(), "amqps://[::1]:5671");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (url, named) in [
            ("http://rabbit", "http"),
            ("rabbit:5672", "scheme"),
            ("amqp://", "host"),
            ("amqp://rabbit?heartbeat=soon", "heartbeat=soon"),
            ("amqp://rabbit?auth_mechanism=external", "auth_mechanism"),
            ("amqp://rabbit?cacertfile=x", "cacertfile"),
        ] {
            let error = RabbitMqConfig::from_url(url).expect_err(url);
            assert!(error.contains(named), "{url}: {error}");
        }
    }
}
