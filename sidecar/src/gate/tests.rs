use proptest::prelude::*;

use super::*;

fn weight(percent: f64) -> Weight {
    Weight::from_percent(percent).expect("a weight")
}

fn side() -> SideEvidence {
    SideEvidence {
        connected: true,
        confirmed: 10_000,
        delivered: 10_000,
        p99: Some(Duration::from_millis(8)),
        ..SideEvidence::default()
    }
}

/// Everything as it should be.
fn good(phase: Phase) -> Evidence {
    Evidence {
        phase,
        weight: match phase {
            Phase::Observe | Phase::Shadow => Weight::NONE,
            Phase::Canary => weight(5.0),
            Phase::Cutover | Phase::Native => Weight::ALL,
        },
        stage: Duration::from_secs(3600),
        traffic: 0,
        draining: false,
        rolled_back: None,
        rabbit: side(),
        nats: side(),
        behind: 0,
        unmapped: 0,
        routes: None,
        parity: ParityCounts { matched: 10_000, ..ParityCounts::default() },
        not_compared: 0,
        unread: 0,
        faults: Faults::default(),
        no_copy: 0,
        standby_away: false,
        held: 0,
        holds_timed_out: 0,
    }
}

#[test]
fn a_message_without_a_standby_copy_is_named_and_while_none_can_be_made_the_weight_waits() {
    only(&Evidence { no_copy: 3, ..good(Phase::Canary) }, "no_standby_copy", Severity::Note);
    only(&Evidence { standby_away: true, ..good(Phase::Cutover) }, "standby_away", Severity::Wait);
}

fn judged(evidence: &Evidence) -> Verdict {
    judge(evidence, &Limits::default())
}

fn codes(evidence: &Evidence) -> Vec<(String, Severity)> {
    judged(evidence).reasons.into_iter().map(|reason| (reason.code, reason.severity)).collect()
}

fn only(evidence: &Evidence, code: &str, severity: Severity) {
    assert_eq!(codes(evidence), [(code.to_owned(), severity)], "{evidence:?}");
    let verdict = judged(evidence);
    assert_eq!(verdict.may_go_on, severity == Severity::Note);
    assert_eq!(verdict.blocks(), severity == Severity::Block);
    assert!(!verdict.reasons[0].fix.is_empty() && !verdict.reasons[0].text.is_empty());
    assert_eq!(verdict.summary.contains(code), severity != Severity::Note, "{}", verdict.summary);
}

#[test]
fn when_all_is_well_the_answer_is_yes_and_names_the_next_step() {
    for (phase, next) in [
        (Phase::Observe, "nats-bridge shadow"),
        (Phase::Shadow, "nats-bridge weight 5"),
        (Phase::Canary, "nats-bridge weight 25"),
        (Phase::Cutover, "nats-bridge detach"),
    ] {
        let verdict = judged(&good(phase));
        assert!(verdict.may_go_on && verdict.reasons.is_empty(), "{verdict:?}");
        assert_eq!(verdict.summary, format!("yes: go on with `{next}`"));
    }
    let at = |percent| judged(&Evidence { weight: weight(percent), ..good(Phase::Canary) }).next;
    assert_eq!(at(25.0).as_deref(), Some("`nats-bridge weight 50`"));
    assert_eq!(at(99.99).as_deref(), Some("`nats-bridge weight 100`"));
    only(&good(Phase::Native), "nothing_left", Severity::Block);
}

#[test]
fn a_nats_that_was_given_up_is_not_one_to_start_again() {
    let good = good(Phase::Observe);
    let nats = SideEvidence { connected: false, error: Some(GIVEN_UP.to_owned()), ..good.nats.clone() };
    only(&Evidence { nats, ..good }, "given_up", Severity::Block);
}

#[test]
fn no_data_is_not_parity() {
    let nothing = Evidence { parity: ParityCounts::default(), ..good(Phase::Shadow) };
    only(&nothing, "too_few", Severity::Wait);
    let only_waiting = ParityCounts { pending: 1_000_000, unverified: 1_000_000, ..ParityCounts::default() };
    only(&Evidence { parity: only_waiting, ..good(Phase::Shadow) }, "too_few", Severity::Wait);
    let nats = SideEvidence { confirmed: 99, ..side() };
    only(&Evidence { nats, ..good(Phase::Canary) }, "too_few", Severity::Wait);
    // Much has passed, and its routing keys do not fall where JetStream owns: more would not come.
    let nats = || SideEvidence { confirmed: 0, ..side() };
    only(&Evidence { nats: nats(), traffic: 3_999, ..good(Phase::Canary) }, "too_few", Severity::Wait);
    only(&Evidence { nats: nats(), traffic: 4_000, ..good(Phase::Canary) }, "few_keys", Severity::Note);
    only(&Evidence { stage: Duration::from_secs(59), ..good(Phase::Shadow) }, "too_soon", Severity::Wait);
    assert!(judged(&Evidence { stage: Duration::ZERO, ..good(Phase::Observe) }).may_go_on);
}

