//! A real RabbitMQ node for tests that are not written in Rust: its URLs on stdout as JSON, and its end with that of stdin.

use std::io::{Read, Write};

fn main() -> Result<(), String> {
    let node = test_support::rabbit::RabbitMq::try_start()?;
    println!(r#"{{"url":"{}","management":"{}"}}"#, node.url(), node.management_url());
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    // Whoever started this holds the other end: it is closed when they end, however they do.
    std::io::stdin().read_to_end(&mut Vec::new()).map_err(|error| error.to_string())?;
    Ok(())
}
