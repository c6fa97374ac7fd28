//! Who holds a lease: a process of a machine, so that an operator can find it, and the next one can see that it is gone.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A gateway, as the lease's document names it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holder {
    /// Of this tenure alone.
    pub id: String,
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// Since when, as RFC 3339 in UTC.
    pub since: String,
    /// Where `pid` means something: this boot of the machine, and its process namespace. Empty where that is not known.
    #[serde(default)]
    pub place: String,
    /// When the process was started, in clock ticks since that boot; tells it from a later one of the same id.
    #[serde(default)]
    pub started: u64,
    /// Whether it shares the account with other gateways.
    #[serde(default)]
    pub shares: bool,
    /// Where a sidecar that shares it with other sidecars is reached by those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Box<Reached>>,
}

/// Where a sidecar is reached by others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reached {
    /// For AMQP.
    pub amqp: String,
    /// For AMQPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amqps: Option<String>,
    /// For status and control.
    pub http: String,
    /// Where its second lock is, so that all have the same one.
    pub lock: String,
}

impl Holder {
    /// This process, from now on; whether it shares the account.
    pub(crate) fn here(shares: bool) -> Self {
        let pid = std::process::id();
        Self {
            id: ulid::Ulid::new().to_string(),
            host: host(),
            pid,
            since: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default(),
            place: place(),
            started: started(pid).unwrap_or_default(),
            shares,
            sidecar: None,
        }
    }

    /// This process, from now on, as a sidecar among others.
    pub fn sidecar(reached: Reached) -> Self {
        Self { sidecar: Some(Box::new(reached)), ..Self::here(false) }
    }

    /// Whether both may serve an account, one leading the other.
    pub(super) fn is_with(&self, other: &Self) -> bool {
        self.shares && other.shares || self.sidecar.is_some() && other.sidecar.is_some()
    }

    /// Whether it is a process of this machine that has ended; `false` where that cannot be known.
    pub(super) fn is_dead(&self, here: &Self) -> bool {
        let is_ours = !self.place.is_empty() && self.place == here.place && self.host == here.host;
        is_ours && started(self.pid) != Some(self.started)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on {}, since {}", self.pid, self.host, self.since)
    }
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown host".to_owned())
}

fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let namespace = fs::read_link("/proc/self/ns/pid");
    match (boot, namespace) {
        (Ok(boot), Ok(namespace)) => format!("{} {}", boot.trim(), namespace.display()),
        _ => String::new(),
    }
}

/// When a process was started; `None` when there is none, or only its remains.
///
/// Source: proc_pid_stat(5): fields 3 (state) and 22 (starttime); the name before them is in parentheses and may hold any.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_has_ended_is_dead_and_nothing_else_is() {
        let here = Holder::here(false);
        assert!(!here.is_dead(&here), "{here:?}");
        let mut child = std::process::Command::new("sleep").arg("600").spawn().expect("sleep starts");
        let pid = child.id();
        let other = Holder { pid, started: started(pid).expect("it runs"), ..here.clone() };
        assert!(!other.is_dead(&here));
        let reused = Holder { started: other.started + 1, ..other.clone() };
        assert!(reused.is_dead(&here), "the id belongs to another process now");
        child.kill().expect("killed");
        let _ = child.wait();
        assert!(other.is_dead(&here));
        for elsewhere in [
            Holder { place: "another boot".into(), ..other.clone() },
            Holder { host: "another host".into(), ..other.clone() },
            Holder { place: String::new(), ..other.clone() },
        ] {
            assert!(!elsewhere.is_dead(&here), "{elsewhere:?}");
        }
    }
}
