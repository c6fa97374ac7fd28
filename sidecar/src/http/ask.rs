//! Asking somebody else over HTTP/1.0: one TCP connection a question.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest answer that is read, in bytes.
const LARGEST: u64 = 64 << 20;

/// Sends a request and reads the whole answer, until the other side closes; at most 64 MiB.
///
/// # Errors
/// When the socket fails.
pub(crate) async fn exchange(address: &str, request: &str) -> std::io::Result<Vec<u8>> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    socket.take(LARGEST).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Status code and body of an answer; `None` when it is not HTTP.
pub(crate) fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_split_into_status_and_body() {
        assert_eq!(split(b"HTTP/1.1 409 Conflict\r\nA: b\r\n\r\n{}"), Some((409, &b"{}"[..])));
        assert_eq!(split(b"HTTP/1.0 200 OK\r\n\r\n"), Some((200, &b""[..])));
        for bad in [&b"-ERR unknown\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\n", b"", b"HTTP/1.1 what\r\n\r\n"] {
            assert_eq!(split(bad), None);
        }
    }
}
