//! The phases of a cutover, and what each change means in each of them. Pure.
//!
//! ```text
//! observe <-> shadow -> canary <-> cutover -> native
//!               ^---------'----------'  rollback: weight 0 at once
//! ```

use crate::control_api::{Phase, Refused, RefusedCode, Target, Weight};

/// What is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The phase.
    pub phase: Phase,
    /// The weight; 0 in `observe` and `shadow`, 10 000 buckets in `cutover` and `native`.
    pub weight: Weight,
}

impl Position {
    /// Where a sidecar begins that has never been told anything.
    pub const START: Position = Position { phase: Phase::Observe, weight: Weight::NONE };
}

/// What is known about both brokers when a change is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Exchanges, queues and bindings that JetStream does not have.
    pub unmapped: usize,
    /// Whether NATS answers, and every open connection has its link to it.
    pub nats_connected: bool,
    /// Whether RabbitMQ answers.
    pub rabbit_connected: bool,
    /// Messages in RabbitMQ's known queues, unsettled ones included, fences excluded; `None` when RabbitMQ does not say.
    pub rabbit_messages: Option<u64>,
}

/// Where a change leads: `None` when it is in force already.
///
/// # Errors
/// [`Refused`] with `WrongPhase`, `Unmapped`, `SideDown` or `NotDrained`; nothing changes.
pub fn change(at: Position, to: Target, facts: Facts) -> Result<Option<Position>, Refused> {
    let next = match (at.phase, to) {
        (Phase::Observe, Target::Observe) | (Phase::Shadow, Target::Shadow) | (Phase::Native, Target::Detach) => None,
        (Phase::Shadow, Target::Observe) => Some(Position { phase: Phase::Observe, weight: Weight::NONE }),
        (Phase::Observe, Target::Shadow) => {
            needs_nats(facts)?;
            Some(Position { phase: Phase::Shadow, weight: Weight::NONE })
        }
        (Phase::Observe, Target::Weight(Weight::NONE) | Target::Rollback)
        | (Phase::Shadow, Target::Weight(Weight::NONE) | Target::Rollback) => None,
        (Phase::Observe, Target::Weight(_)) => {
            return Err(Refused::new(
                RefusedCode::WrongPhase,
                "the phase is observe: nothing has been compared yet",
                "go to shadow first (`nats-bridge shadow`) and look at the parity it shows",
            ));
        }
        (Phase::Canary | Phase::Cutover, Target::Weight(Weight::NONE) | Target::Rollback) => {
            // Never refused for what NATS or the topology is like: this is the way out.
            needs_rabbit(facts)?;
            Some(Position { phase: Phase::Shadow, weight: Weight::NONE })
        }
        (Phase::Shadow | Phase::Canary | Phase::Cutover, Target::Weight(weight)) if weight == at.weight => None,
        (Phase::Shadow | Phase::Canary | Phase::Cutover, Target::Weight(weight)) => {
            if weight > at.weight {
                // A NATS that is away misses what is repeated to it once it is back: that is no topology to look after.
                needs_nats(facts)?;
                needs_mapped(facts)?;
            } else {
                needs_rabbit(facts)?;
            }
            let phase = if weight == Weight::ALL { Phase::Cutover } else { Phase::Canary };
            Some(Position { phase, weight })
        }
        (Phase::Canary | Phase::Cutover, Target::Observe | Target::Shadow) => {
            return Err(Refused::new(
                RefusedCode::WrongPhase,
                format!("NATS owns {} % of the ordering keys", at.weight),
                "give them back first: `nats-bridge rollback`",
            ));
        }
        (Phase::Cutover, Target::Detach) => {
            needs_nats(facts)?;
            match facts.rabbit_messages {
                Some(0) => Some(Position { phase: Phase::Native, weight: Weight::ALL }),
                Some(n) => {
                    return Err(Refused::new(
                        RefusedCode::NotDrained,
                        format!("RabbitMQ's queues still hold {n} messages"),
                        "let the consumers drain them; `nats-bridge status` shows which queues",
                    ));
                }
                None => {
                    return Err(Refused::new(
                        RefusedCode::SideDown,
                        "RabbitMQ does not say what its queues still hold",
                        "start RabbitMQ, so that what it holds is drained and not left behind",
                    ));
                }
            }
        }
        (Phase::Observe | Phase::Shadow | Phase::Canary, Target::Detach) => {
            return Err(Refused::new(
                RefusedCode::WrongPhase,
                format!("the weight is {} %", at.weight),
                "detach only at 100 %: `nats-bridge weight 100`",
            ));
        }
        (Phase::Native, Target::Weight(Weight::ALL)) => None,
        (Phase::Native, Target::Observe | Target::Shadow | Target::Weight(_) | Target::Rollback) => {
            return Err(Refused::new(
                RefusedCode::WrongPhase,
                "RabbitMQ is detached: there is no way back from native",
                "stay on JetStream; `nats-bridge serve` needs no RabbitMQ",
            ));
        }
    };
    Ok(next)
}

