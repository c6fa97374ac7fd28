//! Handlers that run outside of this crate, such as in another language: their work is taken as jobs, and answered.

use std::future::Future;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::consumer::{Consumer, ConsumerHandle, NotDone};
use super::delivery::Received;
use crate::dead_letter::Failure;
use crate::error::{Error, ErrorKind, Result};

/// The work of a handler over one consumer; see [`Consumer::jobs`]. Dropping it drains the consumer without waiting, and what
/// is not answered counts as failed (class `dropped`).
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) -> nats_bridge::Result<()> {
/// use nats_bridge::ConsumeConfig;
/// use nats_bridge::consume::Job;
///
/// let consumer = bridge.consume(ConsumeConfig::new("ORDERS", "billing")).await?;
/// // At most 8 messages at a time, those of one customer in their order.
/// let mut jobs = consumer.jobs(8, true);
/// while let Some(job) = jobs.next().await? {
///     match job {
///         Job::Key(message, answer) => answer.give(Ok(message.header("customer").unwrap_or_default().to_owned())),
///         // Pass it on to whatever runs it; the answer may be given from there, at any time.
///         Job::Handle(message, answer) => {
///             println!("{}", message.subject());
///             answer.give(Ok(()));
///         }
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Jobs {
    work: mpsc::Receiver<Job>,
    run: Option<JoinHandle<Result<()>>>,
    handle: ConsumerHandle,
}

/// A piece of work.
#[derive(Debug)]
pub enum Job {
    /// To say which key this message has. Until it is answered, no further key is asked for.
    Key(Received, Answer<String>),
    /// To handle this message.
    Handle(Received, Answer<()>),
}

/// What is to be said about one message. Dropped without a word, the message counts as failed (class `dropped`).
#[derive(Debug)]
pub struct Answer<T>(oneshot::Sender<Result<T, NotDone>>);

impl<T> Answer<T> {
    /// Gives the answer: a failure follows the retry policy.
    pub fn give(self, answer: Result<T, Failure>) {
        // Nobody waits for it when the runtime is shutting down.
        let _ = self.0.send(answer.map_err(NotDone::Failed));
    }

    /// Nobody handled it, and that is no failure: it goes back, as by [`Delivery::give_back`](super::Delivery::give_back). Who cannot go on
    /// drains the consumer first, or it is handed out here again.
    pub fn give_back(self) {
        let _ = self.0.send(Err(NotDone::GivenBack));
    }
}

impl Consumer {
    /// As [`Consumer::run`], or, when `keyed`, as [`Consumer::run_keyed`], for a handler that something else runs: what is to be
    /// done comes as [`Job`]s, at most `concurrency` messages at a time, until the consumer was drained.
    pub fn jobs(self, concurrency: usize, keyed: bool) -> Jobs {
        let handle = self.handle();
        let (asks, work) = mpsc::channel(concurrency.clamp(1, 1024));
        let handler = {
            let asks = asks.clone();
            move |received| asked(asks.clone(), received, Job::Handle)
        };
        let run = match keyed {
            true => {
                let key = move |received| asked(asks.clone(), received, Job::Key);
                tokio::spawn(self.in_lanes(concurrency, key, handler))
            }
            false => {
                drop(asks);
                tokio::spawn(self.work(concurrency, handler))
            }
        };
        Jobs { work, run: Some(run), handle }
    }
}

fn asked<T>(
    asks: mpsc::Sender<Job>,
    received: Received,
    job: impl FnOnce(Received, Answer<T>) -> Job,
) -> impl Future<Output = Result<T, NotDone>> {
    let (answer, answered) = oneshot::channel();
    let job = job(received, Answer(answer));
    async move {
        // Sent or not, whoever has the job tells, or drops it.
        let _ = asks.send(job).await;
        let nobody = |_| Err(NotDone::Failed(Failure::of("dropped", "nobody said what became of it")));
        answered.await.unwrap_or_else(nobody)
    }
}

impl Jobs {
    /// Waits for the next piece of work; none when the consumer was drained and everything is answered.
    ///
    /// # Errors
    /// As [`Consumer::next`]. After an error, and after none, there is nothing more.
    ///
    /// # Cancel safety
    /// Cancel safe: no work is lost.
    pub async fn next(&mut self) -> Result<Option<Job>> {
        if let Some(job) = self.work.recv().await {
            return Ok(Some(job));
        }
        let Some(run) = &mut self.run else { return Ok(None) };
        let ended = run.await;
        self.run = None;
        match ended {
            Ok(ended) => ended.map(|()| None),
            // The runtime is shutting down.
            Err(error) => Err(Error::new(ErrorKind::Closed).because(error)),
        }
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.handle.begin_to_drain();
    }
}
