//! What was heard during a step, in a form in which two brokers that do the same say the same.
//!
//! Compared are, by channel: the replies in their order with every field; the deliveries to each consumer in their order,
//! with tags; which publishes were confirmed or refused; what was returned; cancelled consumers; closes with code, text
//! and method. Not compared is what AMQP leaves open:
//!
//! - the order between channels, and on a channel between deliveries, `consume-ok` and `cancel-ok`, which queues
//!   give, and other replies; but no delivery may come before its
//!   consumer's `consume-ok` or after its `cancel-ok`, and no return after its confirm;
//! - which tag belongs to which of several consumers of a channel that are served during one step: several queues
//!   deliver at the same time. The set of tags is compared;
//! - how many confirms one `multiple` puts together;
//! - names that a broker makes up; they are numbered as they come;
//! - when a queue is emptied at the end: the order between dead letters of different queues and what was published to
//!   it, which come at the same time; and the order of what a quorum queue was given back (`docs/mapping.md`).

use std::collections::{BTreeMap, BTreeSet};

use crate::program::LAST;

/// Connection and channel.
pub type Place = (usize, u16);

/// What was heard during a step.
#[derive(Debug, Default)]
pub struct Log {
    pub replies: BTreeMap<Place, Vec<String>>,
    /// Each `consume-ok` and `cancel-ok`.
    pub consuming: BTreeMap<Place, Vec<String>>,
    /// Consumer, tag, message.
    pub deliveries: BTreeMap<Place, Vec<(String, u64, String)>>,
    pub acked: BTreeMap<Place, BTreeSet<u64>>,
    pub nacked: BTreeMap<Place, BTreeSet<u64>>,
    pub returns: BTreeMap<Place, Vec<String>>,
    pub cancels: BTreeMap<Place, BTreeSet<String>>,
    /// What should never be.
    pub wrong: Vec<String>,
}

impl Log {
    /// One line for each thing.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut put = |(connection, channel): &Place, text: &str| lines.push(format!("c{connection}/{channel} {text}"));
        for (place, replies) in &self.replies {
            let (taken, others): (Vec<&str>, Vec<&str>) =
                replies.iter().map(String::as_str).partition(|reply| is_drained(place) && reply.starts_with(GOT));
            others.into_iter().for_each(|reply| put(place, reply));
            let mut taken: Vec<&str> = taken.iter().map(|reply| without_count(reply)).collect();
            taken.sort_by_key(|reply| came_from(reply));
            taken.into_iter().for_each(|reply| put(place, reply));
        }
        for (place, replies) in &self.consuming {
            let mut replies = replies.clone();
            replies.sort();
            replies.iter().for_each(|reply| put(place, reply));
        }
        // What is taken out at the end is in the replies.
        for (place, deliveries) in self.deliveries.iter().filter(|(place, _)| !is_drained(place)) {
            let consumers: BTreeSet<_> = deliveries.iter().map(|(consumer, ..)| consumer).collect();
            for consumer in &consumers {
                for (_, tag, text) in deliveries.iter().filter(|(other, ..)| other == *consumer) {
                    let tag = if consumers.len() > 1 { String::new() } else { format!(" tag {tag}") };
                    put(place, &format!("{consumer}:{tag} {text}"));
                }
            }
            if consumers.len() > 1 {
                let tags: BTreeSet<_> = deliveries.iter().map(|(_, tag, _)| tag).collect();
                put(place, &format!("tags {tags:?}"));
            }
        }
        for (place, returns) in &self.returns {
            returns.iter().for_each(|text| put(place, text));
        }
        for (what, places) in [("confirmed", &self.acked), ("refused", &self.nacked)] {
            places.iter().for_each(|(place, tags)| put(place, &format!("{what} {tags:?}")));
        }
        for (place, consumers) in &self.cancels {
            consumers.iter().for_each(|consumer| put(place, &format!("basic.cancel '{consumer}'")));
        }
        lines.extend(self.wrong.iter().map(|wrong| format!("WRONG: {wrong}")));
        lines
    }
}

/// How the reply to a `basic.get` begins.
const GOT: &str = "basic.get-ok";

/// Whether queues are emptied there, one after the other.
fn is_drained((connection, _): &Place) -> bool {
    *connection == LAST
}

/// A reply to `basic.get` without how much is left, which its place in the order says.
fn without_count(reply: &str) -> &str {
    reply.rsplit_once(", ").map_or(reply, |(reply, _)| reply)
}

