//! One run: fresh state, load, the plan, everything up again, the last delivery, and the verdict.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

use super::programs::Programs;
use super::report::{Row, nobody_knows};
use super::schedule::{Action, Kind, plan};
use super::server::{Killable, Server};
use super::topology;
use crate::demo::now_unix_ns;
use crate::demo::sidecar::{Brokers, Sidecar};
use crate::demo::verdict::{Promise, judge};
use crate::failure::{Doing, Failure};
use crate::process;

/// What all runs have in common.
pub struct Setting {
    /// The `nats-bridge` binary.
    pub sidecar: PathBuf,
    /// The `application` binary.
    pub application: PathBuf,
    /// The `nats-server` binary.
    pub nats_server: PathBuf,
    /// Messages a second that the applications publish together.
    pub rate: f64,
    /// How long changes and kills happen.
    pub length: Duration,
    /// What is killed.
    pub kinds: Vec<Kind>,
    /// How many sidecars share the NATS account.
    pub sidecars: usize,
}

/// Runs `seed`; RabbitMQ is kept from run to run, and has a vhost for each. `say` shows what is being done.
///
/// # Errors
/// When RabbitMQ does not come back, so that no run can follow. Whatever else goes wrong is in the row.
pub fn run(
    setting: &Setting,
    seed: u64,
    dir: &Path,
    rabbit: &mut Server<RabbitMq>,
    say: &dyn Fn(&str),
) -> Result<Row, Failure> {
    let begun = Instant::now();
    let mut row = Row::new(seed);
    say("starting");
    let mut run = match Run::prepare(setting, seed, dir, rabbit) {
        Ok(run) => run,
        Err(why) => {
            row.wrong.push(why.to_string());
            return Ok(row);
        }
    };
    let lived = run.live(setting, seed, &mut row, say);
    row.wrong.extend(lived.err().map(|why| why.to_string()));
    say("drain");
    let drained = run.drain();
    row.wrong.extend(drained.err().map(|why| why.to_string()));
    match run.programs.ledgers() {
        Ok(ledgers) => {
            row.measure(&ledgers, &run.undisturbed);
            let mut verdict = judge(&ledgers, &topology::queues());
            row.unknown = nobody_knows(&mut verdict, &run.kills);
            row.wrong.extend(verdict.wrong(Promise::SurvivesKills));
            row.verdict = verdict;
        }
        Err(why) => row.wrong.push(why.to_string()),
    }
    let Run { sidecars, nats, vhost, .. } = run;
    for (number, sidecar) in sidecars.into_iter().enumerate() {
        match sidecar.into_up() {
            Ok(sidecar) => {
                // One answers for all of them. Applications had no fault to complain of: whatever it found is invented.
                if number == 0 {
                    row.faults = sidecar.status().map_or(0, |status| status.faults);
                }
                row.wrong.extend(sidecar.stop().err().map(|why| why.to_string()));
            }
            Err(why) => row.wrong.push(why.to_string()),
        }
    }
    if row.faults > 0 {
        row.wrong.push(format!("the sidecar reported {} faults of JetStream", row.faults));
    }
    drop(nats);
    if let Some(rabbit) = rabbit.up() {
        // Left behind it costs memory and nothing else.
        let _ = rabbit.api("DELETE", &format!("/api/vhosts/{vhost}"), "");
    }
    row.seconds = begun.elapsed().as_secs_f64();
    Ok(row)
}

struct Run<'a> {
    programs: Programs,
    sidecars: Vec<Server<Sidecar>>,
    nats: Server<NatsServer>,
    rabbit: &'a mut Server<RabbitMq>,
    vhost: String,
    kills: Vec<(Kind, u64)>,
    /// From when to when nothing was away, in nanoseconds since 1970.
    undisturbed: Vec<(u64, u64)>,
    verb: Option<(String, JoinHandle<Result<String, Failure>>)>,
}

