//! Handing out what can be decrypted and fits its schema, in its order and in the version that is wanted; giving up what cannot or does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use super::delivery::Received;
use super::held::{Count, Token};
use super::shared::Shared;
use crate::dead_letter::{Failure, REDRIVES, Reason, first_id};
use crate::encryption::{ENCRYPTED, Parts, WrappedKey};
use crate::error::Error;
use crate::retry::RetryPolicy;
use crate::schema::{Named, SCHEMA};

impl Shared {
    /// Takes the next message to hand out, decrypted and checked where the consumer does that, unless nothing may be handed out.
    pub fn take_ready(self: &Arc<Self>, now: Instant) -> Option<(Received, Token)> {
        loop {
            // What is here when it drains goes back.
            if self.drain.is_cancelled() {
                return None;
            }
            if self.paused.load(Ordering::Acquire) || self.fetching.load(Ordering::Acquire) || !self.may_work(now) {
                return None;
            }
            let (received, token) = {
                let mut inner = self.lock();
                let (received, token) = inner.ready.pop_front()?;
                if received.redelivered() && inner.held.get_mut(token).is_some_and(|t| t.count != Count::Known) {
                    inner.ready.push_front((received, token));
                    drop(inner);
                    self.wait_for(Wanted::Count, token);
                    return None;
                }
                // Nothing to open: no second look at the table.
                if self.decrypter.is_none() && self.checker.is_none() {
                    if let Some(tenant) = inner.held.get_mut(token) {
                        tenant.started = Some(now);
                    }
                    return Some((received, token));
                }
                (received, token)
            };
            match self.open(&received) {
                Ok(opened) => {
                    if let Some(tenant) = self.lock().held.get_mut(token) {
                        tenant.started = Some(now);
                    }
                    return Some((opened.unwrap_or(received), token));
                }
                Err(Err((reason, error))) => self.refuse(received, token, reason, error),
                // It stays the first one, and the others wait behind it.
                Err(Ok(wanted)) => {
                    self.lock().ready.push_front((received, token));
                    self.wait_for(wanted, token);
                    return None;
                }
            }
        }
    }

    fn wait_for(self: &Arc<Self>, wanted: Wanted, first: Token) {
        self.fetching.store(true, Ordering::Release);
        tokio::spawn(self.clone().fetch(wanted, first));
    }

    // None: it is handed out as it is.
    fn open(&self, received: &Received) -> Result<Option<Received>, Result<Wanted, Refusal>> {
        let decrypted = self.decrypt(received).map_err(|why| match why {
            Ok(key) => Ok(Wanted::Key(key)),
            Err(error) => Err((Reason::Decrypt, error)),
        })?;
        let plain = decrypted.as_ref().unwrap_or(received);
        let upcast = self.check(plain).and_then(|()| self.upcast(plain)).map_err(|why| match why {
            Ok(schema) => Ok(Wanted::Schema(schema)),
            Err(error) => Err((Reason::Schema, error)),
        })?;
        Ok(upcast.or(decrypted))
    }

    // None: it stays what it is.
    fn upcast(&self, received: &Received) -> Result<Option<Received>, Result<Named, Error>> {
        let (Some(checker), Some(steps)) = (&self.checker, &self.config.upcast) else { return Ok(None) };
        let Some(stated) = received.header(SCHEMA) else { return Ok(None) };
        let show_value = received.key_id().is_none();
        let upcast = checker.upcast(steps, stated, received.subject(), received.payload(), show_value)?;
        Ok(upcast.map(|(payload, schema)| received.clone().upcast(payload, schema)))
    }

    fn check(&self, received: &Received) -> Result<(), Result<Named, Error>> {
        let Some(checker) = &self.checker else { return Ok(()) };
        let headers = received.headers().into_iter().flat_map(|headers| headers.iter());
        let named = headers.filter(|(name, _)| AsRef::<str>::as_ref(*name) == SCHEMA);
        let named: Vec<&str> = named.flat_map(|(_, values)| values.iter().map(|value| value.as_str())).collect();
        if self.config.accept_without_schema && named.is_empty() {
            return Ok(());
        }
        checker.check(&named, received.subject(), received.payload(), received.key_id().is_none())
    }

