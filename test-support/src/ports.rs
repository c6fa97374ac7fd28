//! Ports for servers that are started again on the same ones.

use std::io;
use std::net::TcpListener;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Below what Linux gives to outgoing connections (32768 to 60999): one of those could take the port of a server that is
/// just being started again.
const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// How many ports belong to one process.
const BLOCK: u16 = 500;

/// This many ports of 127.0.0.1 on which nobody listens.
///
/// # Errors
/// When none is left.
pub(crate) fn free(count: usize) -> io::Result<Vec<u16>> {
    static BLOCK_OF_THIS_PROCESS: OnceLock<Block> = OnceLock::new();
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let block = BLOCK_OF_THIS_PROCESS.get_or_init(Block::take);
    // All are held until all are chosen, so that they differ.
    let mut held = Vec::with_capacity(count);
    for _ in 0..block.ports {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % block.ports;
        let port = FIRST + (block.begin + step) % COUNT;
        held.extend(TcpListener::bind(("127.0.0.1", port)));
        if held.len() == count {
            return held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect();
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port"))
}

/// Ports that no other process chooses from, as long as this one runs. Else it could take one between its choice here and
/// the start of the server it is for, or while that server is stopped.
struct Block {
    begin: u16,
    ports: u16,
    /// The block's first port, listened on: who has it has the block. It is free again when the process ends, in whatever way.
    _first: Option<TcpListener>,
}

impl Block {
    fn take() -> Block {
        // Processes that run at the same time begin at different places.
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
        let random = u16::try_from((time ^ std::process::id().wrapping_mul(2_654_435_761)) % u32::from(COUNT));
        let random = random.unwrap_or_default();
        let blocks = COUNT / BLOCK;
        for i in 0..blocks {
            let begin = (random % blocks + i) % blocks * BLOCK;
            if let Ok(first) = TcpListener::bind(("127.0.0.1", FIRST + begin)) {
                return Block { begin, ports: BLOCK, _first: Some(first) };
            }
        }
        // More processes than blocks: all ports, from anywhere.
        Block { begin: random, ports: COUNT, _first: None }
    }
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

    #[test]
    fn who_has_a_block_is_its_only_one_and_leaves_it() {
        let (one, other) = (Block::take(), Block::take());
        assert_eq!((one.ports, other.ports), (BLOCK, BLOCK));
        assert_ne!(one.begin, other.begin);
        let first = FIRST + one.begin;
        assert!(TcpListener::bind(("127.0.0.1", first)).is_err());
        drop(one);
        crate::eventually::eventually("the block is free", || TcpListener::bind(("127.0.0.1", first)).is_ok());
    }
}
