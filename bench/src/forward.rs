//! A process that passes bytes on and nothing else: what any process between applications and their broker costs on this machine.

use std::path::PathBuf;

use clap::Args;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};

/// What `bench forward` takes; `bench sidecar` starts it.
#[derive(Debug, Clone, Args)]
pub struct ForwardArgs {
    /// Where to, as HOST:PORT.
    #[arg(long)]
    to: String,
    /// Where to write `{"listen": "HOST:PORT"}` once it listens.
    #[arg(long)]
    ready_file: PathBuf,
}

/// Runs until the process is ended.
///
/// # Errors
/// When no port is free, or the file cannot be written.
pub async fn run(args: &ForwardArgs) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let ready = serde_json::json!({ "listen": listener.local_addr()?.to_string() });
    std::fs::write(&args.ready_file, ready.to_string())?;
    loop {
        let (client, _) = listener.accept().await?;
        let to = args.to.clone();
        tokio::spawn(async move {
            if let Err(error) = pass_on(client, &to).await {
                eprintln!("bench forward: {error}");
            }
        });
    }
}

async fn pass_on(mut client: TcpStream, to: &str) -> std::io::Result<()> {
    let mut broker = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    // As much at once as the sidecar reads.
    copy_bidirectional_with_sizes(&mut client, &mut broker, 64 << 10, 64 << 10).await?;
    Ok(())
}
