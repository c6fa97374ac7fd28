//! Streams and consumers as data: what should be, what differs, and making it so.
//!
//! [`Manifest`] names what should be. [`Bridge::plan`](crate::Bridge::plan) compares it with the server,
//! [`Bridge::apply`](crate::Bridge::apply) makes it so; applied twice, the second time changes nothing. A plan that is not
//! empty after that is drift: somebody changed the server by hand. No stored message is removed by it unless that is allowed.

mod apply;
mod bucket;
mod manifest;
mod plan;
mod removal;
mod spec;
mod subjects;
mod words;
mod work_queue;

pub use apply::ApplyConfig;
pub(crate) use apply::{ensure_consumer, make_bucket_if_absent, make_stream_if_absent, replicas_of};
pub use bucket::BucketSpec;
pub use manifest::{DeadLetterSpec, Manifest, Naming};
pub use plan::{Action, Change, Difference, Plan};
pub use removal::Removal;
pub(crate) use spec::check_name;
pub use spec::{ConsumerSpec, Discard, Retention, Storage, StreamSpec};
pub(crate) use subjects::meet;