impl<'a> Run<'a> {
    fn prepare(setting: &Setting, seed: u64, dir: &Path, rabbit: &'a mut Server<RabbitMq>) -> Result<Self, Failure> {
        while rabbit.up().is_none() {
            rabbit.look()?;
            super::pause()?;
        }
        let node = rabbit.up().ok_or_else(|| Failure::new("RabbitMQ is gone"))?;
        let vhost = node.fresh_vhost();
        let nats = NatsServer::builder().binary(&setting.nats_server).dir(dir.join("nats")).try_start();
        let nats = nats.map_err(Failure::new)?;
        // The gate says yes soon, so that `promote` gets somewhere. A rollback that the sidecar makes by itself is part of it.
        let options = ["--gate-soak", "100ms", "--gate-messages", "10", "--gate-latency-factor", "1000"];
        let mut options = options.map(str::to_owned).to_vec();
        // On a busy machine a broker takes longer to come back than the 30 s after which what waits for it is let go, out of order.
        options.extend(["--fence-timeout-ms".to_owned(), "300000".to_owned()]);
        if setting.sidecars > 1 {
            options.push("--shared".to_owned());
        }
        let brokers =
            Brokers { rabbit: node.url_for(&vhost), management: node.management_url(), nats: nats.url(), options };
        let mut sidecars = Vec::with_capacity(setting.sidecars);
        for number in 1..=setting.sidecars {
            let dir = dir.join(format!("sidecar-{number}"));
            std::fs::create_dir_all(&dir).doing(format_args!("cannot make {}", dir.display()))?;
            sidecars.push(Sidecar::start(&setting.sidecar, &dir, brokers.clone())?);
        }
        let urls: Vec<String> = sidecars.iter().map(|sidecar| sidecar.amqp_url_of(&vhost)).collect();
        let programs = Programs::start(&setting.application, dir, &urls, setting.rate, seed)?;
        let (sidecars, nats) = (sidecars.into_iter().map(Server::Up).collect(), Server::Up(nats));
        let (kills, undisturbed) = (Vec::new(), Vec::new());
        Ok(Self { programs, sidecars, nats, rabbit, vhost, kills, undisturbed, verb: None })
    }

    /// Carries the plan out, and waits until everything is up again.
    fn live(&mut self, setting: &Setting, seed: u64, row: &mut Row, say: &dyn Fn(&str)) -> Result<(), Failure> {
        let declared = Instant::now();
        while declared.elapsed() < SETTLED {
            self.look()?;
            super::pause()?;
        }
        let mut plan = std::collections::VecDeque::from(plan(seed, setting.length, &setting.kinds));
        let start = Instant::now();
        let (mut calm_since, mut up_since) = (None, None);
        let mut moved = (Instant::now(), 0);
        loop {
            self.look()?;
            self.note_verb(row);
            while plan.front().is_some_and(|(at, _)| start.elapsed() >= *at) {
                // A change is made when the one before it has ended; kills do not wait.
                let changing = self.verb.is_some();
                let ripe = |(at, what): &(Duration, Action)| {
                    start.elapsed() >= *at && !(changing && matches!(what, Action::Change(_)))
                };
                let Some(next) = plan.iter().position(ripe) else { break };
                let Some((_, what)) = plan.remove(next) else { break };
                self.act(what, start, row)?;
            }
            let confirmed = self.programs.outstanding.confirmed;
            say(&format!("{} changes, {} kills, {confirmed} confirmed", row.changes, row.kills.len()));
            if confirmed > moved.1 {
                moved = (Instant::now(), confirmed);
            }
            let all_up = self.all_up();
            self.note_undisturbed(&mut up_since, all_up);
            if plan.is_empty() && self.verb.is_none() && all_up && start.elapsed() >= setting.length {
                if calm_since.get_or_insert_with(Instant::now).elapsed() > CALM && moved.0.elapsed() < CALM {
                    return Ok(());
                }
            } else {
                calm_since = None;
            }
            if moved.0.elapsed() > STALL {
                return Err(Failure::new(format_args!(
                    "no message was confirmed for {} s ({confirmed} before; everything up: {all_up})",
                    STALL.as_secs()
                )));
            }
            super::pause()?;
        }
    }

    fn look(&mut self) -> Result<(), Failure> {
        self.nats.look()?;
        self.rabbit.look()?;
        let (now, several) = (now_unix_ns(), self.sidecars.len() > 1);
        let lately = |kinds: Kind| self.kills.iter().any(|(kind, at)| *kind == kinds && now - at < BOTH_AWAY_NS);
        let may_end = several && lately(Kind::Nats) && lately(Kind::Rabbit);
        for sidecar in &mut self.sidecars {
            sidecar.look()?;
            if let Some(Err(why)) = sidecar.up_mut().map(Sidecar::look) {
                // Of several, one that hears of neither broker ends, so that another may lead; a supervisor starts it again.
                if !may_end {
                    return Err(why);
                }
                sidecar.kill(Instant::now());
            }
        }
        self.programs.look()
    }

