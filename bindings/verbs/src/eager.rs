//! Starting a call of the core at once, on the thread that asks for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A call that was begun: done already, or to be waited for.
pub enum Begun<T> {
    /// Its result.
    Done(T),
    /// The rest of it.
    Waits(Pin<Box<dyn Future<Output = T> + Send>>),
}

/// Polls `work` once. So calls reach the core in the order in which they were made, whatever thread waits for their end,
/// and what needs no waiting costs none. Call it inside the runtime's context.
pub fn begin<T>(work: impl Future<Output = T> + Send + 'static) -> Begun<T> {
    let mut work = Box::pin(work);
    match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Begun::Done(done),
        Poll::Pending => Begun::Waits(work),
    }
}
