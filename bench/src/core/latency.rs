//! The round trip of one publish at a time: a request to JetStream, and its confirm.

use std::time::{Duration, Instant};

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use nats_bridge::{Bridge, Message};

use super::{AnyError, CoreArgs, Side, id, with_stream};
use crate::report::{Figure, median, percentile};

pub(super) const NAME: &str = "core request latency, one publish at a time, 128 B";

pub(super) async fn compare(url: &str, args: &CoreArgs) -> Result<Figure, AnyError> {
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let order = if round % 2 == 0 { [Side::Ours, Side::Raw] } else { [Side::Raw, Side::Ours] };
        for side in order {
            let mut trips = once(url, args.trips, side).await?;
            trips.sort_unstable();
            let at = |share| percentile(&trips, share).as_secs_f64() * 1e6;
            let figures = (at(0.5), at(0.99), at(0.999));
            if round > 0 {
                match side {
                    Side::Ours => ours.push(figures),
                    Side::Raw => raw.push(figures),
                }
            }
        }
    }
    let of = |side: &[(f64, f64, f64)], which: fn(&(f64, f64, f64)) -> f64| median(side.iter().map(which));
    Ok(Figure {
        name: NAME.into(),
        detail: format!("{} round trips a round; id and header on both sides; the ratio is raw / ours", args.trips),
        unit: "us, p50",
        ours: of(&ours, |f| f.0),
        peer_name: "raw async-nats".into(),
        peer: of(&raw, |f| f.0),
        ratio: median(ours.iter().zip(&raw).map(|(ours, raw)| raw.0 / ours.0)),
        extra: vec![
            ("p99 us (ours)".into(), of(&ours, |f| f.1)),
            ("p99 us (raw async-nats)".into(), of(&raw, |f| f.1)),
            ("p99.9 us (ours)".into(), of(&ours, |f| f.2)),
            ("p99.9 us (raw async-nats)".into(), of(&raw, |f| f.2)),
        ],
    })
}

async fn once(url: &str, trips: usize, side: Side) -> Result<Vec<Duration>, AnyError> {
    let bridge = Bridge::connect(url).await?;
    with_stream(&bridge).await?;
    let payload = Bytes::from(vec![b'x'; 128]);
    let mut took = Vec::with_capacity(trips);
    match side {
        Side::Ours => {
            for i in 0..trips {
                let message = Message::new("bench.publish", payload.clone()).id(id(i)).header("tenant", "acme");
                let started = Instant::now();
                bridge.publish(message).await?;
                took.push(started.elapsed());
            }
        }
        Side::Raw => {
            let js = jetstream::new(async_nats::connect(url).await?);
            for i in 0..trips {
                let mut headers = HeaderMap::new();
                headers.insert(NATS_MESSAGE_ID, id(i));
                headers.insert("tenant", "acme");
                let started = Instant::now();
                js.publish_with_headers("bench.publish", headers, payload.clone()).await?.await?;
                took.push(started.elapsed());
            }
        }
    }
    bridge.jetstream().delete_stream("BENCH").await?;
    bridge.close(Duration::from_secs(5)).await?;
    Ok(took)
}
