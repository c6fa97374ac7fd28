//! One run: the brokers, the sidecar and the applications, taken through the steps in order.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

use super::apps::{Apps, Seen, pause};
use super::ledger::Ledger;
use super::now_unix_ns;
use super::progress::Line;
use super::script::{Change, Step, Victim};
use super::sidecar::{self, Brokers, Parity, Sidecar, Status};
use super::timeline::Mark;
use super::topology;
use crate::failure::{Doing, Failure};
use crate::process;

/// Everything that runs, and what it went through.
pub struct Journey {
    // In the order in which they must end when something fails.
    apps: Apps,
    sidecar: Option<Sidecar>,
    nats: NatsServer,
    rabbit: RabbitMq,
    passed: Vec<Passed>,
    kills: Vec<String>,
}

/// A step that messages have passed through.
#[derive(Debug, Clone)]
pub struct Passed {
    /// When.
    pub mark: Mark,
    /// Share of RabbitMQ in per cent, as the sidecar counts.
    pub rabbit_percent: Option<f64>,
    /// How long the change at its beginning took.
    pub change: Duration,
}

impl Journey {
    /// Starts both brokers and, with a binary, the sidecar in front of them. `killed`: programs are killed on the way.
    ///
    /// # Errors
    /// When one of them does not come up, with the end of its log.
    pub fn prepare(
        dir: &Path,
        python: &Path,
        nats_server: &Path,
        binary: Option<&Path>,
        killed: bool,
    ) -> Result<Self, Failure> {
        let start = Instant::now();
        let starting = thread::spawn(RabbitMq::try_start);
        let nats = NatsServer::builder().binary(nats_server).dir(dir.join("nats")).try_start().map_err(Failure::new)?;
        eprintln!("nats-server        {}", nats.url());
        let rabbit = starting.join().map_err(|_| Failure::new("starting RabbitMQ failed"))?.map_err(Failure::new)?;
        eprintln!("RabbitMQ           {}  (both up after {:.1} s)", rabbit.url(), start.elapsed().as_secs_f64());
        let sidecar = match binary {
            Some(binary) => {
                let (management, nats) = (rabbit.management_url(), nats.url());
                // A rollback by itself would be in the way of the steps.
                let options = if killed { vec!["--no-auto-rollback".to_owned()] } else { Vec::new() };
                let brokers = Brokers { rabbit: rabbit.url(), management, nats, options };
                Some(Sidecar::start(binary, dir, brokers)?)
            }
            None => None,
        };
        let url = match &sidecar {
            Some(sidecar) => {
                eprintln!("nats-bridge        {}  page {}", sidecar.amqp_url(), sidecar.http_url());
                sidecar.amqp_url()
            }
            None => rabbit.url(),
        };
        let apps = Apps::new(dir, python, &url);
        Ok(Self { apps, sidecar, nats, rabbit, passed: Vec::new(), kills: Vec::new() })
    }

    /// Starts the applications and takes their messages through the steps, at least `messages` through each.
    ///
    /// # Errors
    /// When a change is refused, a program ends by itself, or no message is confirmed for a minute.
    pub fn travel(&mut self, steps: &[Step], messages: u64, rate: f64, seed: u64) -> Result<(), Failure> {
        self.apps.start_consumers(&topology::queues())?;
        self.apps.start_producers(rate, seed)?;
        eprintln!("applications       8 pika programs, {rate:.0} messages/s, seed {seed}\n");
        for step in steps {
            self.pass(step, messages)?;
        }
        Ok(())
    }