    fn all_up(&self) -> bool {
        let sidecars = self.sidecars.iter().all(|sidecar| sidecar.up().is_some());
        self.nats.up().is_some() && self.rabbit.up().is_some() && sidecars && self.programs.all_up()
    }

    /// Notes since when nothing has been away, after a moment in which applications find their way back.
    fn note_undisturbed(&mut self, since: &mut Option<Instant>, all_up: bool) {
        if !all_up {
            *since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() > CALM {
            let now = now_unix_ns();
            match self.undisturbed.last_mut() {
                Some((_, to)) if now - *to < 500_000_000 => *to = now,
                _ => self.undisturbed.push((now, now)),
            }
        }
    }

    fn note_verb(&mut self, row: &mut Row) {
        if !self.verb.as_ref().is_some_and(|(_, made)| made.is_finished()) {
            return;
        }
        let Some((words, made)) = self.verb.take() else { return };
        match made.join() {
            Ok(Ok(_)) => row.changes += 1,
            Ok(Err(why)) => row.refused.push(format!("{words}: {why}")),
            Err(_) => row.refused.push(format!("{words}: panicked")),
        }
    }

    fn act(&mut self, what: Action, start: Instant, row: &mut Row) -> Result<(), Failure> {
        match what {
            Action::Change(words) => {
                let Some(sidecar) = self.sidecars.iter().find_map(Server::up) else {
                    row.refused.push(format!("{}: no sidecar is there", words.join(" ")));
                    return Ok(());
                };
                let refs: Vec<&str> = words.iter().map(String::as_str).collect();
                let mut command = sidecar.verb_command(&refs);
                let made = std::thread::spawn(move || process::output("nats-bridge", &mut command));
                self.verb = Some((words.join(" "), made));
            }
            Action::Kill { kind, which, away } => {
                let back_at = Instant::now() + away;
                let at = now_unix_ns();
                let name = match kind {
                    Kind::Rabbit => self.rabbit.kill(back_at).then(|| RabbitMq::NAME.to_owned()),
                    Kind::Nats => self.nats.kill(back_at).then(|| NatsServer::NAME.to_owned()),
                    Kind::Sidecar => {
                        let number = which as usize % self.sidecars.len().max(1);
                        let killed = self.sidecars.get_mut(number).is_some_and(|sidecar| sidecar.kill(back_at));
                        killed.then(|| format!("{}-{}", Sidecar::NAME, number + 1))
                    }
                    Kind::Application => self.programs.kill(which, back_at)?,
                };
                self.kills.extend(name.iter().map(|_| (kind, at)));
                row.kills.extend(name.map(|name| format!("{name} at {:.1} s", start.elapsed().as_secs_f64())));
            }
        }
        Ok(())
    }

    /// Lets the publishers finish, waits for the last deliveries, and ends the consumers.
    fn drain(&mut self) -> Result<(), Failure> {
        let published = self.programs.stop("publish", FINISH);
        let mut moved = (Instant::now(), 0, 0);
        // After the last end that is due, a moment for one too many to show itself.
        loop {
            self.look()?;
            let (left, delivered) = (self.programs.outstanding.left(), self.programs.outstanding.delivered);
            if (left, delivered) != (moved.1, moved.2) {
                moved = (Instant::now(), left, delivered);
            }
            if moved.0.elapsed() > if left == 0 { CALM } else { PATIENCE } {
                break;
            }
            super::pause()?;
        }
        published.and(self.programs.stop("consume", FINISH))
    }
}

/// How long nothing is killed after queues were declared: RabbitMQ 3.10 that is killed earlier may have lost the name of a new quorum queue,
/// and refuses it ever after (541), with or without a sidecar.
const SETTLED: Duration = Duration::from_secs(3);

/// How long after both brokers were killed a sidecar may have heard of neither.
const BOTH_AWAY_NS: u64 = 60_000_000_000;

/// How long everything has to be up and confirm before the publishers are stopped.
const CALM: Duration = Duration::from_millis(700);

/// Without a confirm for this long, the run is given up.
const STALL: Duration = Duration::from_secs(90);

/// How long applications may take to end.
const FINISH: Duration = Duration::from_secs(90);

/// How long after the last delivery the missing ones are given up: more than the 30 s after which JetStream delivers again what a sidecar
/// held that was killed.
const PATIENCE: Duration = Duration::from_secs(60);
