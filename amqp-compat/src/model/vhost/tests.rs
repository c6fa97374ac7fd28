use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::AMQPValue;

use super::*;
use crate::backend::{Binding, ExchangeDeclare, QueueDeclare};

const ME: Owner = Owner(1);
const OTHER: Owner = Owner(2);

fn queue_declare(name: &str) -> QueueDeclare {
    QueueDeclare {
        queue: name.into(),
        passive: false,
        durable: false,
        exclusive: false,
        auto_delete: false,
        arguments: FieldTable::default(),
    }
}

fn exchange_declare(name: &str, kind: &str) -> ExchangeDeclare {
    ExchangeDeclare {
        exchange: name.into(),
        kind: kind.into(),
        passive: false,
        durable: false,
        auto_delete: false,
        internal: false,
        arguments: FieldTable::default(),
    }
}

fn binding(source: &str, destination: &str, key: &str) -> Binding {
    Binding {
        source: source.into(),
        destination: destination.into(),
        routing_key: key.into(),
        arguments: FieldTable::default(),
    }
}

impl Vhost {
    fn with_queue(&mut self, declare: QueueDeclare) -> u32 {
        match self.plan_queue_declare(&declare, declare.queue.as_str(), ME).expect("declared") {
            QueuePlan::Exists(slot) => slot,
            QueuePlan::Create(definition) => self.apply(&Change::PutQueue(*definition)).expect("a slot"),
        }
    }

    fn with_exchange(&mut self, declare: ExchangeDeclare) {
        let change = self.plan_exchange_declare(&declare).expect("declared");
        if let Some(change) = &change {
            self.apply(change);
        }
    }

    fn with_binding(&mut self, binding: Binding, to_queue: bool) {
        let change = self.plan_bind(&binding, to_queue, ME).expect("bound");
        if let Some(change) = &change {
            self.apply(change);
        }
    }

    fn apply_all(&mut self, changes: Vec<Change>) {
        for change in &changes {
            self.apply(change);
        }
    }

