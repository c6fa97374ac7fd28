use super::*;
use crate::demo::ledger::{Died, Record};
use crate::demo::topology::{EMAILS, ORDERS, queues};

/// A run in which all went well: two orders for one customer, one for another, and an e-mail.
struct Story {
    time: u64,
    ledgers: Vec<Ledger>,
}

impl Story {
    fn new() -> Self {
        Self { time: 0, ledgers: Vec::new() }
    }

    fn told() -> Self {
        let mut story = Story::new();
        for (id, key, seq) in [("o-1", "order.eu.ann", 1), ("o-2", "order.eu.bob", 1), ("o-3", "order.eu.ann", 2)] {
            story.publish(id, ORDERS, key, seq).confirm(id);
            story.deliver("warehouse.eu", id, key, seq).deliver("audit", id, key, seq);
        }
        story.publish("e-1", "", EMAILS, 1).confirm("e-1").deliver(EMAILS, "e-1", EMAILS, 1);
        story
    }

    fn add(&mut self, app: &str, event: Event) -> &mut Self {
        self.time += 1_000;
        let t = self.time;
        let ledger = match self.ledgers.iter_mut().position(|ledger| ledger.app == app) {
            Some(index) => &mut self.ledgers[index],
            None => {
                self.ledgers.push(Ledger { app: app.to_owned(), ..Ledger::default() });
                self.ledgers.last_mut().expect("just pushed")
            }
        };
        ledger.records.push(Record { t, event });
        self
    }

    fn publish(&mut self, id: &str, exchange: &str, key: &str, seq: u64) -> &mut Self {
        self.publish_attempt(id, exchange, key, seq, 1)
    }

    fn publish_attempt(&mut self, id: &str, exchange: &str, key: &str, seq: u64, attempt: u32) -> &mut Self {
        let (id, exchange, key) = (id.to_owned(), exchange.to_owned(), key.to_owned());
        self.add("shop", Event::Published { id, exchange, key, seq, attempt })
    }

    fn confirm(&mut self, id: &str) -> &mut Self {
        self.add("shop", Event::Confirmed { id: id.to_owned() })
    }

    fn deliver(&mut self, queue: &str, id: &str, key: &str, seq: u64) -> &mut Self {
        self.deliver_flagged(queue, id, key, seq, false)
    }

    fn deliver_flagged(&mut self, queue: &str, id: &str, key: &str, seq: u64, redelivered: bool) -> &mut Self {
        self.add(queue, delivered(queue, id, key, seq, redelivered, Outcome::Ack))
    }

    fn dead_letter(&mut self, id: &str, from: &str, redelivered: bool) -> &mut Self {
        let mut event = delivered("dead", id, "", 1, redelivered, Outcome::Ack);
        if let Event::Delivered { died, .. } = &mut event {
            *died = Some(Died { queue: from.to_owned(), reason: "rejected".to_owned() });
        }
        self.add("dead", event)
    }

    fn verdict(&mut self) -> Verdict {
        let apps: Vec<String> = self.ledgers.iter().map(|ledger| ledger.app.clone()).collect();
        for app in apps {
            self.add(&app, Event::Stopped);
        }
        let dead = Queue {
            name: "dead".to_owned(),
            exchange: None,
            bindings: Vec::new(),
            consumers: 1,
            of_dead_letters: true,
        };
        judge(&self.ledgers, &[queues(), vec![dead]].concat())
    }
}

fn delivered(queue: &str, id: &str, key: &str, seq: u64, redelivered: bool, outcome: Outcome) -> Event {
    let (queue, id, key) = (queue.to_owned(), id.to_owned(), key.to_owned());
    Event::Delivered { queue, id, key, seq, redelivered, intact: true, outcome, died: None }
}

#[track_caller]
fn wrong(verdict: &Verdict, promise: Promise, expected: &[&str]) {
    assert_eq!(verdict.wrong(promise), expected, "{verdict:#?}");
}

#[test]
fn a_run_in_which_all_went_well_is_right() {
    let verdict = Story::told().verdict();
    assert_eq!((verdict.published, verdict.confirmed), (4, 4));
    assert_eq!((verdict.expected, verdict.delivered), (7, 7));
    wrong(&verdict, Promise::Unnoticed, &[]);
    wrong(&verdict, Promise::SurvivesKills, &[]);
}

#[test]
fn a_confirmed_message_that_misses_one_of_its_queues_is_lost() {
    let mut story = Story::told();
    story.publish("o-4", ORDERS, "order.eu.ann", 3).confirm("o-4").deliver("audit", "o-4", "order.eu.ann", 3);
    let verdict = story.verdict();
    wrong(&verdict, Promise::Unnoticed, &["1 lost"]);
    wrong(&verdict, Promise::SurvivesKills, &["1 lost"]);
    assert_eq!(verdict.samples, ["lost: o-4 on warehouse.eu"]);
}

