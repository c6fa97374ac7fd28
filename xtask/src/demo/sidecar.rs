//! The `nats-bridge` binary, used as an operator would: the sidecar as a process, the verbs as commands.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::apps::pause;
use crate::failure::{Doing, Failure};
use crate::process::{self, Running};

/// A running sidecar.
pub struct Sidecar {
    binary: PathBuf,
    dir: PathBuf,
    brokers: Brokers,
    addresses: Addresses,
    running: Running,
}

/// What the sidecar is between, as URLs.
#[derive(Debug, Clone)]
pub struct Brokers {
    /// RabbitMQ's AMQP.
    pub rabbit: String,
    /// RabbitMQ's management API.
    pub management: String,
    /// NATS.
    pub nats: String,
    /// More of the sidecar's options.
    pub options: Vec<String>,
}

/// What the ready file says.
#[derive(Debug, Clone, Deserialize)]
struct Addresses {
    listen: String,
    http: String,
}

/// What `nats-bridge status` says that is shown beside the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// Faults of messages that JetStream owns, as the sidecar sees them.
    pub faults: u64,
    /// Messages that RabbitMQ took as their owner since the sidecar started.
    pub rabbit: u64,
    /// Messages that JetStream took as their owner since the sidecar started.
    pub nats: u64,
    /// Deliveries that wait for a fence.
    pub held: u64,
    /// Queues whose fence has not passed.
    pub fences: u64,
    /// What it compared in `shadow`.
    pub parity: Parity,
}

/// How the copies of `shadow` ended, over all queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Parity {
    /// Equal to what RabbitMQ delivered.
    pub matched: u64,
    /// Different from it, or only on one side.
    pub differing: u64,
    /// Could not be compared.
    pub unverified: u64,
}

impl Sidecar {
    /// Starts the sidecar in front of both brokers, on free ports, and waits until it accepts connections.
    ///
    /// # Errors
    /// When it does not within 30 s, with the end of its log.
    pub fn start(binary: &Path, dir: &Path, brokers: Brokers) -> Result<Self, Failure> {
        let free = Addresses { listen: "127.0.0.1:0".to_owned(), http: "127.0.0.1:0".to_owned() };
        let (running, addresses) = spawn(binary, dir, &brokers, &free)?;
        Ok(Self { binary: binary.to_owned(), dir: dir.to_owned(), brokers, addresses, running })
    }

    /// Where AMQP clients connect to.
    pub fn amqp_url(&self) -> String {
        self.amqp_url_of("%2f")
    }

    /// Where AMQP clients of a vhost connect to; its name as it is written in a URL.
    pub fn amqp_url_of(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@{}/{vhost}", self.addresses.listen)
    }

    /// Where status and control are.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.addresses.http)
    }

    /// Runs one verb of the command line; answers how long it took.
    ///
    /// # Errors
    /// When the sidecar refused, with its reason.
    pub fn verb(&self, words: &[&str]) -> Result<Duration, Failure> {
        let start = Instant::now();
        process::output(&format!("nats-bridge {}", words.join(" ")), &mut self.verb_command(words))?;
        Ok(start.elapsed())
    }

    /// A command that is one verb of the command line.
    pub fn verb_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(words).args(["--reason", "cargo xtask", "--http", &self.http_url()]);
        command
    }

    /// A command that prints the sidecar's status as JSON.
    pub fn status_command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["status", "--json", "--http", &self.http_url()]).stderr(Stdio::null());
        command
    }

    /// The sidecar's status now.
    ///
    /// # Errors
    /// When it does not answer, or with something else than a status.
    pub fn status(&self) -> Result<Status, Failure> {
        parse_status(&process::output("nats-bridge status", &mut self.status_command())?)
    }

    /// Kills it with `kill -9`.
    pub fn kill_9(&mut self) {
        self.running.kill();
    }

    /// Starts it again on the same addresses.
    ///
    /// # Errors
    /// When it is not ready within 30 s.
    pub fn restart(&mut self) -> Result<(), Failure> {
        (self.running, self.addresses) = spawn(&self.binary, &self.dir, &self.brokers, &self.addresses.clone())?;
        Ok(())
    }

    /// Fails when it has ended by itself.
    ///
    /// # Errors
    /// How it ended, with the end of its log.
    pub fn look(&mut self) -> Result<(), Failure> {
        match self.running.ended()? {
            None => Ok(()),
            Some(status) => Err(Failure::new(format_args!(
                "the sidecar ended by itself ({}):\n{}",
                process::describe(status),
                log_end(&self.dir)
            ))),
        }
    }

    /// Asks it to drain and end (SIGTERM), and waits.
    ///
    /// # Errors
    /// When it does not end within 30 s with exit code 0.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.running.terminate();
        let status = self.running.wait(Duration::from_secs(30))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format_args!(
            "the sidecar ended with {} after SIGTERM:\n{}",
            process::describe(status),
            log_end(&self.dir)
        )))
    }
}

