//! The scenarios of this folder, done by the core; `README.md` says what the steps mean.

#![allow(clippy::unwrap_used)]

mod letters;
mod outbox;
mod scenario;

macro_rules! scenarios {
    ($($name:ident: $file:literal;)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                scenario::run(include_str!($file)).await;
            }
        )*

        #[test]
        fn every_file_is_run() {
            let mut files: Vec<String> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.ends_with(".json"))
                .collect();
            files.sort();
            assert_eq!(files, [$($file),*]);
        }
    };
}

scenarios! {
    chaos: "chaos.json";
    dead_letter: "dead-letter.json";
    dedup: "dedup.json";
    drain: "drain.json";
    encryption: "encryption.json";
    order_by_key: "order-by-key.json";
    outbox: "outbox.json";
    publish: "publish.json";
    reconnect: "reconnect.json";
    redrive: "redrive.json";
    retry: "retry.json";
    schema: "schema.json";
    single_active: "single-active.json";
}
