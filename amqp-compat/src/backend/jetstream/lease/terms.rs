//! Pure: who has the lease, by what was seen of it and when; times are since the gateway began.
//!
//! A lease is one document that its holder writes anew every [`Terms::renew`]. Whoever has seen the same revision of it for
//! [`Terms::lease`] may take it. Nobody compares clocks of two machines, and a holder that was overtaken learns of it for
//! certain: its next write names a revision that is not the last one any more.
//!
//! That is enough where all that a holder does goes through NATS, which stands between it and its successor. A sidecar also writes to
//! RabbitMQ, which knows nothing of the lease. So sidecars that share an account have a second lock, on RabbitMQ, and two rules: to
//! begin takes both, and to go on takes either. A holder that has had an answer from neither for as long as [`Terms::fuse`] and
//! [`Terms::lock_fuse`] say stops by itself, before another one can have both: clocks may run up to 5 % faster or slower than others.

use std::time::Duration;

/// How long a lease lasts; the same for all gateways of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How long a holder may be silent before another one takes its place.
    pub lease: Duration,
}

impl Terms {
    /// How often a holder writes, and how long it waits for an answer.
    pub fn renew(self) -> Duration {
        self.lease / 5
    }

    /// How long a holder with a second lock goes on after the last renewal that was answered.
    pub fn fuse(self) -> Duration {
        self.lease * 4 / 5
    }

    /// How long it goes on after the last time that the second lock was seen to be its own.
    pub fn lock_fuse(self) -> Duration {
        self.lease * 3 / 5
    }

    /// How long a candidate has the second lock before it follows a holder that may live: longer than that one relies on it.
    pub fn lock_wait(self) -> Duration {
        self.lease * 7 / 10
    }

    /// How long a holder is silent when a candidate tries to get the second lock: both waits then end together.
    fn lock_from(self) -> Duration {
        self.lease * 3 / 10
    }

    /// How long a candidate waits for a holder that goes on writing: it may be about to stop.
    fn patience(self) -> Duration {
        self.lease + self.renew()
    }
}

/// What a candidate has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nobody has the lease.
    Free,
    /// Somebody has it, as of this revision; `is_dead`: a process of this machine that is known to be gone.
    Held {
        /// Of the document.
        revision: u64,
        /// Whether the holder is known to have ended.
        is_dead: bool,
    },
    /// NATS did not answer.
    Nothing,
}

/// What a candidate does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Writes its name where there is none.
    Take,
    /// Writes its name over this revision.
    TakeOver(u64),
    /// Looks again in a moment.
    Wait,
    /// Gives up: the holder lives.
    GiveUp,
}

/// What is known of the second lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// This process has it.
    Mine,
    /// Another one has it, or nobody knows.
    NotMine,
    /// There is none that could be had, and nothing that it would keep apart.
    NotNeeded,
}

/// A gateway that wants the lease.
#[derive(Debug)]
pub struct Candidate {
    terms: Terms,
    began: Duration,
    /// The last revision, and since when nothing else was seen.
    watched: Option<(u64, Duration)>,
    /// Since when it has the second lock.
    locked: Option<Duration>,
}

impl Candidate {
    /// Begins to look at `now`.
    pub fn new(terms: Terms, now: Duration) -> Self {
        Self { terms, began: now, watched: None, locked: None }
    }

    /// What to do after a look that was sent at `now`.
    pub fn look(&mut self, seen: Seen, now: Duration) -> Step {
        match seen {
            Seen::Free => Step::Take,
            Seen::Held { revision, is_dead: true } => Step::TakeOver(revision),
            Seen::Held { revision, is_dead: false } => {
                let since = match self.watched {
                    Some((watched, since)) if watched == revision => since,
                    _ => now,
                };
                self.watched = Some((revision, since));
                if now.saturating_sub(since) >= self.terms.lease {
                    Step::TakeOver(revision)
                } else if now.saturating_sub(self.began) >= self.terms.patience() {
                    Step::GiveUp
                } else {
                    Step::Wait
                }
            }
            // The holder could not write either: its silence means nothing.
            Seen::Nothing => {
                self.watched = None;
                if now.saturating_sub(self.began) >= self.terms.patience() { Step::GiveUp } else { Step::Wait }
            }
        }
    }

