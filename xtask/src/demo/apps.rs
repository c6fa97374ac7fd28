//! The applications of the demo: ordinary pika programs, each a process with an AMQP URL and a file to write its record to.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::ledger::{Event, Ledger, Record, Tail};
use super::random::Random;
use super::topology::{EMAILS, ORDERS, Queue};
use crate::failure::{Doing, Failure};
use crate::process::{self, Running};
use crate::{stop, workspace};

/// All of them, and what they have recorded so far.
pub struct Apps {
    dir: PathBuf,
    python: PathBuf,
    url: String,
    apps: Vec<App>,
    seen: Seen,
}

struct App {
    name: String,
    role: Role,
    running: Running,
    tail: Tail,
    connected: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Producer,
    Consumer,
}

/// Counts for the progress line; the verdict is computed from the files again, by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// Messages published for the first time.
    pub published: u64,
    /// Messages confirmed.
    pub confirmed: u64,
    /// Deliveries.
    pub delivered: u64,
    /// First deliveries that are still to come: those of everything published for the first time.
    pub due: u64,
    /// Connections, channels and consumers lost.
    pub dropped: u64,
}

impl Apps {
    /// No application yet. They will connect to `url` and write into `dir`.
    pub fn new(dir: &Path, python: &Path, url: &str) -> Self {
        Self {
            dir: dir.to_owned(),
            python: python.to_owned(),
            url: url.to_owned(),
            apps: Vec::new(),
            seen: Seen::default(),
        }
    }

    /// Starts the consumers of `queues` and waits until each of them consumes.
    ///
    /// # Errors
    /// When one cannot be started, ends, or does not consume within 30 s.
    pub fn start_consumers(&mut self, queues: &[Queue]) -> Result<(), Failure> {
        for queue in queues {
            for number in 1..=queue.consumers {
                let name = if queue.consumers == 1 { queue.name.clone() } else { format!("{}-{number}", queue.name) };
                let mut args = vec!["--queue".to_owned(), queue.name.clone()];
                if let Some(exchange) = &queue.exchange {
                    args.extend(["--exchange".to_owned(), exchange.clone()]);
                }
                for pattern in &queue.bindings {
                    args.extend(["--bind".to_owned(), pattern.clone()]);
                }
                self.start(&name, Role::Consumer, &args)?;
            }
        }
        self.wait_connected()
    }

    /// Starts the producers, which together publish `rate` messages a second, and waits until each of them publishes.
    ///
    /// # Errors
    /// When one cannot be started, ends, or does not publish within 30 s.
    pub fn start_producers(&mut self, rate: f64, seed: u64) -> Result<(), Failure> {
        let mut random = Random::new(seed);
        for name in ["orders-1", "orders-2"] {
            // Each customer orders at one producer only: two producers never had an order between them.
            let mut args = vec!["--exchange".to_owned(), ORDERS.to_owned()];
            for _ in 0..CUSTOMERS {
                let warehouse = ["eu", "us"][random.below(2) as usize];
                args.extend(["--key".to_owned(), format!("order.{warehouse}.c{:06x}", random.below(1 << 24))]);
            }
            args.extend(["--rate".to_owned(), format!("{:.1}", rate * 0.4)]);
            args.extend(["--seed".to_owned(), seed.to_string()]);
            self.start(name, Role::Producer, &args)?;
        }
        let emails = ["--queue", EMAILS, "--key", EMAILS, "--rate", &format!("{:.1}", rate * 0.2)];
        let mut emails: Vec<String> = emails.map(str::to_owned).to_vec();
        emails.extend(["--seed".to_owned(), seed.to_string()]);
        self.start("emails", Role::Producer, &emails)?;
        self.wait_connected()
    }

    fn start(&mut self, name: &str, role: Role, args: &[String]) -> Result<(), Failure> {
        let (program, name) = match role {
            Role::Producer => ("producer.py", name.to_owned()),
            Role::Consumer => ("consumer.py", format!("worker-{name}")),
        };
        let ledger = self.ledger_file(&name);
        let log = File::create(self.dir.join(format!("{name}.log"))).doing("cannot make an application's log")?;
        let mut command = Command::new(&self.python);
        command
            .arg(workspace::root().join("examples/demo").join(program))
            .args(["--url", &self.url, "--name", &name, "--ledger"])
            .arg(&ledger)
            .args(args)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdout(log.try_clone().doing("cannot share an application's log")?)
            .stderr(log);
        let running = Running::start(&name, command)?;
        self.apps.push(App { name, role, running, tail: Tail::new(ledger), connected: false });
        Ok(())
    }

