//! `docs/mapping.md` says what the code does: one row for each feature, with its status.

use std::collections::BTreeMap;

use amqp_compat::model::features::{Area, FEATURES, Support};

#[test]
fn the_mapping_document_has_exactly_the_features_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/mapping.md");
    let text = std::fs::read_to_string(path).expect("docs/mapping.md is there");
    let mut documented = BTreeMap::new();
    let mut area = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            area = Area::titled(title);
            continue;
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Some(area), ["", feature, status, _, _, ""]) = (area, cells.as_slice())
            && *feature != "Feature"
            && !feature.starts_with("---")
        {
            let twice = documented.insert((area, feature.to_string()), status.to_string());
            assert!(twice.is_none(), "{feature} has two rows");
        }
    }
    let coded: BTreeMap<(Area, String), String> = FEATURES
        .iter()
        .map(|feature| {
            let status = match feature.support {
                Support::Honoured => "honoured",
                Support::Hint => "hint",
                Support::Refused => "refused",
            };
            ((feature.area, feature.name.to_owned()), status.to_owned())
        })
        .collect();
    assert_eq!(documented, coded);
}
