//! RabbitMQ as the oracle: seeded random programs of AMQP operations are done on RabbitMQ and on our listener over
//! JetStream, and every reply, delivery, order, count and error is compared.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `ORACLE_SEEDS` | how many programs | 60 |
//! | `ORACLE_SEED` | the seed of the first one | 1 |
//! | `ORACLE_LENGTH` | steps of a program | 30 |
//! | `ORACLE_DIFFERENCES` | after how many differing programs to stop | 1 |
//!
//! A program that differs is made as short as it can be and printed with both transcripts. What is compared and what AMQP
//! leaves open is told in `transcript`.

mod client;
mod generate;
mod program;
mod render;
mod returns;
mod run;
mod servers;
mod shrink;
mod texts;
mod transcript;
mod values;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use program::Program;
use servers::Servers;

const WORKERS: usize = 3;

/// Numbers the runs, so that each has names of its own.
static RUNS: AtomicUsize = AtomicUsize::new(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_program_does_on_jetstream_what_it_does_on_rabbitmq() {
    let setting = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    };
    let (first, count) = (setting("ORACLE_SEED", 1), setting("ORACLE_SEEDS", 60));
    let length = setting("ORACLE_LENGTH", 30) as usize;
    let most = setting("ORACLE_DIFFERENCES", 1) as usize;

    let servers = Servers::start(WORKERS).await;
    let (next, figures) = (AtomicU64::new(first), Figures::default());
    let work = async |vhost: &str| {
        let judge = Judge { servers: &servers, vhost, figures: &figures };
        let mut differing = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count || figures.differences.load(Ordering::Relaxed) >= most {
                return differing;
            }
            if let Some(report) = judge.examine(generate::program(seed, length)).await {
                figures.differences.fetch_add(1, Ordering::Relaxed);
                eprintln!("{report}");
                differing.push(seed);
            }
        }
    };
    let differing = futures::future::join_all(servers.vhosts.iter().map(|vhost| work(vhost))).await.concat();
    eprintln!("{figures:?}");
    assert!(
        differing.is_empty(),
        "seeds whose programs differ: {differing:?} (ORACLE_SEED=… ORACLE_SEEDS=1 repeats one)"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_prints_every_type_of_value_as_rabbitmq_does() {
    let servers = Servers::start(1).await;
    let judge = Judge { servers: &servers, vhost: &servers.vhosts[0], figures: &Figures::default() };
    let program = texts::program();
    if let Some((oracle, ours)) = judge.difference(&program, run::PATIENCE).await {
        panic!("{}", transcript::side_by_side(&oracle, &ours, &program.titles()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_settled_right_behind_each_other_is_delivered_again_as_by_rabbitmq() {
    let servers = Servers::start(1).await;
    let judge = Judge { servers: &servers, vhost: &servers.vhosts[0], figures: &Figures::default() };
    for (name, program) in returns::programs() {
        if let Some((oracle, ours)) = judge.difference(&program, run::PATIENCE).await {
            panic!("{name}\n{}", transcript::side_by_side(&oracle, &ours, &program.titles()));
        }
    }
}

/// What was done.
#[derive(Debug, Default)]
struct Figures {
    programs: AtomicUsize,
    operations: AtomicUsize,
    /// Lines of transcript that were compared.
    compared: AtomicUsize,
    /// Programs on which RabbitMQ itself did not do the same every time; ours did what it did once.
    open: AtomicUsize,
    differences: AtomicUsize,
}

/// Compares the two on one vhost.
struct Judge<'a> {
    servers: &'a Servers,
    vhost: &'a str,
    figures: &'a Figures,
}

type Transcript = Vec<Vec<String>>;

impl Judge<'_> {
    /// Answers a report if the two do not do the same.
    async fn examine(&self, program: Program) -> Option<String> {
        let Figures { programs, operations, .. } = self.figures;
        programs.fetch_add(1, Ordering::Relaxed);
        operations.fetch_add(program.steps.iter().map(|step| step.operations.len()).sum(), Ordering::Relaxed);
        let first = self.difference(&program, run::PATIENCE).await?;
        let seed = program.seed;
        // A program that does not differ every time is told of as it was when it did.
        let shown = Mutex::new(first);
        let shrunk = shrink::shrink(program, async |shorter: &Program| {
            let difference = self.difference(shorter, run::PATIENCE / 8).await;
            let differs = difference.is_some();
            if let Some(difference) = difference {
                *shown.lock().expect("no panic") = difference;
            }
            differs
        })
        .await;
        let (oracle, ours) = shown.into_inner().expect("no panic");
        Some(format!("\n==== seed {seed} ====\n{}", transcript::side_by_side(&oracle, &ours, &shrunk.titles())))
    }

    /// Both transcripts if they are not the same. Where RabbitMQ does not do the same every time, any of what it does is
    /// right.
    async fn difference(&self, program: &Program, patience: Duration) -> Option<(Transcript, Transcript)> {
        let mut first = None;
        for attempt in 0..3 {
            let oracle = run::run(self.place(self.servers.oracle, &prefix()), program, None).await;
            if first.as_ref().is_some_and(|(before, _)| *before == oracle) {
                break;
            }
            let ours = run::run(self.place(self.servers.ours, &prefix()), program, Some((&oracle, patience))).await;
            if oracle == ours {
                if patience == run::PATIENCE {
                    self.figures.compared.fetch_add(ours.iter().map(Vec::len).sum(), Ordering::Relaxed);
                    self.figures.open.fetch_add(usize::from(attempt > 0), Ordering::Relaxed);
                }
                return None;
            }
            first.get_or_insert((oracle, ours));
        }
        first
    }

    fn place<'a>(&'a self, server: SocketAddr, prefix: &'a str) -> (SocketAddr, &'a str, &'a str) {
        (server, self.vhost, prefix)
    }
}

fn prefix() -> String {
    format!("r{:04x}-", RUNS.fetch_add(1, Ordering::Relaxed) % 0x10000)
}