    fn pass(&mut self, step: &Step, messages: u64) -> Result<(), Failure> {
        let from_unix_ns = now_unix_ns();
        let before = self.status();
        let first = self.apps.look()?;
        let change = self.change(step.change).map_err(|why| Failure::new(format_args!("step {}: {why}", step.name)))?;
        let changed = self.apps.look()?;
        let mut share = Share { last: before, sum: Status::default() };
        let line = Line::new(step.name, messages, change, first);
        let watch = self.watch();
        let mut kill = step.kill;
        let mut moved = (Instant::now(), first);
        let mut status = None;
        loop {
            let seen = self.apps.look()?;
            while let Ok(fresh) = watch.statuses.try_recv() {
                share.add(fresh);
                status = Some(fresh);
            }
            line.show(seen, share.known(), status);
            if seen.confirmed != moved.1.confirmed {
                moved = (Instant::now(), seen);
            }
            // Messages pass while the change is made, too; at least half of the step's must pass after it.
            let after = seen.confirmed - changed.confirmed;
            let enough = after >= messages / 2 && seen.confirmed - first.confirmed >= messages;
            if let Some((victim, percent)) = kill
                && (enough || after * 100 >= messages * percent)
            {
                kill = None;
                self.kill(victim, step.name, &line)?;
            } else if enough {
                if let Some(last) = self.status() {
                    share.add(last);
                    status = Some(last);
                }
                line.finish(seen, share.known(), status);
                break;
            }
            if moved.0.elapsed() > STALL {
                line.finish(seen, share.known(), status);
                return Err(stalled(step.name, seen));
            }
            if let Some(sidecar) = &mut self.sidecar {
                sidecar.look()?;
            }
            pause()?;
        }
        let mark = Mark { name: step.name.to_owned(), from_unix_ns, until_unix_ns: now_unix_ns() };
        self.passed.push(Passed { mark, rabbit_percent: share.rabbit_percent(), change });
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<Duration, Failure> {
        let start = Instant::now();
        match change {
            Change::Nothing => {}
            Change::StopRabbit => self.rabbit.stop(),
            Change::Verb(words) => {
                let sidecar = self.sidecar.as_ref().ok_or_else(|| Failure::new("there is no sidecar"))?;
                // RabbitMQ's queues empty while traffic flows: `detach` is refused until they are.
                let patience = if words == ["detach"] { DETACH_PATIENCE } else { Duration::ZERO };
                while let Err(refused) = sidecar.verb(words) {
                    if start.elapsed() >= patience {
                        return Err(refused);
                    }
                    pause()?;
                }
            }
        }
        Ok(start.elapsed())
    }

    fn kill(&mut self, victim: Victim, step: &str, line: &Line) -> Result<(), Failure> {
        let name = match victim {
            Victim::NatsServer => {
                self.nats.kill_9();
                "nats-server"
            }
            Victim::Sidecar => {
                self.sidecar.as_mut().ok_or_else(|| Failure::new("there is no sidecar"))?.kill_9();
                "the sidecar"
            }
        };
        line.say(&format!("kill -9 {name} in step {step}"));
        let killed = Instant::now();
        while killed.elapsed() < SUPERVISOR_DELAY {
            pause()?;
        }
        match victim {
            Victim::NatsServer => self.nats.restart(),
            Victim::Sidecar => self.sidecar.as_mut().ok_or_else(|| Failure::new("there is no sidecar"))?.restart()?,
        }
        let away = killed.elapsed().as_secs_f64();
        line.say(&format!("{name} is up again after {away:.1} s"));
        self.kills.push(format!("{name} in step {step}, up again after {away:.1} s"));
        Ok(())
    }

    /// What the sidecar compared in `shadow`; `None` without a sidecar or an answer.
    pub fn parity(&self) -> Option<Parity> {
        self.status().map(|status| status.parity)
    }

    /// The sidecar's status now; `None` without a sidecar or an answer.
    fn status(&self) -> Option<Status> {
        self.sidecar.as_ref()?.status().ok()
    }

    /// Asks for the sidecar's status every half second, beside everything else, until the watch is dropped.
    fn watch(&self) -> Watch {
        let (sender, statuses) = mpsc::sync_channel(16);
        let watched = Arc::new(());
        if let Some(sidecar) = &self.sidecar {
            let mut command = sidecar.status_command();
            let watched = Arc::downgrade(&watched);
            thread::spawn(move || {
                while watched.strong_count() > 0 {
                    thread::sleep(Duration::from_millis(500));
                    let answer = process::output("nats-bridge status", &mut command);
                    if let Ok(status) = answer.and_then(|text| sidecar::parse_status(&text)) {
                        // A full channel means that nobody looks at the moment: the next status is as good.
                        let _ = sender.try_send(status);
                    }
                }
            });
        }
        Watch { statuses, _watched: watched }
    }

    /// Lets the producers finish, waits for the last deliveries, and ends the consumers.
    ///
    /// # Errors
    /// The first application that did not end in order.
    pub fn finish_apps(&mut self) -> Result<(), Failure> {
        let producers = self.apps.stop_producers();
        let drained = self.apps.drain(DRAIN_PATIENCE);
        let consumers = self.apps.stop_consumers();
        producers.and(drained).and(consumers)
    }

    /// What the applications recorded.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn ledgers(&self) -> Result<Vec<Ledger>, Failure> {
        self.apps.ledgers()
    }

