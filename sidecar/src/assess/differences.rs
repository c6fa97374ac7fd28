//! What is still different of a feature that is honoured, in the words of `docs/mapping.md`.

use std::sync::OnceLock;

use amqp_compat::model::features::Area;
use foldhash::{HashMap, HashMapExt};

use super::Way;

/// The document that a test of `amqp-compat` holds against the list of features.
const MAPPING: &str = include_str!("../../../docs/mapping.md");

/// What is still different of a feature for those who go this way, if anything.
pub fn of(area: Area, name: &str, way: Way) -> Option<String> {
    static ROWS: OnceLock<HashMap<(Area, &str), &str>> = OnceLock::new();
    let text = ROWS.get_or_init(|| rows(MAPPING)).get(&(area, name))?;
    let text = match way {
        Way::Sidecar => (*text).to_owned(),
        Way::Serve => without_sidecar(text),
    };
    (!text.is_empty()).then_some(text)
}

fn rows(document: &str) -> HashMap<(Area, &str), &str> {
    let mut rows = HashMap::new();
    let mut area = None;
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            area = Area::titled(title);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Some(area), ["", name, _, _, differs, ""]) = (area, cells.as_slice()) {
            rows.insert((area, *name), *differs);
        }
    }
    rows
}

/// A text without the sentences that are about the sidecar alone.
fn without_sidecar(text: &str) -> String {
    let sentences = text.split("; ").flat_map(|part| part.split(". "));
    sentences.filter(|sentence| !sentence.contains("n a sidecar")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use amqp_compat::model::features::FEATURES;

    use super::*;

    #[test]
    fn every_feature_of_the_topology_has_a_row() {
        let rows = rows(MAPPING);
        let topology = [
            Area::ExchangeType,
            Area::ExchangeArgument,
            Area::Queue,
            Area::QueueArgument,
            Area::ConsumerArgument,
            Area::Policy,
        ];
        for feature in FEATURES.iter().filter(|feature| topology.contains(&feature.area)) {
            assert!(rows.contains_key(&(feature.area, feature.name)), "{}", feature.name);
        }
    }

    #[test]
    fn what_is_so_in_a_sidecar_alone_is_said_there_alone() {
        let single = |way| of(Area::QueueArgument, "x-single-active-consumer", way);
        assert!(single(Way::Sidecar).is_some_and(|text| text.contains("sidecar")));
        assert_eq!(single(Way::Serve), None);
        let hash = of(Area::ExchangeType, "x-consistent-hash", Way::Serve).expect("differs");
        assert!(hash.contains("which keys go where") && !hash.contains("sidecar"), "{hash}");
        assert_eq!(of(Area::ExchangeType, "direct", Way::Sidecar), None);
        assert_eq!(of(Area::QueueArgument, "x-of-my-own", Way::Sidecar), None);
    }
}
