//! Topic bindings as a trie of words.
//!
//! Source of the rules: RabbitMQ documentation, "Exchanges", topic exchange: words are separated by `.`, `*` is exactly
//! one word, `#` is zero or more. The empty key has no words; `.` has two empty ones, and `*` matches an empty word
//! (RabbitMQ 3.10, observed).

use foldhash::HashMap;
use smallvec::SmallVec;

use super::vhost::Target;

/// The bindings of one topic exchange.
///
/// A key is matched word by word against the set of trie nodes that are still possible, so that the cost is bounded by
/// words times live nodes whatever the patterns are; several `#` in one pattern do not multiply it.
#[derive(Debug, Clone)]
pub struct TopicTable {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    words: HashMap<Box<str>, u32>,
    star: Option<u32>,
    hash: Option<u32>,
    /// Whether it is its parent's `#` child: it stays possible whatever word comes.
    is_hash: bool,
    /// How many bindings end here, for each target.
    targets: SmallVec<[(Target, u32); 1]>,
}

const ROOT: u32 = 0;

impl Default for TopicTable {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], free: Vec::new() }
    }
}

impl TopicTable {
    /// Adds a binding.
    pub fn insert(&mut self, pattern: &str, target: Target) {
        let mut at = ROOT;
        for word in words(pattern) {
            at = match self.child(at, word) {
                Some(child) => child,
                None => self.add_child(at, word),
            };
        }
        let targets = &mut self.nodes[at as usize].targets;
        match targets.iter_mut().find(|(t, _)| *t == target) {
            Some((_, count)) => *count += 1,
            None => targets.push((target, 1)),
        }
    }

    /// Takes away one binding that was inserted; one that was not changes nothing.
    pub fn remove(&mut self, pattern: &str, target: Target) {
        let mut path: SmallVec<[(u32, &str); 8]> = SmallVec::new();
        let mut at = ROOT;
        for word in words(pattern) {
            path.push((at, word));
            match self.child(at, word) {
                Some(child) => at = child,
                None => return,
            }
        }
        let targets = &mut self.nodes[at as usize].targets;
        let Some(index) = targets.iter().position(|(t, _)| *t == target) else { return };
        targets[index].1 -= 1;
        if targets[index].1 == 0 {
            targets.swap_remove(index);
        }
        while let Some((parent, word)) = path.pop() {
            let node = &self.nodes[at as usize];
            if !(node.targets.is_empty() && node.words.is_empty() && node.star.is_none() && node.hash.is_none()) {
                break;
            }
            self.nodes[at as usize] = Node::default();
            self.free.push(at);
            let parent_node = &mut self.nodes[parent as usize];
            match word {
                "*" => parent_node.star = None,
                "#" => parent_node.hash = None,
                _ => drop(parent_node.words.remove(word)),
            }
            at = parent;
        }
    }

    /// Calls `found` with every target that the key is bound to; a target bound by several patterns comes several times.
    pub fn route(&self, key: &str, scratch: &mut TopicScratch, mut found: impl FnMut(Target)) {
        let TopicScratch { now, next, seen, round } = scratch;
        if seen.len() < self.nodes.len() {
            seen.resize(self.nodes.len(), 0);
        }
        let mut begin = |set: &mut Vec<u32>| {
            set.clear();
            *round += 1;
            *round
        };
        let mut mark = begin(now);
        self.reach(ROOT, now, seen, mark);
        for word in words(key) {
            mark = begin(next);
            for &at in now.iter() {
                let node = &self.nodes[at as usize];
                if node.is_hash && seen[at as usize] != mark {
                    self.reach(at, next, seen, mark);
                }
                if let Some(&child) = node.words.get(word) {
                    self.reach(child, next, seen, mark);
                }
                if let Some(child) = node.star {
                    self.reach(child, next, seen, mark);
                }
            }
            std::mem::swap(now, next);
            if now.is_empty() {
                return;
            }
        }
        for &at in now.iter() {
            self.nodes[at as usize].targets.iter().for_each(|(target, _)| found(*target));
        }
    }

    /// Adds a node, and with it its `#` child, which matches zero words.
    fn reach(&self, mut at: u32, set: &mut Vec<u32>, seen: &mut [u64], mark: u64) {
        loop {
            if seen[at as usize] == mark {
                return;
            }
            seen[at as usize] = mark;
            set.push(at);
            match self.nodes[at as usize].hash {
                Some(hash) => at = hash,
                None => return,
            }
        }
    }

    fn child(&self, at: u32, word: &str) -> Option<u32> {
        let node = &self.nodes[at as usize];
        match word {
            "*" => node.star,
            "#" => node.hash,
            _ => node.words.get(word).copied(),
        }
    }

    fn add_child(&mut self, at: u32, word: &str) -> u32 {
        let child = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            u32::try_from(self.nodes.len() - 1).expect("fewer than 2^32 words in memory")
        });
        let node = &mut self.nodes[at as usize];
        match word {
            "*" => node.star = Some(child),
            "#" => node.hash = Some(child),
            _ => drop(node.words.insert(word.into(), child)),
        }
        self.nodes[child as usize].is_hash = word == "#";
        child
    }
}

