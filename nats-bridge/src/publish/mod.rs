//! Publishing with confirms.
//!
//! - [`ConfirmInbox`]: the lowest layer; one subscription for the confirms of many publishes.
//! - [`Stored`], [`Rejection`]: what JetStream answers.

mod confirm;
mod inbox;

pub use confirm::{Rejection, Stored};
pub use inbox::{Confirm, ConfirmInbox, Confirms};
