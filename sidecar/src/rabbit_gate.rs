//! RabbitMQ is tried before the sidecar says that it is ready.
//!
//! A login that RabbitMQ refuses ends the start: it is a mistake in the URL. A RabbitMQ that does not answer does not: a
//! sidecar that is restarted while RabbitMQ is down has to serve what JetStream owns. It says so until RabbitMQ answers.

use std::sync::{Arc, Weak};
use std::time::Duration;

use amqp_compat::error::{AmqpError, ReplyCode};

use crate::control::Cutover;

/// How often a RabbitMQ that does not answer is tried again, and how often that is said.
const AGAIN: Duration = Duration::from_secs(5);
const SAID: u32 = 6;

/// Tries RabbitMQ once; goes on trying in the background when it does not answer.
///
/// # Errors
/// RabbitMQ's own, when it refuses the sidecar's own login or vhost.
pub(crate) async fn pass(cutover: &Arc<Cutover>, rabbit: &str, user: &str) -> Result<(), AmqpError> {
    let Err(error) = cutover.try_rabbit().await else { return Ok(()) };
    if is_refusal(&error) {
        return Err(error);
    }
    say(rabbit, user, &error);
    tokio::spawn(go_on(Arc::downgrade(cutover), rabbit.to_owned(), user.to_owned()));
    Ok(())
}

async fn go_on(cutover: Weak<Cutover>, rabbit: String, user: String) {
    for attempt in 1u32.. {
        tokio::time::sleep(AGAIN).await;
        let Some(cutover) = cutover.upgrade() else { return };
        match cutover.try_rabbit().await {
            Ok(()) => {
                tracing::info!(rabbit, "RabbitMQ answers");
                return;
            }
            Err(error) if attempt.is_multiple_of(SAID) => say(&rabbit, &user, &error),
            Err(_) => {}
        }
    }
}

fn say(rabbit: &str, user: &str, error: &AmqpError) {
    if is_refusal(error) {
        tracing::warn!(%error, "rabbit {rabbit}: RabbitMQ refuses user '{user}'; weights cannot be changed until it is let in");
    } else {
        tracing::warn!(
            %error,
            "rabbit {rabbit}: RabbitMQ does not answer; clients are let in once it does, or at once where JetStream owns \
             everything. Tried every {} s",
            AGAIN.as_secs()
        );
    }
}

fn is_refusal(error: &AmqpError) -> bool {
    matches!(error.code, ReplyCode::AccessRefused | ReplyCode::NotAllowed)
}