#[test]
fn every_difference_blocks_in_shadow_and_at_every_weight_after_it() {
    let matched = ParityCounts { matched: 1_000_000, ..ParityCounts::default() };
    for (code, parity) in [
        ("mismatched_payload", ParityCounts { mismatched_payload: 1, ..matched }),
        ("mismatched_properties", ParityCounts { mismatched_properties: 1, ..matched }),
        ("mismatched_routing", ParityCounts { mismatched_routing: 1, ..matched }),
        ("missing", ParityCounts { missing: 1, ..matched }),
        ("extra", ParityCounts { extra: 1, ..matched }),
    ] {
        for phase in [Phase::Shadow, Phase::Canary, Phase::Cutover] {
            only(&Evidence { parity, ..good(phase) }, code, Severity::Block);
        }
    }
}

#[test]
fn what_was_not_compared_waits_below_the_share_and_is_never_a_difference() {
    only(&Evidence { not_compared: 10, ..good(Phase::Shadow) }, "not_compared", Severity::Note);
    only(&Evidence { not_compared: 11, ..good(Phase::Shadow) }, "not_compared", Severity::Wait);
    only(&Evidence { unread: 1_001, ..good(Phase::Shadow) }, "comparison_behind", Severity::Wait);
    let verdict = judged(&Evidence { not_compared: 1_000_000, unread: 1_000_000, ..good(Phase::Shadow) });
    assert!(!verdict.may_go_on && !verdict.blocks());
}

#[test]
fn each_fault_of_a_message_that_jetstream_owns_blocks() {
    for (code, faults) in [
        ("corrupted", Faults { corrupted: 1, ..Faults::default() }),
        ("dropped", Faults { dropped: 1, ..Faults::default() }),
        ("reordered", Faults { reordered: 1, ..Faults::default() }),
        ("duplicated", Faults { duplicated: 1, ..Faults::default() }),
    ] {
        for phase in [Phase::Shadow, Phase::Canary, Phase::Cutover] {
            only(&Evidence { faults, ..good(phase) }, code, Severity::Block);
        }
        assert_eq!(faults.words(), Some(format!("1 {code}")));
        assert_eq!(faults.since(&faults).words(), None);
    }
}

#[test]
fn brokers_topology_and_a_rollback_of_its_own_block_or_wait() {
    let down = || SideEvidence { connected: false, error: Some("refused".to_owned()), ..side() };
    only(&Evidence { rabbit: down(), ..good(Phase::Shadow) }, "rabbit_down", Severity::Block);
    only(&Evidence { nats: down(), ..good(Phase::Observe) }, "nats_down", Severity::Block);
    only(
        &Evidence { nats: SideEvidence { blocked: 2, ..side() }, ..good(Phase::Canary) },
        "nats_blocked",
        Severity::Wait,
    );
    only(&Evidence { unmapped: 3, ..good(Phase::Shadow) }, "unmapped", Severity::Block);
    only(&Evidence { unmapped: 3, ..good(Phase::Observe) }, "unmapped", Severity::Note);
    only(&Evidence { routes: Some("a policy".to_owned()), ..good(Phase::Canary) }, "routes_differ", Severity::Block);
    only(&Evidence { behind: 1, ..good(Phase::Shadow) }, "nats_behind", Severity::Wait);
    only(
        &Evidence { rolled_back: Some("1 dropped".to_owned()), ..good(Phase::Shadow) },
        "rolled_back",
        Severity::Block,
    );
    only(&Evidence { draining: true, ..good(Phase::Canary) }, "draining", Severity::Block);
    only(&Evidence { held: 1, ..good(Phase::Canary) }, "held", Severity::Wait);
    only(&Evidence { holds_timed_out: 1, ..good(Phase::Canary) }, "holds_timed_out", Severity::Block);
}

