//! Figures: what every benchmark prints, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

/// One comparison: ours beside a peer, measured in the same run.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// With which settings.
    pub detail: String,
    /// Unit of `ours` and `peer`.
    pub unit: &'static str,
    /// Our median.
    pub ours: f64,
    /// Who the peer is.
    pub peer_name: String,
    /// The peer's median.
    pub peer: f64,
    /// Median over the rounds of ours / peer, of a rate; peer / ours, of memory. Above 1, ours is better.
    pub ratio: f64,
    /// Further figures by name; the unit is in the name.
    pub extra: Vec<(String, f64)>,
}

/// Prints figures as an aligned table on stdout.
pub fn print_table(figures: &[Figure]) {
    println!("{:<58} {:>12} {:>12} {:>7}  peer", "benchmark", "ours", "peer", "ratio");
    for f in figures {
        println!("{:<58} {:>12.0} {:>12.0} {:>7.2}  {} ({})", f.name, f.ours, f.peer, f.ratio, f.peer_name, f.unit);
        for (name, value) in &f.extra {
            println!("    {name:<54} {value:>12.2}");
        }
    }
    for f in figures {
        println!("{}: {}", f.name, f.detail);
    }
}

/// The median; the lower of the two middle values for an even count. 0 for none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    if sorted.is_empty() { 0.0 } else { sorted[(sorted.len() - 1) / 2] }
}

/// The value that this share of sorted values does not exceed; zero for none.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or_default()
}
