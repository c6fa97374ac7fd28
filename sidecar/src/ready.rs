//! Ready files: how a starter learns the real addresses.

use std::io;
use std::path::Path;

use serde::Serialize;

/// Writes `addresses` as JSON to `file`, which a reader sees either not at all or whole.
///
/// # Errors
/// Those of writing a file beside `file` and renaming it. `file` is then as it was.
pub fn write(file: &Path, addresses: &impl Serialize) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let beside = file.with_file_name(name);
    let mut text = serde_json::to_vec(addresses)?;
    text.push(b'\n');
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_file_is_replaced_whole() {
        let file = std::env::temp_dir().join(format!("ready-{}.json", std::process::id()));
        for port in [1, 22222] {
            write(&file, &serde_json::json!({ "listen": format!("127.0.0.1:{port}") })).expect("written");
            let read: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("whole JSON");
            assert_eq!(read["listen"], format!("127.0.0.1:{port}"));
        }
        std::fs::remove_file(&file).expect("removed");
    }
}