    /// Whether to try to get the second lock, or to keep it: whoever has the lease is gone or silent.
    pub fn wants_lock(&self, seen: Seen, now: Duration) -> bool {
        match seen {
            Seen::Free | Seen::Held { is_dead: true, .. } => true,
            Seen::Held { .. } => {
                self.watched.is_some_and(|(_, since)| now.saturating_sub(since) >= self.terms.lock_from())
            }
            Seen::Nothing => false,
        }
    }

    /// The step that the second lock allows.
    pub fn with_lock(&mut self, step: Step, seen: Seen, lock: Lock, now: Duration) -> Step {
        let since = match lock {
            Lock::Mine => *self.locked.get_or_insert(now),
            Lock::NotMine | Lock::NotNeeded => {
                self.locked = None;
                now
            }
        };
        let is_gone = matches!(seen, Seen::Free | Seen::Held { is_dead: true, .. });
        let may = match lock {
            Lock::Mine => is_gone || now.saturating_sub(since) >= self.terms.lock_wait(),
            Lock::NotNeeded => true,
            Lock::NotMine => false,
        };
        match step {
            Step::Take | Step::TakeOver(_) if !may => Step::Wait,
            step => step,
        }
    }
}

/// What became of a holder's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// It is the last revision now.
    Stored(u64),
    /// It was not stored: this revision, also of ours, came before. The answer to that one got lost.
    Behind(u64),
    /// It was not stored: somebody else has the lease, or has had it.
    Overtaken,
    /// Nobody knows.
    NoAnswer,
}

/// Where a holder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It has the lease.
    Holds,
    /// It has it unless somebody has taken it: it could not write for as long as the lease lasts. Said once.
    Overdue,
    /// It has lost it.
    Lost,
}

/// A gateway that has the lease.
#[derive(Debug)]
pub struct Holding {
    terms: Terms,
    revision: u64,
    renewed: Duration,
    is_overdue: bool,
    /// When it last asked for the second lock and had it.
    locked: Option<Duration>,
}

impl Holding {
    /// `now` is when the write that took it was sent.
    pub fn new(terms: Terms, revision: u64, now: Duration) -> Self {
        Self { terms, revision, renewed: now, is_overdue: false, locked: None }
    }

    /// The revision that the next write has to name.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes what became of a write that was sent at `sent`.
    pub fn wrote(&mut self, write: Write, sent: Duration, now: Duration) -> Standing {
        match write {
            Write::Stored(revision) => {
                (self.revision, self.renewed, self.is_overdue) = (revision, sent, false);
                Standing::Holds
            }
            Write::Behind(revision) => {
                self.revision = revision;
                Standing::Holds
            }
            Write::Overtaken => Standing::Lost,
            Write::NoAnswer if !self.is_overdue && now.saturating_sub(self.renewed) >= self.terms.lease => {
                self.is_overdue = true;
                Standing::Overdue
            }
            Write::NoAnswer => Standing::Holds,
        }
    }

    /// Takes what a question about the second lock, sent at `sent`, was answered.
    pub fn asked(&mut self, lock: Lock, sent: Duration) {
        self.locked = (lock == Lock::Mine).then_some(sent);
    }

