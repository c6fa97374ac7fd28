//! May the cutover go on? Pure: what was measured goes in, a verdict with its reasons comes out.
//!
//! A reason either *blocks* (waiting does not help), or *waits* (there is not enough yet: time, traffic, catching up), or is a
//! *note*. Without any that blocks or waits, the answer is yes. Each has a stable code, the numbers that it was made from, and what
//! to do. No data is not parity: where nothing was compared, the answer is no.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::control_api::{GIVEN_UP, ParityCounts, Phase, Weight};

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// The phase in force.
    pub phase: Phase,
    /// The weight in force.
    pub weight: Weight,
    /// How long both have been in force.
    pub stage: Duration,
    /// Publishes that either broker confirmed meanwhile.
    pub traffic: u64,
    /// Whether the sidecar is shutting down.
    pub draining: bool,
    /// When the last change was a rollback that the sidecar made itself: why.
    pub rolled_back: Option<String>,
    /// RabbitMQ.
    pub rabbit: SideEvidence,
    /// NATS JetStream.
    pub nats: SideEvidence,
    /// Connections whose link to NATS has not caught up with what was declared.
    pub behind: u64,
    /// Exchanges, queues and bindings that JetStream does not have.
    pub unmapped: u64,
    /// What RabbitMQ routes that JetStream would not, or why that is not known.
    pub routes: Option<String>,
    /// What `shadow` compared, since it began last.
    pub parity: ParityCounts,
    /// Of the unverified: those that should have been compared, and were not.
    pub not_compared: u64,
    /// Copies that are taken and not read back yet.
    pub unread: u64,
    /// What the sidecar found wrong in messages that JetStream owns, since the last time that JetStream owned nothing.
    pub faults: Faults,
    /// Messages of this stage that were confirmed without a standby copy that they should have.
    pub no_copy: u64,
    /// Whether RabbitMQ takes no standby copies now.
    pub standby_away: bool,
    /// Deliveries that wait for a fence.
    pub held: u64,
    /// Holds of this stage that were lifted because their time was over.
    pub holds_timed_out: u64,
}

/// What was measured of one broker.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SideEvidence {
    /// Whether it answers.
    pub connected: bool,
    /// Why not.
    pub error: Option<String>,
    /// Connections to which it says that it takes no publishes for now.
    pub blocked: u64,
    /// Publishes that it confirmed: RabbitMQ's since the sidecar started, JetStream's in this stage.
    pub confirmed: u64,
    /// Publishes that it refused or lost, over the same time.
    pub failed: u64,
    /// Deliveries of it, over the same time.
    pub delivered: u64,
    /// Of these, how many were rejected for good: dead-lettered or dropped.
    pub rejected: u64,
    /// The time from a publish to its confirm that 99 of 100 kept to, over the same time.
    pub p99: Option<Duration>,
}

/// What no message may suffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Faults {
    /// Delivered with another payload, other properties or another routing key than it was published with.
    pub corrupted: u64,
    /// Confirmed, and neither delivered nor in its queue.
    pub dropped: u64,
    /// Delivered before an older one of its publisher and routing key.
    pub reordered: u64,
    /// Delivered twice, and not said to be a redelivery.
    pub duplicated: u64,
}

impl Faults {
    /// Their names, as codes of reasons.
    pub const NAMES: [&str; 4] = ["corrupted", "dropped", "reordered", "duplicated"];

    /// How many of each, in the order of [`Faults::NAMES`].
    pub fn counts(&self) -> [u64; 4] {
        [self.corrupted, self.dropped, self.reordered, self.duplicated]
    }

    /// Those that are in `self` and were not in `before`.
    pub fn since(&self, before: &Faults) -> Faults {
        Faults {
            corrupted: self.corrupted.saturating_sub(before.corrupted),
            dropped: self.dropped.saturating_sub(before.dropped),
            reordered: self.reordered.saturating_sub(before.reordered),
            duplicated: self.duplicated.saturating_sub(before.duplicated),
        }
    }

