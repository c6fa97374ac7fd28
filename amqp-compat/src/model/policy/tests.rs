use amq_protocol::types::{AMQPValue, FieldTable};
use proptest::prelude::*;

use super::*;
use crate::backend::QueueDeclare;
use crate::model::queue::Owner;

fn settings(of: &[(&str, i64)]) -> Settings {
    of.iter().map(|(name, value)| ((*name).to_owned(), PolicyValue::Integer(*value))).collect()
}

fn texts(of: &[(&str, &str)]) -> Settings {
    of.iter().map(|(name, value)| ((*name).to_owned(), PolicyValue::Text((*value).to_owned()))).collect()
}

fn policy(scope: Scope, name: &str, pattern: &str, priority: i64, settings: Settings) -> Policy {
    Policy::new(scope, name, pattern, ApplyTo::All, priority, settings).expect("valid")
}

fn queue(name: &str, arguments: &[(&str, AMQPValue)]) -> QueueDefinition {
    let mut table = FieldTable::default();
    arguments.iter().for_each(|(name, value)| {
        table.insert((*name).into(), value.clone());
    });
    let declare = QueueDeclare {
        queue: name.into(),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        arguments: table,
    };
    QueueDefinition::from_declare("/", name, &declare, Owner(1)).expect("valid")
}

fn quorum(name: &str) -> QueueDefinition {
    queue(name, &[("x-queue-type", AMQPValue::LongString("quorum".into()))])
}

fn policies(all: Vec<Policy>) -> Policies {
    let mut policies = Policies::default();
    all.into_iter().for_each(|policy| policies.put(policy));
    policies
}

#[test]
fn the_policy_of_the_highest_priority_counts_alone() {
    let policies = policies(vec![
        policy(Scope::User, "low", "^q", 1, settings(&[("max-length", 1), ("message-ttl", 5)])),
        policy(Scope::User, "b", "^q", 9, settings(&[("max-length", 2)])),
        policy(Scope::User, "a", "q$", 9, settings(&[("max-length", 3)])),
        policy(Scope::User, "other", "^x", 99, settings(&[("max-length", 4)])),
    ]);
    let effective = policies.settings_of(&queue("q", &[]));
    assert_eq!((effective.max_length, effective.message_ttl_ms), (Some(3), None), "of equal ones the first by name");
    assert_eq!(policies.settings_of(&queue("q1", &[])).max_length, Some(2));
    assert_eq!(policies.settings_of(&queue("a q", &[])).max_length, Some(3), "a pattern may match anywhere");
    assert_eq!(policies.settings_of(&queue("z", &[])), QueueArguments::default());
}

#[test]
fn a_policy_with_a_key_that_a_type_does_not_know_passes_it_over() {
    let policies = policies(vec![
        policy(Scope::User, "low", "", 1, settings(&[("max-length", 1)])),
        policy(Scope::User, "hi", "", 9, settings(&[("max-length", 2), ("delivery-limit", 2)])),
        policy(Scope::User, "lazy", "", 10, texts(&[("queue-mode", "lazy")])),
    ]);
    let in_force = |queue: &QueueDefinition| policies.for_queue(queue).policy.map(|policy| policy.name.to_string());
    assert_eq!(in_force(&queue("q", &[])).as_deref(), Some("lazy"));
    assert_eq!(in_force(&quorum("q")).as_deref(), Some("hi"));
    assert_eq!(policies.settings_of(&quorum("q")).delivery_limit, Some(2));
    // An exchange takes the highest, whatever it sets.
    assert_eq!(policies.for_exchange("x").policy.map(|policy| &*policy.name), Some("lazy"));
}

#[test]
fn arguments_win_over_policies_but_for_limits() {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut set = settings(&[("max-length", 2), ("message-ttl", 9), ("expires", 7), ("max-length-bytes", 4)]);
    set.extend(texts(&[
        ("overflow", "reject-publish"),
        ("dead-letter-exchange", "theirs"),
        ("dead-letter-routing-key", "k"),
    ]));
    let policies = policies(vec![policy(Scope::User, "p", "", 0, set)]);
    let own = [
        ("x-max-length", AMQPValue::LongInt(5)),
        ("x-message-ttl", AMQPValue::LongInt(3)),
        ("x-overflow", text("drop-head")),
        ("x-dead-letter-exchange", text("mine")),
    ];
    let effective = policies.settings_of(&queue("q", &own));
    assert_eq!((effective.max_length, effective.message_ttl_ms), (Some(2), Some(3)));
    assert_eq!((effective.expires_ms, effective.max_length_bytes), (Some(7), Some(4)));
    assert_eq!(effective.overflow, Overflow::DropHead);
    assert_eq!(effective.dead_letter_exchange.as_deref(), Some("mine"));
    assert_eq!(effective.dead_letter_routing_key.as_deref(), Some("k"));
    assert_eq!(policies.settings_of(&queue("q", &[])).overflow, Overflow::RejectPublish);
}

#[test]
fn a_quorum_queue_does_not_dead_letter_what_it_refuses() {
    let policies = policies(vec![policy(Scope::User, "p", "", 0, texts(&[("overflow", "reject-publish-dlx")]))]);
    assert_eq!(policies.settings_of(&queue("q", &[])).overflow, Overflow::RejectPublishDlx);
    assert_eq!(policies.settings_of(&quorum("q")).overflow, Overflow::DropHead);
}