    /// Until when a holder with a second lock may do anything, if nothing is renewed.
    pub fn until(&self) -> Duration {
        let locked = self.locked.map_or(Duration::ZERO, |locked| locked + self.terms.lock_fuse());
        locked.max(self.renewed + self.terms.fuse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { lease: Duration::from_secs(10) };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held(revision: u64) -> Seen {
        Seen::Held { revision, is_dead: false }
    }

    #[test]
    fn what_is_free_or_belonged_to_a_dead_process_is_taken_at_once() {
        let mut candidate = Candidate::new(TERMS, s(0));
        assert_eq!(candidate.look(Seen::Free, s(0)), Step::Take);
        assert_eq!(candidate.look(Seen::Held { revision: 7, is_dead: true }, s(0)), Step::TakeOver(7));
    }

    #[test]
    fn a_holder_that_is_silent_for_the_lease_is_followed_and_not_before() {
        let mut candidate = Candidate::new(TERMS, s(100));
        assert_eq!(candidate.look(held(7), s(100)), Step::Wait);
        assert_eq!(candidate.look(held(8), s(101)), Step::Wait);
        assert_eq!(candidate.look(held(8), s(110)), Step::Wait);
        assert_eq!(candidate.look(held(8), s(111)), Step::TakeOver(8));
    }

    #[test]
    fn a_holder_that_goes_on_is_not_followed() {
        let mut candidate = Candidate::new(TERMS, s(0));
        for second in 0..12 {
            assert_eq!(candidate.look(held(second / 2), s(second)), Step::Wait, "after {second} s");
        }
        assert_eq!(candidate.look(held(6), s(12)), Step::GiveUp);
    }

    #[test]
    fn a_silence_in_which_nats_was_away_does_not_count() {
        let mut candidate = Candidate::new(TERMS, s(0));
        assert_eq!(candidate.look(held(7), s(0)), Step::Wait);
        assert_eq!(candidate.look(Seen::Nothing, s(9)), Step::Wait);
        assert_eq!(candidate.look(held(7), s(11)), Step::Wait);
        assert_eq!(candidate.look(held(7), s(12)), Step::GiveUp);
    }

    #[test]
    fn a_holder_names_its_last_revision_also_when_an_answer_got_lost() {
        let mut holding = Holding::new(TERMS, 7, s(0));
        assert_eq!(holding.wrote(Write::Stored(9), s(2), s(2)), Standing::Holds);
        assert_eq!(holding.revision(), 9);
        assert_eq!(holding.wrote(Write::NoAnswer, s(4), s(6)), Standing::Holds);
        assert_eq!(holding.wrote(Write::Behind(12), s(6), s(6)), Standing::Holds);
        assert_eq!(holding.revision(), 12);
        assert_eq!(holding.wrote(Write::Overtaken, s(8), s(8)), Standing::Lost);
    }

    #[test]
    fn with_a_second_lock_nobody_begins_without_both_and_a_holder_goes_on_with_either() {
        let mut candidate = Candidate::new(TERMS, s(0));
        let mut look = |now, lock| {
            let step = candidate.look(held(7), s(now));
            (candidate.wants_lock(held(7), s(now)), candidate.with_lock(step, held(7), lock, s(now)))
        };
        assert_eq!(look(0, Lock::NotMine), (false, Step::Wait));
        assert_eq!(look(3, Lock::NotMine), (true, Step::Wait));
        assert_eq!(look(12, Lock::NotMine), (true, Step::Wait), "the lease alone is not enough");
        assert_eq!(look(13, Lock::Mine), (true, Step::Wait));
        assert_eq!(look(19, Lock::Mine), (true, Step::Wait));
        assert_eq!(look(20, Lock::Mine), (true, Step::TakeOver(7)));
        assert_eq!(look(21, Lock::NotNeeded), (true, Step::TakeOver(7)));
        let mut candidate = Candidate::new(TERMS, s(0));
        assert_eq!(candidate.with_lock(Step::Take, Seen::Free, Lock::NotMine, s(0)), Step::Wait);
        assert_eq!(candidate.with_lock(Step::Take, Seen::Free, Lock::Mine, s(1)), Step::Take, "it was given back");

        let mut holding = Holding::new(TERMS, 7, s(0));
        assert_eq!(holding.until(), s(8));
        holding.asked(Lock::Mine, s(10));
        assert_eq!(holding.until(), s(16));
        holding.asked(Lock::NotMine, s(12));
        assert_eq!(holding.until(), s(8));
        holding.wrote(Write::Stored(8), s(12), s(12));
        assert_eq!(holding.until(), s(20));
    }

    #[test]
    fn a_holder_that_cannot_write_holds_on_and_says_so_once() {
        let mut holding = Holding::new(TERMS, 7, s(0));
        assert_eq!(holding.wrote(Write::NoAnswer, s(7), s(9)), Standing::Holds);
        assert_eq!(holding.wrote(Write::NoAnswer, s(9), s(11)), Standing::Overdue);
        assert_eq!(holding.wrote(Write::NoAnswer, s(11), s(13)), Standing::Holds);
        assert_eq!(holding.wrote(Write::Stored(8), s(14), s(14)), Standing::Holds);
        assert_eq!(holding.wrote(Write::NoAnswer, s(24), s(26)), Standing::Overdue);
    }
}
