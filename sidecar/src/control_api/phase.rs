//! Where a cutover can be: its phase, and the share that NATS owns.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A phase of the cutover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// RabbitMQ does everything; topology is recorded.
    Observe,
    /// RabbitMQ does everything; copies are stored in JetStream and compared.
    Shadow,
    /// A weight between 1 and 9 999 buckets: NATS owns some ordering keys.
    Canary,
    /// NATS owns every ordering key; RabbitMQ is still attached.
    Cutover,
    /// RabbitMQ is detached.
    Native,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Observe => "observe",
            Phase::Shadow => "shadow",
            Phase::Canary => "canary",
            Phase::Cutover => "cutover",
            Phase::Native => "native",
        })
    }
}

/// The share of ordering keys that NATS owns: 0 to 10 000 buckets, written and read as per cent with at most two
/// decimals (`5`, `0.25`, `100`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Weight(u16);

impl Weight {
    /// The number of buckets that all ordering keys are spread over.
    pub const BUCKETS: u16 = 10_000;
    /// RabbitMQ owns every ordering key.
    pub const NONE: Weight = Weight(0);
    /// NATS owns every ordering key.
    pub const ALL: Weight = Weight(Self::BUCKETS);

    /// The weight of this many buckets; `None` above 10 000.
    pub const fn from_buckets(buckets: u16) -> Option<Self> {
        if buckets <= Self::BUCKETS { Some(Self(buckets)) } else { None }
    }

    /// The weight of this many per cent; `None` outside 0 to 100, and for more than two decimals.
    pub fn from_percent(percent: f64) -> Option<Self> {
        let buckets = percent * 100.0;
        let whole = buckets.round();
        let fits = (0.0..=f64::from(Self::BUCKETS)).contains(&whole) && (buckets - whole).abs() < 1e-6;
        fits.then_some(Self(whole as u16))
    }

    /// Buckets below this number are owned by NATS.
    pub const fn buckets(self) -> u16 {
        self.0
    }

    /// The weight in per cent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.percent())
    }
}

impl Serialize for Weight {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(100) {
            serializer.serialize_u16(self.0 / 100)
        } else {
            serializer.serialize_f64(self.percent())
        }
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(deserializer)?;
        Self::from_percent(percent)
            .ok_or_else(|| serde::de::Error::custom("a weight is 0 to 100 per cent, with at most two decimals"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_written_as_per_cent_and_read_back() {
        for (percent, text) in [(0.0, "0"), (5.0, "5"), (0.25, "0.25"), (99.99, "99.99"), (100.0, "100")] {
            let weight = Weight::from_percent(percent).expect("a valid weight");
            assert_eq!(serde_json::to_string(&weight).expect("serializable"), text);
            assert_eq!(serde_json::from_str::<Weight>(text).expect("readable"), weight);
            assert_eq!(weight.to_string(), text);
        }
        for bad in ["-1", "100.01", "0.001", "1e9", "\"5\""] {
            assert!(serde_json::from_str::<Weight>(bad).is_err(), "{bad} was taken");
        }
        assert!(Weight::from_percent(f64::NAN).is_none());
    }
}
