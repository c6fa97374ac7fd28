//! Values of the core that JavaScript holds.

use std::future::Future;

use napi::bindgen_prelude::{Either, Env, PromiseRaw, ToNapiValue};
use nats_bridge_verbs::eager::{self, Begun};
use tokio::runtime::Handle;

use crate::errors;

/// A result that is there, or the promise of it. Whoever awaits it sees no difference.
pub type Eventually<'env, V> = Either<V, PromiseRaw<'env, V>>;

/// A value of the core, and the runtime that it lives on.
///
/// Finalizers run on the event loop's thread, and at exit after the runtime has ended: entering its handle works then too,
/// and what a drop would start is dropped at once.
pub struct Held<T> {
    value: Option<T>,
    runtime: Handle,
}

impl<T> Held<T> {
    /// Holds `value`, made on the runtime that this is called on.
    pub fn new(value: T) -> Self {
        Held { value: Some(value), runtime: Handle::current() }
    }

    /// Holds `value`, on the runtime of something else that is held.
    pub fn beside<U>(other: &Held<U>, value: T) -> Self {
        Held { value: Some(value), runtime: other.runtime.clone() }
    }

    /// The value.
    pub fn get(&self) -> &T {
        self.value.as_ref().expect("only drop takes the value")
    }

    /// Does something that starts tasks on the runtime.
    pub fn within<R>(&self, act: impl FnOnce() -> R) -> R {
        let _entered = self.runtime.enter();
        act()
    }

    /// Begins `work` on this thread, and gives what `convert` makes of its result: itself if it is there at once, which then costs
    /// neither a promise nor a turn of the event loop, else the promise of it. An error that is there at once is thrown.
    pub fn promise<'env, R: Send + 'static, V: ToNapiValue + Send + 'static>(
        &self,
        env: &'env Env,
        work: impl Future<Output = nats_bridge::Result<R>> + Send + 'static,
        convert: impl FnOnce(R) -> V + Send + 'static,
    ) -> napi::Result<Eventually<'env, V>> {
        let rest = {
            let _entered = self.runtime.enter();
            match eager::begin(work) {
                Begun::Done(Ok(result)) => return Ok(Either::A(convert(result))),
                Begun::Done(Err(error)) => return Err(errors::from_core(&error)),
                Begun::Waits(rest) => rest,
            }
        };
        self.later(env, rest, convert).map(Either::B)
    }

    /// The promise of what `convert` makes of the result of `work`, which never runs on the event loop's thread.
    pub fn later<'env, R: Send + 'static, V: ToNapiValue + Send + 'static>(
        &self,
        env: &'env Env,
        work: impl Future<Output = nats_bridge::Result<R>> + Send + 'static,
        convert: impl FnOnce(R) -> V + Send + 'static,
    ) -> napi::Result<PromiseRaw<'env, V>> {
        env.spawn_future(async move { work.await.map(convert).map_err(|error| errors::from_core(&error)) })
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let _entered = self.runtime.enter();
        drop(self.value.take());
    }
}