#[test]
fn an_unconfirmed_message_is_not_lost_but_never_passes_either() {
    let mut story = Story::told();
    story.publish("o-4", ORDERS, "order.eu.ann", 3);
    wrong(&story.verdict(), Promise::SurvivesKills, &["1 never confirmed"]);
}

#[test]
fn a_second_delivery_without_a_reason_is_a_duplicate() {
    let mut story = Story::told();
    story.deliver("audit", "o-2", "order.eu.bob", 1);
    let verdict = story.verdict();
    wrong(&verdict, Promise::Unnoticed, &["1 duplicated"]);
    wrong(&verdict, Promise::SurvivesKills, &["1 duplicated"]);
}

#[test]
fn a_second_delivery_is_excused_after_a_kill_if_it_is_flagged_or_the_producer_sent_again() {
    let mut story = Story::told();
    story.deliver_flagged("audit", "o-2", "order.eu.bob", 1, true);
    story.publish_attempt("o-1", ORDERS, "order.eu.ann", 1, 2).deliver("audit", "o-1", "order.eu.ann", 1);
    let verdict = story.verdict();
    assert_eq!((verdict.again_flagged, verdict.again_resent, verdict.duplicated), (1, 1, 0));
    assert_eq!((verdict.published, verdict.resent), (4, 1));
    wrong(&verdict, Promise::SurvivesKills, &[]);
    wrong(
        &verdict,
        Promise::Unnoticed,
        &["1 redelivered", "1 delivered again after a resend", "1 sent again by their producer"],
    );
}

#[test]
fn an_earlier_number_after_a_later_one_of_the_same_key_is_reordered() {
    let mut story = Story::new();
    for (id, seq) in [("o-1", 1), ("o-2", 2)] {
        story.publish(id, ORDERS, "order.us.ann", seq).confirm(id);
    }
    story.deliver("warehouse.us", "o-2", "order.us.ann", 2).deliver("warehouse.us", "o-1", "order.us.ann", 1);
    story.deliver("audit", "o-1", "order.us.ann", 1).deliver("audit", "o-2", "order.us.ann", 2);
    let verdict = story.verdict();
    wrong(&verdict, Promise::Unnoticed, &["1 reordered"]);
    wrong(&verdict, Promise::SurvivesKills, &["1 reordered"]);
    // What its producer sent again was put behind by that.
    story.publish_attempt("o-1", ORDERS, "order.us.ann", 1, 2);
    let verdict = story.verdict();
    assert_eq!((verdict.reordered, verdict.reordered_resent), (0, 1));
    wrong(&verdict, Promise::SurvivesKills, &[]);
}

/// Rejected in `emails`, and read as dead letters with these flags.
fn rejected(letters: &[bool]) -> Story {
    let mut story = Story::new();
    story.publish("e-1", "", EMAILS, 1).confirm("e-1");
    story.add(EMAILS, delivered(EMAILS, "e-1", EMAILS, 1, false, Outcome::Reject));
    for redelivered in letters {
        story.dead_letter("e-1", EMAILS, *redelivered);
    }
    story
}

#[test]
fn a_rejected_message_is_lost_unless_the_reader_of_dead_letters_got_it() {
    wrong(&rejected(&[]).verdict(), Promise::SurvivesKills, &["1 lost"]);
    assert_eq!(rejected(&[]).verdict().missing[0].rejected, Some(3_000));
    let verdict = rejected(&[false]).verdict();
    assert_eq!((verdict.dead_lettered, verdict.expired), (1, 0));
    wrong(&verdict, Promise::Unnoticed, &[]);
}

#[test]
fn a_dead_letter_that_comes_twice_says_so_or_was_rejected_twice() {
    wrong(&rejected(&[false, true]).verdict(), Promise::SurvivesKills, &[]);
    wrong(&rejected(&[false, false]).verdict(), Promise::SurvivesKills, &["1 duplicated"]);
    let mut story = rejected(&[false, false]);
    story.add(EMAILS, delivered(EMAILS, "e-1", EMAILS, 1, true, Outcome::Reject));
    let verdict = story.verdict();
    assert_eq!(verdict.dead_again, 1);
    wrong(&verdict, Promise::SurvivesKills, &[]);
}

#[test]
fn a_dead_letter_of_a_queue_where_the_message_was_not_is_misrouted() {
    let mut story = Story::told();
    story.dead_letter("e-1", "audit", false);
    wrong(&story.verdict(), Promise::SurvivesKills, &["1 misrouted"]);
}

