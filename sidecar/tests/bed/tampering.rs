//! Something between the sidecar and a real JetStream that does to one delivery what must never happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use amqp_compat::backend::{Backend, Command, Delivery, Event, LINK_CAPACITY, Link, Login, Outcome};
use amqp_compat::error::AmqpError;
use async_trait::async_trait;
use smallvec::SmallVec;
use tokio::sync::mpsc;

/// What is done to a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Another payload.
    Corrupt,
    /// Taken out of the queue and not delivered.
    Drop,
    /// Delivered after the one behind it.
    Reorder,
    /// Delivered twice.
    Duplicate,
}

/// A deed, and whether it is to be done to the next delivery.
pub struct Fault {
    pub deed: Deed,
    armed: AtomicBool,
}

impl Fault {
    pub fn new(deed: Deed) -> Arc<Self> {
        Arc::new(Self { deed, armed: AtomicBool::new(false) })
    }

    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }

    /// Whether it has been done.
    pub fn done(&self) -> bool {
        !self.armed.load(Ordering::Relaxed)
    }
}

/// A backend whose deliveries are tampered with.
pub struct Tampering {
    inner: Arc<dyn Backend>,
    fault: Arc<Fault>,
}

impl Tampering {
    pub fn new(inner: Arc<dyn Backend>, fault: Arc<Fault>) -> Self {
        Self { inner, fault }
    }
}

#[async_trait]
impl Backend for Tampering {
    async fn open(&self, login: Login) -> Result<Link, AmqpError> {
        let Link { commands, mut events } = self.inner.open(login).await?;
        let (sender, receiver) = mpsc::channel(LINK_CAPACITY);
        let (fault, to_inner) = (Arc::clone(&self.fault), commands.downgrade());
        tokio::spawn(async move {
            let mut kept_back: Option<Event> = None;
            while let Some(event) = events.recv().await {
                let is_message =
                    matches!(&event, Event::Delivery { delivery, .. } if !delivery.message.body.is_empty());
                let now = is_message && kept_back.is_none() && fault.armed.swap(false, Ordering::Relaxed);
                let mut out: SmallVec<[Event; 2]> = SmallVec::new();
                match (event, now) {
                    (Event::Delivery { channel, consumer_tag, mut delivery }, true) => match fault.deed {
                        Deed::Corrupt => {
                            delivery.message.body = "spoilt".into();
                            out.push(Event::Delivery { channel, consumer_tag, delivery });
                        }
                        Deed::Drop => {
                            let deliveries = SmallVec::from_elem(delivery.id, 1);
                            if let Some(to) = to_inner.upgrade() {
                                let _ = to.send(Command::Settle { channel, deliveries, outcome: Outcome::Ack }).await;
                            }
                        }
                        Deed::Reorder => kept_back = Some(Event::Delivery { channel, consumer_tag, delivery }),
                        Deed::Duplicate => {
                            let again = Box::new(Delivery::clone(&delivery));
                            out.push(Event::Delivery { channel, consumer_tag: consumer_tag.clone(), delivery });
                            out.push(Event::Delivery { channel, consumer_tag, delivery: again });
                        }
                    },
                    (event, _) => {
                        out.push(event);
                        out.extend(if is_message { kept_back.take() } else { None });
                    }
                }
                for event in out {
                    if sender.send(event).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Link { commands, events: receiver })
    }
}