    /// Whether there is any, in words; `None` when there is none.
    pub fn words(&self) -> Option<String> {
        let some = Self::NAMES.iter().zip(self.counts()).filter(|(_, count)| *count > 0);
        let words: Vec<String> = some.map(|(name, count)| format!("{count} {name}")).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// What is asked for before the answer is yes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// How long a phase or weight has to be in force.
    pub soak: Duration,
    /// How many messages have to be compared in `shadow`, or confirmed by JetStream at a weight.
    pub messages: u64,
    /// The share of comparisons that have to be finished.
    pub compared: f64,
    /// How much longer than RabbitMQ's JetStream's 99th percentile may be.
    pub latency_factor: f64,
    /// Below this, a latency is never too long.
    pub latency_floor: Duration,
    /// The share of publishes that may fail.
    pub failures: f64,
    /// How much larger than RabbitMQ's the share of deliveries may be that are rejected for good.
    pub rejects: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            soak: Duration::from_secs(60),
            messages: 100,
            compared: 0.999,
            latency_factor: 1.5,
            latency_floor: Duration::from_millis(50),
            failures: 0.001,
            rejects: 0.001,
        }
    }
}

/// What a reason does to the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// No, and waiting does not help.
    Block,
    /// Not yet.
    Wait,
    /// Good to know.
    Note,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable name, such as `mismatch`.
    pub code: String,
    /// What it does to the answer.
    pub severity: Severity,
    /// What is the matter.
    pub text: String,
    /// What to do.
    pub fix: String,
    /// The numbers that it was made from.
    pub numbers: BTreeMap<String, Number>,
}

/// A number of a reason.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Number {
    /// So many.
    Count(u64),
    /// A share, or milliseconds.
    Measure(f64),
}

impl From<u64> for Number {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Number {
    fn from(measure: f64) -> Self {
        Self::Measure((measure * 1e4).round() / 1e4)
    }
}

/// The answer of `GET /gate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Yes or no.
    pub may_go_on: bool,
    /// The phase in force.
    pub phase: Phase,
    /// The weight in force.
    pub weight_percent: Weight,
    /// What comes next; `None` after the last step.
    pub next: Option<String>,
    /// The answer in a sentence.
    pub summary: String,
    /// Why; those that block first.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// The reasons that the answer is no.
    pub fn against(&self) -> impl Iterator<Item = &Reason> {
        self.reasons.iter().filter(|reason| reason.severity != Severity::Note)
    }

    /// Whether something is wrong that waiting does not mend.
    pub fn blocks(&self) -> bool {
        self.reasons.iter().any(|reason| reason.severity == Severity::Block)
    }

    /// The reasons that the answer is no, in one line.
    pub fn because(&self) -> String {
        let all: Vec<String> = self.against().map(|reason| format!("{} ({})", reason.text, reason.code)).collect();
        all.join("; ")
    }
}

/// The answer to "may I go on?".
pub fn judge(evidence: &Evidence, limits: &Limits) -> Verdict {
    let mut found = Found(Vec::new());
    if evidence.phase == Phase::Native {
        let text = "RabbitMQ is detached: the move is done";
        found.add(Severity::Block, "nothing_left", text, "nothing is left to do", []);
    } else {
        state(evidence, &mut found);
        match evidence.phase {
            Phase::Observe => {}
            Phase::Shadow => {
                parity(evidence, limits, &mut found);
                faults(evidence, &mut found);
                enough(evidence, limits, evidence.parity.compared(), "compared", &mut found);
            }
            Phase::Canary | Phase::Cutover | Phase::Native => {
                // What was compared on the way here still counts.
                differences(evidence, &mut found);
                faults(evidence, &mut found);
                owned(evidence, limits, &mut found);
                enough(evidence, limits, evidence.nats.confirmed, "confirmed by JetStream", &mut found);
            }
        }
    }
    let Found(mut reasons) = found;
    reasons.sort_by_key(|reason| reason.severity);
    let may_go_on = reasons.iter().all(|reason| reason.severity == Severity::Note);
    let next = next(evidence);
    let mut verdict = Verdict {
        may_go_on,
        phase: evidence.phase,
        weight_percent: evidence.weight,
        next,
        summary: String::new(),
        reasons,
    };
    verdict.summary = match (&verdict.next, may_go_on) {
        (Some(next), true) => format!("yes: go on with {next}"),
        (None, true) => "yes".to_owned(),
        (_, false) => format!("no: {}", verdict.because()),
    };
    verdict
}

