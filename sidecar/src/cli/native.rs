//! What the verbs share that talk to NATS itself and to no sidecar.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nats_bridge::{Bridge, Error, ErrorKind};

use super::Failure;
use super::nats::NatsLogin;

/// Which NATS, and how to print.
#[derive(Debug, Clone, Args)]
pub struct Native {
    /// NATS servers, separated by commas; user and password may stand in the URLs.
    #[arg(
        long,
        global = true,
        env = "NATS_URL",
        hide_env_values = true,
        default_value = "nats://127.0.0.1:4222",
        value_name = "URL"
    )]
    pub nats: String,
    /// How to log in there.
    #[command(flatten)]
    pub login: NatsLogin,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub json: bool,
}

impl Native {
    /// Connects.
    ///
    /// # Errors
    /// `cannot_run`, with a way out.
    pub async fn connect(&self) -> Result<Bridge, Failure> {
        self.login.connect(&self.nats, "nats-bridge-cli").await
    }
}

/// The connection's last words; what was confirmed is confirmed.
pub(super) async fn close(bridge: &Bridge) {
    let _ = bridge.close(Duration::from_secs(5)).await;
}

/// An error of the core as a failure of the verb: what does not exist, conflicts or was refused is a "no".
pub(super) fn failure(error: Error) -> Failure {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Rejected => Failure::refused(error),
        _ => Failure::cannot_run(error),
    }
}

/// A bar on stderr, if that is a terminal; it counts up to `total`.
pub(super) fn bar(total: u64, what: &'static str) -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {human_pos}/{human_len}  {per_sec}  {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

/// A table whose columns are as wide as what is in them; the last column is not padded.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("a", "long name"), row("longer", "b")]), "a       long name\nlonger  b\n");
    }
}
