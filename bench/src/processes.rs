//! CPU time and memory of processes: what a figure costs, whatever else the machine does.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// CPU time that these processes and their living descendants have taken so far, user and system; zero for one that is gone.
pub fn cpu_of_trees(roots: &[u32]) -> Duration {
    tree(roots).values().sum()
}

/// Resident memory of these processes and their living descendants in bytes, summed up by the name of the program.
pub fn resident(roots: &[u32]) -> Vec<(String, u64)> {
    let mut by_name = BTreeMap::new();
    for pid in tree(roots).keys() {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { continue };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let kib = field("VmRSS:").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        // One that is about to end has a name and no memory any more.
        if let (Some(name), Some(kib)) = (field("Name:"), kib) {
            *by_name.entry(name.to_owned()).or_default() += kib * 1024;
        }
    }
    by_name.into_iter().collect()
}

/// CPU time of these processes and of all that they have started and that lives.
fn tree(roots: &[u32]) -> HashMap<u32, Duration> {
    let processes = processes();
    let is_below = |mut pid: u32| {
        while let Some((parent, _)) = processes.get(&pid) {
            if roots.contains(&pid) {
                return true;
            }
            pid = *parent;
        }
        false
    };
    processes.iter().filter(|(pid, _)| is_below(**pid)).map(|(pid, (_, time))| (*pid, *time)).collect()
}

/// CPU time that this one process has taken so far.
pub fn cpu_of(pid: u32) -> Duration {
    stat(pid).map(|(_, time)| time).unwrap_or_default()
}

/// Parent and CPU time of every process.
fn processes() -> HashMap<u32, (u32, Duration)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// Parent and CPU time of one process; none once it is gone.
fn stat(pid: u32) -> Option<(u32, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the name in brackets: state, parent, ..., and as 12th and 13th user and system time, in ticks.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    // Linux counts these in hundredths of a second on every platform that we run on.
    let time = Duration::from_millis((number(11) + number(12)) * 10);
    Some((u32::try_from(number(1)).unwrap_or_default(), time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_takes_time_and_its_parent_with_it() {
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh runs");
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while cpu_of_trees(&[child.id()]).is_zero() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (of_child, of_us) = (cpu_of_trees(&[child.id()]), cpu_of_trees(&[std::process::id()]));
        child.kill().expect("killed");
        child.wait().expect("waited for");
        assert!(!of_child.is_zero() && of_us >= of_child, "{of_child:?} {of_us:?}");
        assert!(cpu_of_trees(&[child.id()]).is_zero());
    }

    #[test]
    fn memory_that_is_touched_is_resident() {
        let of_us = || resident(&[std::process::id()]).iter().map(|(_, bytes)| bytes).sum::<u64>();
        let before = of_us();
        let touched = vec![1_u8; 64 << 20];
        assert!(of_us() > before + (32 << 20), "{before}");
        assert_eq!(touched.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
    }
}