fn next(evidence: &Evidence) -> Option<String> {
    Some(match evidence.phase {
        Phase::Observe => "`nats-bridge shadow`".to_owned(),
        Phase::Shadow => "`nats-bridge weight 5`".to_owned(),
        Phase::Canary => {
            let more = [25.0, 50.0, 100.0].into_iter().find(|step| *step > evidence.weight.percent()).unwrap_or(100.0);
            format!("`nats-bridge weight {more}`")
        }
        Phase::Cutover => "`nats-bridge detach`".to_owned(),
        Phase::Native => return None,
    })
}

struct Found(Vec<Reason>);

impl Found {
    fn add<const N: usize>(
        &mut self,
        severity: Severity,
        code: &str,
        text: impl Into<String>,
        fix: &str,
        numbers: [(&str, Number); N],
    ) {
        let numbers = numbers.into_iter().map(|(name, number)| (name.to_owned(), number)).collect();
        self.0.push(Reason { code: code.to_owned(), severity, text: text.into(), fix: fix.to_owned(), numbers });
    }
}

/// What has to hold in every phase.
fn state(evidence: &Evidence, found: &mut Found) {
    use Severity::{Block, Note, Wait};
    if evidence.draining {
        let fix = "ask the sidecar that takes its place";
        found.add(Block, "draining", "the sidecar is shutting down", fix, []);
    }
    if let Some(why) = &evidence.rolled_back {
        let fix = "find out why; then `nats-bridge observe` and `nats-bridge shadow` compare anew (or --force)";
        found.add(Block, "rolled_back", format!("the sidecar has rolled back by itself: {why}"), fix, []);
    }
    for (code, name, side) in [("rabbit_down", "RabbitMQ", &evidence.rabbit), ("nats_down", "NATS", &evidence.nats)] {
        if side.error.as_deref() == Some(GIVEN_UP) {
            let text = format!("{name} was given up by a failover");
            let fix = match name {
                "NATS" => "give NATS an empty store and start the sidecar anew; then `nats-bridge shadow`",
                _ => "`nats-bridge failover --lost rabbit --execute` goes on with it",
            };
            found.add(Block, "given_up", text, fix, []);
        } else if !side.connected {
            let why = side.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
            let fix = "start it, or mend the way to it; `nats-bridge status` shows when it answers";
            found.add(Block, code, format!("{name} does not answer{why}"), fix, []);
        }
    }
    for (code, name, side) in
        [("rabbit_blocked", "RabbitMQ", &evidence.rabbit), ("nats_blocked", "JetStream", &evidence.nats)]
    {
        if side.blocked > 0 {
            let text = format!("{name} takes no publishes from {} connections for now", side.blocked);
            let fix = "give it memory or disk; the alarm in its log says which is short";
            found.add(Wait, code, text, fix, [("connections", side.blocked.into())]);
        }
    }
    if evidence.phase == Phase::Observe {
        if evidence.unmapped > 0 {
            let text = format!("JetStream does not have {} exchanges, queues or bindings", evidence.unmapped);
            let fix = "`nats-bridge status` names them; a weight above 0 is refused until it has them";
            found.add(Note, "unmapped", text, fix, [("unmapped", evidence.unmapped.into())]);
        }
        return;
    }
    if evidence.unmapped > 0 {
        let text = format!("JetStream does not have {} exchanges, queues or bindings", evidence.unmapped);
        let fix =
            "`nats-bridge status` names each one and why; change it, remove it, or let its application declare it";
        found.add(Block, "unmapped", text, fix, [("unmapped", evidence.unmapped.into())]);
    }
    if let Some(why) = &evidence.routes {
        found.add(Block, "routes_differ", why.clone(), ROUTES_FIX, []);
    }
    if evidence.behind > 0 {
        let text = format!("JetStream has not caught up with what {} connections declared", evidence.behind);
        found.add(
            Wait,
            "nats_behind",
            text,
            "wait; it is repeated to JetStream",
            [("connections", evidence.behind.into())],
        );
    }
}

