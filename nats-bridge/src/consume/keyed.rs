//! Running a handler over many keys at once, and over one key in order.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use foldhash::HashMap;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::consumer::{Consumer, NotDone, outcome};
use super::delivery::{Delivery, Received};
use crate::dead_letter::{Failure, Reason};
use crate::error::Result;
use crate::retry::Next;

/// What waits behind the message of its key that is being handled. Bounded by what the consumer may hold.
#[derive(Default)]
struct Lanes(Mutex<HashMap<String, VecDeque<Delivery>>>);

impl Consumer {
    /// Runs `handler` over the deliveries, at most `concurrency` at a time, and those of one key one after the other in the
    /// order of the stream, until the consumer was drained.
    ///
    /// A message that fails is tried again here, after the policy's pause, while the later ones of its key wait; other
    /// keys go on, and the pause takes no part of `concurrency`. A message that is given up becomes a dead letter, and the
    /// next one of its key goes on. Such attempts are counted by this process: when it dies in between, another one begins
    /// with the server's count of deliveries. `max_run` is for each attempt.
    ///
    /// Order holds among the deliveries of this consumer: let only one process at a time consume a key, such as one for
    /// each subject filter. A drain gives back what waits, and JetStream delivers what was given back in no order that is
    /// promised.
    ///
    /// # Errors
    /// As [`Consumer::next`], after the running handlers ended.
    ///
    /// # Cancel safety
    /// Dropping the future ends running handlers where they are; their deliveries count as dropped.
    pub async fn run_keyed<K, H, F>(self, concurrency: usize, key: K, handler: H) -> Result<()>
    where
        K: Fn(&Received) -> String,
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.in_lanes(concurrency, move |received| std::future::ready(Ok::<_, Failure>(key(&received))), handler).await
    }

    /// As [`Consumer::run_keyed`], with keys that are waited for, one after the other. A message whose key cannot be told
    /// follows the retry policy outside of all lanes.
    pub(super) async fn in_lanes<K, T, H, F, E>(mut self, concurrency: usize, key: K, handler: H) -> Result<()>
    where
        K: Fn(Received) -> T,
        T: Future<Output = Result<String, E>>,
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<NotDone> + Send + 'static,
    {
        let (lanes, handler) = (Arc::new(Lanes::default()), Arc::new(handler));
        let turns = Arc::new(Semaphore::new(concurrency.max(1)));
        let mut running = JoinSet::new();
        let ended = loop {
            let delivery = tokio::select! {
                delivery = self.next() => delivery,
                // Reaps what ended, so that the set does not grow while nothing comes.
                Some(_) = running.join_next(), if !running.is_empty() => continue,
            };
            let delivery = match delivery {
                Ok(Some(delivery)) => delivery,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            delivery.wait();
            let key = match key(delivery.received()).await {
                Ok(key) => key,
                Err(not_done) => {
                    let not_done = not_done.into();
                    running.spawn(async move { without_key(delivery, not_done).await });
                    continue;
                }
            };
            if let Some(first) = lanes.enter(&key, delivery) {
                let (lanes, handler, turns) = (lanes.clone(), handler.clone(), turns.clone());
                running.spawn(async move {
                    let mut next = Some(first);
                    while let Some(delivery) = next {
                        if !in_turn(&turns, &*handler, delivery).await {
                            lanes.give_back(&key);
                        }
                        next = lanes.next(&key);
                    }
                });
            }
        };
        while running.join_next().await.is_some() {}
        ended
    }
}

impl Lanes {
    // Gives the delivery back when nothing of its key is being handled; else it waits.
    fn enter(&self, key: &str, delivery: Delivery) -> Option<Delivery> {
        let mut lanes = self.lock();
        match lanes.get_mut(key) {
            Some(waiting) => {
                waiting.push_back(delivery);
                None
            }
            None => {
                lanes.insert(key.to_owned(), VecDeque::new());
                Some(delivery)
            }
        }
    }

    fn next(&self, key: &str) -> Option<Delivery> {
        let mut lanes = self.lock();
        let next = lanes.get_mut(key).and_then(VecDeque::pop_front);
        if next.is_none() {
            lanes.remove(key);
        }
        next
    }

    // Those behind one that was given back.
    fn give_back(&self, key: &str) {
        let waiting = self.lock().get_mut(key).map(std::mem::take).unwrap_or_default();
        for delivery in waiting {
            delivery.give_back();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Delivery>>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

async fn without_key(delivery: Delivery, not_done: NotDone) {
    let NotDone::Failed(failure) = not_done else { return delivery.give_back() };
    if let Err(error) = delivery.retry(failure).await {
        tracing::warn!(%error, "a delivery could not be settled");
    }
}

// Handles one message until it is settled. False: it was given back, as the consumer is drained or its handler has ended.
async fn in_turn<H, F, E>(turns: &Semaphore, handler: &H, mut delivery: Delivery) -> bool
where
    H: Fn(Received) -> F,
    F: Future<Output = Result<(), E>>,
    E: Into<NotDone>,
{
    loop {
        let failure = {
            let turn = tokio::select! {
                biased;
                () = delivery.drained() => None,
                // It is closed nowhere.
                turn = turns.acquire() => Some(turn),
            };
            let Some(_turn) = turn else {
                delivery.give_back();
                return false;
            };
            delivery.start(Instant::now());
            outcome(handler, delivery.received()).await
        };
        let failure = match failure {
            Ok(()) => None,
            Err(NotDone::Failed(failure)) => Some(failure),
            Err(NotDone::GivenBack) => {
                delivery.give_back();
                return false;
            }
        };
        let settled = match failure {
            None => delivery.ack().await,
            Some(failure) if failure.give_up.is_some() => delivery.retry(failure).await,
            Some(failure) => match delivery.failed_here(failure.clone(), SystemTime::now()) {
                Next::After(pause) => {
                    delivery.wait();
                    if !delivery.pause(pause).await {
                        delivery.give_back();
                        return false;
                    }
                    continue;
                }
                Next::GiveUp => delivery.dead_letter(Reason::HandlerError, failure).await,
            },
        };
        if let Err(error) = settled {
            tracing::warn!(%error, "a delivery could not be settled");
        }
        return true;
    }
}
