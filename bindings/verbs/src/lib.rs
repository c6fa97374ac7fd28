//! What the language bindings share: verbs of the core whose arguments and answers are data, crossing as JSON, so that a
//! language adds types and nothing else. Names and checks are the core's own; a field that does not exist is refused.
//!
//! - [`ask`]: streams, consumers, buckets, manifests, dead letters, schemas.
//! - [`outbox`]: an outbox on disk.
//! - [`stats`]: the connection as it is now.
//! - [`health`]: what a health check requires and finds.
//! - [`sidecar`]: the options of a sidecar inside the process, and what its cutover is asked.
//! - [`metrics`]: all that the core counts, as Prometheus reads it.
//! - [`logs`]: what the core logs.
//! - [`listener`]: what AMQP clients connect to.
//! - [`login`]: how a connection logs in.
//! - [`eager`]: how a call of the core begins.

mod dead_letters;
pub mod eager;
pub mod health;
pub mod listener;
pub mod login;
pub mod logs;
pub mod metrics;
pub mod outbox;
mod read;
mod schemas;
pub mod sidecar;
mod spelling;

use amqp_compat::gateway::GatewayError;
use nats_bridge::provision::{ApplyConfig, BucketSpec, ConsumerSpec, StreamSpec};
use nats_bridge::{Bridge, Error, Manifest};
use serde::Deserialize;
use serde_json::{Value, json};

pub use read::read;
pub use spelling::spelled;

/// Why a verb failed.
#[derive(Debug)]
pub enum Fault {
    /// An argument is wrong; the core was not asked.
    Argument {
        /// The argument.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option does not exist, or its value is of another type; the core was not asked.
    Type {
        /// The option.
        option: String,
        /// What is wrong with its value; none: there is no such option.
        why: Option<String>,
    },
    /// The core's error.
    Core(Error),
    /// Another one, in the core's words. Nothing landed.
    Told {
        /// What went wrong, as one word.
        code: &'static str,
        /// What went wrong, for people.
        text: String,
        /// What is known about it.
        context: Vec<(&'static str, String)>,
    },
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault::Core(error)
    }
}

impl From<GatewayError> for Fault {
    fn from(error: GatewayError) -> Self {
        match error {
            GatewayError::Nats(error) => Fault::Core(error),
            GatewayError::Config { field, why } => Fault::argument(field, why),
            other => Fault::told(other.kind().name(), other.to_string(), other.context()),
        }
    }
}

/// What is to be told of a [`Fault::Type`]; `what` is what the language calls an option.
pub fn type_text(what: &str, option: &str, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("{what} '{option}': {why}"),
        None => format!("there is no option '{option}'"),
    }
}

impl Fault {
    fn told(code: &'static str, text: String, context: Vec<(&'static str, String)>) -> Self {
        Fault::Told { code, text: format!("{}: {text}", code.replace('_', " ")), context }
    }

    fn argument(field: impl Into<String>, why: impl ToString) -> Self {
        Fault::Argument { field: field.into(), why: why.to_string() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    manifest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    manifest: String,
    #[serde(default)]
    allow_removal: bool,
}

/// Does what `verb` says with `arguments`, an object of JSON, and gives the answer as JSON. What goes on for long is asked now and
/// then whether it is `wanted` still.
///
/// # Errors
/// See [`Fault`].
pub async fn ask(
    core: Bridge,
    verb: String,
    arguments: String,
    wanted: impl Fn() -> bool + Send + Sync,
) -> Result<String, Fault> {
    let answer = match verb.as_str() {
        "ensure_stream" => {
            core.ensure_stream(&read::<StreamSpec>(&arguments)?).await?;
            Value::Null
        }
        "ensure_consumer" => {
            core.ensure_consumer(&read::<ConsumerSpec>(&arguments)?).await?;
            Value::Null
        }
        "ensure_bucket" => {
            core.ensure_bucket(&read::<BucketSpec>(&arguments)?).await?;
            Value::Null
        }
        "plan" => json!(core.plan(&Manifest::from_toml(&read::<Text>(&arguments)?.manifest)?).await?),
        "apply" => {
            let Apply { manifest, allow_removal } = read(&arguments)?;
            let config = ApplyConfig { allow_removal, ..ApplyConfig::default() };
            json!(core.apply_with(&Manifest::from_toml(&manifest)?, config).await?)
        }
        _ => match verb.split_once('.') {
            Some(("dead_letters", verb)) => dead_letters::ask(&core, verb, &arguments, wanted).await?,
            Some(("schemas", verb)) => schemas::ask(&core, verb, &arguments).await?,
            _ => return Err(Fault::argument("verb", format!("there is no verb '{verb}'"))),
        },
    };
    Ok(answer.to_string())
}

/// A connection as it is now, as JSON.
pub fn stats(core: &Bridge) -> String {
    let connection = *core.connection().borrow();
    let breaker = *core.breaker().borrow();
    json!({
        "connected": connection.connected,
        "connects": connection.connects,
        "disconnects": connection.disconnects,
        "closed": connection.closed,
        "outstanding": core.outstanding(),
        "breaker": breaker.name(),
        "server_version": core.server_version(),
        "api_level": core.api_level(),
    })
    .to_string()
}