/// Where a message came from: those of one origin have an order. Of what a quorum queue was given back each is alone.
fn came_from(reply: &str) -> &str {
    if reply.contains("x-delivery-count: ") {
        return reply;
    }
    let latest = reply.split_once("x-death: [{").and_then(|(_, death)| death.split_once(" queue: '"));
    latest.and_then(|(_, queue)| queue.split('\'').next()).unwrap_or_default()
}

/// Both transcripts, beside each other; `!` marks the lines that differ.
pub fn side_by_side(oracle: &[Vec<String>], ours: &[Vec<String>], titles: &[String]) -> String {
    const WIDTH: usize = 78;
    let mut text = format!("  {:WIDTH$} | {}\n", "RabbitMQ", "ours");
    for (step, title) in titles.iter().enumerate() {
        text += &format!("--{title}\n");
        let nothing = Vec::new();
        let (left, right) = (oracle.get(step).unwrap_or(&nothing), ours.get(step).unwrap_or(&nothing));
        for line in 0..left.len().max(right.len()) {
            let (left, right) = (left.get(line).map_or("", |l| l), right.get(line).map_or("", |r| r));
            let mark = if left == right { ' ' } else { '!' };
            text += &format!("{mark} {left:WIDTH$} | {right}\n");
        }
        if left != right {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_amqp_leaves_open_is_left_out() {
        let delivered = |deliveries: &[(&str, u64, &str)]| {
            let deliveries = deliveries.iter().map(|(c, tag, m)| ((*c).to_owned(), *tag, (*m).to_owned())).collect();
            Log { deliveries: BTreeMap::from([((0, 1), deliveries)]), ..Log::default() }.lines()
        };
        let two = delivered(&[("a", 1, "m1"), ("b", 2, "m2"), ("a", 3, "m3")]);
        assert_eq!(two, delivered(&[("b", 1, "m2"), ("a", 2, "m1"), ("a", 3, "m3")]), "two queues at a time");
        assert_ne!(two, delivered(&[("a", 1, "m3"), ("b", 2, "m2"), ("a", 3, "m1")]), "a consumer's order");
        assert_ne!(two, delivered(&[("a", 1, "m1"), ("b", 2, "m2"), ("a", 4, "m3")]), "tags");
        assert_ne!(two, delivered(&[("a", 1, "m1"), ("a", 2, "m2"), ("a", 3, "m3")]), "who gets it");
        assert_ne!(delivered(&[("a", 1, "m1"), ("a", 2, "m2")]), delivered(&[("a", 2, "m1"), ("a", 1, "m2")]));
    }

    #[test]
    fn what_is_left_is_in_order_by_where_it_came_from() {
        let left = |replies: &[&str]| {
            let replies = replies.iter().map(|reply| (*reply).to_owned()).collect();
            Log { replies: BTreeMap::from([((LAST, 1), replies)]), ..Log::default() }.lines()
        };
        let [a, b] = ["a", "b"].map(|queue| {
            format!("basic.get-ok \"1\" headers={{x-death: [{{count: 1, exchange: '', queue: '{queue}', ")
        });
        let [a1, a2, b1] =
            [format!("{a}m: 1}}]}}, 2 left"), format!("{a}m: 2}}]}}, 1 left"), format!("{b}m: 3}}]}}, 0 left")];
        assert_eq!(left(&[&a1, &b1, &a2]), left(&[&b1, &a1, &a2]), "two queues at a time");
        assert_ne!(left(&[&a1, &a2]), left(&[&a2, &a1]), "one queue's order");
        let plain = ["basic.get-ok \"m1\", 1 left", "basic.get-ok \"m2\", 0 left"];
        assert_ne!(left(&plain), left(&[plain[1], plain[0]]), "a publisher's order");
        assert_ne!(left(&plain), left(&plain[..1]), "how many");
        let back = [
            "basic.get-ok \"m1\" headers={x-delivery-count: 1}, 1 left",
            "basic.get-ok \"m2\" headers={x-delivery-count: 2}, 0 left",
        ];
        assert_eq!(left(&back), left(&[back[1], back[0]]), "what a quorum queue was given back");
    }

    #[test]
    fn a_difference_is_shown_with_its_step_and_what_follows_is_left_out() {
        let step = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        let titles = step(&["one", "two", "three"]);
        let text = side_by_side(
            &[step(&["a"]), step(&["b", "c"]), step(&["d"])],
            &[step(&["a"]), step(&["b"]), step(&["e"])],
            &titles,
        );
        assert!(text.contains("--two") && text.contains("\n! c ") && !text.contains("--three"), "{text}");
    }
}
