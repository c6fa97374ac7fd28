//! The steps that traffic is taken through, and where the seed puts the kills.

use super::random::Random;

/// One step: something is changed, then messages pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Its name in the report.
    pub name: &'static str,
    /// What is changed when it begins.
    pub change: Change,
    /// What is killed while messages pass, and how far into the step: 0 to 100 per cent of its messages.
    pub kill: Option<(Victim, u64)>,
}

/// What a step changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Nothing: the applications talk to RabbitMQ alone.
    Nothing,
    /// A verb of the command line, with its arguments.
    Verb(&'static [&'static str]),
    /// RabbitMQ is stopped for good.
    StopRabbit,
}

/// What is killed with `kill -9`, and started again a second later, as a supervisor would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The NATS server.
    NatsServer,
    /// The sidecar.
    Sidecar,
}

/// The whole way from RabbitMQ to JetStream, with a rollback on it. A step is over in seconds, which is too soon for the gate: the
/// judge here is the ledger.
pub fn whole_way() -> Vec<Step> {
    let step = |name, change| Step { name, change, kill: None };
    vec![
        step("observe", Change::Verb(&["observe"])),
        step("shadow", Change::Verb(&["shadow"])),
        step("5 %", Change::Verb(&["weight", "5", "--force"])),
        step("25 %", Change::Verb(&["weight", "25", "--force"])),
        step("50 %", Change::Verb(&["weight", "50", "--force"])),
        // Without it 100 % is refused.
        step("rehearsal", Change::Verb(&["rollback", "rehearse", "--stay", "1s"])),
        step("100 %", Change::Verb(&["weight", "100", "--force"])),
        step("rollback to 0", Change::Verb(&["rollback"])),
        step("100 % again", Change::Verb(&["weight", "100", "--force"])),
        step("detached", Change::Verb(&["detach"])),
        step("RabbitMQ stopped", Change::StopRabbit),
    ]
}

/// The applications on RabbitMQ alone: what the ledger says of a run that nobody interferes with.
pub fn baseline() -> Vec<Step> {
    ["first third", "second third", "last third"]
        .map(|name| Step { name, change: Change::Nothing, kill: None })
        .to_vec()
}

/// Puts one kill of the NATS server and one of the sidecar where `seed` says: in two different steps, and of the NATS
/// server in one in which it owns messages.
pub fn with_kills(mut steps: Vec<Step>, seed: u64) -> Vec<Step> {
    let mut random = Random::new(seed);
    let owns = |step: &Step| matches!(step.change, Change::Verb(["weight", ..] | ["detach"]));
    let of_nats: Vec<usize> = (0..steps.len()).filter(|index| owns(&steps[*index])).collect();
    let nats = of_nats[random.below(of_nats.len() as u64) as usize];
    let others: Vec<usize> = (0..steps.len()).filter(|index| *index != nats).collect();
    let sidecar = others[random.below(others.len() as u64) as usize];
    steps[nats].kill = Some((Victim::NatsServer, 20 + random.below(50)));
    steps[sidecar].kill = Some((Victim::Sidecar, 20 + random.below(50)));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_kills_both_once_in_different_steps_and_always_the_same_way() {
        for seed in 0..200 {
            let steps = with_kills(whole_way(), seed);
            let kills: Vec<_> = steps.iter().filter_map(|step| step.kill).collect();
            assert_eq!(kills.len(), 2, "seed {seed}");
            for victim in [Victim::NatsServer, Victim::Sidecar] {
                assert_eq!(kills.iter().filter(|kill| kill.0 == victim).count(), 1, "seed {seed}");
            }
            assert_eq!(steps, with_kills(whole_way(), seed));
        }
    }

    #[test]
    fn seeds_reach_every_step_that_may_be_hit() {
        let hit = |victim| {
            let mut names: Vec<_> = (0..500)
                .flat_map(|seed| with_kills(whole_way(), seed))
                .filter(|step| step.kill.is_some_and(|kill| kill.0 == victim))
                .map(|step| step.name)
                .collect();
            names.sort_unstable();
            names.dedup();
            names.len()
        };
        assert_eq!(hit(Victim::Sidecar), whole_way().len());
        assert_eq!(hit(Victim::NatsServer), 6);
    }
}
