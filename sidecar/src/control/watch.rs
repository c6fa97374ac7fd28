//! What the gate is asked with, and the sidecar's own hand on the brake: at a weight above 0 it rolls back by itself when
//! JetStream corrupts, drops, reorders or duplicates a message, or does not answer.
//!
//! Slowness of the sidecar itself is never held against JetStream: while its own clock runs late, nothing is concluded from what did
//! not come in time, and a publish that JetStream confirms is an answer.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant as Deadline, timeout};

use super::change::Because;
use super::history::{Changes, Moment, Samples};
use super::{Cutover, State};
use crate::control_api::{Change, ChangeRecord, Outcome, ParityCounts, Phase, QueueParity, Side as SideStatus, Target};
use crate::dual::meters::Totals;
use crate::gate::{self, Evidence, Faults, SideEvidence, Verdict};
use crate::ownership::Side;
use crate::parity::left_out;

/// Who makes the sidecar's own changes.
pub(super) const ITSELF: &str = "nats-bridge";
/// How often JetStream is asked for a sign of life, and faults are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often queues are looked for that are empty and have not delivered everything.
const EMPTY: Duration = Duration::from_secs(5);
/// By how much the sidecar's own timers may be late before it trusts nothing that did not come in time.
const LATE: Duration = Duration::from_secs(1);
/// How long a sign of life may take.
const SIGN: Duration = Duration::from_secs(2);
/// How long a comparison of the routes holds.
const ROUTES: Duration = Duration::from_secs(30);
/// How long the gate waits for the brokers.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What the watch remembers.
#[derive(Default)]
pub(super) struct Watch {
    stage: Mutex<Stage>,
    samples: Mutex<Samples>,
    changes: Mutex<Changes>,
    routes: Mutex<Option<(Instant, Option<String>)>>,
}

/// What had been counted when a phase or weight began.
#[derive(Default, Clone)]
struct Stage {
    phase: Option<Phase>,
    totals: Totals,
    holds_timed_out: u64,
    no_copy: u64,
    /// When JetStream last owned nothing.
    faults: Faults,
    /// When `shadow` began.
    parity: Compared,
}

/// What `shadow` compared, over all queues.
#[derive(Default, Clone, Copy)]
pub(super) struct Compared {
    pub(super) counts: ParityCounts,
    left_out: u64,
}

