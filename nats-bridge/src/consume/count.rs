//! Which attempt a delivery is, where that has to be asked for; what is kept for those who get the message next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foldhash::HashMap;
use futures::StreamExt;

use super::attempts::{Begun, Verdict, judge, judge_by_deliveries};
use super::delivery::Received;
use super::held::{Count, Token};
use super::outcomes::Remembered;
use super::place::Place;
use super::shared::{Inner, Shared};
use crate::dead_letter::{Failure, Reason};
use crate::error::Result;

/// Messages that are asked for, or said to be unbegun, at once.
const AT_ONCE: usize = 64;
/// How long a drain may take to say what was not begun.
const PATIENCE: Duration = Duration::from_secs(2);

impl Inner {
    /// What this process knows of a message that came again; none where another one may know more.
    pub(super) fn judged_here(&self, place: &Place, most: u64) -> Option<Verdict> {
        let known = self.outcomes.get(place.stream_sequence).filter(|known| place.delivered <= known.delivery + 1)?;
        let begun = Begun { attempts: known.attempt, delivery: known.delivery, stored_at: place.stored_at };
        Some(judge(Some(begun), place, most))
    }
}

impl Shared {
    fn most(&self) -> u64 {
        u64::from(self.config.retry.attempts)
    }

    /// Finds out which attempts those are that are ready, and makes dead letters of those that had their last one.
    ///
    /// # Errors
    /// Such as may pass.
    pub async fn count_ready(self: &Arc<Self>) -> Result<()> {
        loop {
            let asks: Vec<(Token, Place)> = {
                let mut inner = self.lock();
                let Inner { ready, held, .. } = &mut *inner;
                let asks = ready.iter().filter(|(_, t)| held.get_mut(*t).is_some_and(|t| t.count == Count::Asks));
                asks.take(AT_ONCE).map(|(received, token)| (*token, *received.place())).collect()
            };
            if asks.is_empty() {
                return Ok(());
            }
            let verdicts = self.judged(asks).await?;
            self.take_in(&verdicts);
        }
    }

    /// The same before the first one is handed out; that it is its last attempt is kept.
    ///
    /// # Errors
    /// Such as may pass.
    pub async fn count_first(self: &Arc<Self>, first: Token) -> Result<()> {
        self.count_ready().await?;
        let last = {
            let mut inner = self.lock();
            let received =
                inner.ready.front().filter(|(_, token)| *token == first).map(|(received, _)| received.clone());
            received.filter(|_| inner.held.get_mut(first).is_some_and(|tenant| tenant.count == Count::Last))
        };
        if let Some(received) = last {
            self.kept.put(received.sequence(), begun(&received, received.attempt())).await?;
            let verdict = match self.kept.is_refused() {
                true => judge_by_deliveries(received.place(), self.most()),
                false => Verdict::HandOut(received.attempt()),
            };
            self.take_in(&[(first, verdict)]);
        }
        Ok(())
    }

    async fn judged(&self, asks: Vec<(Token, Place)>) -> Result<Vec<(Token, Verdict)>> {
        let judged = asks.into_iter().map(|(token, place)| async move {
            let kept = self.kept.get(place.stream_sequence).await?;
            let most = self.most();
            Ok(match self.kept.is_refused() {
                true => (token, judge_by_deliveries(&place, most)),
                false => (token, judge(kept, &place, most)),
            })
        });
        let judged: Vec<_> = futures::stream::iter(judged).buffered(AT_ONCE).collect().await;
        judged.into_iter().collect()
    }

    /// Writes verdicts down, and gives up what is to be.
    fn take_in(self: &Arc<Self>, verdicts: &[(Token, Verdict)]) {
        let mut given_up = Vec::new();
        let mut inner = self.lock();
        let Inner { ready, held, .. } = &mut *inner;
        let mut verdicts: HashMap<Token, Verdict> = verdicts.iter().copied().collect();
        let mut rest = VecDeque::with_capacity(ready.len());
        for (received, token) in ready.drain(..) {
            let Some(verdict) = verdicts.remove(&token) else {
                rest.push_back((received, token));
                continue;
            };
            let (attempt, count) = match verdict {
                Verdict::HandOut(attempt) | Verdict::GiveUp(attempt) => (attempt, Count::Known),
                Verdict::Last(attempt) => (attempt, Count::Last),
            };
            if let Some(tenant) = held.get_mut(token) {
                (tenant.attempt, tenant.count) = (attempt, count);
            }
            let received = received.at_attempt(attempt);
            match verdict {
                Verdict::GiveUp(_) => given_up.push((received, token)),
                _ => rest.push_back((received, token)),
            }
        }
        *ready = rest;
        drop(inner);
        for (received, token) in given_up {
            self.give_up_unreported(received, token);
        }
    }

    /// Makes a dead letter of a message whose last attempt ended without an outcome.
    pub fn give_up_unreported(self: &Arc<Self>, received: Received, token: Token) {
        let (sequence, last) = (received.sequence(), received.attempt() - 1);
        let now = SystemTime::now();
        let why = {
            let inner = self.lock();
            match inner.outcomes.get(sequence) {
                Some(known) if known.attempt == last => known.clone(),
                known => Remembered {
                    first: known.map_or(now, |known| known.first),
                    last: now,
                    attempt: last,
                    delivery: received.count().1 - 1,
                    reason: Reason::CrashLoop,
                    failure: Failure::of("crash_loop", format!("attempt {last} ended without an outcome")),
                },
            }
        };
        let shared = self.clone();
        // An error has paused the consumer and goes on being tried.
        tokio::spawn(async move { shared.give_up(received, token, why).await.map(drop) });
    }

    /// Says of messages that are about to be given back that this delivery of them was not begun. What cannot be said within 2 s costs
    /// them an attempt.
    pub async fn keep_unbegun(&self, messages: &[(Received, Token)]) {
        if messages.is_empty() || self.kept.is_refused() {
            return;
        }
        let asks: Vec<(Token, Place)> = {
            let mut inner = self.lock();
            let asks = messages.iter().filter(|(_, t)| inner.held.get_mut(*t).is_some_and(|t| t.count == Count::Asks));
            asks.map(|(received, token)| (*token, *received.place())).collect()
        };
        let said = async {
            let asked: HashMap<Token, Verdict> = self.judged(asks).await?.into_iter().collect();
            let unbegun: Vec<(u64, Begun)> = messages
                .iter()
                .map(|(received, token)| {
                    let attempt = match asked.get(token) {
                        None => received.attempt(),
                        Some(Verdict::HandOut(attempt) | Verdict::Last(attempt) | Verdict::GiveUp(attempt)) => *attempt,
                    };
                    (received.sequence(), begun(received, attempt - 1))
                })
                .collect();
            let said = unbegun.into_iter().map(|(sequence, begun)| self.kept.put(sequence, begun));
            let said: Vec<Result<()>> = futures::stream::iter(said).buffer_unordered(AT_ONCE).collect().await;
            said.into_iter().collect::<Result<()>>()
        };
        let why = match tokio::time::timeout(PATIENCE, said).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::warn!(
            stream = self.config.stream,
            consumer = self.config.name,
            why,
            messages = messages.len(),
            "what is given back unbegun may count as an attempt"
        );
    }
}

fn begun(received: &Received, attempts: u64) -> Begun {
    let Place { delivered, stored_at, .. } = *received.place();
    Begun { attempts, delivery: delivered, stored_at }
}
