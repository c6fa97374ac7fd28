//! `nats-bridge gate`.

use std::fmt::Write;

use clap::Args;

use super::{Control, Failure, request};
use crate::control_api::{Phase, Reason, Severity, Verdict};

/// Arguments of `gate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge gate && nats-bridge weight 25\n\nExit codes: 0 yes, or the move is done, 1 no, 2 no sidecar answers."
)]
pub struct GateArgs {
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// Prints the gate's answer.
///
/// # Errors
/// `refused` when the answer is no, `cannot_run` when no sidecar answers.
pub async fn run(args: GateArgs) -> Result<(), Failure> {
    let verdict: Verdict = request::get(&args.control, "/gate").await?;
    if args.control.json {
        request::print_json(&verdict)?;
    } else {
        request::print(&text(&verdict));
    }
    let is_done = verdict.phase == Phase::Native;
    if verdict.may_go_on || is_done { Ok(()) } else { Err(Failure::refused("the gate says no")) }
}

fn text(verdict: &Verdict) -> String {
    let answer = match verdict.phase {
        Phase::Native => "the move is done",
        _ if verdict.may_go_on => "yes",
        _ => "NO",
    };
    let mut out = format!("may I go on?  {answer}\n");
    let Verdict { phase, weight_percent, .. } = verdict;
    let _ = writeln!(out, "now:          {phase}, {weight_percent} % of the ordering keys are owned by nats");
    if let Some(next) = &verdict.next {
        let _ = writeln!(out, "next:         {next}");
    }
    // After it there is only that nothing is left to do.
    if !verdict.reasons.is_empty() && verdict.phase != Phase::Native {
        let _ = write!(out, "\n{}", reasons(&verdict.reasons));
    }
    out
}

/// Reasons for people, one below the other.
pub(super) fn reasons(reasons: &[Reason]) -> String {
    let width = reasons.iter().map(|reason| reason.code.len()).max().unwrap_or(0);
    let mut out = String::new();
    for Reason { code, severity, text, fix, .. } in reasons {
        let severity = match severity {
            Severity::Block => "BLOCK",
            Severity::Wait => "wait",
            Severity::Note => "note",
        };
        let _ = writeln!(out, "{severity:<5}  {code:<width$}  {text}");
        let _ = writeln!(out, "{:<5}  {:<width$}  -> {fix}", "", "");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_api::Weight;

    #[test]
    fn the_answer_comes_first_and_each_reason_says_what_to_do() {
        let reason = |code: &str, severity, text: &str| Reason {
            code: code.to_owned(),
            severity,
            text: text.to_owned(),
            fix: "do this".to_owned(),
            numbers: Default::default(),
        };
        let verdict = Verdict {
            may_go_on: false,
            phase: Phase::Shadow,
            weight_percent: Weight::NONE,
            next: Some("`nats-bridge weight 5`".to_owned()),
            summary: String::new(),
            reasons: vec![
                reason("missing", Severity::Block, "2 messages are missing"),
                reason("too_soon", Severity::Wait, "in force for 1 s"),
            ],
        };
        let expected = "\
may I go on?  NO
now:          shadow, 0 % of the ordering keys are owned by nats
next:         `nats-bridge weight 5`

BLOCK  missing   2 messages are missing
                 -> do this
wait   too_soon  in force for 1 s
                 -> do this
";
        assert_eq!(text(&verdict), expected);
        let done = Verdict { phase: Phase::Native, weight_percent: Weight::ALL, next: None, ..verdict };
        let expected =
            "may I go on?  the move is done\nnow:          native, 100 % of the ordering keys are owned by nats\n";
        assert_eq!(text(&done), expected);
    }
}
