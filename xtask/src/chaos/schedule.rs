//! What happens in a run, and when: changes of the weight, and kills. All of it comes from the seed.

use std::time::Duration;

use clap::ValueEnum;

use crate::demo::random::Random;

/// What is killed with `kill -9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// RabbitMQ's node.
    Rabbit,
    /// The nats-server.
    Nats,
    /// The sidecar.
    Sidecar,
    /// An application: a publisher or a consumer.
    Application,
}

/// All kinds.
pub const KINDS: [Kind; 4] = [Kind::Rabbit, Kind::Nats, Kind::Sidecar, Kind::Application];

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A verb of the command line.
    Change(Vec<String>),
    /// `kill -9`, and a new start after a while.
    Kill {
        /// What.
        kind: Kind,
        /// Of the applications, which: any number, taken modulo how many there are.
        which: u64,
        /// How long it stays away.
        away: Duration,
    },
}

/// When, from the first confirm on, and what.
pub type Plan = Vec<(Duration, Action)>;

/// The plan of `seed`, for a run of `length`. Half of the kills are within 200 ms of a change, and of three kills one is of two programs at
/// one moment. The first victim goes round with the seed, so that four runs in a row kill every kind.
pub fn plan(seed: u64, length: Duration, kinds: &[Kind]) -> Plan {
    let mut random = Random::new(seed);
    let length = u64::try_from(length.as_millis()).unwrap_or(u64::MAX).max(1_000);
    let mut plan = vec![(Duration::from_millis(100), verb("shadow"))];
    let (mut at, mut percent, mut changes) = (600, 0, Vec::new());
    while at < length {
        let (words, now) = change(&mut random, percent);
        percent = now;
        changes.push(at);
        plan.push((Duration::from_millis(at), verb(&words)));
        at += 300 + random.below(1_200);
    }
    let kills = 2 + random.below(3);
    for number in 0..kills {
        let at = match changes.get(random.below(changes.len().max(1) as u64) as usize) {
            Some(change) if random.below(2) == 0 => (change + random.below(200)).saturating_sub(50),
            _ => 600 + random.below(length.saturating_sub(600).max(1)),
        };
        let first = kinds.get(seed.wrapping_add(number) as usize % kinds.len().max(1));
        let second = kinds.get(random.below(kinds.len().max(1) as u64) as usize).filter(|_| random.below(3) == 0);
        for kind in [first, second].into_iter().flatten() {
            let (which, away) = (random.below(1 << 16), Duration::from_millis(100 + random.below(1_400)));
            plan.push((Duration::from_millis(at), Action::Kill { kind: *kind, which, away }));
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

/// The next change, and the weight that it leads to if nobody objects.
fn change(random: &mut Random, percent: u64) -> (String, u64) {
    let other: Vec<u64> = [1, 5, 25, 50, 75, 100].into_iter().filter(|weight| *weight != percent).collect();
    let to = other[random.below(other.len() as u64) as usize];
    match random.below(10) {
        0 | 1 if percent > 0 => ("rollback".to_owned(), 0),
        2 => ("promote --steps 5,25,50,75,100 --soak 0s --patience 500ms --on-no stop".to_owned(), to),
        _ => (format!("weight {to} --force --unrehearsed"), to),
    }
}

fn verb(words: &str) -> Action {
    Action::Change(words.split(' ').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(8);

    #[test]
    fn a_seed_makes_the_same_plan_and_four_in_a_row_kill_every_kind_first() {
        for seed in 0..100 {
            let planned = plan(seed, LENGTH, &KINDS);
            assert_eq!(planned, plan(seed, LENGTH, &KINDS));
            assert!(planned.is_sorted_by_key(|(at, _)| *at));
            let kills: Vec<_> = planned.iter().filter(|(_, what)| matches!(what, Action::Kill { .. })).collect();
            assert!((2..=8).contains(&kills.len()), "seed {seed}: {kills:?}");
            assert!(kills.iter().all(|(at, _)| *at < LENGTH + Duration::from_millis(200)));
        }
        let mut killed: Vec<Kind> = (0..4)
            .flat_map(|seed| plan(seed, LENGTH, &KINDS))
            .filter_map(|(_, what)| match what {
                Action::Kill { kind, .. } => Some(kind),
                Action::Change(_) => None,
            })
            .collect();
        killed.sort_unstable();
        killed.dedup();
        assert_eq!(killed, KINDS);
    }

    #[test]
    fn weights_go_up_and_down_and_back_to_nothing() {
        let words: Vec<String> = (0..50)
            .flat_map(|seed| plan(seed, LENGTH, &KINDS))
            .filter_map(|(_, what)| match what {
                Action::Change(words) => Some(words.join(" ")),
                Action::Kill { .. } => None,
            })
            .collect();
        for expected in ["shadow", "rollback", "weight 100 --force --unrehearsed", "weight 1 --force --unrehearsed"] {
            assert!(words.iter().any(|words| words == expected), "{expected}");
        }
        assert!(words.iter().any(|words| words.starts_with("promote ")));
    }

    #[test]
    fn only_what_is_asked_for_is_killed() {
        let kinds = [Kind::Nats, Kind::Application];
        let killed = |seed| {
            plan(seed, LENGTH, &kinds).into_iter().filter_map(|(_, what)| match what {
                Action::Kill { kind, .. } => Some(kind),
                Action::Change(_) => None,
            })
        };
        assert!((0..50).flat_map(killed).all(|kind| kinds.contains(&kind)));
    }
}
