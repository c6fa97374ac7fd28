//! Writing to a stream as one branch of a `select!`.

use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// What [`push`] did.
pub(crate) enum Pushed {
    Wrote(std::io::Result<usize>),
    Flushed(std::io::Result<()>),
}

/// Writes some of the bytes; flushes when there are none, since bytes may lie in the stream itself, as TLS does it.
///
/// # Cancel safety
/// Cancel safe: nothing is written when it is dropped.
pub(crate) async fn push(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Pushed {
    if bytes.is_empty() { Pushed::Flushed(writer.flush().await) } else { Pushed::Wrote(writer.write(bytes).await) }
}
