//! Numbers of JavaScript as lengths of time and counts; texts as keys. What is not in range is refused by name.

use std::time::Duration;

use nats_bridge::encryption::Keys;

use crate::errors;

/// A whole number of milliseconds.
pub fn millis(field: &str, ms: f64) -> napi::Result<Duration> {
    count(field, ms).map(Duration::from_millis)
}

/// A whole number that fits `T`.
pub fn count<T: TryFrom<u64>>(field: &str, number: f64) -> napi::Result<T> {
    let refused = || errors::invalid(field, &format!("{number} is not a whole number in range"));
    if number.fract() != 0.0 || !(0.0..=MAX_SAFE).contains(&number) {
        return Err(refused());
    }
    T::try_from(number as u64).map_err(|_| refused())
}

/// A name of the core as JavaScript spells it.
pub fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |name, word| {
        let (head, tail) = word.split_at(word.len().min(1));
        name + &head.to_ascii_uppercase() + tail
    })
}

/// The keys that a path, or `env:NAME`, says where to find.
pub fn keys(source: &str) -> napi::Result<Keys> {
    Keys::from_source(source).map_err(|error| errors::from_core(&error))
}

// `Number.MAX_SAFE_INTEGER`.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;