/// Room for [`TopicTable::route`] to work in, kept between calls so that routing does not allocate.
#[derive(Debug, Default)]
pub struct TopicScratch {
    now: Vec<u32>,
    next: Vec<u32>,
    /// The round in which each node was last reached.
    seen: Vec<u64>,
    round: u64,
}

fn words(key: &str) -> impl Iterator<Item = &str> {
    let mut words = key.split('.');
    if key.is_empty() {
        words.next();
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, word for word: the oracle.
    fn matches(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => true,
            (Some((&"#", rest)), _) => matches(rest, key) || (!key.is_empty() && matches(pattern, &key[1..])),
            (Some((&"*", rest)), Some((_, key))) => matches(rest, key),
            (Some((word, rest)), Some((first, key))) => word == first && matches(rest, key),
            _ => false,
        }
    }

    fn routed(table: &TopicTable, key: &str, scratch: &mut TopicScratch) -> Vec<Target> {
        let mut found = Vec::new();
        table.route(key, scratch, |target| found.push(target));
        found.sort();
        found.dedup();
        found
    }

    fn check(pattern: &str, yes: &[&str], no: &[&str]) {
        let mut table = TopicTable::default();
        table.insert(pattern, Target::Queue(1));
        let mut scratch = TopicScratch::default();
        for key in yes {
            assert_eq!(routed(&table, key, &mut scratch), [Target::Queue(1)], "{pattern} must match {key:?}");
        }
        for key in no {
            assert_eq!(routed(&table, key, &mut scratch), [], "{pattern} must not match {key:?}");
        }
        table.remove(pattern, Target::Queue(1));
        assert!(yes.iter().all(|key| routed(&table, key, &mut scratch).is_empty()));
        assert_eq!(table.nodes.len(), table.free.len() + 1, "removed bindings leave nothing");
    }

    #[test]
    fn hash_matches_zero_or_more_words() {
        check("orders.#", &["orders", "orders.new.eu", "orders."], &["order", "", "new.orders"]);
        check("#", &["", ".", "a", "a.b.c"], &[]);
        check("#.end", &["end", "a.end", "a.b.end", ".end"], &["", "end.a", "send"]);
        check("a.#.b", &["a.b", "a.x.b", "a.x.y.b", "a.b.b"], &["a", "b", "a.b.c"]);
        check("#.#", &["", "a", "a.b"], &[]);
    }

    #[test]
    fn star_matches_one_word_and_an_empty_one() {
        check("a.*", &["a.b", "a."], &["a", "a.b.c", ""]);
        check("*", &["a", "*"], &["", ".", "a.b"]);
        check("*.*", &["a.b", ".", "a."], &["a", "a.b.c"]);
        check("*.#", &["a", "a.b", "."], &[""]);
    }

    #[test]
    fn the_empty_key_has_no_words() {
        check("", &[""], &[".", "a"]);
        check(".", &["."], &["", "a", ".."]);
    }

    #[test]
    fn a_binding_counts_as_often_as_it_was_made() {
        let mut table = TopicTable::default();
        let mut scratch = TopicScratch::default();
        table.insert("a.*", Target::Queue(1));
        table.insert("a.*", Target::Queue(1));
        table.remove("a.*", Target::Queue(1));
        assert_eq!(routed(&table, "a.b", &mut scratch), [Target::Queue(1)]);
        table.remove("a.*", Target::Queue(2));
        table.remove("b.*", Target::Queue(1));
        table.remove("a.*", Target::Queue(1));
        table.remove("a.*", Target::Queue(1));
        assert!(routed(&table, "a.b", &mut scratch).is_empty());
    }

    #[test]
    fn many_hashes_do_not_multiply_the_work() {
        let mut table = TopicTable::default();
        let mut scratch = TopicScratch::default();
        table.insert(&["#", "a"].repeat(30).join("."), Target::Queue(1));
        let key = "a.".repeat(120);
        assert!(routed(&table, &key, &mut scratch).is_empty());
        assert_eq!(routed(&table, &key[..key.len() - 1], &mut scratch), [Target::Queue(1)]);
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_the_definition(
            patterns in proptest::collection::vec(proptest::collection::vec("[ab*#]|", 0..5), 1..8),
            removed in proptest::collection::vec(any::<bool>(), 8),
            keys in proptest::collection::vec(proptest::collection::vec("[abc]|", 0..6), 1..8),
        ) {
            let mut table = TopicTable::default();
            let mut scratch = TopicScratch::default();
            let patterns: Vec<String> = patterns.iter().map(|words| words.join(".")).collect();
            for (index, pattern) in patterns.iter().enumerate() {
                table.insert(pattern, Target::Queue(index as u32));
            }
            for (index, pattern) in patterns.iter().enumerate().filter(|(index, _)| removed[*index]) {
                table.remove(pattern, Target::Queue(index as u32));
            }
            for key in keys {
                let key = key.join(".");
                let key_words: Vec<&str> = words(&key).collect();
                let expected: Vec<Target> = patterns.iter().enumerate()
                    .filter(|(index, pattern)| {
                        !removed[*index] && matches(&words(pattern).collect::<Vec<_>>(), &key_words)
                    })
                    .map(|(index, _)| Target::Queue(index as u32)).collect();
                prop_assert_eq!(routed(&table, &key, &mut scratch), expected, "{:?}", key);
            }
        }
    }
}