#[test]
fn a_message_that_was_only_given_back_is_lost() {
    let mut story = Story::new();
    story.publish("e-1", "", EMAILS, 1).confirm("e-1");
    story.add(EMAILS, delivered(EMAILS, "e-1", EMAILS, 1, false, Outcome::Requeue));
    wrong(&story.verdict(), Promise::SurvivesKills, &["1 lost"]);
}

#[test]
fn what_a_killed_producer_had_not_confirmed_is_open_and_it_need_not_say_goodbye() {
    let mut story = Story::told();
    story.publish("o-4", ORDERS, "order.eu.ann", 3);
    let mut ledgers = story.ledgers.clone();
    ledgers.iter_mut().for_each(|ledger| ledger.killed = true);
    let verdict = judge(&ledgers, &queues());
    assert_eq!((verdict.unconfirmed, verdict.left_open, verdict.not_stopped), (0, 1, 0));
}

#[test]
fn competing_consumers_are_promised_no_order() {
    let mut story = Story::new();
    for (id, seq) in [("e-1", 1), ("e-2", 2)] {
        story.publish(id, "", EMAILS, seq).confirm(id);
    }
    story.deliver(EMAILS, "e-2", EMAILS, 2).deliver(EMAILS, "e-1", EMAILS, 1);
    wrong(&story.verdict(), Promise::Unnoticed, &[]);
}

#[test]
fn a_lost_connection_channel_or_consumer_is_noticed() {
    for event in [
        Event::Disconnected { why: "reset".to_owned() },
        Event::ChannelClosed { why: "406".to_owned() },
        Event::Cancelled,
    ] {
        let mut story = Story::told();
        story.add("audit", event);
        let verdict = story.verdict();
        wrong(&verdict, Promise::Unnoticed, &["1 connections dropped"]);
        wrong(&verdict, Promise::SurvivesKills, &[]);
    }
}

#[test]
fn a_message_in_a_queue_where_it_does_not_belong_is_misrouted() {
    let mut story = Story::told();
    story.deliver("warehouse.us", "o-1", "order.eu.ann", 1).deliver("audit", "o-99", "order.eu.ann", 9);
    wrong(&story.verdict(), Promise::SurvivesKills, &["2 misrouted"]);
}

#[test]
fn a_changed_body_or_property_is_altered() {
    let mut story = Story::told();
    story.publish("e-2", "", EMAILS, 2).confirm("e-2");
    let mut event = delivered(EMAILS, "e-2", EMAILS, 2, false, Outcome::Ack);
    if let Event::Delivered { intact, .. } = &mut event {
        *intact = false;
    }
    story.add(EMAILS, event);
    wrong(&story.verdict(), Promise::SurvivesKills, &["1 altered"]);
}

#[test]
fn a_returned_or_refused_message_is_wrong() {
    let mut story = Story::told();
    story.add("shop", Event::Returned { id: "o-1".to_owned(), why: "NO_ROUTE".to_owned() });
    story.add("shop", Event::Nacked { id: "o-1".to_owned() });
    wrong(&story.verdict(), Promise::Unnoticed, &["1 returned as unroutable", "1 refused by the broker"]);
}

#[test]
fn an_application_that_did_not_end_in_order_is_wrong() {
    let mut story = Story::told();
    let verdict = judge(&story.ledgers, &queues());
    assert_eq!(verdict.not_stopped, 4);
    assert!(!verdict.wrong(Promise::SurvivesKills).is_empty());
    wrong(&story.verdict(), Promise::SurvivesKills, &[]);
}

#[test]
fn a_run_without_messages_proves_nothing() {
    wrong(&judge(&[], &queues()), Promise::Unnoticed, &["nothing was published"]);
}

#[test]
fn the_longest_pause_is_the_longest_gap_on_one_queue_while_messages_for_it_are_published() {
    let mut story = Story::told();
    story.time += 50_000;
    story.publish("o-4", ORDERS, "order.eu.ann", 3).confirm("o-4");
    story.deliver("warehouse.eu", "o-4", "order.eu.ann", 3).deliver("audit", "o-4", "order.eu.ann", 3);
    // Nothing is published any more: this is not a pause.
    story.time += 900_000;
    story.deliver_flagged("audit", "o-4", "order.eu.ann", 3, true);
    let verdict = story.verdict();
    let pause = verdict.longest_pause.expect("there were deliveries");
    assert_eq!((pause.ns, pause.queue.as_str()), (57_000, "warehouse.eu"));
    assert_eq!(verdict.slowest.map(|slowest| slowest.ns), Some(3_000));
}
