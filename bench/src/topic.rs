//! Topic routing in memory: keys against the bindings of one exchange, beside a scan over all patterns.
//!
//! Keys are `region.service.event.kind` (10, 50, 20 and 5 words). Of the patterns `mixed` 70 % are whole keys, 20 % have a
//! `*` in one place, 10 % end in `#` after two words; the other workloads have one of these alone. Ours is the model's
//! whole route of a publish: the exchange looked up, walked, and the queues sorted.

use std::hint::black_box;
use std::time::Instant;

use amqp_compat::model::exchange::{ExchangeDefinition, ExchangeKind};
use amqp_compat::model::queue::{QueueArguments, QueueDefinition};
use amqp_compat::model::vhost::{BindingDefinition, Change, Destination, Route, Vhost};
use clap::Args;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::report::{Figure, median};

/// What `bench topic` takes.
#[derive(Debug, Clone, Args)]
pub struct TopicArgs {
    /// Bindings of the exchange, over a tenth as many queues.
    #[arg(long, default_value_t = 10_000)]
    pub bindings: usize,
    /// Messages routed in each round; the scan does a thousandth of them.
    #[arg(long, default_value_t = 2_000_000)]
    pub messages: usize,
    /// Rounds; one more comes first and is not counted.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// The seed of patterns and keys.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

const KEYS: usize = 65_536;
const EXCHANGE: &str = "x";

#[derive(Debug, Clone, Copy)]
enum Pattern {
    Whole,
    Star,
    Hash,
}

/// Runs all workloads. `quick` shows that it works.
///
/// # Errors
/// When the model refuses to route.
pub fn run(args: &TopicArgs, quick: bool) -> Result<Vec<Figure>, AnyError> {
    let mut args = args.clone();
    if quick {
        (args.messages, args.rounds) = (50_000, 1);
    }
    let workloads: [(&str, &[Pattern]); 4] = [
        ("mixed", &[Pattern::Whole; 7]),
        ("whole keys", &[Pattern::Whole]),
        ("one *", &[Pattern::Star]),
        ("# at the end", &[Pattern::Hash]),
    ];
    let mut figures = Vec::new();
    for (name, kinds) in workloads {
        let mut kinds = kinds.to_vec();
        if name == "mixed" {
            kinds.extend([Pattern::Star, Pattern::Star, Pattern::Hash]);
        }
        figures.push(measure(&args, name, &kinds)?);
    }
    Ok(figures)
}

fn measure(args: &TopicArgs, name: &str, kinds: &[Pattern]) -> Result<Figure, AnyError> {
    let mut random = StdRng::seed_from_u64(args.seed);
    let patterns: Vec<String> =
        (0..args.bindings).map(|index| pattern(&mut random, kinds[index % kinds.len()])).collect();
    let keys: Vec<String> = (0..KEYS).map(|_| pattern(&mut random, Pattern::Whole)).collect();
    let vhost = vhost(&patterns);
    let mut route = Route::default();
    let mut copies = 0;
    let (mut ours, mut scanned) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        copies = 0;
        let begin = Instant::now();
        for key in keys.iter().cycle().take(args.messages) {
            vhost.route(EXCHANGE, &[key], None, &mut route)?;
            copies += black_box(&route.queues).len();
        }
        let ours_rate = args.messages as f64 / begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let few = (args.messages / 1000).max(1);
        for key in keys.iter().cycle().take(few) {
            black_box(patterns.iter().filter(|pattern| matches(pattern, key)).count());
        }
        if round > 0 {
            ours.push(ours_rate);
            scanned.push(few as f64 / begin.elapsed().as_secs_f64());
        }
    }
    let (ours, peer) = (median(ours.into_iter()), median(scanned.into_iter()));
    Ok(Figure {
        name: format!("topic routes, {name}"),
        detail: format!("{} bindings, {KEYS} keys, one thread, {} rounds", args.bindings, args.rounds),
        unit: "routes/s",
        ours,
        peer_name: "scan over all patterns".into(),
        peer,
        ratio: ours / peer,
        extra: vec![("queues for each message".into(), copies as f64 / args.messages as f64)],
    })
}

fn pattern(random: &mut StdRng, kind: Pattern) -> String {
    let mut words = [("r", 10), ("service", 50), ("event", 20), ("k", 5)]
        .map(|(name, count)| format!("{name}{}", random.random_range(0..count)));
    match kind {
        Pattern::Whole => words.join("."),
        Pattern::Star => {
            words[random.random_range(0..4)] = "*".to_owned();
            words.join(".")
        }
        Pattern::Hash => format!("{}.{}.#", words[0], words[1]),
    }
}

fn vhost(patterns: &[String]) -> Vhost {
    let mut vhost = Vhost::new("/");
    vhost.apply(&Change::PutExchange(ExchangeDefinition {
        name: EXCHANGE.into(),
        kind: ExchangeKind::Topic,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Default::default(),
    }));
    let queues = (patterns.len() / 10).max(1);
    for number in 0..queues {
        vhost.apply(&Change::PutQueue(QueueDefinition {
            name: format!("q{number}").into(),
            durable: true,
            owner: None,
            auto_delete: false,
            arguments: Default::default(),
            settings: QueueArguments::default(),
        }));
    }
    for (index, pattern) in patterns.iter().enumerate() {
        vhost.apply(&Change::Bind(BindingDefinition {
            source: EXCHANGE.into(),
            destination: Destination::Queue(format!("q{}", index % queues).into()),
            routing_key: pattern.as_str().into(),
            arguments: Default::default(),
        }));
    }
    vhost
}

/// Whether a pattern of these workloads takes a key.
fn matches(pattern: &str, key: &str) -> bool {
    let mut key = key.split('.');
    for word in pattern.split('.') {
        match (word, key.next()) {
            ("#", _) => return true,
            ("*", Some(_)) => {}
            (word, Some(other)) if word == other => {}
            _ => return false,
        }
    }
    key.next().is_none()
}