    /// The steps that were passed.
    pub fn passed(&self) -> &[Passed] {
        &self.passed
    }

    /// What was killed.
    pub fn kills(&self) -> &[String] {
        &self.kills
    }

    /// Where to look while everything is up.
    pub fn urls(&self) -> Vec<(&'static str, String)> {
        let mut urls = vec![("nats-server", self.nats.url()), ("its monitoring", self.nats.monitor_url())];
        if let Some(sidecar) = &self.sidecar {
            urls.push(("AMQP (nats-bridge)", sidecar.amqp_url()));
            urls.push(("page", format!("{}/", sidecar.http_url())));
        } else {
            urls.push(("AMQP (RabbitMQ)", self.rabbit.url()));
            urls.push(("its management", self.rabbit.management_url()));
        }
        urls
    }

    /// Ends the sidecar, then the brokers.
    ///
    /// # Errors
    /// When the sidecar did not end in order.
    pub fn finish_servers(&mut self) -> Result<(), Failure> {
        let ended = self.sidecar.take().map_or(Ok(()), Sidecar::stop);
        self.nats.stop();
        ended.doing("at the end")
    }
}

/// The sidecar's statuses as they come.
struct Watch {
    statuses: mpsc::Receiver<Status>,
    _watched: Arc<()>,
}

/// Sums what each side took over a step, over restarts of the sidecar, which counts from 0 again.
struct Share {
    last: Option<Status>,
    sum: Status,
}

impl Share {
    fn add(&mut self, status: Status) {
        let last =
            self.last.filter(|last| last.rabbit <= status.rabbit && last.nats <= status.nats).unwrap_or_default();
        self.sum.rabbit += status.rabbit - last.rabbit;
        self.sum.nats += status.nats - last.nats;
        self.last = Some(status);
    }

    fn known(&self) -> Option<Status> {
        (self.sum.rabbit + self.sum.nats > 0).then_some(self.sum)
    }

    fn rabbit_percent(&self) -> Option<f64> {
        self.known().map(|sum| 100.0 * sum.rabbit as f64 / (sum.rabbit + sum.nats) as f64)
    }
}

fn stalled(step: &str, seen: Seen) -> Failure {
    Failure::new(format_args!(
        "step {step}: no message was confirmed for {} s ({} published, {} confirmed, {} delivered)",
        STALL.as_secs(),
        seen.published,
        seen.confirmed,
        seen.delivered
    ))
}

/// Without a confirm for this long, the run is given up.
const STALL: Duration = Duration::from_secs(60);

/// How long a supervisor waits before it starts a program again.
const SUPERVISOR_DELAY: Duration = Duration::from_secs(1);

/// How long RabbitMQ's queues may take to be empty before `detach`.
const DETACH_PATIENCE: Duration = Duration::from_secs(20);

/// How long after the last delivery the missing ones are given up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
