//! Values of the core that JavaScript holds.

use napi::bindgen_prelude::within_runtime_if_available;

/// A value of the core. Its finalizer runs on the event loop's thread, but what the core starts when it is dropped needs
/// the runtime.
pub struct Held<T>(Option<T>);

impl<T> Held<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Held(Some(value))
    }

    /// The value.
    pub fn get(&self) -> &T {
        self.0.as_ref().expect("only drop takes the value")
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        within_runtime_if_available(|| drop(value));
    }
}
