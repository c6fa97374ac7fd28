//! The sidecar as data: its options, how it runs, and what its cutover is asked ([`Running::ask`]).

mod ask;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nats_bridge::Config;
use serde::Deserialize;
use sidecar::control_api::{DrainRates, Refused, RefusedCode};
use sidecar::copies;
use sidecar::running::{Sidecar, SidecarConfig, SidecarError};
use sidecar::sharing::{Shared, Sharing};

use crate::listener::Listener;
use crate::{Fault, metrics, read};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Given {
    rabbit: Option<String>,
    rabbit_management: Option<String>,
    trust_declared: Option<bool>,
    listen: Option<String>,
    replicas: Option<usize>,
    standby: Option<Standby>,
    quorum_fallback: Option<bool>,
    consumer_timeout_ms: Option<u64>,
    fence_timeout_ms: Option<u64>,
    gate_soak_ms: Option<u64>,
    gate_messages: Option<u64>,
    gate_latency_factor: Option<f64>,
    rollback_after_ms: Option<u64>,
    auto_rollback: Option<bool>,
    shared: bool,
    advertise: Option<String>,
    http: Option<String>,
    http_token: Option<String>,
    otlp_endpoint: Option<String>,
}

/// What a sidecar is to be.
#[derive(Debug)]
pub struct Settings {
    config: SidecarConfig,
    /// With others over one NATS account; none: alone.
    sharing: Option<Sharing>,
}

/// Of whose messages the other broker keeps copies.
#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Standby {
    Both,
    Nats,
    Off,
}

/// The settings that `options`, an object of JSON, say for a sidecar to `nats`.
///
/// # Errors
/// `Argument`: an option is wrong.
pub fn config(nats: Config, options: &str) -> Result<Settings, Fault> {
    let given: Given = read(options)?;
    let mut config = SidecarConfig { nats, ..SidecarConfig::default() };
    config.rabbit = given.rabbit.ok_or_else(|| Fault::argument("rabbit", "it is needed"))?;
    config.rabbit_management = given.rabbit_management;
    config.trust_declared = given.trust_declared.unwrap_or(false);
    if config.trust_declared && config.rabbit_management.is_some() {
        return Err(Fault::argument("trust_declared", "it does not go together with rabbit_management"));
    }
    config.listen = given.listen.unwrap_or(config.listen);
    config.jetstream.replicas = given.replicas.unwrap_or(config.jetstream.replicas);
    config.standby = match given.standby {
        Some(Standby::Both) => copies::Standby::Both,
        Some(Standby::Nats) => copies::Standby::Nats,
        Some(Standby::Off) => copies::Standby::Off,
        None => config.standby,
    };
    config.jetstream.quorum_fallback = given.quorum_fallback.unwrap_or(config.jetstream.quorum_fallback);
    match given.consumer_timeout_ms.map(Duration::from_millis) {
        Some(Duration::ZERO) => config.jetstream.consumer_timeout = None,
        Some(limit) => config.jetstream.consumer_timeout = Some(limit),
        None => {}
    }
    config.otlp_endpoint = given.otlp_endpoint;
    config.fence_timeout = given.fence_timeout_ms.map_or(config.fence_timeout, Duration::from_millis);
    config.gate.soak = given.gate_soak_ms.map_or(config.gate.soak, Duration::from_millis);
    config.gate.messages = given.gate_messages.unwrap_or(config.gate.messages);
    if let Some(factor) = given.gate_latency_factor {
        if !(1.0..=1_000.0).contains(&factor) {
            return Err(Fault::argument("gate_latency_factor", "1 to 1000"));
        }
        config.gate.latency_factor = factor;
    }
    config.rollback_after = match given.auto_rollback {
        Some(false) => None,
        _ => given.rollback_after_ms.map(Duration::from_millis).or(config.rollback_after),
    };
    Ok(Settings { config, sharing: sharing(given.shared, given.advertise, given.http, given.http_token)? })
}

fn sharing(
    shared: bool,
    advertise: Option<String>,
    http: Option<String>,
    token: Option<String>,
) -> Result<Option<Sharing>, Fault> {
    if shared {
        let http = http.unwrap_or_else(|| Sharing::default().http);
        return Ok(Some(Sharing { http, advertise, token }));
    }
    let given = [("advertise", &advertise), ("http", &http), ("http_token", &token)];
    match given.into_iter().find(|(_, given)| given.is_some()) {
        Some((option, _)) => Err(Fault::argument(option, "it goes together with shared")),
        None => Ok(None),
    }
}

/// A sidecar that runs. Dropping it stops it without waiting.
pub struct Running {
    kind: Kind,
    rates: Mutex<DrainRates>,
    began: Instant,
}

enum Kind {
    Alone(Sidecar),
    Shared(Arc<Shared>),
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn start(settings: Settings) -> Result<Running, Fault> {
        let Settings { config, sharing } = settings;
        let kind = match sharing {
            None => Kind::Alone(Sidecar::start(config).await?),
            Some(sharing) => Kind::Shared(Arc::new(Shared::start(config, sharing, metrics::handle()).await?)),
        };
        Ok(Running { kind, rates: Mutex::default(), began: Instant::now() })
    }