    fn routed(&self, exchange: &str, key: &str) -> Vec<u32> {
        let mut route = Route::default();
        self.route(exchange, &[key], None, &mut route).expect("an exchange");
        route.queues.to_vec()
    }
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn refused<T: std::fmt::Debug>(result: Result<T, AmqpError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn the_default_exchange_routes_to_the_queue_of_the_keys_name() {
    let mut vhost = Vhost::new("/");
    let q = vhost.with_queue(queue_declare("q"));
    assert_eq!(vhost.routed("", "q"), [q]);
    assert!(vhost.routed("", "r").is_empty());
}

#[test]
fn a_queue_bound_twice_gets_one_copy() {
    let mut vhost = Vhost::new("/");
    let q = vhost.with_queue(queue_declare("q"));
    let r = vhost.with_queue(queue_declare("r"));
    for (queue, key) in [("q", "a.*"), ("q", "#"), ("q", "a.b"), ("r", "a.#")] {
        vhost.with_binding(binding("amq.topic", queue, key), true);
    }
    assert_eq!(vhost.routed("amq.topic", "a.b"), [q, r]);
    vhost.apply_all(vhost.plan_unbind(&binding("amq.topic", "q", "#"), true, ME).expect("unbound"));
    assert_eq!(vhost.routed("amq.topic", "a.b"), [q, r]);
    assert_eq!(vhost.routed("amq.topic", "b"), [0u32; 0]);
}

#[test]
fn exchanges_bind_to_exchanges_even_in_a_circle() {
    let mut vhost = Vhost::new("/");
    let q = vhost.with_queue(queue_declare("q"));
    vhost.with_exchange(exchange_declare("a", "fanout"));
    vhost.with_exchange(exchange_declare("b", "fanout"));
    vhost.with_binding(binding("a", "b", ""), false);
    vhost.with_binding(binding("b", "a", ""), false);
    vhost.with_binding(binding("b", "q", ""), true);
    assert_eq!(vhost.routed("a", "k"), [q]);
    assert_eq!(vhost.routed("b", "k"), [q]);
}

#[test]
fn an_alternate_exchange_takes_what_nothing_took() {
    let mut vhost = Vhost::new("/");
    let q = vhost.with_queue(queue_declare("q"));
    let rest = vhost.with_queue(queue_declare("rest"));
    let mut declare = exchange_declare("main", "direct");
    declare.arguments = table(&[("alternate-exchange", AMQPValue::LongString("amq.fanout".into()))]);
    vhost.with_exchange(declare);
    vhost.with_binding(binding("main", "q", "k"), true);
    vhost.with_binding(binding("amq.fanout", "rest", ""), true);
    assert_eq!(vhost.routed("main", "k"), [q]);
    assert_eq!(vhost.routed("main", "other"), [rest]);
}

#[test]
fn cc_and_bcc_add_keys() {
    let keys = |name: &str| table(&[(name, AMQPValue::FieldArray(vec![AMQPValue::LongString("b".into())].into()))]);
    for name in ["CC", "BCC"] {
        let properties = AMQPProperties::default().with_headers(keys(name));
        assert_eq!(extra_keys(&properties).expect("valid").as_slice(), ["b"]);
    }
    let wrong = AMQPProperties::default().with_headers(table(&[("CC", AMQPValue::LongString("b".into()))]));
    let text = refused(extra_keys(&wrong));
    assert_eq!(text, "PRECONDITION_FAILED - invalid message: {unacceptable_type_in_header,\"CC\",longstr}");
    let mut vhost = Vhost::new("/");
    let (a, b) = (vhost.with_queue(queue_declare("a")), vhost.with_queue(queue_declare("b")));
    let mut route = Route::default();
    vhost.route("", &["a", "b", "a"], None, &mut route).expect("routed");
    assert_eq!(route.queues.as_slice(), [a, b]);
}

#[test]
fn declaring_again_must_be_the_same() {
    let mut vhost = Vhost::new("/");
    let mut durable = queue_declare("q");
    durable.durable = true;
    vhost.with_queue(durable.clone());
    let again = |change: &dyn Fn(&mut QueueDeclare)| {
        let mut declare = durable.clone();
        change(&mut declare);
        refused(vhost.plan_queue_declare(&declare, "q", ME))
    };
    assert_eq!(
        again(&|d| d.durable = false),
        "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'false' but current is 'true'"
    );
    assert_eq!(
        again(&|d| d.auto_delete = true),
        "PRECONDITION_FAILED - inequivalent arg 'auto_delete' for queue 'q' in vhost '/': received 'true' but current is 'false'"
    );
    assert!(again(&|d| d.exclusive = true).starts_with("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration."));
    assert_eq!(
        again(&|d| d.arguments = table(&[("x-message-ttl", AMQPValue::LongInt(1000))])),
        "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'q' in vhost '/': received the value '1000' of type 'signedint' but current is none"
    );
    let mut classic = durable.clone();
    classic.arguments = table(&[("x-queue-type", AMQPValue::LongString("classic".into()))]);
    assert_eq!(vhost.plan_queue_declare(&classic, "q", ME), Ok(QueuePlan::Exists(0)));
}

#[test]
fn exchange_errors_are_rabbitmqs() {
    let mut vhost = Vhost::new("/");
    vhost.with_exchange(exchange_declare("x", "direct"));
    let declare = |name: &str, kind: &str, change: &dyn Fn(&mut ExchangeDeclare)| {
        let mut declare = exchange_declare(name, kind);
        change(&mut declare);
        refused(vhost.plan_exchange_declare(&declare))
    };
    for (text, expected) in [
        (
            declare("x", "fanout", &|_| ()),
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'direct'",
        ),
        (
            declare("x", "direct", &|d| d.internal = true),
            "PRECONDITION_FAILED - inequivalent arg 'internal' for exchange 'x' in vhost '/': received 'true' but current is 'false'",
        ),
        (declare("y", "bogus", &|_| ()), "COMMAND_INVALID - unknown exchange type 'bogus'"),
        (
            declare("amq.new", "direct", &|_| ()),
            "ACCESS_REFUSED - exchange name 'amq.new' contains reserved prefix 'amq.*'",
        ),
        (declare("", "direct", &|_| ()), "ACCESS_REFUSED - operation not permitted on the default exchange"),
        (declare("nope", "direct", &|d| d.passive = true), "NOT_FOUND - no exchange 'nope' in vhost '/'"),
        (
            declare("y", "direct", &|d| d.arguments = table(&[("alternate-exchange", AMQPValue::LongInt(1))])),
            "PRECONDITION_FAILED - invalid type 'signedint' for arg 'alternate-exchange' in exchange 'y' in vhost '/'",
        ),
        (
            refused(vhost.plan_exchange_delete("amq.direct", false)),
            "ACCESS_REFUSED - deletion of system exchange 'amq.direct' in vhost '/' not allowed",
        ),
        (
            refused(vhost.plan_bind(&binding("nope", "nope", ""), true, ME)),
            "NOT_FOUND - no exchange 'nope' in vhost '/'",
        ),
        (refused(vhost.plan_bind(&binding("x", "nope", ""), true, ME)), "NOT_FOUND - no queue 'nope' in vhost '/'"),
        (
            refused(vhost.plan_bind(&binding("", "nope", ""), true, ME)),
            "ACCESS_REFUSED - operation not permitted on the default exchange",
        ),
    ] {
        assert_eq!(text, expected);
    }
    assert_eq!(vhost.plan_exchange_delete("nope", true), Ok(Vec::new()));
    assert_eq!(vhost.plan_unbind(&binding("nope", "nope", ""), true, ME), Ok(Vec::new()));
    let mut redeclare = exchange_declare("amq.direct", "direct");
    redeclare.durable = true;
    assert_eq!(vhost.plan_exchange_declare(&redeclare), Ok(None));
}

#[test]
fn invalid_arguments_are_refused_with_rabbitmqs_texts() {
    let vhost = Vhost::new("/");
    let long = |text: &str| AMQPValue::LongString(text.into());
    for (name, value, expected) in [
        (
            "x-message-ttl",
            long("abc"),
            "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': \"expected integer, got longstr\"",
        ),
        (
            "x-message-ttl",
            AMQPValue::LongInt(-1),
            "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-1}",
        ),
        (
            "x-message-ttl",
            AMQPValue::LongLongInt(1_000_000_000_000),
            "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_too_large,1000000000000}",
        ),
        (
            "x-expires",
            AMQPValue::LongInt(0),
            "PRECONDITION_FAILED - invalid arg 'x-expires' for queue 'q' in vhost '/': {value_zero,0}",
        ),
        (
            "x-overflow",
            long("foo"),
            "PRECONDITION_FAILED - invalid arg 'x-overflow' for queue 'q' in vhost '/': invalid_overflow",
        ),
        (
            "x-overflow",
            AMQPValue::LongInt(1),
            "PRECONDITION_FAILED - invalid arg 'x-overflow' for queue 'q' in vhost '/': {unacceptable_type,signedint}",
        ),
        (
            "x-queue-type",
            long("foo"),
            "PRECONDITION_FAILED - invalid arg 'x-queue-type' for queue 'q' in vhost '/': \"unsupported queue type 'foo'\"",
        ),
        (
            "x-max-priority",
            AMQPValue::LongInt(256),
            "PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/': {max_value_exceeded,256}",
        ),
        (
            "x-dead-letter-exchange",
            AMQPValue::LongInt(1),
            "PRECONDITION_FAILED - invalid type 'signedint' for arg 'x-dead-letter-exchange' in queue 'q' in vhost '/'",
        ),
        (
            "x-dead-letter-routing-key",
            long("k"),
            "PRECONDITION_FAILED - invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': routing_key_but_no_dlx_defined",
        ),
        (
            "x-delivery-limit",
            AMQPValue::LongInt(3),
            "PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'q' in vhost '/' of queue type rabbit_classic_queue",
        ),
        (
            "x-queue-type",
            long("stream"),
            "PRECONDITION_FAILED - invalid property 'non-durable' for queue 'q' in vhost '/'",
        ),
    ] {
        let mut declare = queue_declare("q");
        declare.arguments = table(&[(name, value)]);
        assert_eq!(refused(vhost.plan_queue_declare(&declare, "q", ME)), expected);
    }
    let mut declare = queue_declare("q");
    declare.arguments = table(&[("x-queue-type", long("quorum"))]);
    let text = refused(vhost.plan_queue_declare(&declare, "q", ME));
    assert_eq!(text, "PRECONDITION_FAILED - invalid property 'non-durable' for queue 'q' in vhost '/'");
    declare.durable = true;
    assert!(matches!(vhost.plan_queue_declare(&declare, "q", ME), Ok(QueuePlan::Create(_))));
}

#[test]
fn an_exclusive_queue_belongs_to_its_connection() {
    let mut vhost = Vhost::new("/");
    let mut declare = queue_declare("q");
    declare.exclusive = true;
    vhost.with_queue(declare.clone());
    assert!(vhost.queue_for("q", ME).is_ok());
    assert_eq!(vhost.plan_queue_declare(&declare, "q", ME), Ok(QueuePlan::Exists(0)));
    for text in [
        refused(vhost.queue_for("q", OTHER)),
        refused(vhost.plan_queue_declare(&declare, "q", OTHER)),
        refused(vhost.plan_bind(&binding("amq.direct", "q", ""), true, OTHER)),
    ] {
        assert!(text.starts_with("RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q'"), "{text}");
    }
}

#[test]
fn a_binding_that_is_not_there_is_unbound_by_anybody() {
    let mut vhost = Vhost::new("/");
    vhost.with_queue(QueueDeclare { exclusive: true, ..queue_declare("q") });
    assert_eq!(vhost.plan_unbind(&binding("amq.direct", "q", "k"), true, OTHER), Ok(Vec::new()));
    vhost.with_binding(binding("amq.direct", "q", "k"), true);
    let text = refused(vhost.plan_unbind(&binding("amq.direct", "q", "k"), true, OTHER));
    assert!(text.starts_with("RESOURCE_LOCKED"), "{text}");
}

#[test]
fn an_exclusive_queue_is_not_durable_and_that_is_looked_at_last() {
    let mut vhost = Vhost::new("/");
    vhost.with_queue(QueueDeclare { exclusive: true, ..queue_declare("q") });
    let durable = QueueDeclare { durable: true, exclusive: true, ..queue_declare("q") };
    assert!(matches!(vhost.plan_queue_declare(&durable, "q", ME), Ok(QueuePlan::Exists(_))));
    let shared = QueueDeclare { durable: true, ..queue_declare("q") };
    let text = refused(vhost.plan_queue_declare(&shared, "q", ME));
    assert!(text.starts_with("RESOURCE_LOCKED"), "{text}");
}

#[test]
fn an_unknown_type_is_the_first_fault_of_an_exchange() {
    let text = refused(Vhost::new("/").plan_exchange_declare(&exchange_declare("", "x-none")));
    assert_eq!(text, "COMMAND_INVALID - unknown exchange type 'x-none'");
}

#[test]
fn reserved_queue_names_are_refused_and_made_up_ones_are_not() {
    let vhost = Vhost::new("/");
    let text = refused(vhost.plan_queue_declare(&queue_declare("amq.foo"), "amq.foo", ME));
    assert_eq!(text, "ACCESS_REFUSED - queue name 'amq.foo' contains reserved prefix 'amq.*'");
    let made_up = vhost.plan_queue_declare(&queue_declare(""), "amq.gen-1", ME);
    assert!(matches!(made_up, Ok(QueuePlan::Create(definition)) if &*definition.name == "amq.gen-1"));
    let text = refused(vhost.plan_queue_declare(&QueueDeclare { passive: true, ..queue_declare("no") }, "no", ME));
    assert_eq!(text, "NOT_FOUND - no queue 'no' in vhost '/'");
}

#[test]
fn an_auto_delete_exchange_goes_with_its_last_binding_and_so_on_up() {
    let mut vhost = Vhost::new("/");
    vhost.with_queue(queue_declare("q"));
    for name in ["up", "down"] {
        vhost.with_exchange(ExchangeDeclare { auto_delete: true, ..exchange_declare(name, "fanout") });
    }
    vhost.with_binding(binding("up", "down", ""), false);
    vhost.with_binding(binding("down", "q", "1"), true);
    vhost.with_binding(binding("down", "q", "2"), true);
    vhost.apply_all(vhost.plan_unbind(&binding("down", "q", "1"), true, ME).expect("unbound"));
    assert!(vhost.exchange("down").is_some());
    vhost.apply_all(vhost.plan_queue_removal("q"));
    assert!(vhost.exchange("down").is_none() && vhost.exchange("up").is_none());
    assert_eq!(vhost.bindings().count(), 0);
    assert!(vhost.queue_slot("q").is_none());
}

#[test]
fn a_queue_declared_again_does_not_see_old_bindings() {
    let mut vhost = Vhost::new("/");
    vhost.with_queue(queue_declare("q"));
    for exchange in ["amq.direct", "amq.fanout", "amq.topic", "amq.headers"] {
        vhost.with_binding(binding(exchange, "q", "k"), true);
    }
    vhost.apply_all(vhost.plan_queue_removal("q"));
    let again = vhost.with_queue(queue_declare("r"));
    assert_eq!(again, 0, "the slot is used again");
    for exchange in ["amq.direct", "amq.fanout", "amq.topic", "amq.headers"] {
        assert!(vhost.routed(exchange, "k").is_empty(), "{exchange}");
    }
    assert!(vhost.routed("", "q").is_empty());
}

#[test]
fn publishing_needs_an_exchange_that_takes_publishes() {
    let mut vhost = Vhost::new("/");
    vhost.with_exchange(ExchangeDeclare { internal: true, ..exchange_declare("in", "fanout") });
    let mut route = Route::default();
    let text = refused(vhost.route("nope", &["k"], None, &mut route));
    assert_eq!(text, "NOT_FOUND - no exchange 'nope' in vhost '/'");
    let text = refused(vhost.route("in", &["k"], None, &mut route));
    assert_eq!(text, "ACCESS_REFUSED - cannot publish to internal exchange 'in' in vhost '/'");
}

#[test]
fn only_bindings_between_durable_ends_are_kept() {
    let mut vhost = Vhost::new("/");
    vhost.with_queue(QueueDeclare { durable: true, ..queue_declare("d") });
    vhost.with_queue(queue_declare("t"));
    vhost.with_binding(binding("amq.direct", "d", "k"), true);
    vhost.with_binding(binding("amq.direct", "t", "k"), true);
    let kept: Vec<_> = vhost.bindings().map(|b| (b.destination.clone(), vhost.is_persistent(b))).collect();
    assert_eq!(kept, [(Destination::Queue("d".into()), true), (Destination::Queue("t".into()), false)]);
}