    // None: it is handed out as it is.
    fn decrypt(&self, received: &Received) -> Result<Option<Received>, Result<WrappedKey, Error>> {
        let Some(decrypter) = &self.decrypter else { return Ok(None) };
        if self.config.accept_unencrypted && received.header(ENCRYPTED).is_none() {
            return Ok(None);
        }
        let redrives = received.header(REDRIVES).and_then(|n| n.parse().ok()).unwrap_or(0);
        let headers = received.headers().into_iter().flat_map(|headers| headers.iter());
        let parts = Parts {
            subject: received.subject(),
            id: received.id().map(|id| first_id(id, redrives)),
            headers: headers
                .flat_map(|(name, values)| values.iter().map(move |value| (name.as_ref(), value.as_str())))
                .collect(),
            payload: received.stored_payload(),
        };
        decrypter.decrypt(&parts).map(|decrypted| Some(received.clone().decrypted(decrypted)))
    }

    // Has a key unwrapped, or a schema read, for the first message. While that cannot be the consumer is paused.
    async fn fetch(self: Arc<Self>, wanted: Wanted, token: Token) {
        let fetched = tokio::select! {
            fetched = self.fetch_until_it_is_known(&wanted, token) => fetched,
            // What is ready is given back to the server.
            () = self.drain.cancelled() => Ok(()),
            () = self.end.cancelled() => Ok(()),
        };
        if let (Err(error), Some(reason)) = (fetched, wanted.reason()) {
            let first = {
                let mut inner = self.lock();
                let same = inner.ready.front().is_some_and(|(_, first)| *first == token);
                same.then(|| inner.ready.pop_front()).flatten()
            };
            if let Some((received, token)) = first {
                self.refuse(received, token, reason, error);
            }
        }
        self.fetching.store(false, Ordering::Release);
        self.arrived.notify_one();
        self.credit.notify_one();
    }

    async fn fetch_until_it_is_known(self: &Arc<Self>, wanted: &Wanted, first: Token) -> Result<(), Error> {
        let mut paused = None;
        let pauses = RetryPolicy { max_pause: std::time::Duration::from_secs(15), ..RetryPolicy::default() };
        for attempt in 1.. {
            let fetched = match (wanted, &self.decrypter, &self.checker) {
                (Wanted::Key(key), Some(decrypter), _) => decrypter.fetch(key).await,
                (Wanted::Schema(named), _, Some(checker)) => checker.fetch(named).await,
                (Wanted::Count, ..) => self.count_first(first).await,
                // Nobody else wants them.
                _ => Ok(()),
            };
            let error = match fetched {
                Err(error) if error.is_temporary() => error,
                known => return known,
            };
            if paused.is_none() {
                self.stuck(&error, wanted.cannot());
                paused = Some(Paused(self.clone()));
            }
            tokio::time::sleep(pauses.full_pause(attempt).mul_f64(0.5 + 0.5 * rand::random::<f64>())).await;
        }
        Ok(())
    }

    // It becomes a dead letter as it was stored; no further attempt would help.
    fn refuse(self: &Arc<Self>, received: Received, token: Token, reason: Reason, error: Error) {
        match reason {
            Reason::Schema => self.metrics.schema_violations.increment(1),
            _ => self.metrics.not_decrypted.increment(1),
        }
        let failure = Failure::of(error.kind().name(), error.to_string());
        let now = SystemTime::now();
        let why = self.lock().outcomes.failed(received.sequence(), received.count(), reason, failure, now);
        let shared = self.clone();
        // An error has paused the consumer and goes on being tried.
        tokio::spawn(async move { shared.give_up(received, token, why).await.map(drop) });
    }
}

/// What the first message waits for.
enum Wanted {
    Key(WrappedKey),
    Schema(Named),
    /// Which attempt it is, or that it is known to be the last one.
    Count,
}

/// Why a message is not handed out.
type Refusal = (Reason, Error);

impl Wanted {
    /// What the message is given up for, when it cannot be had.
    fn reason(&self) -> Option<Reason> {
        match self {
            Wanted::Key(_) => Some(Reason::Decrypt),
            Wanted::Schema(_) => Some(Reason::Schema),
            Wanted::Count => None,
        }
    }

    fn cannot(&self) -> &'static str {
        match self {
            Wanted::Key(_) | Wanted::Schema(_) => "the key or schema of the next message cannot be asked for",
            Wanted::Count => "how often the next message was begun cannot be asked for",
        }
    }
}

/// The consumer's pause, which ends with it.
struct Paused(Arc<Shared>);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.unstuck();
    }
}