#[test]
fn what_a_policy_is_for_is_heeded() {
    let of = |apply_to| {
        let set = texts(&[("alternate-exchange", "alt")]);
        policies(vec![Policy::new(Scope::User, "p", "^.$", apply_to, 0, set).expect("valid")])
    };
    assert_eq!(of(ApplyTo::All).alternate_of("x").as_deref(), Some("alt"));
    assert_eq!(of(ApplyTo::Exchanges).alternate_of("x").as_deref(), Some("alt"));
    assert_eq!(of(ApplyTo::Exchanges).alternate_of("long"), None);
    assert_eq!(of(ApplyTo::Queues).alternate_of("x"), None);
    assert!(of(ApplyTo::Exchanges).for_queue(&queue("q", &[])).policy.is_none());
    assert!(of(ApplyTo::Queues).for_queue(&queue("q", &[])).policy.is_some());
}

#[test]
fn what_is_wrong_is_refused_with_the_key() {
    let refused = |scope, pattern: &str, settings| {
        Policy::new(scope, "p", pattern, ApplyTo::All, 0, settings).expect_err("refused")
    };
    let user = |settings| refused(Scope::User, "", settings);
    assert_eq!(user(Settings::new()), "no policy provided");
    assert_eq!(user(settings(&[("nope", 1)])), "[{<<\"nope\">>,1}] are not recognised policy settings");
    assert_eq!(user(settings(&[("message-ttl", -1)])), "-1 is not a valid message TTL (key 'message-ttl')");
    assert_eq!(user(settings(&[("expires", 0)])), "0 is not a valid queue expiry (key 'expires')");
    assert_eq!(user(texts(&[("max-length", "a")])), "<<\"a\">> is not a valid maximum length (key 'max-length')");
    assert_eq!(user(texts(&[("overflow", "x")])), "<<\"x\">> is not a valid overflow value (key 'overflow')");
    for refused in ["ha-mode", "dead-letter-strategy", "max-age", "federation-upstream-set"] {
        assert_eq!(
            user(texts(&[(refused, "all")])),
            format!("'{refused}' is not honoured by nats-bridge, see docs/mapping.md")
        );
    }
    assert_eq!(
        refused(Scope::Operator, "", texts(&[("overflow", "drop-head")])),
        "[{<<\"overflow\">>,<<\"drop-head\">>}] are not recognised policy settings"
    );
    let fine = || settings(&[("max-length", 1)]);
    for pattern in ["(", "(?=look)ahead", "(x)\\1"] {
        assert!(refused(Scope::User, pattern, fine()).starts_with("pattern should be regular expression"));
    }
    assert!(ApplyTo::from_name("streams").expect_err("refused").starts_with("apply-to 'streams' unrecognised"));
}

fn some_limits() -> impl Strategy<Value = Settings> {
    let names = ["max-length", "max-length-bytes", "message-ttl", "expires"];
    proptest::collection::vec((0usize..names.len(), 1i64..50), 1..4).prop_map(move |set| {
        set.into_iter().map(|(name, value)| (names[name].to_owned(), PolicyValue::Integer(value))).collect()
    })
}

proptest! {
    /// An operator policy never lets a queue have more than it says, and a policy never more than itself and the arguments.
    #[test]
    fn limits_only_ever_shrink(
        user in proptest::collection::vec((some_limits(), -3i64..3), 0..5),
        operator in proptest::collection::vec((some_limits(), -3i64..3), 0..5),
        own in proptest::option::of(1i64..50),
    ) {
        let mut all = Policies::default();
        for (scope, of) in [(Scope::User, user), (Scope::Operator, operator)] {
            for (index, (settings, priority)) in of.into_iter().enumerate() {
                all.put(policy(scope, &format!("p{index}"), "^q$", priority, settings));
            }
        }
        let arguments: Vec<_> = own.map(|own| ("x-max-length", AMQPValue::LongLongInt(own))).into_iter().collect();
        let queue = queue("q", &arguments);
        let effective = all.settings_of(&queue);
        let in_force = all.for_queue(&queue);
        let mut set = vec![queue.settings.max_length];
        for policy in [in_force.policy, in_force.operator].into_iter().flatten() {
            set.push(definition::number(&policy.settings, "max-length"));
            for other in all.all(policy.scope) {
                prop_assert!(other.priority <= policy.priority);
            }
        }
        prop_assert_eq!(effective.max_length, set.into_iter().flatten().min());
        // What does not match changes nothing.
        let mut declared = queue.clone();
        declared.name = "z".into();
        prop_assert_eq!(all.settings_of(&declared), queue.settings);
    }

    /// What is put and taken away again leaves no trace.
    #[test]
    fn a_policy_that_goes_gives_back_what_was(settings in some_limits(), priority in -3i64..3) {
        let mut all = policies(vec![policy(Scope::User, "stays", "", 0, super::Settings::from([
            ("max-length".to_owned(), PolicyValue::Integer(7)),
        ]))]);
        let queue = queue("q", &[]);
        let before = all.settings_of(&queue);
        all.put(policy(Scope::User, "goes", "", priority, settings.clone()));
        all.put(policy(Scope::Operator, "goes", "", priority, settings));
        all.drop(Scope::User, "goes");
        all.drop(Scope::Operator, "goes");
        prop_assert_eq!(all.settings_of(&queue), before);
    }
}
