//! Complaint 15, about types: the bindings say what they are, and CI's type checkers read it.

use std::path::Path;

#[test]
fn complaint_15_the_bindings_are_typed_and_nothing_is_any() {
    let bindings = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bindings");
    assert!(bindings.join("python/python/nats_bridge/py.typed").is_file());
    let strict = std::fs::read_to_string(bindings.join("python/pyproject.toml")).unwrap();
    assert!(strict.contains("typeCheckingMode = \"strict\""), "pyright runs strictly");
    let strict = std::fs::read_to_string(bindings.join("node/tsconfig.json")).unwrap();
    assert!(strict.contains("\"strict\": true"), "tsc runs strictly");
    let mut files = 0;
    for dir in ["python/python/nats_bridge", "node/lib"] {
        for entry in std::fs::read_dir(bindings.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if !path.extension().is_some_and(|ext| ext == "py" || ext == "pyi" || ext == "ts") {
                continue;
            }
            files += 1;
            let text = std::fs::read_to_string(&path).unwrap();
            for any in [": any", "<any>", "any[]", "-> Any", ": Any", "[Any]"] {
                assert!(!text.contains(any), "{}: {any}", path.display());
            }
        }
    }
    assert!(files > 8, "{files} files were read");
}
