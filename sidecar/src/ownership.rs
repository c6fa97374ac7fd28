//! Which side owns a message.
//!
//! Every message has an ordering key. The key falls into one of 10 000 buckets, and NATS owns the buckets below the
//! weight. A bucket that NATS owns at some weight it owns at every greater one, so that raising the weight in steps
//! moves each key once. Pure: no clock, no randomness.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::control_api::Weight;

/// One of the two brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// RabbitMQ.
    Rabbit,
    /// NATS JetStream.
    Nats,
}

impl Side {
    /// Both sides, RabbitMQ first: the order in which what is done on both is done.
    pub const BOTH: [Side; 2] = [Side::Rabbit, Side::Nats];

    /// The other one.
    pub const fn other(self) -> Side {
        match self {
            Side::Rabbit => Side::Nats,
            Side::Nats => Side::Rabbit,
        }
    }

    /// Its place in an array of two, RabbitMQ first.
    pub const fn index(self) -> usize {
        match self {
            Side::Rabbit => 0,
            Side::Nats => 1,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Rabbit => "rabbit",
            Side::Nats => "nats",
        })
    }
}

/// The bucket of an ordering key: 0 to 9 999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(u16);

impl Bucket {
    /// The bucket of `key`. The same key and salt always fall into the same bucket, in every process.
    pub fn of(salt: u64, key: &[u8]) -> Self {
        // The remainder is below 10 000 and fits.
        Self((xxh3_64_with_seed(key, salt) % u64::from(Weight::BUCKETS)) as u16)
    }

    /// Who owns it at this weight.
    pub const fn owner(self, weight: Weight) -> Side {
        if self.0 < weight.buckets() { Side::Nats } else { Side::Rabbit }
    }

    /// Whether its owner at one weight is not its owner at the other.
    pub fn moves(self, from: Weight, to: Weight) -> bool {
        self.owner(from) != self.owner(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn weight(buckets: u16) -> Weight {
        Weight::from_buckets(buckets).expect("at most 10 000")
    }

    proptest! {
        #[test]
        fn what_nats_owns_at_a_weight_it_owns_at_every_greater_one(
            key in proptest::collection::vec(any::<u8>(), 0..64), salt: u64, a in 0u16..=10_000, b in 0u16..=10_000,
        ) {
            let bucket = Bucket::of(salt, &key);
            let (low, high) = (weight(a.min(b)), weight(a.max(b)));
            if bucket.owner(low) == Side::Nats {
                prop_assert_eq!(bucket.owner(high), Side::Nats);
            }
        }

        #[test]
        fn a_key_moves_once_on_the_way_up_and_never_at_the_ends(key: String, salt: u64, mut steps: Vec<u16>) {
            let bucket = Bucket::of(salt, key.as_bytes());
            prop_assert_eq!(bucket.owner(Weight::NONE), Side::Rabbit);
            prop_assert_eq!(bucket.owner(Weight::ALL), Side::Nats);
            for step in &mut steps {
                *step %= 10_001;
            }
            steps.extend([0, 10_000]);
            steps.sort_unstable();
            let moves = steps.windows(2).filter(|w| bucket.moves(weight(w[0]), weight(w[1]))).count();
            prop_assert_eq!(moves, 1);
        }
    }

    #[test]
    fn keys_spread_evenly_enough_that_a_weight_is_a_share() {
        let owned = (0..100_000)
            .filter(|n| Bucket::of(7, format!("orders.{n}").as_bytes()).owner(weight(2_500)) == Side::Nats)
            .count();
        assert!((24_000..26_000).contains(&owned), "{owned} of 100000 at 25 %");
    }

    #[test]
    fn the_bucket_of_a_key_never_changes_between_versions() {
        // Stored messages are held and drained by their bucket: a change of the hash would lose order in an upgrade.
        assert_eq!(Bucket::of(0, b"orders.eu"), Bucket::of(0, b"orders.eu"));
        assert_eq!(Bucket::of(0, b"").0, (xxh3_64_with_seed(b"", 0) % 10_000) as u16);
        assert_ne!(Bucket::of(0, b"orders.eu"), Bucket::of(1, b"orders.eu"));
    }
}
