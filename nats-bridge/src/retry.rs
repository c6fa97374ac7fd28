//! When to try again, and when to give up. Pure: the time that has passed and the randomness are arguments.

use std::time::Duration;

/// How often and after which pauses something that failed is tried again. There is no endless policy.
///
/// Pauses grow exponentially up to a bound, with full jitter: each is drawn evenly from zero to the grown pause, so that
/// many that failed together do not come back together. Source: "Exponential Backoff And Jitter", AWS Architecture Blog.
///
/// ```
/// use std::time::Duration;
/// use nats_bridge::{Next, RetryPolicy};
///
/// let policy = RetryPolicy { attempts: 3, jitter: false, ..RetryPolicy::default() };
/// let second = Duration::from_secs(1);
/// assert_eq!(policy.next(1, Duration::ZERO, 0), Next::After(second));
/// assert_eq!(policy.next(2, second, 0), Next::After(second * 2));
/// assert_eq!(policy.next(3, second * 3, 0), Next::GiveUp);
/// assert_eq!(policy.longest(), second * 3);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; at least 1. Default 5.
    pub attempts: u32,
    /// The pause after the first failure, before jitter. Default 1 s.
    pub first_pause: Duration,
    /// What each pause is multiplied by to give the next, before jitter; at least 1. Default 2.
    pub factor: f64,
    /// The longest pause. Default 60 s.
    pub max_pause: Duration,
    /// No further attempt starts later than this after the first one. Default none: attempts alone bound it.
    pub max_elapsed: Option<Duration>,
    /// Whether pauses are drawn from zero to their full length; without, they are exactly their full length. Default
    /// true.
    pub jitter: bool,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Try again after this pause.
    After(Duration),
    /// Do not try again.
    GiveUp,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        RetryPolicy {
            attempts: 5,
            first_pause: Duration::from_secs(1),
            factor: 2.0,
            max_pause: Duration::from_secs(60),
            max_elapsed: None,
            jitter: true,
        }
    }
}

impl RetryPolicy {
    /// Decides after attempt number `attempt` (from 1) failed, `elapsed` after the first attempt began.
    ///
    /// `random` is a number drawn evenly from all of `u64`; the same arguments give the same answer.
    pub fn next(&self, attempt: u32, elapsed: Duration, random: u64) -> Next {
        if attempt >= self.attempts {
            return Next::GiveUp;
        }
        let full = self.full_pause(attempt);
        let pause = match self.jitter {
            true => full.mul_f64(random as f64 / u64::MAX as f64).min(full),
            false => full,
        };
        match self.max_elapsed {
            Some(max) if elapsed.saturating_add(pause) > max => Next::GiveUp,
            _ => Next::After(pause),
        }
    }

    /// The pause after attempt number `attempt` (from 1) before jitter.
    pub fn full_pause(&self, attempt: u32) -> Duration {
        let factor = if self.factor >= 1.0 { self.factor } else { 1.0 };
        let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.first_pause.as_secs_f64() * factor.powi(exponent);
        match seconds.is_finite() && seconds < self.max_pause.as_secs_f64() {
            true => Duration::from_secs_f64(seconds),
            false => self.max_pause,
        }
    }

    /// The longest time from the first attempt's start to the last attempt's start, apart from the attempts' own time.
    pub fn longest(&self) -> Duration {
        let sum = (1..self.attempts.min(10_000))
            .fold(Duration::ZERO, |sum, attempt| sum.saturating_add(self.full_pause(attempt)));
        self.max_elapsed.map_or(sum, |max| max.min(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policies() -> impl Strategy<Value = RetryPolicy> {
        (0u32..50, 0u64..100_000, 0.0f64..10.0, 0u64..1_000_000, proptest::option::of(0u64..1_000_000), any::<bool>())
            .prop_map(|(attempts, first, factor, max, elapsed, jitter)| RetryPolicy {
                attempts,
                first_pause: Duration::from_millis(first),
                factor,
                max_pause: Duration::from_millis(max),
                max_elapsed: elapsed.map(Duration::from_millis),
                jitter,
            })
    }

    proptest! {
        #[test]
        fn it_always_gives_up_after_its_attempts(policy in policies(), random in any::<u64>()) {
            let mut elapsed = Duration::ZERO;
            let mut tries = 1;
            while let Next::After(pause) = policy.next(tries, elapsed, random) {
                prop_assert!(pause <= policy.max_pause);
                prop_assert!(pause <= policy.full_pause(tries));
                elapsed += pause;
                tries += 1;
                prop_assert!(tries <= policy.attempts);
                prop_assert!(policy.max_elapsed.is_none_or(|max| elapsed <= max));
            }
            prop_assert!(elapsed <= policy.longest());
        }

        #[test]
        fn full_pauses_never_shrink(policy in policies(), attempt in 1u32..10_000) {
            prop_assert!(policy.full_pause(attempt) <= policy.full_pause(attempt + 1));
        }
    }

    #[test]
    fn pauses_double_up_to_the_bound() {
        let policy =
            RetryPolicy { jitter: false, attempts: 9, max_pause: Duration::from_secs(9), ..Default::default() };
        let pauses: Vec<_> = (1..=9).map(|attempt| policy.next(attempt, Duration::ZERO, 0)).collect();
        let after = |s| Next::After(Duration::from_secs(s));
        assert_eq!(
            pauses,
            [after(1), after(2), after(4), after(8), after(9), after(9), after(9), after(9), Next::GiveUp]
        );
    }

    #[test]
    fn jitter_covers_the_whole_pause() {
        let policy = RetryPolicy::default();
        assert_eq!(policy.next(1, Duration::ZERO, 0), Next::After(Duration::ZERO));
        assert_eq!(policy.next(1, Duration::ZERO, u64::MAX), Next::After(Duration::from_secs(1)));
    }
}