impl Compared {
    fn of(queues: &[QueueParity]) -> Self {
        queues.iter().fold(Self::default(), |sum, queue| Self {
            counts: sum.counts.plus(&queue.counts),
            left_out: sum.left_out + left_out(&queue.unverified_by),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    pub(super) fn changes(&self) -> Vec<ChangeRecord> {
        lock(&self.changes).newest_first()
    }

    pub(super) fn history(&self) -> crate::control_api::History {
        lock(&self.samples).history()
    }

    pub(super) fn note(&self, state: &State) {
        lock(&self.changes).add(ChangeRecord {
            epoch: state.epoch,
            at: state.at.clone(),
            phase: state.phase,
            weight_percent: state.weight_percent,
            by: state.by.clone(),
            reason: state.reason.clone(),
            forced: state.forced,
            automatic: state.by == ITSELF && state.rolled_back.is_some(),
        });
    }

    pub(super) fn routes_were(&self, findings: Option<String>) {
        *lock(&self.routes) = Some((Instant::now(), findings));
    }
}

impl Cutover {
    /// A phase or weight has begun: what comes from now on is measured for it.
    pub(super) fn stage_began(&self, state: &State) {
        self.watch.note(state);
        let totals = self.shared.meters.totals(&self.shared.delivered);
        let compared = self.compared();
        let faults = self.shared.integrity().faults();
        let mut stage = lock(&self.watch.stage);
        stage.totals = totals;
        stage.holds_timed_out = self.holds_timed_out();
        stage.no_copy = self.shared.copies_of(Side::Nats).map_or(0, |copies| copies.missed());
        if state.phase == Phase::Shadow {
            stage.parity = compared;
        }
        if state.phase < Phase::Canary || stage.phase.is_none_or(|before| before < Phase::Canary) {
            stage.faults = faults;
        }
        stage.phase = Some(state.phase);
    }

    /// Faults since JetStream last owned nothing.
    pub(super) fn faults(&self) -> Faults {
        let before = lock(&self.watch.stage).faults;
        self.shared.integrity().faults().since(&before)
    }

    pub(super) fn compared(&self) -> Compared {
        self.shadow.as_ref().map(|shadow| Compared::of(&shadow.parity())).unwrap_or_default()
    }

    pub(super) fn holds_timed_out(&self) -> u64 {
        self.shared
            .warnings()
            .iter()
            .find(|warning| warning.code == "hold_timed_out")
            .map_or(0, |warning| warning.count)
    }

    /// The gate's answer for this state.
    pub(super) async fn verdict(&self, state: &State) -> Verdict {
        let evidence = self.evidence(state).await;
        gate::judge(&evidence, &self.limits)
    }

    async fn evidence(&self, state: &State) -> Evidence {
        let deadline = Deadline::now() + PATIENCE;
        let (rabbit, nats, routes) = tokio::join!(
            self.side(Side::Rabbit, 0, deadline),
            self.side(Side::Nats, 0, deadline),
            self.routes_now(state.phase)
        );
        let stage = lock(&self.watch.stage).clone();
        let all = self.shared.meters.totals(&self.shared.delivered);
        let here = all.since(&stage.totals);
        let blocked = self.shared.meters.blocked_now();
        let side = |status: SideStatus, counted: &Totals, side: Side| {
            let i = side.index();
            SideEvidence {
                connected: status.connected,
                error: status.error,
                blocked: blocked[i],
                confirmed: counted.confirmed[i],
                failed: counted.failed[i],
                delivered: counted.delivered[i],
                rejected: counted.rejected[i],
                p99: counted.latency[i].percentile(0.99),
            }
        };
        let compared = self.compared();
        Evidence {
            phase: state.phase,
            weight: state.weight_percent,
            stage: age(&state.at),
            traffic: here.confirmed.iter().sum(),
            draining: self.draining.load(Ordering::Relaxed),
            rolled_back: state.rolled_back.clone(),
            rabbit: side(rabbit, &all, Side::Rabbit),
            nats: side(nats, &here, Side::Nats),
            behind: self.shared.behind(),
            unmapped: self.shared.all_unmapped().len() as u64,
            routes,
            parity: compared.counts.since(&stage.parity.counts),
            not_compared: compared.left_out.saturating_sub(stage.parity.left_out),
            unread: self.shadow.as_ref().map_or(0, |shadow| shadow.unread()),
            faults: self.shared.integrity().faults().since(&stage.faults),
            no_copy: self.shared.copies_of(Side::Nats).map_or(0, |c| c.missed()).saturating_sub(stage.no_copy),
            standby_away: self.shared.copies_of(Side::Nats).is_some_and(|copies| copies.status().away),
            held: self.shared.order().held.values().sum(),
            holds_timed_out: self.holds_timed_out().saturating_sub(stage.holds_timed_out),
        }
    }

    /// What RabbitMQ routes that JetStream would not, as of at most half a minute ago.
    async fn routes_now(&self, phase: Phase) -> Option<String> {
        if !matches!(phase, Phase::Shadow | Phase::Canary | Phase::Cutover) {
            return None;
        }
        // What JetStream has yet to be told is not missing there.
        if self.shared.behind() > 0 {
            return None;
        }
        if let Some((at, findings)) = &*lock(&self.watch.routes)
            && at.elapsed() < ROUTES
        {
            return findings.clone();
        }
        match timeout(PATIENCE, self.routes_alike()).await {
            Ok(answer) => answer.err().map(|refused| refused.reason),
            Err(_) => Some("RabbitMQ's management API did not answer in time".to_owned()),
        }
    }

    /// Takes a sample for the page.
    pub(super) async fn sample(&self) {
        let compared = self.compared().counts;
        let moment = Moment {
            unix: u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap_or(0),
            weight_percent: self.state.lock().await.state.weight_percent.percent(),
            unread: self.shadow.as_ref().map_or(0, |shadow| shadow.unread()),
            differences: compared.differences(),
            compared: compared.compared(),
            faults: self.shared.integrity().faults().counts().iter().sum(),
        };
        let published = self.shared.published.each_ref().map(|n| n.load(Ordering::Relaxed));
        let totals = self.shared.meters.totals(&self.shared.delivered);
        lock(&self.watch.samples).take(self.shared.now(), published, totals, moment);
    }

    /// Looks for faults for as long as the sidecar runs, and rolls back at the first. JetStream may be silent for `silence`.
    pub(super) async fn guard(this: std::sync::Weak<Self>, silence: Duration) {
        let (mut looked, mut emptied) = (Instant::now(), Instant::now());
        let mut quiet = Quiet::new(Instant::now());
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(cutover) = this.upgrade() else { return };
            let late = looked.elapsed() > LOOK + LATE;
            looked = Instant::now();
            let phase = cutover.shared.order().phase;
            if !matches!(phase, Phase::Canary | Phase::Cutover) {
                quiet = Quiet::new(looked);
                continue;
            }
            let answers = matches!(timeout(SIGN, cutover.store.sign_of_life()).await, Ok(Ok(())));
            let confirmed = cutover.shared.meters.totals(&cutover.shared.delivered).confirmed[Side::Nats.index()];
            let silent = quiet.heard(answers, late || looked.elapsed() > SIGN + LATE, confirmed, Instant::now());
            if emptied.elapsed() >= EMPTY && answers && !late {
                emptied = Instant::now();
                cutover.look_for_dropped().await;
            }
            let why = match cutover.faults().words() {
                Some(faults) => Some(format!("messages of JetStream were not as they should be: {faults}")),
                None if silent >= silence => Some(format!("JetStream has not answered for {} s", silent.as_secs())),
                None => None,
            };
            if let Some(why) = why {
                if !cutover.roll_back(why).await {
                    tokio::time::sleep(EMPTY).await;
                }
                quiet = Quiet::new(Instant::now());
            }
            // What JetStream's silence was measured by begins anew after what took long here.
            looked = Instant::now();
        }
    }

    /// Whether it is in force.
    async fn roll_back(&self, why: String) -> bool {
        let samples = self.shared.integrity().samples();
        for sample in &samples {
            tracing::error!(queue = %sample.queue, id = sample.id, "a message of JetStream was {}", sample.fault);
        }
        tracing::error!(why, "rolls back by itself");
        let change = Change {
            to: Target::Rollback,
            by: ITSELF.to_owned(),
            reason: format!("automatic rollback: {why}"),
            force: false,
            unrehearsed: false,
            from: String::new(),
        };
        let reason = change.reason.clone();
        match self.make(change, Because::Itself(why.clone())).await {
            Ok(adopted) if adopted.changed => {
                self.log("rollback", Outcome::Done, ITSELF, "", &reason, String::new()).await;
                metrics::counter!("natsbridge_automatic_rollbacks_total").increment(1);
                self.shared.warn("rolled_back", why);
                true
            }
            Ok(_) => true,
            Err(refused) => {
                tracing::error!(reason = refused.reason, "the automatic rollback was refused; it is tried again");
                self.shared.warn("rollback_refused", format!("{why}; and RabbitMQ cannot take it: {}", refused.reason));
                false
            }
        }
    }

    /// Tells which queues of JetStream are empty although not everything of them was delivered.
    async fn look_for_dropped(&self) {
        let waiting = self.shared.integrity().waiting();
        for queue in waiting {
            let idle = || {
                let order = self.shared.order();
                order.fences.view(&queue).is_none_or(|view| view.unsettled[Side::Nats.index()] == 0)
                    && !order.held.contains_key(&queue)
            };
            if !idle() {
                continue;
            }
            match self.operators[Side::Nats.index()].depth(&queue).await {
                Ok(Some(depth)) if depth.ready == 0 && idle() => {
                    let now = self.shared.now();
                    self.shared.integrity().emptied(&queue, now);
                }
                Ok(None) => self.shared.integrity().discarded(&queue),
                Ok(Some(_)) => {}
                Err(error) if error.code == amqp_compat::ReplyCode::ResourceLocked => {}
                Err(_) => return,
            }
        }
    }
}

/// For how long JetStream has been silent.
struct Quiet {
    since: Instant,
    confirmed: u64,
}

impl Quiet {
    fn new(now: Instant) -> Self {
        Self { since: now, confirmed: 0 }
    }

    /// An answer, a confirm, or a sidecar that is late itself ends a silence.
    fn heard(&mut self, answers: bool, late: bool, confirmed: u64, now: Instant) -> Duration {
        if answers || late || confirmed != self.confirmed {
            self.since = now;
        }
        self.confirmed = confirmed;
        now.saturating_duration_since(self.since)
    }
}

/// How long ago a time of a state was.
fn age(at: &str) -> Duration {
    let Ok(at) = OffsetDateTime::parse(at, &Rfc3339) else { return Duration::ZERO };
    Duration::try_from(OffsetDateTime::now_utc() - at).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jetstream_is_silent_only_while_the_sidecar_itself_is_in_time_and_nothing_is_confirmed() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut quiet = Quiet::new(began);
        assert_eq!(quiet.heard(true, false, 5, at(1)), Duration::ZERO);
        assert_eq!(quiet.heard(false, false, 5, at(4)), Duration::from_secs(3));
        assert_eq!(quiet.heard(false, false, 5, at(7)), Duration::from_secs(6));
        assert_eq!(quiet.heard(false, true, 5, at(20)), Duration::ZERO, "it was late itself");
        assert_eq!(quiet.heard(false, false, 5, at(23)), Duration::from_secs(3));
        assert_eq!(quiet.heard(false, false, 6, at(26)), Duration::ZERO, "a publish was confirmed");
    }

    #[test]
    fn the_age_of_a_state_is_never_negative() {
        assert!(age("2020-01-02T03:04:05Z") > Duration::from_secs(3600));
        assert_eq!(age("2999-01-01T00:00:00Z"), Duration::ZERO);
        assert_eq!(age("whenever"), Duration::ZERO);
    }
}