/// Reads what `nats-bridge status --json` printed.
///
/// # Errors
/// When it is not a status.
pub fn parse_status(text: &str) -> Result<Status, Failure> {
    let json: serde_json::Value = serde_json::from_str(text).doing("the status is not JSON")?;
    let number = |path: &str| {
        json.pointer(path)
            .and_then(serde_json::Value::as_u64)
            .ok_or_else(|| Failure::new(format_args!("the status has no number {path}")))
    };
    let queues = json["queues"].as_array().ok_or_else(|| Failure::new("the status has no queues"))?;
    let counts = json["parity"].as_array().ok_or_else(|| Failure::new("the status has no parity"))?;
    let parity = |classes: &[&str]| {
        counts.iter().flat_map(|queue| classes.iter().filter_map(|class| queue[*class].as_u64())).sum()
    };
    Ok(Status {
        parity: Parity {
            matched: parity(&["matched"]),
            differing: parity(&[
                "mismatched_payload",
                "mismatched_properties",
                "mismatched_routing",
                "missing",
                "extra",
            ]),
            unverified: parity(&["unverified"]),
        },
        faults: json["faults"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum(),
        rabbit: number("/sides/rabbit/published")?,
        nats: number("/sides/nats/published")?,
        held: queues.iter().filter_map(|queue| queue["held"].as_u64()).sum(),
        fences: queues.iter().filter(|queue| matches!(queue["fence"].as_str(), Some("waiting" | "sent"))).count()
            as u64,
    })
}

fn spawn(binary: &Path, dir: &Path, brokers: &Brokers, addresses: &Addresses) -> Result<(Running, Addresses), Failure> {
    let ready = dir.join("sidecar.ready.json");
    match fs::remove_file(&ready) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing("cannot remove the ready file");
        }
        _ => {}
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.join("sidecar.log"))
        .doing("cannot make the sidecar's log")?;
    let mut command = Command::new(binary);
    command
        .args(["sidecar", "--rabbit", &brokers.rabbit, "--rabbit-management", &brokers.management])
        .args(["--nats", &brokers.nats])
        .args(["--listen", &addresses.listen, "--http", &addresses.http, "--ready-file"])
        .arg(&ready)
        .stdout(log.try_clone().doing("cannot share the sidecar's log")?)
        .stderr(log);
    command.args(&brokers.options);
    let mut running = Running::start("nats-bridge sidecar", command)?;
    let start = Instant::now();
    loop {
        if let Ok(text) = fs::read(&ready) {
            let addresses = serde_json::from_slice(&text).doing("the sidecar's ready file")?;
            return Ok((running, addresses));
        }
        if let Some(status) = running.ended()? {
            return Err(Failure::new(format_args!(
                "the sidecar did not start ({}):\n{}",
                process::describe(status),
                log_end(dir)
            )));
        }
        if start.elapsed() > Duration::from_secs(30) {
            return Err(Failure::new(format_args!("the sidecar was not ready after 30 s:\n{}", log_end(dir))));
        }
        pause()?;
    }
}

fn log_end(dir: &Path) -> String {
    let log = fs::read(dir.join("sidecar.log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_for_owners_held_deliveries_open_fences_and_parity() {
        let text = r#"{"phase":"canary","weight_percent":5,"sides":{"rabbit":{"published":95},"nats":{"published":5}},
            "queues":[{"name":"a","held":2,"fence":"waiting"},{"name":"b","held":1,"fence":"sent"},
                      {"name":"c","held":0,"fence":"passed"}],
            "parity":[{"queue":"a","matched":7,"mismatched_payload":1,"missing":2,"unverified":1},
                      {"queue":"b","matched":3,"mismatched_properties":1,"extra":1,"unverified":0}]}"#;
        let parity = Parity { matched: 10, differing: 5, unverified: 1 };
        assert_eq!(
            parse_status(text).expect("a status"),
            Status { faults: 0, rabbit: 95, nats: 5, held: 3, fences: 2, parity }
        );
        assert!(parse_status("{}").is_err());
    }
}
