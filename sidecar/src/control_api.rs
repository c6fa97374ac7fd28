//! What the sidecar tells an operator and takes from one: the JSON of the HTTP surface, and the one trait behind it.
//!
//! The HTTP surface ([`crate::http`]) and the CLI verbs see only this file; the cutover itself implements [`Control`].

mod backfill;
mod change;
mod drain;
mod failover;
mod history;
mod log;
mod parity;
mod phase;
mod rehearsal;
mod status;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::backfill::{
    Backfill, BackfillCode, BackfillProgress, BackfillQueue, BackfillRefused, BackfillReport, BackfillState, fits,
};
pub use self::change::{Adopted, Change, Refused, RefusedCode, Target};
pub use self::drain::{Drain, DrainRates, Draining};
pub use self::failover::{Failover, FailoverQueue, FailoverReport};
pub use self::history::{History, Sample, SideSample};
pub use self::log::{LogEntry, Outcome};
pub use self::parity::{ParityClass, ParityCounts, ParitySample, QueueParity};
pub use self::phase::{Phase, Weight};
pub use self::rehearsal::{Rehearsal, Rehearse, RehearsedQueue};
pub use self::status::{
    ChangeRecord, DETACHED, FenceState, GIVEN_UP, QueueStatus, Side, SidecarStatus, Sides, Status, Unmapped, Warning,
};
pub use crate::copies::StandbyStatus;
pub use crate::gate::{Faults, Number, Reason, Severity, Verdict};

/// The running cutover, as the HTTP surface drives it.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Where the cutover stands now. Answers from memory where a broker does not answer, and says so.
    async fn status(&self) -> Status;

    /// Moves to another phase or weight, and returns once the change is in force in this sidecar.
    ///
    /// A change to what already holds is not an error: it returns the state in force with `changed: false`.
    ///
    /// # Errors
    /// [`Refused`], with the state left as it was.
    async fn change(&self, request: Change) -> Result<Adopted, Refused>;

    /// May the cutover go on?
    async fn gate(&self) -> Verdict;

    /// Gives a broker up that is lost for good, or tells what that would do. Returns once it has begun.
    ///
    /// # Errors
    /// [`Refused`], with everything left as it was.
    async fn failover(self: Arc<Self>, asked: Failover) -> Result<FailoverReport, Refused>;

    /// How far a failover is; `None` when there was none.
    async fn failover_status(&self) -> Option<FailoverReport>;

    /// Makes standby copies of what lay in RabbitMQ before there were any, or tells what that would do. Returns once it has begun.
    ///
    /// # Errors
    /// [`Refused`], with everything left as it was.
    async fn backfill(self: Arc<Self>, asked: Backfill) -> Result<BackfillReport, Refused>;

    /// How far a backfill is; `None` when there was none.
    async fn backfill_status(&self) -> Option<BackfillReport>;

    /// Rolls back and goes up to the same weight again, measured. Returns once it has begun.
    ///
    /// # Errors
    /// [`Refused`], with everything left as it was.
    async fn rehearse(self: Arc<Self>, asked: Rehearse) -> Result<Rehearsal, Refused>;

    /// The last rehearsal; `None` when there was none.
    async fn rehearsal(&self) -> Option<Rehearsal>;

    /// The last entries of the log, newest first.
    ///
    /// # Errors
    /// [`Refused`] when NATS does not answer.
    async fn log(&self, last: u64) -> Result<Vec<LogEntry>, Refused>;

    /// Rates and latencies over time.
    async fn history(&self) -> History;

    /// The last changes, newest first.
    async fn changes(&self) -> Vec<ChangeRecord>;
}
