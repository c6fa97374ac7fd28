//! Settings of the core under the names that options have.

use nats_bridge::Error;

/// An error's text and context, with the setting at fault, or the bound that is reached, named as its option: lengths of time are in
/// milliseconds, which their names say, and `spell` does the rest for a language. It spells the keys of the context as well.
pub fn spelled(error: &Error, spell: impl Fn(&str) -> String) -> (String, Vec<(String, String)>) {
    let (mut text, mut context) = (error.to_string(), error.context().to_vec());
    for (_, why) in context.iter_mut().filter(|(key, _)| matches!(*key, "why" | "fix")) {
        let told = NAMED.iter().fold(why.clone(), |told, name| {
            told.replace(&format!("`{name}`"), &format!("`{}`", spell(&in_milliseconds(name))))
        });
        text = text.replacen(&*why, &told, 1);
        *why = told;
    }
    for (key, setting) in context.iter_mut().filter(|(key, _)| matches!(*key, "field" | "bound")) {
        let option = spell(&in_milliseconds(setting));
        text = text.replacen(&format!("{key}={setting}"), &format!("{key}={option}"), 1);
        *setting = option;
    }
    let context = context.into_iter().map(|(key, value)| {
        let name = spell(key);
        if name != key {
            text = text.replacen(&format!("{key}="), &format!("{name}="), 1);
        }
        (name, value)
    });
    let context = context.collect();
    (text, context)
}

// What explanations of the core name in backquotes: calls and options, which other languages spell in their way.
const NAMED: [&str; 6] =
    ["advisories", "dead_letter_max_bytes", "dead_letter_stream", "ensure_stream", "filter_subjects", "max_bytes"];

// The core's settings that are a `Duration`.
const TIMES: [&str; 16] = [
    "ack_wait",
    "connect_timeout",
    "deadline",
    "first_pause",
    "heartbeat",
    "max_elapsed",
    "max_pause",
    "max_run",
    "no_stream_wait",
    "ping_interval",
    "poll",
    "probe_every",
    "reconnect_pause_max",
    "request_timeout",
    "stalled_after",
    "trip_after",
];

fn in_milliseconds(field: &str) -> String {
    let last = field.rsplit('.').next().unwrap_or(field);
    if TIMES.contains(&last) { format!("{field}_ms") } else { field.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_at_fault_has_the_name_of_its_option() {
        let named = |field: &str| in_milliseconds(field);
        assert_eq!(named("publish.breaker.trip_after"), "publish.breaker.trip_after_ms");
        assert_eq!(named("max_messages"), "max_messages");
        assert_eq!(named("max_age_ms"), "max_age_ms");
    }
}