/// What `shadow` found out.
fn parity(evidence: &Evidence, limits: &Limits, found: &mut Found) {
    differences(evidence, found);
    let (compared, left_out) = (evidence.parity.compared(), evidence.not_compared);
    if left_out > 0 {
        let share = compared as f64 / (compared + left_out) as f64;
        let severity = if share < limits.compared { Severity::Wait } else { Severity::Note };
        found.add(
            severity,
            "not_compared",
            format!("{left_out} messages were not compared ({:.2} % were)", share * 100.0),
            "`nats-bridge status --json` has the reasons (unverified_by); a sidecar or JetStream that does not keep up needs more CPU",
            [("not_compared", left_out.into()), ("share", share.into()), ("needed", limits.compared.into())],
        );
    }
    if evidence.unread > UNREAD {
        let text = format!("{} copies are not read back yet", evidence.unread);
        let fix = "wait; when it does not go down, the sidecar or JetStream needs more CPU";
        found.add(Severity::Wait, "comparison_behind", text, fix, [("copies", evidence.unread.into())]);
    }
}

/// What helps where RabbitMQ has what JetStream has not. `apply` leaves policies out that a sidecar cannot have, and stream queues.
pub(crate) const ROUTES_FIX: &str = "bindings: let their application declare them through the sidecar, remove them, or stop the sidecar and have \
    `nats-bridge apply` declare them. Policies and what is refused beside RabbitMQ: `nats-bridge assess` says of each what to do";

/// How many copies may be on their way when the comparison counts as keeping up.
const UNREAD: u64 = 1_000;

fn differences(evidence: &Evidence, found: &mut Found) {
    let ParityCounts { mismatched_payload, mismatched_properties, mismatched_routing, missing, extra, .. } =
        evidence.parity;
    let compared = evidence.parity.compared();
    let fix = "`nats-bridge status --json` has the ids (samples) by queue; go on only when you know why";
    for (code, count, what) in [
        ("mismatched_payload", mismatched_payload, "have another payload in JetStream"),
        ("mismatched_properties", mismatched_properties, "have other properties in JetStream"),
        ("mismatched_routing", mismatched_routing, "have another exchange or routing key in JetStream"),
        ("missing", missing, "that RabbitMQ delivered are not in JetStream"),
        ("extra", extra, "are in JetStream and RabbitMQ never delivered them"),
    ] {
        if count > 0 {
            let numbers = [("messages", count.into()), ("compared", compared.into())];
            found.add(Severity::Block, code, format!("{count} messages {what}"), fix, numbers);
        }
    }
}

fn faults(evidence: &Evidence, found: &mut Found) {
    for (code, count) in Faults::NAMES.into_iter().zip(evidence.faults.counts()) {
        if count > 0 {
            let text = format!("{count} messages of JetStream were {code}");
            let fix = "`nats-bridge rollback`; the sidecar's log has their ids";
            found.add(Severity::Block, code, text, fix, [("messages", count.into())]);
        }
    }
}

