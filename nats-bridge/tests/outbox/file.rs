//! The file at fault: of somebody else, damaged, in use, on a disk that is full.

use std::io::Write;
use std::process::{Command, Stdio};

use super::*;

async fn refused(path: &Path) -> nats_bridge::Error {
    let before = std::fs::read(path).ok();
    let error = Outbox::open(config(path)).await.unwrap_err();
    // What is not ours, or cannot be read, is left as it is.
    assert_eq!(std::fs::read(path).ok(), before);
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    error
}

#[tokio::test]
async fn a_foreign_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "Buy milk.\n".repeat(1_000)).unwrap();
    assert_eq!(refused(&text).await.kind(), ErrorKind::Corrupt);
    let nowhere = dir.path().join("no/such/directory/orders.outbox");
    assert_eq!(refused(&nowhere).await.kind(), ErrorKind::Disk);
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let outbox = open(&path).await;
    let payload = "the one that is altered";
    outbox.put(Message::new("orders.a", payload)).await.unwrap();
    outbox.close(Duration::ZERO).await.unwrap_err();
    let mut bytes = std::fs::read(&path).unwrap();
    let places = |bytes: &[u8]| {
        let found = bytes.windows(payload.len()).enumerate().filter(|(_, window)| *window == payload.as_bytes());
        found.map(|(at, _)| at).collect::<Vec<_>>()
    };
    let found = places(&bytes);
    assert!(!found.is_empty());
    for at in found {
        bytes[at] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    let error = Outbox::open(config(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    // Cut off in the middle.
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Outbox::open(config(&path)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[tokio::test]
async fn a_second_one_on_the_same_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    if let Ok(path) = std::env::var("OUTBOX_IN_USE") {
        let error = Outbox::open(config(Path::new(&path))).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        return;
    }
    let outbox = open(&path).await;
    assert_eq!(Outbox::open(config(&path)).await.unwrap_err().kind(), ErrorKind::InUse);
    let other = Command::new(std::env::current_exe().unwrap())
        .args(["outbox::file::a_second_one_on_the_same_file_is_refused", "--exact"])
        .env("OUTBOX_IN_USE", &path)
        .output()
        .unwrap();
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stdout));
    // Dropped, it gives the file back.
    drop(outbox);
    let again =
        test_support::eventually::eventually_some("the file is free", async || Outbox::open(config(&path)).await.ok());
    again.await.put(Message::new("orders.a", "1")).await.unwrap();
}

// A limit of file sizes stands in for a small disk: the same writes of the same file fail.
#[tokio::test]
async fn on_a_full_disk_nothing_is_accepted_and_it_goes_on_when_there_is_room() {
    let message = || Message::new("orders.a", vec![b'x'; 20_000]);
    if let Ok(path) = std::env::var("OUTBOX_FULL_DISK") {
        let outbox = open(Path::new(&path)).await;
        let mut accepted = 0;
        let error = loop {
            match outbox.put(message()).await {
                Ok(_) => accepted += 1,
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), error.landed()), (ErrorKind::Disk, Landed::No), "{error}");
        println!("\nfull");
        // Until there is room.
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        outbox.put(message()).await.unwrap();
        assert_eq!(outbox.status().waiting, accepted + 1);
        println!("\naccepted {}", accepted + 1);
        outbox.close(Duration::ZERO).await.unwrap_err();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.outbox");
    let script = "trap '' XFSZ; ulimit -S -f 8192; exec \"$0\" \"$@\"";
    let mut child = Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["outbox::file::on_a_full_disk_nothing_is_accepted_and_it_goes_on_when_there_is_room", "--exact"])
        .arg("--nocapture")
        .env("OUTBOX_FULL_DISK", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = super::kill::Lines::of(&mut child);
    lines.until(|line| line == "full");
    let pid = child.id().to_string();
    assert!(Command::new("prlimit").args(["--fsize=unlimited:unlimited", "--pid", &pid]).status().unwrap().success());
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let accepted = lines.until(|line| line.starts_with("accepted "));
    let accepted: u64 = accepted.trim_start_matches("accepted ").parse().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(open(&path).await.status().waiting, accepted);
    assert!(accepted > 10, "{accepted}");
}
