//! The SQL, and which of the rows that were locked may be published. Nothing here is PostgreSQL's alone.

use foldhash::{HashMap, HashMapExt, HashSet};

pub(super) const INSERT: &str = "INSERT INTO nats_outbox (id, key, subject, payload, headers, schema) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (id) DO NOTHING";

/// Locks the oldest row of each of at most `$1` keys that nobody else has.
pub(super) const HEADS: &str = "SELECT o.key FROM nats_outbox o \
    WHERE o.dead_at IS NULL AND o.not_before <= now() AND NOT EXISTS \
    (SELECT 1 FROM nats_outbox e WHERE e.key = o.key AND e.dead_at IS NULL AND e.seq < o.seq) \
    ORDER BY o.seq LIMIT $1 FOR UPDATE SKIP LOCKED";

/// Locks the oldest `$2` rows of these keys, as far as nobody else has them.
pub(super) const ROWS: &str = "SELECT id, seq, key, subject, payload, headers, schema, created_at, attempts \
    FROM nats_outbox WHERE key = ANY($1) AND dead_at IS NULL ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED";

/// All rows of these keys up to a `seq`, whoever has them.
pub(super) const SEEN: &str =
    "SELECT seq, key FROM nats_outbox WHERE key = ANY($1) AND dead_at IS NULL AND seq <= $2 ORDER BY seq";

pub(super) const SENT: &str = "DELETE FROM nats_outbox WHERE id = ANY($1)";

/// It was refused: `$2` is why, `$3` after how many seconds it may be tried again, `$4` how often it may be refused.
pub(super) const REFUSED: &str = "UPDATE nats_outbox SET attempts = attempts + 1, last_error = $2, \
    not_before = now() + $3::FLOAT8 * INTERVAL '1 second', \
    dead_at = CASE WHEN attempts + 1 >= $4 THEN now() END WHERE id = $1";

pub(super) const LATER: &str = "UPDATE nats_outbox SET last_error = $2, \
    not_before = now() + $3::FLOAT8 * INTERVAL '1 second' WHERE id = $1";

pub(super) const DEAD: &str = "SELECT id, key, subject, payload, headers, schema, created_at, dead_at, attempts, last_error \
    FROM nats_outbox WHERE dead_at IS NOT NULL ORDER BY seq LIMIT $1";

pub(super) const REVIVE: &str = "UPDATE nats_outbox SET attempts = 0, dead_at = NULL, not_before = now() \
    WHERE id = $1 AND dead_at IS NOT NULL";

pub(super) const DISCARD: &str = "DELETE FROM nats_outbox WHERE id = $1 AND dead_at IS NOT NULL";

/// How many wait and are dead (at most 10 000 are counted), and since when the oldest waits.
pub(super) const DEPTH: &str = "SELECT \
    (SELECT count(*) FROM (SELECT 1 FROM nats_outbox WHERE dead_at IS NULL LIMIT 10000) w) AS waiting, \
    (SELECT count(*) FROM (SELECT 1 FROM nats_outbox WHERE dead_at IS NOT NULL LIMIT 10000) d) AS dead, \
    (SELECT created_at FROM nats_outbox WHERE dead_at IS NULL ORDER BY seq LIMIT 1) AS oldest, \
    now() AS now";

/// Of the rows that were locked, by key, those that may be published: up to the first of the key that was seen and not locked.
pub(super) fn in_order<T>(locked: Vec<(i64, String, T)>, seen: impl IntoIterator<Item = (i64, String)>) -> Vec<Vec<T>> {
    let have: HashSet<i64> = locked.iter().map(|(seq, _, _)| *seq).collect();
    let mut barriers: HashMap<String, i64> = HashMap::new();
    for (seq, key) in seen {
        if !have.contains(&seq) {
            let barrier = barriers.entry(key).or_insert(seq);
            *barrier = seq.min(*barrier);
        }
    }
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut keys: Vec<Vec<T>> = Vec::new();
    for (seq, key, row) in locked {
        if barriers.get(&key).is_some_and(|barrier| seq > *barrier) {
            continue;
        }
        let place = *places.entry(key).or_insert(keys.len());
        match keys.get_mut(place) {
            Some(rows) => rows.push(row),
            None => keys.push(vec![row]),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_behind_a_row_of_somebody_else_is_taken() {
        let locked = [(1, "a"), (2, "b"), (5, "a"), (6, "b")].map(|(seq, key)| (seq, key.to_owned(), seq)).to_vec();
        let seen = [(1, "a"), (2, "b"), (4, "a"), (5, "a"), (6, "b")].map(|(seq, key)| (seq, key.to_owned()));
        assert_eq!(in_order(locked, seen), [vec![1], vec![2, 6]]);
    }

    proptest! {
        #[test]
        fn what_is_taken_of_a_key_is_an_unbroken_beginning(rows in proptest::collection::vec(("[a-c]", any::<bool>()), 0..30)) {
            let seen: Vec<(i64, String)> = rows.iter().enumerate().map(|(seq, (key, _))| (seq as i64, key.clone())).collect();
            let locked: Vec<_> = rows.iter().enumerate().filter(|(_, (_, locked))| *locked)
                .map(|(seq, (key, _))| (seq as i64, key.clone(), (seq as i64, key.clone()))).collect();
            for taken in in_order(locked, seen.clone()) {
                let key = &taken[0].1;
                let of_key: Vec<i64> = seen.iter().filter(|(_, k)| k == key).map(|(seq, _)| *seq).collect();
                let numbers: Vec<i64> = taken.iter().map(|(seq, _)| *seq).collect();
                prop_assert_eq!(&of_key[..numbers.len()], &numbers[..]);
            }
        }
    }
}
