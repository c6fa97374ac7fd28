//! What a link hears besides its client and its sides.
//!
//! All of it is rare where all is well. A branch of `select!` is looked at twice for every message that passes; what is in here only when it has
//! woken the task, however much of it there is.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream, ReadyChunks, SelectAll, Stream};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::engine::Engine;
use crate::copies::Copied;
use crate::phase::Position;

/// How often requests that wait too long are looked for.
const TICK: Duration = Duration::from_millis(200);
/// How many are taken before others have their turn.
const BATCH: usize = 32;

/// One of them.
pub(super) enum Signal {
    /// The position has changed to this.
    Moved(Position),
    /// What came of a standby copy.
    Copied(Copied),
    /// Holds were lifted.
    Lifted,
    /// Time has passed.
    Tick,
}

/// All that `engine` is to hear, which never ends. Taking the next ones is cancel safe.
pub(super) fn of(engine: &mut Engine) -> ReadyChunks<SelectAll<BoxStream<'static, Signal>>> {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(tick, async |mut tick| {
        tick.tick().await;
        Some((Signal::Tick, tick))
    });
    let moves = changes(engine.shared.position()).map(Signal::Moved);
    let lifts = changes(engine.shared.lifts()).map(|_| Signal::Lifted);
    let mut all = stream::select_all([ticks.boxed(), moves.boxed(), lifts.boxed()]);
    if let Some(copies) = engine.copies.take() {
        let copies = stream::unfold(copies, async |mut copies| Some((Signal::Copied(copies.recv().await?), copies)));
        all.push(copies.boxed());
    }
    all.ready_chunks(BATCH)
}

/// What changed, each time that it is looked at; of several changes between two looks, the last.
fn changes<T: Copy>(values: watch::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(values, async |mut values| {
        values.changed().await.ok()?;
        let value = *values.borrow_and_update();
        Some((value, values))
    })
}
