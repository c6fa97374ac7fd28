//! What goes wrong, when: from the seed alone.

use std::sync::Arc;
use std::time::Duration;

use test_support::fault_proxy::{FaultProxy, Weather};
use test_support::random::Random;

use crate::places::{Places, Proxies};
use crate::record::Record;
use crate::run::{Letters, Worker};

/// How many faults a storm has.
const FAULTS: u64 = 8;

/// Lets faults happen, one after the other, and leaves calm weather and the last worker.
///
/// `gently`: a server that goes is stopped and not killed. `worker` makes a fresh worker after the old one has vanished.
pub async fn rage<F>(
    seed: u64,
    places: &Places,
    gently: bool,
    publisher: &Arc<Proxies>,
    mut worker: impl FnMut() -> F,
    record: &Record,
    letters: &Letters<'_>,
) -> Worker
where
    F: Future<Output = Worker>,
{
    let mut random = Random::new(seed ^ 0x5707);
    let mut consumer = worker().await;
    for _ in 0..FAULTS {
        pause(&mut random, 50, 400).await;
        let side = if random.one_in(2) { publisher.clone() } else { consumer.proxies.clone() };
        match random.below(11) {
            0 => weather(&side, Weather::Slow(Duration::from_millis(30)), &mut random).await,
            1 => weather(&side, Weather::Split(7), &mut random).await,
            2 => side.each(|proxy| proxy.cut()),
            3 => side.each(|proxy| proxy.reset()),
            4 => {
                // A hole does not heal: what was swallowed is gone, so the connections must end before they carry on.
                let hole = *random.pick(&[Weather::HalfOpen, Weather::DeafClient, Weather::MuteClient]);
                side.each(|proxy| proxy.set(hole));
                pause(&mut random, 100, 1_500).await;
                side.each(|proxy| {
                    proxy.reset();
                    proxy.set(Weather::Calm);
                });
            }
            5 => {
                side.each(|proxy| proxy.shut());
                pause(&mut random, 100, 800).await;
                side.each(|proxy| proxy.open());
            }
            6 | 7 => {
                let (places, which) = (places.clone(), random.below(3) as usize);
                let away = Duration::from_millis(random.below(300));
                record.server_killed();
                tokio::task::spawn_blocking(move || places.kill_and_restart(which, away, gently)).await.unwrap();
                record.server_killed();
            }
            8 => {
                // The worker's process is gone with all that it held and knew.
                vanish(&mut consumer, &mut worker, record).await;
            }
            _ => {
                // Nothing can be given up meanwhile; half of the time the worker that tries to is gone before it can.
                let vanishes = random.one_in(2);
                let full = letters.full().await;
                pause(&mut random, 200, 1_200).await;
                if vanishes {
                    vanish(&mut consumer, &mut worker, record).await;
                }
                pause(&mut random, 0, 400).await;
                if full {
                    letters.empty().await;
                }
            }
        }
    }
    for side in [publisher, &consumer.proxies] {
        side.each(|proxy| {
            proxy.set(Weather::Calm);
            proxy.open();
        });
    }
    consumer
}

async fn vanish<F>(consumer: &mut Worker, worker: &mut impl FnMut() -> F, record: &Record)
where
    F: Future<Output = Worker>,
{
    consumer.proxies.each(FaultProxy::shut);
    record.worker_vanished();
    // The old one ends here.
    *consumer = worker().await;
}

async fn weather(side: &Proxies, weather: Weather, random: &mut Random) {
    side.each(|proxy| proxy.set(weather));
    pause(random, 100, 600).await;
    side.each(|proxy| proxy.set(Weather::Calm));
}

async fn pause(random: &mut Random, from: u64, to: u64) {
    tokio::time::sleep(Duration::from_millis(from + random.below(to - from))).await;
}