    /// Where its clients connect to, and how it is stopped.
    pub fn listener(&self) -> Listener {
        match &self.kind {
            Kind::Alone(sidecar) => Listener::Gateway(Arc::clone(sidecar.gateway())),
            Kind::Shared(shared) => Listener::Shared(Arc::clone(shared)),
        }
    }
}

impl From<Refused> for Fault {
    fn from(refused: Refused) -> Self {
        let code = match refused.code {
            RefusedCode::Invalid => "config",
            RefusedCode::Forbidden => "denied",
            RefusedCode::WrongPhase => "wrong_phase",
            RefusedCode::Unmapped => "unmapped",
            RefusedCode::Gate => "gate",
            RefusedCode::NotRehearsed => "not_rehearsed",
            RefusedCode::NotDrained => "not_drained",
            RefusedCode::Conflict => "conflict",
            RefusedCode::SideDown => "side_down",
            RefusedCode::Draining => "closed",
            _ => "rejected",
        };
        let reasons: Vec<&str> = refused.gate.iter().map(|reason| reason.code.as_str()).collect();
        let mut context = vec![("why", refused.reason.clone()), ("fix", refused.fix.clone())];
        if let Some(field) = &refused.field {
            context.push(("field", field.clone()));
        }
        if !reasons.is_empty() {
            context.push(("reasons", reasons.join(",")));
        }
        Fault::told(code, refused.to_string(), context)
    }
}

impl From<SidecarError> for Fault {
    fn from(error: SidecarError) -> Self {
        match error {
            SidecarError::Gateway(error) => error.into(),
            other => Fault::told(other.kind().name(), other.to_string(), other.context()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(options: &str) -> SidecarConfig {
        config(Config::default(), options).expect("settings").config
    }

    fn field(options: &str) -> String {
        match config(Config::default(), options) {
            Err(Fault::Argument { field, .. }) => field,
            Err(Fault::Type { option, why }) => crate::type_text("option", &option, why.as_deref()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_option_at_fault_is_named() {
        assert_eq!(field("{}"), "rabbit");
        assert!(field(r#"{"rabbit":7}"#).starts_with("option 'rabbit': a text is wanted, not 7"));
        assert_eq!(field(r#"{"rabbit":"amqp://r","weight":7}"#), "there is no option 'weight'");
        assert_eq!(field(r#"{"rabbit":"amqp://r","fence_timeout_ms":-1}"#), "fence_timeout_ms");
        assert_eq!(field(r#"{"rabbit":"amqp://r","gate_latency_factor":0.5}"#), "gate_latency_factor");
        let both = r#"{"rabbit":"amqp://r","trust_declared":true,"rabbit_management":"http://r"}"#;
        assert_eq!(field(both), "trust_declared");
        assert_eq!(field(r#"{"rabbit":"amqp://r","advertise":"host"}"#), "advertise");
        assert_eq!(field(r#"{"rabbit":"amqp://r","http_token":"secret"}"#), "http_token");
    }

    #[test]
    fn what_is_left_out_is_as_on_the_command_line_and_what_can_be_off_can_be_put_off() {
        let told = made(r#"{"rabbit":"amqp://r"}"#);
        let usual = SidecarConfig::default();
        assert_eq!((told.fence_timeout, told.rollback_after), (usual.fence_timeout, usual.rollback_after));
        assert_eq!((told.gate, told.trust_declared), (usual.gate, false));
        let off =
            r#"{"rabbit":"amqp://r","consumer_timeout_ms":0,"auto_rollback":false,"gate_soak_ms":5,"standby":"off"}"#;
        let told = made(off);
        assert_eq!((told.jetstream.consumer_timeout, told.rollback_after), (None, None));
        assert_eq!((told.gate.soak, told.standby), (Duration::from_millis(5), copies::Standby::Off));
        let both = made(r#"{"rabbit":"amqp://r","standby":"both"}"#);
        assert_eq!([both.standby, usual.standby], [copies::Standby::Both; 2]);
        let nats = made(r#"{"rabbit":"amqp://r","standby":"nats"}"#);
        assert_eq!(nats.standby, copies::Standby::Nats);
        let refused = config(Config::default(), r#"{"rabbit":"amqp://r","standby":"rabbit"}"#);
        assert!(matches!(refused, Err(Fault::Argument { field, .. }) if field == "standby"));
    }

    #[test]
    fn a_refusal_crosses_with_its_code_and_what_to_do() {
        let refused = Refused::invalid("percent", "too much", "less");
        let Fault::Told { code, context, .. } = refused.into() else { panic!("it was told") };
        assert_eq!(code, "config");
        assert!(context.contains(&("field", "percent".to_owned())) && context.contains(&("fix", "less".to_owned())));
    }
}
