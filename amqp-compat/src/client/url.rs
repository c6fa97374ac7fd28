//! `nats://` URLs that name a vhost.

use std::time::Duration;

use url::Url;

use super::uri::{AMQPAuthority, AMQPQueryString, AMQPUri, AMQPUserInfo};

/// Where JetStream is, and what is asked of the AMQP connection over it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct NatsUrl {
    /// The servers' URLs, with user and password where they have them.
    pub(super) servers: Vec<String>,
    /// The vhost, the AMQP user and the parameters.
    pub(super) uri: AMQPUri,
}

impl NatsUrl {
    /// The longest wait for one attempt to connect to NATS, if it was given.
    pub(super) fn connect_timeout(&self) -> Option<Duration> {
        self.uri.query.connection_timeout.map(Duration::from_millis)
    }
}

/// Reads a URL; `None` when it is not one of NATS.
///
/// # Errors
/// A text for people. It holds no password.
pub(super) fn read(text: &str) -> Result<Option<NatsUrl>, String> {
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "nats" | "tls")) else {
        return Ok(None);
    };
    let (hosts, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let wrong = |why: &str| format!("not a NATS URL: {why}");
    let mut servers = Vec::new();
    let mut userinfo = None;
    for host in hosts.split(',') {
        let server = format!("{scheme}://{host}");
        let url = Url::parse(&server).map_err(|error| wrong(&error.to_string()))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("a host is missing"));
        }
        // A user without a password is a token, and no name.
        if userinfo.is_none() && url.password().is_some() {
            userinfo = Some(decoded(url.username())?);
        }
        servers.push(server);
    }
    let tail = Url::parse(&format!("nats://host{tail}")).map_err(|error| wrong(&error.to_string()))?;
    if tail.fragment().is_some() {
        return Err(wrong("it has a fragment"));
    }
    let vhost = match tail.path() {
        "" => "/".to_owned(),
        path => decoded(path.strip_prefix('/').unwrap_or(path))?,
    };
    let mut query = AMQPQueryString::default();
    for (name, value) in tail.query_pairs() {
        let number = || format!("{name}={value} in the NATS URL is no number, or too large a one");
        match &*name {
            "frame_max" => query.frame_max = Some(value.parse().map_err(|_| number())?),
            "channel_max" => query.channel_max = Some(value.parse().map_err(|_| number())?),
            "heartbeat" => query.heartbeat = Some(value.parse().map_err(|_| number())?),
            "connection_timeout" => query.connection_timeout = Some(value.parse().map_err(|_| number())?),
            _ => return Err(format!("the parameter {name} of the NATS URL is not understood")),
        }
    }
    // The password is NATS's business; in the process there is only a name.
    let userinfo = AMQPUserInfo { username: userinfo.unwrap_or_else(|| "guest".to_owned()), password: String::new() };
    let authority = AMQPAuthority { userinfo, ..AMQPAuthority::default() };
    Ok(Some(NatsUrl { servers, uri: AMQPUri { authority, vhost, query, ..AMQPUri::default() } }))
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| "user or vhost of the NATS URL is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nats(text: &str) -> NatsUrl {
        read(text).expect("valid").expect("of NATS")
    }

    #[test]
    fn a_vhost_is_written_as_in_an_amqp_uri() {
        for (url, vhost) in [
            ("nats://h", "/"),
            ("nats://h:4222/%2f", "/"),
            ("nats://h/", ""),
            ("tls://h/shop", "shop"),
            ("nats://h/a%2fb?heartbeat=5", "a/b"),
            ("nats://h?heartbeat=5", "/"),
        ] {
            assert_eq!(nats(url).uri.vhost, vhost, "{url}");
        }
    }

    #[test]
    fn servers_keep_their_logins_and_only_a_name_is_left_for_amqp() {
        let url = nats("nats://ann:s%40crt@a:1,b:2/shop?connection_timeout=250&channel_max=9");
        assert_eq!(url.servers, ["nats://ann:s%40crt@a:1", "nats://b:2"]);
        assert_eq!(url.uri.authority.userinfo, AMQPUserInfo { username: "ann".into(), password: String::new() });
        assert_eq!((url.connect_timeout(), url.uri.query.channel_max), (Some(Duration::from_millis(250)), Some(9)));
        assert_eq!(nats("nats://t0ken@a").uri.authority.userinfo.username, "guest");
    }

    #[test]
    fn what_is_not_understood_is_named_and_passwords_are_not() {
        for (url, named) in [
            ("nats://", "host"),
            ("nats://u:s3cret@a:x", "port"),
            ("nats://u:s3cret@a,,b", "host"),
            ("nats://u:s3cret@a?heartbeat=soon", "heartbeat=soon"),
            ("nats://u:s3cret@a?verify=none", "verify"),
            ("nats://u:s3cret@a/%ff", "UTF-8"),
            ("nats://u:s3cret@a#x", "fragment"),
        ] {
            let error = read(url).err().unwrap_or_else(|| panic!("{url} was read"));
            assert!(error.contains(named) && !error.contains("s3cret"), "{url}: {error}");
        }
        assert!(read("amqp://h").expect("not ours").is_none());
    }
}
