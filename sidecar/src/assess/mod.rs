//! What of a RabbitMQ maps to JetStream exactly, with a caveat, or not, before anything moves. Pure.
//!
//! Whether the gateway takes a thing is not known here: each exchange, queue and binding is declared into the gateway's own
//! model, and what that says is the finding. What is still different of a thing that is taken is read from `docs/mapping.md`,
//! which a test holds against the code.
//!
//! - [`inventory`]: what RabbitMQ has, from an export of definitions; [`live`]: what its management API tells besides.
//! - [`code`], [`finding`]: what can be said; [`differences`]: what `docs/mapping.md` says.
//! - [`topology`], [`policies`], [`parameters`], [`access`], [`connections`], [`capacity`]: what is looked at.
//! - [`report`]: the findings for people; [`digest`]: which topology they are about.

pub mod access;
pub mod capacity;
pub mod code;
pub mod connections;
pub mod differences;
pub mod digest;
pub mod finding;
pub mod inventory;
pub mod live;
pub mod parameters;
pub mod policies;
pub mod report;
pub mod topology;

#[cfg(test)]
pub(crate) mod tests;

pub use capacity::{NatsLimits, Sizes};
pub use code::{Code, Severity};
pub use finding::{Assessment, Entity, Finding, Verdict};
pub use inventory::Inventory;

use finding::Findings;

/// How the applications are to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// Through `nats-bridge sidecar`, while they run.
    Sidecar,
    /// To `nats-bridge serve`, after a stop.
    Serve,
}

impl Way {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Way::Sidecar => "sidecar",
            Way::Serve => "serve",
        }
    }
}

/// Looks at everything. Without `nats` its limits are not looked at.
pub fn assess(inventory: &Inventory, nats: Option<&NatsLimits>, way: Way, sizes: &Sizes) -> Assessment {
    let mut findings = Findings::new(way, inventory.unread.clone());
    let mut entities = Vec::new();
    for (name, declared) in &inventory.vhosts {
        topology::assess(name, declared, &mut findings, &mut entities);
    }
    policies::assess(inventory, &mut findings, &mut entities);
    parameters::assess(inventory, &mut findings);
    access::assess(inventory, &mut findings);
    capacity::assess(inventory, nats, sizes, &mut findings);
    connections::unseen(&mut findings);
    if let Some(live) = &inventory.live {
        connections::assess(inventory, live, &mut findings);
    }
    finding::conclude(findings, entities)
}
