//! `kill -9` of the process that publishes, at random points from a seed. `OUTBOX_SEEDS` runs more of them (default 3), `OUTBOX_SEED` is
//! the first one.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use test_support::random::Random;

use super::*;

/// What a child says, line by line.
pub struct Lines(std::io::Lines<BufReader<std::process::ChildStdout>>);

impl Lines {
    pub fn of(child: &mut Child) -> Lines {
        Lines(BufReader::new(child.stdout.take().unwrap()).lines())
    }

    /// Reads up to the line that is wanted.
    pub fn until(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        self.0.find_map(|line| line.ok().filter(|line| wanted(line))).expect("the child says it")
    }
}

const NAME: &str = "outbox::kill::what_put_has_taken_is_in_the_stream_once_whoever_is_killed";
const RUNS: u64 = 5;

#[tokio::test]
async fn what_put_has_taken_is_in_the_stream_once_whoever_is_killed() {
    if let Ok(path) = std::env::var("OUTBOX_CHILD") {
        return publish(&path).await;
    }
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |n| n.parse().unwrap());
    let first = number("OUTBOX_SEED", 1);
    for seed in first..first + number("OUTBOX_SEEDS", 3) {
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut random = Random::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let mut server = NatsServer::start();
    let bridge = bridge(&server).await;
    make_stream(&bridge, |_| {}).await;
    let mut taken = Vec::new();
    for run in 0..RUNS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env("OUTBOX_CHILD", &path)
            .env("OUTBOX_FROM", (run * 100_000).to_string())
            .env("OUTBOX_URL", server.url())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let taken = lines.filter_map(|line| line.strip_prefix("put ").and_then(|id| id.parse().ok()));
            taken.collect::<Vec<u64>>()
        });
        tokio::time::sleep(Duration::from_millis(30 + random.below(500))).await;
        // Now and then the server dies first.
        let outage = random.below(3) == 0;
        if outage {
            server.kill_9();
            tokio::time::sleep(Duration::from_millis(random.below(200))).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if outage {
            server.restart();
        }
        // A line that was cut off is no number, or that of a smaller one; all numbers below are taken, too.
        taken.extend(reader.join().unwrap());
    }
    let outbox = open(&path).await;
    outbox.start(&bridge).await.unwrap();
    outbox.drain(SOON).await.unwrap();
    let stored = stored(&bridge).await;
    assert_once_and_in_order(&stored);
    let arrived: std::collections::HashSet<u64> =
        stored.iter().map(|(_, _, payload)| payload.parse().unwrap()).collect();
    let lost: Vec<&u64> = taken.iter().filter(|number| !arrived.contains(number)).collect();
    assert!(lost.is_empty(), "OUTBOX_SEED={seed}: {lost:?} were taken and are not in the stream");
    assert!(taken.len() > 20, "OUTBOX_SEED={seed}: only {} were taken", taken.len());
    assert_eq!(outbox.status().refused, 0);
    println!("seed {seed}: {} taken, {} stored", taken.len(), stored.len());
}

// The process that is killed.
async fn publish(path: &str) {
    let variable = |name: &str| std::env::var(name).unwrap();
    let outbox = open(Path::new(path)).await;
    let from: u64 = variable("OUTBOX_FROM").parse().unwrap();
    let (config, starting) = (variable("OUTBOX_URL"), outbox.clone());
    tokio::spawn(async move {
        let bridge = loop {
            match Bridge::connect(&config).await {
                Ok(bridge) => break bridge,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        starting.start(&bridge).await.unwrap();
    });
    for number in from.. {
        let message = Message::new(format!("orders.{}", number % 4), number.to_string()).id(format!("o-{number}"));
        outbox.put(message).await.unwrap();
        println!("put {number}");
    }
}
