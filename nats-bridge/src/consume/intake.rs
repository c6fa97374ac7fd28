//! A service that moves from plain subscriptions to durable consumers, and back, by a flag.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::stream::SelectAll;
use futures::{FutureExt, StreamExt};
use tokio::task::JoinSet;

use super::delivery::Received;
use super::place::Place;
use super::{ConsumeConfig, Consumer};
use crate::bridge::Bridge;
use crate::dead_letter::Failure;
use crate::error::{Error, ErrorKind, Result};

/// The variable of [`use_jetstream`].
pub const USE_JETSTREAM: &str = "USE_JETSTREAM";

/// Messages for one handler, from a durable consumer or from plain subscriptions; see [`Bridge::intake`].
///
/// ```no_run
/// # async fn example() -> nats_bridge::Result<()> {
/// use nats_bridge::consume::use_jetstream;
/// use nats_bridge::{Bridge, ConsumeConfig};
///
/// let bridge = Bridge::connect("nats://127.0.0.1:4222").await?;
/// let config = ConsumeConfig {
///     filter_subjects: vec!["orders.>".into()],
///     ..ConsumeConfig::new("ORDERS", "billing")
/// };
/// // USE_JETSTREAM=1 makes it durable; without it, all is as before.
/// let intake = bridge.intake(use_jetstream()?, config).await?;
/// intake
///     .run(8, |received| async move {
///         println!("{}", received.subject());
///         Ok(())
///     })
///     .await
/// # }
/// ```
#[derive(Debug)]
pub struct Intake(Kind);

#[derive(Debug)]
enum Kind {
    Durable(Consumer),
    Plain(SelectAll<async_nats::Subscriber>, String),
}

/// Whether `USE_JETSTREAM` says so: `1` or `true`; `0`, `false`, empty or not set: no.
///
/// # Errors
/// `Config`: it says something else.
pub fn use_jetstream() -> Result<bool> {
    flag(std::env::var_os(USE_JETSTREAM).map(|value| value.to_string_lossy().into_owned()).as_deref())
}

fn flag(value: Option<&str>) -> Result<bool> {
    match value.map(|value| value.trim().to_ascii_lowercase()).as_deref() {
        Some("1" | "true") => Ok(true),
        None | Some("" | "0" | "false") => Ok(false),
        Some(other) => Err(Error::new(ErrorKind::Config)
            .with("variable", USE_JETSTREAM)
            .with("value", other.escape_debug())
            .with("why", "1, true, 0 or false is expected")),
    }
}

impl Bridge {
    /// Takes messages on [`filter_subjects`](ConsumeConfig::filter_subjects): `durable`, as [`Bridge::consume`] does; else by plain subscriptions, as a
    /// queue group with the consumer's name.
    ///
    /// A plain message is handed out at most once: what comes while nobody subscribes, or while a handler fails or 65 536 wait here, is lost, as
    /// without this crate. So whatever asks for more is refused when it is not `durable`.
    ///
    /// # Errors
    /// `Config`: plain, there is no subject, or a guarantee is asked for that needs a stream. Else as [`Bridge::consume`].
    pub async fn intake(&self, durable: bool, config: ConsumeConfig) -> Result<Intake> {
        if durable {
            return self.consume(config).await.map(|consumer| Intake(Kind::Durable(consumer)));
        }
        let wrong =
            |field: &'static str, why: &'static str| Error::setting(field, why).within("consumer", &config.name);
        let needs = [
            ("decrypt", config.decrypt.is_some()),
            ("schemas", config.schemas.is_some()),
            ("upcast", config.upcast.is_some()),
            ("single_active", config.single_active),
        ];
        if let Some((field, _)) = needs.into_iter().find(|(_, asked)| *asked) {
            return Err(wrong(field, "a plain subscription cannot keep this: it needs a stream"));
        }
        if config.filter_subjects.is_empty() {
            return Err(wrong("filter_subjects", "a plain subscription needs subjects"));
        }
        let mut all = SelectAll::new();
        for subject in &config.filter_subjects {
            let subscribed = self.client().queue_subscribe(subject.clone(), config.name.clone()).await;
            all.push(subscribed.map_err(|e| wrong("filter_subjects", "not a legal subject").because(e))?);
        }
        // Until the server has it, what is published goes past it.
        let flushed = self.client().flush().await;
        flushed.map_err(|e| Error::new(ErrorKind::Unreachable).with("consumer", &config.name).because(e))?;
        Ok(Intake(Kind::Plain(all, config.name)))
    }
}

impl Intake {
    /// Whether its messages come from a stream.
    pub fn is_durable(&self) -> bool {
        matches!(self.0, Kind::Durable(_))
    }

    /// Runs `handler` over the messages, at most `concurrency` at a time, until it is drained or the connection is closed.
    ///
    /// Durable, as [`Consumer::run`]. Plain, a failure is logged and counted (`natsbridge_plain_failures_total`), and the message is gone.
    ///
    /// # Errors
    /// As [`Consumer::run`].
    ///
    /// # Cancel safety
    /// As [`Consumer::run`]; plain messages that are being handled are gone.
    pub async fn run<H, F>(self, concurrency: usize, handler: H) -> Result<()>
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = std::result::Result<(), Failure>> + Send + 'static,
    {
        let (mut messages, name) = match self.0 {
            Kind::Durable(consumer) => return consumer.run(concurrency, handler).await,
            Kind::Plain(messages, name) => (messages, name),
        };
        let handler = Arc::new(handler);
        let failures = metrics::counter!("natsbridge_plain_failures_total", "consumer" => name.clone());
        let mut running = JoinSet::new();
        loop {
            while running.len() >= concurrency.max(1) {
                running.join_next().await;
            }
            let Some(message) = messages.next().await else { break };
            let place = Place { delivered: 1, stream_sequence: 0, stored_at: 0, pending: 0 };
            let received = Received::new(message, place, None);
            let (handler, failures, name) = (handler.clone(), failures.clone(), name.clone());
            running.spawn(async move {
                let subject = received.subject().to_owned();
                let handled = AssertUnwindSafe(async { handler(received).await }).catch_unwind().await;
                let failure = match handled {
                    Ok(Ok(())) => return,
                    Ok(Err(failure)) => failure,
                    Err(_) => Failure::of("panic", "the handler panicked"),
                };
                failures.increment(1);
                tracing::error!(
                    consumer = name,
                    subject,
                    class = failure.class,
                    detail = failure.detail,
                    "a plain message was not handled, and is gone"
                );
            });
        }
        while running.join_next().await.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_one_or_zero() {
        for (value, durable) in
            [(Some("1"), true), (Some(" TRUE "), true), (Some("0"), false), (Some(""), false), (None, false)]
        {
            assert_eq!(flag(value).map_err(|e| e.kind()), Ok(durable), "{value:?}");
        }
        let error = flag(Some("yes please")).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("USE_JETSTREAM"), "{error}");
    }
}
