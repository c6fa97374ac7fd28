//! Ports for servers that are started again on the same ones.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Below what Linux gives to outgoing connections (32768 to 60999): one of those could take the port of a server that is
/// just being started again.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// This many ports of 127.0.0.1 on which nobody listens.
///
/// # Errors
/// When none is left.
pub(crate) fn free(count: usize) -> io::Result<Vec<u16>> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin at different places.
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let begin = (time ^ std::process::id().wrapping_mul(2_654_435_761)) % u32::from(COUNT);
    // All are held until all are chosen, so that they differ.
    let mut held = Vec::with_capacity(count);
    for _ in 0..COUNT {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = FIRST + u16::try_from((begin + step) % u32::from(COUNT)).unwrap_or_default();
        held.extend(TcpListener::bind(("127.0.0.1", port)));
        if held.len() == count {
            return held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect();
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_nobody_listens_there() {
        let (first, second) = (free(4).unwrap(), free(4).unwrap());
        let mut all = [first, second].concat();
        assert!(all.iter().all(|port| (FIRST..FIRST + COUNT).contains(port)));
        assert!(all.iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 8);
    }
}
