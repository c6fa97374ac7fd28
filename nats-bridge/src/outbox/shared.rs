//! What the handle, the writer and the replay of one outbox have in common.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use metrics::Gauge;
use tokio::sync::{Notify, watch};

use super::lanes::Lanes;
use super::store::{Found, Store};
use super::{OutboxConfig, OutboxStatus};
use crate::error::{Error, ErrorKind, Result};

pub(super) struct Shared {
    pub config: OutboxConfig,
    /// Something waits that did not before, or no longer waits.
    pub changed: Notify,
    /// Entries below this number may have been sent by an earlier run, or before the replay was stopped.
    pub sent_before: AtomicU64,
    /// The label of the metrics: the file's name without its end.
    pub name: String,
    lanes: Mutex<Lanes>,
    store: Mutex<Option<Arc<Store>>>,
    totals: watch::Sender<Totals>,
    gauges: Gauges,
}

/// What the file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub waiting: u64,
    pub refused: u64,
    pub bytes: u64,
}

struct Gauges {
    entries: Gauge,
    bytes: Gauge,
    refused: Gauge,
    oldest: Gauge,
}

impl Shared {
    pub fn new(config: OutboxConfig, store: Store, found: &Found) -> Self {
        let name = config.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let gauge = |metric: &'static str| metrics::gauge!(metric, "outbox" => name.clone());
        let gauges = Gauges {
            entries: gauge("natsbridge_outbox_entries"),
            bytes: gauge("natsbridge_outbox_bytes"),
            refused: gauge("natsbridge_outbox_refused"),
            oldest: gauge("natsbridge_outbox_oldest_seconds"),
        };
        let mut lanes = Lanes::default();
        for (number, subject, put_ms) in &found.waiting {
            lanes.push(subject, *number, *put_ms);
        }
        let totals = Totals { waiting: found.waiting.len() as u64, refused: found.refused, bytes: found.bytes };
        let shared = Shared {
            config,
            changed: Notify::new(),
            sent_before: AtomicU64::new(found.sent_below),
            name,
            lanes: Mutex::new(lanes),
            store: Mutex::new(Some(Arc::new(store))),
            totals: watch::Sender::new(totals),
            gauges,
        };
        shared.show();
        shared
    }

    pub fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn store(&self) -> MutexGuard<'_, Option<Arc<Store>>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn totals(&self) -> Totals {
        *self.totals.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Totals> {
        self.totals.subscribe()
    }

    pub fn set_totals(&self, totals: Totals) {
        self.totals.send_replace(totals);
        self.show();
    }

    /// Whether so much more fits.
    pub fn room(&self, totals: &Totals, entries: u64, bytes: u64) -> Result<()> {
        let OutboxConfig { max_entries, max_bytes, .. } = &self.config;
        let full = |bound: &'static str| {
            Error::new(ErrorKind::OutboxFull)
                .with("path", self.config.path.display())
                .with("bound", bound)
                .with("waiting", totals.waiting)
                .with("refused", totals.refused)
                .with("bytes", totals.bytes)
        };
        match () {
            () if totals.waiting + totals.refused + entries > *max_entries => Err(full("max_entries")),
            () if totals.bytes + bytes > *max_bytes => Err(full("max_bytes")),
            () => Ok(()),
        }
    }

    pub fn status(&self) -> OutboxStatus {
        let Totals { waiting, refused, bytes } = self.totals();
        OutboxStatus { waiting, refused, bytes, oldest: self.oldest() }
    }

    /// Brings the gauges up to date.
    pub fn show(&self) {
        let Totals { waiting, refused, bytes } = self.totals();
        self.gauges.entries.set(waiting as f64);
        self.gauges.bytes.set(bytes as f64);
        self.gauges.refused.set(refused as f64);
        if waiting == 0 {
            self.gauges.oldest.set(0.0);
        }
    }

    /// Brings the gauge up to date that changes by itself.
    pub fn show_age(&self) {
        self.gauges.oldest.set(self.oldest().unwrap_or_default().as_secs_f64());
    }

    fn oldest(&self) -> Option<Duration> {
        let oldest = self.lanes().oldest_ms()?;
        Some(Duration::from_millis(now_ms().saturating_sub(oldest)))
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
