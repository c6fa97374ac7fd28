//! Pure: who has the lease, by what was seen of it and when; times are since the gateway began.
//!
//! A lease is one document that its holder writes anew every [`Terms::renew`]. Whoever has seen the same revision of it for
//! [`Terms::lease`] may take it. Nobody compares clocks of two machines, and a holder that was overtaken learns of it for
//! certain: its next write names a revision that is not the last one any more.

use std::time::Duration;

/// How long a lease lasts; the same for all gateways of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    /// How long a holder may be silent before another one takes its place.
    pub(super) lease: Duration,
}

impl Terms {
    /// How often a holder writes, and how long it waits for an answer.
    pub(super) fn renew(self) -> Duration {
        self.lease / 5
    }

    /// How long a candidate waits for a holder that goes on writing: it may be about to stop.
    fn patience(self) -> Duration {
        self.lease + self.renew()
    }
}

/// What a candidate has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
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
pub(super) enum Step {
    /// Writes its name where there is none.
    Take,
    /// Writes its name over this revision.
    TakeOver(u64),
    /// Looks again in a moment.
    Wait,
    /// Gives up: the holder lives.
    GiveUp,
}

/// A gateway that wants the lease.
#[derive(Debug)]
pub(super) struct Candidate {
    terms: Terms,
    began: Duration,
    /// The last revision, and since when nothing else was seen.
    watched: Option<(u64, Duration)>,
}

impl Candidate {
    pub(super) fn new(terms: Terms, now: Duration) -> Self {
        Self { terms, began: now, watched: None }
    }

    pub(super) fn look(&mut self, seen: Seen, now: Duration) -> Step {
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
}

/// What became of a holder's write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
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
pub(super) enum Standing {
    /// It has the lease.
    Holds,
    /// It has it unless somebody has taken it: it could not write for as long as the lease lasts. Said once.
    Overdue,
    /// It has lost it.
    Lost,
}

/// A gateway that has the lease.
#[derive(Debug)]
pub(super) struct Holding {
    terms: Terms,
    revision: u64,
    renewed: Duration,
    is_overdue: bool,
}

impl Holding {
    /// `now` is when the write that took it was sent.
    pub(super) fn new(terms: Terms, revision: u64, now: Duration) -> Self {
        Self { terms, revision, renewed: now, is_overdue: false }
    }

    /// The revision that the next write has to name.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Takes what became of a write that was sent at `sent`.
    pub(super) fn wrote(&mut self, write: Write, sent: Duration, now: Duration) -> Standing {
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
    fn a_holder_that_cannot_write_holds_on_and_says_so_once() {
        let mut holding = Holding::new(TERMS, 7, s(0));
        assert_eq!(holding.wrote(Write::NoAnswer, s(7), s(9)), Standing::Holds);
        assert_eq!(holding.wrote(Write::NoAnswer, s(9), s(11)), Standing::Overdue);
        assert_eq!(holding.wrote(Write::NoAnswer, s(11), s(13)), Standing::Holds);
        assert_eq!(holding.wrote(Write::Stored(8), s(14), s(14)), Standing::Holds);
        assert_eq!(holding.wrote(Write::NoAnswer, s(24), s(26)), Standing::Overdue);
    }
}
