//! One line a step on standard error: live on a terminal, and one finished line each otherwise.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::apps::Seen;
use super::sidecar::Status;

/// The line of one step.
pub struct Line {
    bar: ProgressBar,
    name: &'static str,
    change: Duration,
    start: Instant,
    first: Seen,
}

impl Line {
    /// A new line for a step that lets `messages` pass, and which began, `change` ago, with `first`.
    pub fn new(name: &'static str, messages: u64, change: Duration, first: Seen) -> Self {
        let bar = ProgressBar::with_draw_target(Some(messages), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template("{prefix:<18} {bar:24} {pos:>6}/{len:<6} {msg}")
            .expect("the template is valid")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_prefix(name);
        Self { bar, name, change, start: Instant::now(), first }
    }

    /// Shows the state in between.
    pub fn show(&self, seen: Seen, share: Option<Status>, held: Option<Status>) {
        self.bar.set_position(seen.confirmed - self.first.confirmed);
        self.bar.set_message(self.facts(seen, share, held));
    }

    /// Says something beside the lines.
    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Ends the line.
    pub fn finish(self, seen: Seen, share: Option<Status>, held: Option<Status>) {
        self.bar.finish_and_clear();
        let passed = seen.confirmed - self.first.confirmed;
        eprintln!(
            "{:<18} {passed:>6} messages  {}  change {:.0} ms",
            self.name,
            self.facts(seen, share, held),
            self.change.as_secs_f64() * 1e3
        );
    }

    fn facts(&self, seen: Seen, share: Option<Status>, held: Option<Status>) -> String {
        let time = (self.change + self.start.elapsed()).max(Duration::from_millis(1)).as_secs_f64();
        let rate = |now: u64, first: u64| (now - first) as f64 / time;
        let mut facts = format!(
            "{:>5.0}/s in {:>5.0}/s out",
            rate(seen.confirmed, self.first.confirmed),
            rate(seen.delivered, self.first.delivered)
        );
        if let Some(share) = share
            && share.rabbit + share.nats > 0
        {
            let nats = 100.0 * share.nats as f64 / (share.rabbit + share.nats) as f64;
            facts.push_str(&format!("  rabbit {:>3.0} % nats {nats:>3.0} %", 100.0 - nats));
        }
        if let Some(status) = held {
            if status.held > 0 || status.fences > 0 {
                facts.push_str(&format!("  held {} ({} fences open)", status.held, status.fences));
            } else {
                facts.push_str("  held 0");
            }
        }
        if seen.dropped > 0 {
            facts.push_str(&format!("  dropped {}", seen.dropped));
        }
        facts
    }
}
