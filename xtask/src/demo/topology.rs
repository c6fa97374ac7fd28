//! What the demo's applications declare, and so which queues a message must come out of.

/// A queue, and which messages belong in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// The topic exchange it is bound to; `None` for a queue that is reached by its name.
    pub exchange: Option<String>,
    /// The binding keys.
    pub bindings: Vec<String>,
    /// How many applications work on it. AMQP promises order only where it is one.
    pub consumers: usize,
    /// Whether what comes here died in another queue.
    pub of_dead_letters: bool,
}

impl Queue {
    /// Whether a message published to `exchange` with `key` belongs in this queue.
    pub fn takes(&self, exchange: &str, key: &str) -> bool {
        match &self.exchange {
            _ if self.of_dead_letters => false,
            None => exchange.is_empty() && key == self.name,
            Some(bound) => bound == exchange && self.bindings.iter().any(|pattern| matches(pattern, key)),
        }
    }
}

/// The demo's queues: two ordered ones that share the orders of a shop, one that takes every order, and a work queue
/// with two competing consumers behind the default exchange.
pub fn queues() -> Vec<Queue> {
    let bound = |name: &str, pattern: &str| Queue {
        name: name.to_owned(),
        exchange: Some(ORDERS.to_owned()),
        bindings: vec![pattern.to_owned()],
        consumers: 1,
        of_dead_letters: false,
    };
    vec![
        bound("warehouse.eu", "order.eu.*"),
        bound("warehouse.us", "order.us.*"),
        bound("audit", "order.#"),
        Queue { name: EMAILS.to_owned(), exchange: None, bindings: Vec::new(), consumers: 2, of_dead_letters: false },
    ]
}

/// The topic exchange that orders are published to.
pub const ORDERS: &str = "shop.orders";

/// The work queue behind the default exchange.
pub const EMAILS: &str = "emails";

/// AMQP 0-9-1, topic exchange: `*` is one word, `#` any number of words, words are parted by dots.
fn matches(pattern: &str, key: &str) -> bool {
    fn words(pattern: &[&str], key: &[&str]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some((&"#", rest)) => (0..=key.len()).any(|skipped| words(rest, &key[skipped..])),
            Some((word, rest)) => {
                key.split_first().is_some_and(|(first, others)| (*word == "*" || word == first) && words(rest, others))
            }
        }
    }
    words(&pattern.split('.').collect::<Vec<_>>(), &key.split('.').collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(exchange: &str, key: &str) -> Vec<String> {
        queues().into_iter().filter(|queue| queue.takes(exchange, key)).map(|queue| queue.name).collect()
    }

    #[test]
    fn an_order_belongs_to_its_warehouse_and_the_audit() {
        assert_eq!(homes(ORDERS, "order.eu.c7"), ["warehouse.eu", "audit"]);
        assert_eq!(homes(ORDERS, "order.us.c7"), ["warehouse.us", "audit"]);
        assert_eq!(homes(ORDERS, "order.eu"), ["audit"]);
    }

    #[test]
    fn an_email_belongs_to_the_work_queue_only_by_the_default_exchange() {
        assert_eq!(homes("", EMAILS), [EMAILS]);
        assert!(homes(ORDERS, EMAILS).is_empty());
        assert!(homes("", "order.eu.c7").is_empty());
    }

    #[test]
    fn topic_wildcards_match_words() {
        for (pattern, key, expected) in [
            ("#", "", true),
            ("a.#", "a", true),
            ("a.#", "a.b.c", true),
            ("a.*", "a", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("#.c", "a.b.c", true),
            ("*.b.#", "a.b", true),
            ("a.b", "a.c", false),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} against {key}");
        }
    }
}