/// How JetStream does with what it owns.
fn owned(evidence: &Evidence, limits: &Limits, found: &mut Found) {
    use Severity::{Block, Wait};
    if evidence.held > 0 {
        let text = format!("{} deliveries wait for the fence of the last change", evidence.held);
        let fix = "wait until what is older is settled; `nats-bridge status` shows the fence of each queue";
        found.add(Wait, "held", text, fix, [("deliveries", evidence.held.into())]);
    }
    if evidence.holds_timed_out > 0 {
        let n = evidence.holds_timed_out;
        let text = format!("{n} queues did not wait for all that was older: order may be broken there");
        let fix = "look for consumers that do not settle; `nats-bridge status` names the queues";
        found.add(Block, "holds_timed_out", text, fix, [("queues", n.into())]);
    }
    if evidence.standby_away {
        let text = "RabbitMQ takes no standby copies: NATS lost for good now would take messages along";
        let fix = "see that RabbitMQ answers and lets the sidecar's own user have queues named nats-bridge.*";
        found.add(Wait, "standby_away", text, fix, []);
    }
    if evidence.no_copy > 0 {
        let text = format!("{} messages of JetStream have no standby copy", evidence.no_copy);
        let fix = "`nats-bridge status` says why; they are lost if NATS is lost for good before they are settled";
        found.add(Severity::Note, "no_standby_copy", text, fix, [("messages", evidence.no_copy.into())]);
    }
    let (rabbit, nats) = (&evidence.rabbit, &evidence.nats);
    let (tried, failed) = (nats.confirmed + nats.failed, nats.failed);
    if failed > 0 {
        let share = failed as f64 / tried as f64;
        if share > limits.failures {
            let text = format!("JetStream did not confirm {failed} of {tried} publishes");
            let fix = "`nats-bridge rollback`; the log of the sidecar and of nats-server say why";
            let numbers = [("failed", failed.into()), ("share", share.into()), ("allowed", limits.failures.into())];
            found.add(Block, "publish_errors", text, fix, numbers);
        }
    }
    if nats.rejected > 0 {
        let of = |side: &SideEvidence| side.rejected as f64 / side.delivered.max(1) as f64;
        let (is, was) = (of(nats), of(rabbit));
        if is > was + limits.rejects {
            let text = format!(
                "{} of {} deliveries of JetStream were rejected for good ({:.2} %; of RabbitMQ {:.2} %)",
                nats.rejected,
                nats.delivered,
                is * 100.0,
                was * 100.0
            );
            let fix = "look at the dead letters: `nats-bridge status`, and the application's own log";
            let numbers = [("rejected", nats.rejected.into()), ("share", is.into()), ("rabbit_share", was.into())];
            found.add(Block, "dead_letters", text, fix, numbers);
        }
    }
    if let (Some(slow), Some(base)) = (nats.p99, rabbit.p99) {
        let most = base.mul_f64(limits.latency_factor).max(limits.latency_floor);
        if slow > most && nats.confirmed >= limits.messages.min(100) {
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            let text = format!(
                "99 of 100 publishes are confirmed by JetStream within {:.1} ms, by RabbitMQ within {:.1} ms",
                ms(slow),
                ms(base)
            );
            let fix = "look at nats-server's CPU and disk; --gate-latency-factor allows more";
            let numbers =
                [("p99_ms", ms(slow).into()), ("rabbit_p99_ms", ms(base).into()), ("most_ms", ms(most).into())];
            found.add(Block, "latency", text, fix, numbers);
        }
    }
}

/// How many times the traffic that should have brought enough messages has to pass before its keys are to blame.
const FEW_KEYS: f64 = 2.0;

/// Time and traffic.
fn enough(evidence: &Evidence, limits: &Limits, seen: u64, what: &str, found: &mut Found) {
    if evidence.stage < limits.soak {
        let (is, needed) = (evidence.stage.as_secs_f64(), limits.soak.as_secs_f64());
        let text = format!("in force for {is:.0} s of the {needed:.0} s that are asked for");
        let numbers = [("seconds", is.into()), ("needed", needed.into())];
        found.add(Severity::Wait, "too_soon", text, "wait; --gate-soak of the sidecar asks for less", numbers);
    }
    let share = evidence.weight.percent() / 100.0;
    if seen < limits.messages && share > 0.0 && evidence.traffic as f64 * share >= limits.messages as f64 * FEW_KEYS {
        let text =
            format!("{seen} of {} messages have routing keys that JetStream owns at this weight", evidence.traffic);
        let fix = "go on: a service with few routing keys moves where its keys fall";
        let numbers = [("messages", seen.into()), ("traffic", evidence.traffic.into())];
        found.add(Severity::Note, "few_keys", text, fix, numbers);
    } else if seen < limits.messages {
        let text = format!("{seen} messages were {what}, of the {} that are asked for", limits.messages);
        let fix = "let traffic flow, also to consumers; --gate-messages asks for fewer";
        found.add(
            Severity::Wait,
            "too_few",
            text,
            fix,
            [("messages", seen.into()), ("needed", limits.messages.into())],
        );
    }
}
