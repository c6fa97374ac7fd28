//! How often handlers began a message, where that is not how often it was delivered. Pure; [`begun`](super::begun) keeps it.
//!
//! JetStream counts deliveries. What a process had fetched and handed to no handler when it was drained or killed was delivered,
//! and with nothing but that count a message that nobody has seen would use up the attempts of its policy. So a process that gives
//! messages back unbegun says so, and one that begins a message for the last time says so before: where nothing is said, it was
//! not begun, however often it was delivered. Whoever dies says nothing, which costs what it had not begun an attempt, but not the
//! last one; save that of a message that it was handing out in that moment, at most one for each death:
//! written down afterwards, a handler could have it twice.

use serde::{Deserialize, Serialize};

use super::place::Place;

/// How often a message was begun, up to one of its deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// How often handlers began it.
    pub attempts: u64,
    /// Up to this delivery, itself included.
    pub delivery: u64,
    /// When the stream stored it, nanoseconds since 1970: a stream of the same name that was made anew has the same sequences.
    pub stored_at: i128,
}

/// What to do with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is this attempt.
    HandOut(u64),
    /// It is this attempt and the policy's last one: that is to be kept before a handler gets it.
    Last(u64),
    /// It would be this attempt, one more than the policy has: nobody reported how the last one ended.
    GiveUp(u64),
}

/// Judges a delivery of a policy with `most` attempts.
pub(crate) fn judge(known: Option<Begun>, place: &Place, most: u64) -> Verdict {
    let known = known.filter(|begun| begun.stored_at == place.stored_at);
    let attempt = match known {
        // A nats-server that was killed may count from 1 again.
        Some(begun) => begun.attempts + place.delivered.saturating_sub(begun.delivery).max(1),
        None => place.delivered.max(1),
    };
    if attempt < most || place.delivered <= 1 {
        return Verdict::HandOut(attempt);
    }
    let was_last = match known {
        Some(begun) => begun.attempts >= most,
        // Of a first delivery nothing is kept, so that it costs nothing.
        None => most <= 1,
    };
    if was_last { Verdict::GiveUp(attempt) } else { Verdict::Last(most) }
}

/// The same where nothing can be kept: each delivery counts as an attempt.
pub(crate) fn judge_by_deliveries(place: &Place, most: u64) -> Verdict {
    match place.delivered {
        attempt if attempt > most => Verdict::GiveUp(attempt),
        attempt => Verdict::HandOut(attempt.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(delivered: u64) -> Place {
        Place { delivered, stream_sequence: 7, stored_at: 1700, pending: 0 }
    }

    fn begun(attempts: u64, delivery: u64) -> Option<Begun> {
        Some(Begun { attempts, delivery, stored_at: 1700 })
    }

    #[test]
    fn without_a_word_deliveries_count_and_the_last_attempt_is_kept_for_a_handler() {
        assert_eq!(judge(None, &place(1), 5), Verdict::HandOut(1));
        assert_eq!(judge(None, &place(4), 5), Verdict::HandOut(4));
        assert_eq!(judge(None, &place(5), 5), Verdict::Last(5));
        assert_eq!(judge(None, &place(90), 5), Verdict::Last(5));
        assert_eq!(judge(begun(5, 90), &place(91), 5), Verdict::GiveUp(6));
    }

    #[test]
    fn what_was_given_back_unbegun_has_all_its_attempts() {
        assert_eq!(judge(begun(0, 3), &place(4), 5), Verdict::HandOut(1));
        assert_eq!(judge(begun(2, 30), &place(31), 5), Verdict::HandOut(3));
        assert_eq!(judge(begun(4, 30), &place(31), 5), Verdict::Last(5));
    }

    #[test]
    fn a_policy_of_one_attempt_never_makes_two() {
        assert_eq!(judge(None, &place(1), 1), Verdict::HandOut(1));
        assert_eq!(judge(None, &place(2), 1), Verdict::GiveUp(2));
        assert_eq!(judge(begun(0, 1), &place(2), 1), Verdict::Last(1));
        assert_eq!(judge(begun(1, 2), &place(3), 1), Verdict::GiveUp(2));
    }

    #[test]
    fn another_stream_of_that_name_is_not_meant() {
        let old = Some(Begun { attempts: 5, delivery: 9, stored_at: 3 });
        assert_eq!(judge(old, &place(2), 5), Verdict::HandOut(2));
    }

    /// How a process that has a delivery ends.
    #[derive(Debug, Clone, Copy)]
    enum Ends {
        /// Killed, with the message in its buffer or in a handler.
        Killed { begun: bool },
        /// Drained with the message in its buffer.
        Drained,
    }

    fn ends() -> impl Strategy<Value = Ends> {
        prop_oneof![Just(Ends::Killed { begun: true }), Just(Ends::Killed { begun: false }), Just(Ends::Drained)]
    }

    proptest! {
        /// However processes end: never more attempts than the policy has, and never given up before a handler had its last one.
        #[test]
        fn the_policy_is_kept(most in 2_u64..7, all in prop::collection::vec(ends(), 1..60)) {
            let (mut kept, mut handled, mut last_begun) = (None, 0, false);
            for (delivery, ends) in (1..).zip(all) {
                let attempt = match judge(kept, &place(delivery), most) {
                    Verdict::GiveUp(_) => {
                        prop_assert!(last_begun, "given up although no handler had its last attempt");
                        return Ok(());
                    }
                    Verdict::HandOut(attempt) => {
                        prop_assert!(attempt < most);
                        attempt
                    }
                    Verdict::Last(attempt) => {
                        prop_assert_eq!(attempt, most);
                        attempt
                    }
                };
                match ends {
                    Ends::Killed { begun: true } => {
                        handled += 1;
                        if attempt == most {
                            (kept, last_begun) = (begun(attempt, delivery), true);
                        }
                    }
                    Ends::Killed { begun: false } => {}
                    Ends::Drained => kept = begun(attempt - 1, delivery),
                }
                prop_assert!(handled <= most, "{handled} attempts of {most}");
            }
        }

        /// Where processes are drained and nothing else, every attempt is left.
        #[test]
        fn drains_cost_nothing(most in 1_u64..7, drains in 1_u64..200) {
            let mut kept = None;
            for delivery in 1..=drains {
                let is_first = matches!(judge(kept, &place(delivery), most), Verdict::HandOut(1) | Verdict::Last(1));
                prop_assert!(is_first);
                kept = begun(0, delivery);
            }
        }
    }
}
