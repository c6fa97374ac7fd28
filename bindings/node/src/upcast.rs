//! Steps to newer versions of a schema, which JavaScript runs.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use napi::Status;
use napi::bindgen_prelude::{Buffer, FnArgs, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use nats_bridge::schema::Upcasters;

/// A step: from this version of a schema to the next.
#[napi(object)]
pub struct Step {
    /// The schema.
    pub schema: String,
    /// The version that it begins with.
    pub from: u32,
}

/// What a step made of a payload, or why it failed.
#[napi(object)]
pub struct Stepped {
    /// The payload in the next version.
    pub payload: Option<Buffer>,
    /// Why there is none.
    pub error: Option<String>,
}

/// The schema, the version that it is to go on from, and the payload.
pub type Asked = FnArgs<(String, u32, Buffer)>;

// Weak: it does not keep the process running.
type Run = ThreadsafeFunction<Asked, Stepped, Asked, Status, false, true>;

/// The core's steps, each of which has `run` called on the event loop.
pub fn upcasters(steps: Vec<Step>, run: Function<'_, Asked, Stepped>) -> napi::Result<Upcasters> {
    let run: Arc<Run> = Arc::new(run.build_threadsafe_function().weak::<true>().callee_handled::<false>().build()?);
    Ok(steps.into_iter().fold(Upcasters::new(), |upcasters, Step { schema, from }| {
        let (run, name) = (Arc::clone(&run), schema.clone());
        upcasters.step(schema, from, move |payload| step(&run, &name, from, payload))
    }))
}

// Never on the event loop's own thread, which would wait for itself: see `Consumer::next` and `take`.
fn step(run: &Run, schema: &str, from: u32, payload: &[u8]) -> Result<Bytes, String> {
    let (tell, told) = mpsc::sync_channel(1);
    let asked = (schema.to_owned(), from, Buffer::from(payload)).into();
    let status = run.call_with_return_value(asked, ThreadsafeFunctionCallMode::NonBlocking, move |stepped, _| {
        let outcome = stepped.map_err(|error| error.to_string()).and_then(|stepped| match stepped.payload {
            Some(payload) => Ok(Bytes::copy_from_slice(&payload)),
            None => Err(stepped.error.unwrap_or_default()),
        });
        // The other end waits for it.
        let _ = tell.send(outcome);
        Ok(())
    });
    match tokio::task::block_in_place(|| told.recv()) {
        Ok(outcome) if status == Status::Ok => outcome,
        // The event loop has ended: the message is no dead letter, the server delivers it to another process.
        _ => loop {
            std::thread::park();
        },
    }
}