fn needs_nats(facts: Facts) -> Result<(), Refused> {
    if facts.nats_connected {
        return Ok(());
    }
    Err(Refused::new(
        RefusedCode::SideDown,
        "NATS does not answer, or a connection has lost its link to it",
        "wait until `nats-bridge status` shows nats as connected",
    ))
}

fn needs_rabbit(facts: Facts) -> Result<(), Refused> {
    if facts.rabbit_connected {
        return Ok(());
    }
    Err(Refused::new(
        RefusedCode::SideDown,
        "RabbitMQ does not answer: keys that it is given back would stand still",
        "start RabbitMQ first; NATS goes on meanwhile",
    ))
}

fn needs_mapped(facts: Facts) -> Result<(), Refused> {
    if facts.unmapped == 0 {
        return Ok(());
    }
    Err(Refused::new(
        RefusedCode::Unmapped,
        match facts.unmapped {
            1 => "JetStream does not have 1 exchange, queue or binding".to_owned(),
            many => format!("JetStream does not have {many} exchanges, queues or bindings"),
        },
        "`nats-bridge status` lists each one and why; remove or change it, or let its application declare it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Facts = Facts { unmapped: 0, nats_connected: true, rabbit_connected: true, rabbit_messages: Some(0) };
    const PHASES: [Phase; 5] = [Phase::Observe, Phase::Shadow, Phase::Canary, Phase::Cutover, Phase::Native];

    fn weight(buckets: u16) -> Weight {
        Weight::from_buckets(buckets).expect("at most 10 000")
    }

    fn position(phase: Phase) -> Position {
        let weight = match phase {
            Phase::Observe | Phase::Shadow => Weight::NONE,
            Phase::Canary => weight(500),
            Phase::Cutover | Phase::Native => Weight::ALL,
        };
        Position { phase, weight }
    }

    fn targets() -> Vec<Target> {
        let mut all = vec![Target::Observe, Target::Shadow, Target::Rollback, Target::Detach];
        all.extend([0, 1, 500, 9_999, 10_000].map(|w| Target::Weight(weight(w))));
        all
    }

    fn refusal(at: Phase, to: Target, facts: Facts) -> RefusedCode {
        change(position(at), to, facts).expect_err("refused").code
    }

    #[test]
    fn the_way_up_and_the_way_out() {
        let mut at = Position::START;
        for (to, phase, buckets) in [
            (Target::Shadow, Phase::Shadow, 0),
            (Target::Weight(weight(500)), Phase::Canary, 500),
            (Target::Weight(weight(9_999)), Phase::Canary, 9_999),
            (Target::Weight(weight(10_000)), Phase::Cutover, 10_000),
            (Target::Rollback, Phase::Shadow, 0),
            (Target::Weight(weight(10_000)), Phase::Cutover, 10_000),
            (Target::Detach, Phase::Native, 10_000),
        ] {
            at = change(at, to, GOOD).expect("allowed").expect("a change");
            assert_eq!((at.phase, at.weight.buckets()), (phase, buckets));
        }
    }

    #[test]
    fn every_phase_answers_every_target_and_weight_fits_phase() {
        for phase in PHASES {
            for to in targets() {
                if let Ok(Some(next)) = change(position(phase), to, GOOD) {
                    let fits = match next.phase {
                        Phase::Observe | Phase::Shadow => next.weight == Weight::NONE,
                        Phase::Canary => next.weight > Weight::NONE && next.weight < Weight::ALL,
                        Phase::Cutover | Phase::Native => next.weight == Weight::ALL,
                    };
                    assert!(fits, "{phase} {to:?} led to {next:?}");
                    assert_ne!(next, position(phase), "a change to what holds is no change");
                }
            }
        }
    }

    #[test]
    fn nothing_leads_out_of_native() {
        for to in targets() {
            match change(position(Phase::Native), to, GOOD) {
                Ok(next) => assert_eq!(next, None),
                Err(refused) => assert_eq!(refused.code, RefusedCode::WrongPhase),
            }
        }
    }

    #[test]
    fn more_weight_is_refused_while_something_is_unmapped_or_nats_is_down_and_less_is_not() {
        let up = Target::Weight(weight(600));
        assert_eq!(refusal(Phase::Canary, up, Facts { unmapped: 1, ..GOOD }), RefusedCode::Unmapped);
        assert_eq!(refusal(Phase::Canary, up, Facts { nats_connected: false, ..GOOD }), RefusedCode::SideDown);
        let away = Facts { unmapped: 1, nats_connected: false, ..GOOD };
        assert_eq!(refusal(Phase::Canary, up, away), RefusedCode::SideDown, "it may only have missed it");
        let bad = Facts { unmapped: 3, nats_connected: false, rabbit_connected: true, rabbit_messages: None };
        for to in [Target::Weight(weight(100)), Target::Weight(Weight::NONE), Target::Rollback] {
            assert!(change(position(Phase::Canary), to, bad).expect("allowed").is_some());
        }
        assert!(change(position(Phase::Cutover), Target::Rollback, bad).expect("allowed").is_some());
    }

    #[test]
    fn nothing_is_given_back_to_a_rabbitmq_that_does_not_answer() {
        let away = Facts { rabbit_connected: false, ..GOOD };
        assert_eq!(refusal(Phase::Cutover, Target::Rollback, away), RefusedCode::SideDown);
        assert_eq!(refusal(Phase::Canary, Target::Weight(weight(1)), away), RefusedCode::SideDown);
        assert!(change(position(Phase::Canary), Target::Weight(weight(600)), away).expect("allowed").is_some());
    }

    #[test]
    fn rabbitmq_is_let_go_only_at_full_weight_with_its_queues_known_to_be_empty() {
        for phase in [Phase::Observe, Phase::Shadow, Phase::Canary] {
            assert_eq!(refusal(phase, Target::Detach, GOOD), RefusedCode::WrongPhase);
        }
        let holds = Facts { rabbit_messages: Some(1), ..GOOD };
        assert_eq!(refusal(Phase::Cutover, Target::Detach, holds), RefusedCode::NotDrained);
        let silent = Facts { rabbit_messages: None, ..GOOD };
        assert_eq!(refusal(Phase::Cutover, Target::Detach, silent), RefusedCode::SideDown);
    }

    #[test]
    fn traffic_moves_only_after_shadow() {
        assert_eq!(refusal(Phase::Observe, Target::Weight(weight(1)), GOOD), RefusedCode::WrongPhase);
        assert_eq!(refusal(Phase::Cutover, Target::Shadow, GOOD), RefusedCode::WrongPhase);
    }
}
