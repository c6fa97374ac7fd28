//! Copies of what lay in its queue before there were copies, and their end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use amqp_compat::backend::Message;
use amqp_compat::error::{AmqpError, ReplyCode};
use tokio::sync::{mpsc, oneshot};

use super::backlog::{Known, Likeness, Place};
use super::peek::Peek;
use super::store::{self, Job, Keep};
use super::{Copies, Waits, lock};
use crate::dual::stamp;
use crate::fence::QueueName;

/// A copy to make late.
#[derive(Debug)]
pub struct Late {
    /// Its id.
    pub id: u128,
    /// The epoch of its stamp; 0 without one.
    pub epoch: u64,
    /// Where its message lies.
    pub place: Place,
    /// Without stamp.
    pub message: Message,
}

impl Copies {
    /// Makes a copy of a message that its owner holds; `told` is told its id and whether it is stored.
    pub fn keep_late(&self, queue: &QueueName, late: Late, told: mpsc::UnboundedSender<(u128, bool)>) {
        let QueueName { vhost, queue: name } = queue;
        let Late { id, epoch, place, message } = late;
        let message = stamp::late_copy(&message, id, epoch, place, &store::name(name));
        let waiter = Arc::new(self.under_way_for(Waits::Late(told, id)));
        lock(&self.late).entry(queue.clone()).or_default().add(id);
        self.any_late.store(true, Ordering::Release);
        self.tell(vhost, Job::Keep(Box::new(Keep { queue: Arc::clone(name), id, message, waiter })));
    }

    /// The copies of a queue that are there, read from where they are kept.
    ///
    /// # Errors
    /// What the side that keeps them said, or that it did not answer.
    pub async fn known(&self, queue: &QueueName) -> Result<Known, AmqpError> {
        let _reading = self.reading.lock().await;
        let (answer, here) = oneshot::channel();
        let mut known = Known::default();
        if lock(&self.stores).contains_key(&queue.vhost) {
            self.tell(&queue.vhost, Job::Here { queue: Arc::clone(&queue.queue), answer });
            let ended = |_| AmqpError::new(ReplyCode::InternalError, "no copies are kept any more");
            here.await.map_err(ended)?.into_iter().for_each(|(id, place)| known.add(id, place));
        }
        let mut talk = self.operator.talk(&queue.vhost).await?;
        let mut peek = Peek::new(&mut talk, self.operator.side(), &store::name(&queue.queue));
        peek.begin().await?;
        while let Some(copy) = peek.next().await? {
            if let Some(id) = stamp::id_of(&copy) {
                known.add(id, stamp::place_of(&copy, id));
            }
        }
        peek.give_back().await?;
        Ok(known)
    }

    /// A queue may have late copies: which it has is about to be known. Settlements are remembered until then.
    pub fn expect_late(&self, queue: &QueueName) {
        lock(&self.late).entry(queue.clone()).or_default();
        self.any_late.store(true, Ordering::Release);
    }

    /// A queue has these copies.
    pub fn load_late(&self, queue: &QueueName, known: &Known) {
        let over = lock(&self.late).entry(queue.clone()).or_default().load(known.ranges());
        self.any_late.store(true, Ordering::Release);
        for id in over {
            self.tell(&queue.vhost, Job::Settled { queue: Arc::clone(&queue.queue), id });
        }
    }

    /// What a message without stamp of a queue with late copies is known by.
    pub fn likeness(&self, queue: &QueueName, message: &Message) -> Option<Likeness> {
        let late = self.any_late.load(Ordering::Acquire) && lock(&self.late).contains_key(queue);
        late.then(|| Likeness::of(message))
    }

    /// A delivery of the owner's without stamp ended for good.
    pub fn settled_alike(&self, queue: &QueueName, likeness: Likeness, rejected: bool) {
        // A dead letter has no stamp either: the copy of what died stays until nothing is left.
        if rejected && self.routes.outlives(&queue.vhost, &queue.queue) == Some(true) {
            return;
        }
        let over = {
            let mut late = lock(&self.late);
            let Some(unsettled) = late.get_mut(queue) else { return };
            let over = unsettled.settled(likeness);
            if unsettled.is_empty() {
                late.remove(queue);
            }
            over
        };
        if let Some(id) = over {
            self.tell(&queue.vhost, Job::Settled { queue: Arc::clone(&queue.queue), id });
        }
    }
}