#[test]
fn jetstream_is_measured_by_what_rabbitmq_did() {
    let nats = |change: fn(&mut SideEvidence)| {
        let mut nats = side();
        change(&mut nats);
        Evidence { nats, ..good(Phase::Canary) }
    };
    let fine = |evidence: &Evidence| assert!(judged(evidence).may_go_on, "{:?}", judged(evidence));
    fine(&nats(|n| n.failed = 10));
    only(&nats(|n| n.failed = 11), "publish_errors", Severity::Block);
    fine(&nats(|n| n.rejected = 10));
    only(&nats(|n| n.rejected = 11), "dead_letters", Severity::Block);
    let mut as_before = nats(|n| n.rejected = 500);
    as_before.rabbit.rejected = 500;
    fine(&as_before);
    fine(&nats(|n| n.p99 = Some(Duration::from_millis(50))));
    only(&nats(|n| n.p99 = Some(Duration::from_millis(51))), "latency", Severity::Block);
    let mut slow_before = nats(|n| n.p99 = Some(Duration::from_millis(149)));
    slow_before.rabbit.p99 = Some(Duration::from_millis(100));
    fine(&slow_before);
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let phase = prop_oneof![
        Just(Phase::Observe),
        Just(Phase::Shadow),
        Just(Phase::Canary),
        Just(Phase::Cutover),
        Just(Phase::Native)
    ];
    let few = || prop_oneof![4 => Just(0_u64), 1 => 1..3_u64, 1 => any::<u32>().prop_map(u64::from)];
    let side = || {
        (any::<bool>(), few(), few(), few(), few()).prop_map(|(connected, blocked, confirmed, failed, rejected)| {
            let p99 = (confirmed > 0).then(|| Duration::from_millis(confirmed % 300));
            SideEvidence { connected, error: None, blocked, confirmed, failed, delivered: confirmed, rejected, p99 }
        })
    };
    let parity = (few(), few(), few(), few()).prop_map(|(matched, missing, extra, mismatched_payload)| ParityCounts {
        matched,
        missing,
        extra,
        mismatched_payload,
        ..ParityCounts::default()
    });
    let faults = (few(), few()).prop_map(|(dropped, reordered)| Faults { dropped, reordered, ..Faults::default() });
    (phase, side(), side(), parity, faults, (few(), few(), few(), few(), 0..200_u64)).prop_map(
        |(phase, rabbit, nats, parity, faults, (unmapped, not_compared, held, behind, seconds))| Evidence {
            rabbit,
            nats,
            parity,
            faults,
            unmapped,
            not_compared,
            held,
            behind,
            stage: Duration::from_secs(seconds),
            ..good(phase)
        },
    )
}

proptest! {
    #[test]
    fn yes_is_said_only_without_a_reason_against_it_and_nothing_wrong_is_passed_over(evidence in evidence()) {
        let verdict = judged(&evidence);
        prop_assert_eq!(verdict.may_go_on, verdict.against().next().is_none());
        prop_assert!(verdict.reasons.is_sorted_by_key(|reason| reason.severity));
        prop_assert_eq!(verdict.summary.starts_with("yes"), verdict.may_go_on);
        let mut codes: Vec<&str> = verdict.reasons.iter().map(|reason| reason.code.as_str()).collect();
        let all = codes.len();
        codes.dedup();
        prop_assert_eq!(codes.len(), all, "a code is told once");
        if verdict.may_go_on {
            prop_assert!(evidence.rabbit.connected && evidence.nats.connected);
            prop_assert!(evidence.phase != Phase::Native);
            if evidence.phase != Phase::Observe {
                prop_assert_eq!(evidence.parity.missing + evidence.parity.extra + evidence.parity.mismatched_payload, 0);
                prop_assert_eq!(evidence.unmapped + evidence.behind, 0);
                prop_assert!(evidence.stage >= Limits::default().soak);
            }
            if evidence.phase >= Phase::Canary {
                prop_assert_eq!(evidence.faults.words(), None);
                prop_assert!(evidence.nats.confirmed >= Limits::default().messages);
            }
        }
        // What goes in as JSON comes out of it.
        let text = serde_json::to_string(&verdict).expect("serializable");
        prop_assert_eq!(serde_json::from_str::<Verdict>(&text).expect("readable"), verdict);
    }

    #[test]
    fn one_more_fault_never_turns_a_no_into_a_yes(evidence in evidence(), which in 0..4_usize) {
        let before = judged(&evidence);
        let mut worse = evidence;
        match which {
            0 => worse.parity.missing += 1,
            1 => worse.faults.dropped += 1,
            2 => worse.unmapped += 1,
            _ => worse.nats.connected = false,
        }
        prop_assert!(before.may_go_on || !judged(&worse).may_go_on);
    }
}