    fn wait_connected(&mut self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            self.look()?;
            if self.apps.iter().all(|app| app.connected) {
                return Ok(());
            }
            if start.elapsed() > Duration::from_secs(30) {
                let waiting: Vec<_> =
                    self.apps.iter().filter(|app| !app.connected).map(|app| app.name.as_str()).collect();
                return Err(Failure::new(format_args!("not connected after 30 s: {}", waiting.join(", "))));
            }
            pause()?;
        }
    }

    /// Reads what the applications have recorded since the last look.
    ///
    /// # Errors
    /// When an application has ended by itself, or wrote what is not a record.
    pub fn look(&mut self) -> Result<Seen, Failure> {
        for app in &mut self.apps {
            for record in app.tail.read()? {
                self.seen.count(&record);
                app.connected |= record.event == Event::Connected;
            }
            if let Some(status) = app.running.ended()?
                && !status.success()
            {
                return Err(Failure::new(format_args!(
                    "the application {} ended by itself ({}); see {}",
                    app.name,
                    process::describe(status),
                    self.dir.join(format!("{}.log", app.name)).display()
                )));
            }
        }
        Ok(self.seen)
    }

    /// Asks the producers to end, and waits until they did: each then has its last confirm.
    ///
    /// # Errors
    /// When one did not end within 60 s.
    pub fn stop_producers(&mut self) -> Result<(), Failure> {
        self.stop(Role::Producer, Duration::from_secs(60))
    }

    /// Waits until every delivery that is due has come, or none came for `patience`.
    ///
    /// # Errors
    /// When an application ended by itself.
    pub fn drain(&mut self, patience: Duration) -> Result<(), Failure> {
        let mut moved = Instant::now();
        let mut last = self.look()?;
        // After the last delivery that is due, a moment for one too many to show itself.
        while moved.elapsed() < if last.delivered >= last.due { Duration::from_millis(500) } else { patience } {
            pause()?;
            let now = self.look()?;
            if now != last {
                (moved, last) = (Instant::now(), now);
            }
        }
        Ok(())
    }

    /// Asks the consumers to end, and waits until they did.
    ///
    /// # Errors
    /// When one did not end within 30 s.
    pub fn stop_consumers(&mut self) -> Result<(), Failure> {
        self.stop(Role::Consumer, Duration::from_secs(30))
    }

    fn stop(&mut self, role: Role, limit: Duration) -> Result<(), Failure> {
        for app in self.apps.iter().filter(|app| app.role == role) {
            app.running.terminate();
        }
        let mut first_failure = Ok(());
        for app in self.apps.iter_mut().filter(|app| app.role == role) {
            let ended = match app.running.wait(limit) {
                Ok(status) if status.success() => continue,
                Ok(status) => format!("the application {} ended with {}", app.name, process::describe(status)),
                Err(failure) => failure.to_string(),
            };
            first_failure = first_failure.and(Err(Failure::new(ended)));
        }
        self.look().and(first_failure)
    }

    /// Everything that every application recorded, read from the files from their start.
    ///
    /// # Errors
    /// When a file cannot be read or has something else in it than records.
    pub fn ledgers(&self) -> Result<Vec<Ledger>, Failure> {
        self.apps.iter().map(|app| super::ledger::read(&app.name, &self.ledger_file(&app.name), false)).collect()
    }

    fn ledger_file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.jsonl"))
    }
}

impl Seen {
    fn count(&mut self, record: &Record) {
        match &record.event {
            Event::Published { exchange, key, attempt: 1, .. } => {
                self.published += 1;
                let homes = super::topology::queues().iter().filter(|queue| queue.takes(exchange, key)).count();
                self.due += homes as u64;
            }
            Event::Confirmed { .. } => self.confirmed += 1,
            Event::Delivered { .. } => self.delivered += 1,
            Event::Disconnected { .. } | Event::ChannelClosed { .. } | Event::Cancelled => self.dropped += 1,
            _ => {}
        }
    }
}

/// Waits a moment before the next look.
///
/// # Errors
/// When somebody asked us to stop.
pub fn pause() -> Result<(), Failure> {
    if stop::asked() {
        return Err(Failure::new("interrupted"));
    }
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

/// Customers of each producer of orders; each is a routing key, and so an ordering key.
const CUSTOMERS: usize = 100;
