//! What goes when something goes.

use foldhash::{HashMap, HashMapExt};

use super::{Change, Edge, Target, Vhost};

/// Works out what goes when something goes, without touching it: an auto-delete exchange goes with its last binding,
/// and its own bindings go with it.
pub(super) struct RemovalPlan<'a> {
    vhost: &'a Vhost,
    pub(super) changes: Vec<Change>,
    /// How many outgoing bindings each exchange has lost so far.
    gone: HashMap<u32, usize>,
    dropped: Vec<Target>,
}

impl<'a> RemovalPlan<'a> {
    pub(super) fn new(vhost: &'a Vhost) -> Self {
        Self { vhost, changes: Vec::new(), gone: HashMap::new(), dropped: Vec::new() }
    }

    pub(super) fn remove(&mut self, target: Target) {
        if self.dropped.contains(&target) {
            return;
        }
        self.dropped.push(target);
        let vhost = self.vhost;
        let (incoming, drop) = match target {
            Target::Queue(slot) => match vhost.queues.get(slot as usize).and_then(Option::as_ref) {
                Some(queue) => (&queue.incoming, Change::DropQueue(queue.definition.name.clone())),
                None => return,
            },
            Target::Exchange(slot) => match vhost.exchange_at(slot) {
                Some(exchange) => {
                    for edge in &exchange.outgoing {
                        self.changes.push(Change::Unbind(edge.definition.clone()));
                    }
                    (&exchange.incoming, Change::DropExchange(exchange.definition.name.clone()))
                }
                None => return,
            },
        };
        let mut emptied = Vec::new();
        for edge in incoming {
            self.changes.push(Change::Unbind(edge.definition.clone()));
            emptied.extend(self.lose(edge));
        }
        self.changes.push(drop);
        emptied.into_iter().for_each(|slot| self.remove(Target::Exchange(slot)));
    }

    pub(super) fn unbind(&mut self, edge: &Edge) {
        self.changes.push(Change::Unbind(edge.definition.clone()));
        if let Some(slot) = self.lose(edge) {
            self.remove(Target::Exchange(slot));
        }
    }

    /// Counts a lost binding; the exchange's slot when it was its last one and the exchange goes with it.
    fn lose(&mut self, edge: &Edge) -> Option<u32> {
        let exchange = self.vhost.exchange_at(edge.source)?;
        let gone = self.gone.entry(edge.source).or_default();
        *gone += 1;
        (exchange.definition.auto_delete && *gone == exchange.outgoing.len()).then_some(edge.source)
    }
}
