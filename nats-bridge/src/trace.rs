//! Trace context that travels with a message. Pure, apart from the randomness of fresh ids.
//!
//! Source: W3C Recommendation "Trace Context", sections "traceparent Header" and "tracestate Header".

use std::fmt;
use std::str::FromStr;

use crate::consume::Received;
use crate::error::{Error, ErrorKind};
use crate::message::Message;

/// The header that names trace and span.
pub const TRACEPARENT: &str = "traceparent";
/// The header with vendors' own data.
pub const TRACESTATE: &str = "tracestate";

/// Which trace a message belongs to, and which span published it.
///
/// ```
/// use nats_bridge::{Message, TraceContext};
///
/// let parent: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
/// let message = Message::new("orders.new", "17").trace(&parent.child());
/// assert!(message.headers()[0].1.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
/// # Ok::<(), nats_bridge::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; not 0.
    pub trace_id: u128,
    /// The span; not 0.
    pub span_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
    /// `tracestate`, passed on as it came.
    pub state: Option<String>,
}

impl TraceContext {
    /// Begins a trace.
    pub fn root(sampled: bool) -> TraceContext {
        TraceContext {
            trace_id: rand::random::<u128>().max(1),
            span_id: rand::random::<u64>().max(1),
            sampled,
            state: None,
        }
    }

    /// A further span of the same trace.
    pub fn child(&self) -> TraceContext {
        TraceContext { span_id: rand::random::<u64>().max(1), ..self.clone() }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl FromStr for TraceContext {
    type Err = Error;

    /// Reads a `traceparent`; of later versions what this one knows.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::new(ErrorKind::InvalidMessage).with(TRACEPARENT, text.escape_debug());
        let lower = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let parts: Vec<&str> = text.trim().split('-').collect();
        let [version, trace, span, flags, rest @ ..] = &parts[..] else { return Err(wrong()) };
        let legal = lower(version, 2) && lower(trace, 32) && lower(span, 16) && lower(flags, 2);
        if !legal || *version == "ff" || (*version == "00" && !rest.is_empty()) {
            return Err(wrong());
        }
        let trace_id = u128::from_str_radix(trace, 16).map_err(|_| wrong())?;
        let span_id = u64::from_str_radix(span, 16).map_err(|_| wrong())?;
        let flags = u8::from_str_radix(flags, 16).map_err(|_| wrong())?;
        match trace_id == 0 || span_id == 0 {
            true => Err(wrong()),
            false => Ok(TraceContext { trace_id, span_id, sampled: flags & 1 == 1, state: None }),
        }
    }
}

impl Message {
    /// Carries a trace context in the headers [`TRACEPARENT`] and [`TRACESTATE`].
    pub fn trace(self, context: &TraceContext) -> Message {
        let message = self.header(TRACEPARENT, context.to_string());
        match &context.state {
            Some(state) => message.header(TRACESTATE, state),
            None => message,
        }
    }
}

impl Received {
    /// The trace context that it was published with; none if it has none, or one that is not legal.
    pub fn trace(&self) -> Option<TraceContext> {
        let context: TraceContext = self.header(TRACEPARENT)?.parse().ok()?;
        Some(TraceContext { state: self.header(TRACESTATE).map(str::to_owned), ..context })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn illegal_parents_are_refused_and_later_versions_are_read() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = good.parse().unwrap();
        assert!(context.sampled && context.to_string() == good);
        assert!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09-later".parse::<TraceContext>().is_ok());
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert!(wrong.parse::<TraceContext>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace_id in 1u128.., span_id in 1u64.., sampled in any::<bool>()) {
            let context = TraceContext { trace_id, span_id, sampled, state: None };
            prop_assert_eq!(context.to_string().parse::<TraceContext>().unwrap(), context.clone());
            prop_assert_eq!(context.child().trace_id, trace_id);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<TraceContext>();
        }
    }
}
