//! The applications of a run: lapin programs, each a process that is started again when it was killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::outstanding::Outstanding;
use super::topology;
use crate::demo::ledger::{self, Event, Ledger, Tail};
use crate::failure::{Doing, Failure};
use crate::process::{self, Running};

/// All of them.
pub struct Programs {
    binary: PathBuf,
    dir: PathBuf,
    urls: Vec<String>,
    all: Vec<Program>,
    /// What they have recorded so far, for knowing when a run may end.
    pub outstanding: Outstanding,
}

struct Program {
    name: String,
    role: &'static str,
    args: Vec<String>,
    /// The processes that there were, the last of them at the end; and whether it was killed.
    lives: Vec<(String, bool)>,
    running: Option<Running>,
    tail: Tail,
    connected: bool,
    back_at: Option<Instant>,
}

impl Programs {
    /// Starts the consumers, then the publishers, each at the next of `urls`, and waits until each is connected.
    ///
    /// # Errors
    /// When one cannot be started or does not connect within 60 s.
    pub fn start(binary: &Path, dir: &Path, urls: &[String], rate: f64, seed: u64) -> Result<Self, Failure> {
        fs::write(dir.join("topology.json"), topology::declared().to_string()).doing("cannot write the topology")?;
        let (binary, dir, urls) = (binary.to_owned(), dir.to_owned(), urls.to_owned());
        let outstanding = Outstanding::new(topology::queues());
        let mut programs = Self { binary, dir, urls, all: Vec::new(), outstanding };
        for (role, group) in [("consume", topology::consumers()), ("publish", topology::publishers(rate, seed))] {
            for (name, args) in group {
                let tail = Tail::new(PathBuf::new());
                let (lives, connected) = (Vec::new(), false);
                programs.all.push(Program { name, role, args, lives, running: None, tail, connected, back_at: None });
                programs.begin(programs.all.len() - 1)?;
            }
            let start = Instant::now();
            while !programs.all.iter().all(|program| program.connected) {
                programs.look()?;
                if start.elapsed() > Duration::from_secs(60) {
                    return Err(Failure::new("not every application was connected after 60 s"));
                }
                super::pause()?;
            }
        }
        Ok(programs)
    }

    fn begin(&mut self, index: usize) -> Result<(), Failure> {
        let Some(program) = self.all.get_mut(index) else { return Ok(()) };
        let name = format!("{}.{}", program.name, program.lives.len() + 1);
        let log = File::create(self.dir.join(format!("{name}.log"))).doing("cannot make an application's log")?;
        let ledger = self.dir.join(format!("{name}.jsonl"));
        let url = self.urls.get(index % self.urls.len().max(1)).map_or("", String::as_str);
        let mut command = Command::new(&self.binary);
        command
            .args([program.role, "--url", url, "--name", &name, "--ledger"])
            .arg(&ledger)
            .arg("--topology")
            .arg(self.dir.join("topology.json"))
            .args(&program.args)
            .stdout(log.try_clone().doing("cannot share an application's log")?)
            .stderr(log);
        program.running = Some(Running::start(&name, command)?);
        program.tail = Tail::new(ledger);
        program.connected = false;
        program.back_at = None;
        program.lives.push((name, false));
        Ok(())
    }

    /// Kills one of them with `kill -9`, to be started again at `back_at`; answers its name. `None` when it is away already.
    ///
    /// # Errors
    /// When what it wrote cannot be read.
    pub fn kill(&mut self, which: u64, back_at: Instant) -> Result<Option<String>, Failure> {
        let index = which as usize % self.all.len();
        let Some(program) = self.all.get_mut(index) else { return Ok(None) };
        let Some(mut running) = program.running.take() else { return Ok(None) };
        running.kill();
        program.back_at = Some(back_at);
        for record in program.tail.read()? {
            self.outstanding.take(&record);
        }
        let last = program.lives.last_mut();
        Ok(last.map(|(name, killed)| {
            *killed = true;
            name.clone()
        }))
    }

    /// Reads what they have recorded since the last look, and starts again who is due.
    ///
    /// # Errors
    /// When one has ended by itself, or wrote what is not a record.
    pub fn look(&mut self) -> Result<(), Failure> {
        let mut due = Vec::new();
        for (index, program) in self.all.iter_mut().enumerate() {
            for record in program.tail.read()? {
                self.outstanding.take(&record);
                program.connected |= record.event == Event::Connected;
            }
            if program.back_at.is_some_and(|at| Instant::now() >= at) {
                due.push(index);
            }
            if let Some(running) = &mut program.running
                && let Some(status) = running.ended()?
                && !status.success()
            {
                let name = program.lives.last().map_or("", |(name, _)| name);
                return Err(Failure::new(format_args!("{name} ended by itself ({})", process::describe(status))));
            }
        }
        due.into_iter().try_for_each(|index| self.begin(index))
    }

    /// Whether none is away.
    pub fn all_up(&self) -> bool {
        self.all.iter().all(|program| program.running.is_some() && program.connected)
    }

    /// Asks those of a role to end, and waits until they did.
    ///
    /// # Errors
    /// When one did not within `limit`.
    pub fn stop(&mut self, role: &str, limit: Duration) -> Result<(), Failure> {
        for program in self.all.iter().filter(|program| program.role == role) {
            if let Some(running) = &program.running {
                running.terminate();
            }
        }
        let start = Instant::now();
        loop {
            self.look()?;
            let mut left = Vec::new();
            for program in self.all.iter_mut().filter(|program| program.role == role) {
                if let Some(running) = &mut program.running
                    && running.ended()?.is_none()
                {
                    left.push(program.name.clone());
                }
            }
            if left.is_empty() {
                return self.look();
            }
            if start.elapsed() > limit {
                let limit = limit.as_secs();
                return Err(Failure::new(format_args!("still running {limit} s after SIGTERM: {}", left.join(", "))));
            }
            super::pause()?;
        }
    }

    /// Everything that they recorded, a ledger for each process.
    ///
    /// # Errors
    /// When a file cannot be read or has something else in it than records.
    pub fn ledgers(&self) -> Result<Vec<Ledger>, Failure> {
        let lives = self.all.iter().flat_map(|program| &program.lives);
        lives.map(|(name, killed)| ledger::read(name, &self.dir.join(format!("{name}.jsonl")), *killed)).collect()
    }
}
