//! `nats-bridge promote`: from weight to weight while the gate says yes.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::request::Asked;
use super::{Control, Failure, request};
use crate::control_api::{Adopted, Phase, Refused, RefusedCode, Status, Verdict, Weight};

/// Arguments of `promote`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge promote --auto --steps 5,25,50,100 --soak 60s\n\nExit codes: 0 arrived, 1 stopped or rolled back by a no, 2 no sidecar answers."
)]
pub struct PromoteArgs {
    /// Go on to the last step; without it, make the next one only.
    #[arg(long)]
    pub auto: bool,
    /// The weights to go through, in percent.
    #[arg(long, value_delimiter = ',', value_parser = super::weight::percent, default_value = "5,25,50,100", value_name = "PERCENT,...")]
    pub steps: Vec<f64>,
    /// How long each step is in force at least before the next one; the sidecar's --gate-soak counts too.
    #[arg(long, value_parser = super::duration, default_value = "60s", value_name = "TIME")]
    pub soak: Duration,
    /// How long a "not yet" of the gate (too little traffic, for example) is waited for at each step.
    #[arg(long, value_parser = super::duration, default_value = "10m", value_name = "TIME")]
    pub patience: Duration,
    /// What to do at a no.
    #[arg(long, value_enum, default_value_t = OnNo::Rollback)]
    pub on_no: OnNo,
    /// Go to 100 % although no rehearsed rollback has passed. The log says so.
    #[arg(long)]
    pub unrehearsed: bool,
    /// Why; kept in the sidecar's history.
    #[arg(long, default_value = "promote")]
    pub reason: String,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// What to do at a no.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnNo {
    /// Give all traffic back to RabbitMQ.
    Rollback,
    /// Stay at the weight in force.
    Stop,
}

/// One step that was made.
#[derive(Debug, Serialize)]
struct Step {
    weight_percent: Weight,
    /// How long the gate was asked before it.
    waited_ms: u64,
    /// How long the change took.
    took_ms: u64,
}

/// How it ended.
#[derive(Debug, Serialize)]
struct Ended {
    /// Whether the last step is in force and the gate said yes to it.
    arrived: bool,
    /// The phase in force.
    phase: Phase,
    /// The weight in force.
    weight_percent: Weight,
    steps: Vec<Step>,
    /// Why it stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<String>,
    /// Whether everything was given back to RabbitMQ.
    rolled_back: bool,
    /// The gate's last answer.
    gate: Verdict,
}

/// How often the gate is asked.
const EVERY: Duration = Duration::from_secs(1);
/// How long a sidecar that does not answer is tried again.
const AWAY: Duration = Duration::from_secs(30);

/// Goes on step by step.
///
/// # Errors
/// `refused` when the gate said no, `cannot_run` when the sidecar cannot be reached.
pub async fn run(args: PromoteArgs) -> Result<(), Failure> {
    if !args.steps.is_sorted() || args.steps.first().is_none_or(|first| *first <= 0.0) {
        return Err(Failure::cannot_run(
            "--steps: weights above 0 are expected, the smallest first, such as 5,25,50,100",
        ));
    }
    let mut walk = Walk::begin(args).await?;
    let ended = walk.all().await?;
    walk.line.bar.finish_and_clear();
    if walk.args.control.json {
        request::print_json(&ended)?;
    }
    let at = ended.weight_percent;
    match &ended.because {
        None => {
            walk.line.say(&format!("at {at} %: done"));
            Ok(())
        }
        Some(because) if ended.rolled_back => Err(Failure::refused(format!("rolled back to {at} %: {because}"))),
        Some(because) => Err(Failure::refused(format!("stopped at {at} %: {because}"))),
    }
}

/// Where it is on its way.
struct Walk {
    args: PromoteArgs,
    at: Weight,
    gate: Verdict,
    made: Vec<Step>,
    line: Line,
}

impl Walk {
    async fn begin(args: PromoteArgs) -> Result<Self, Failure> {
        let gate: Verdict = request::get(&args.control, "/gate").await?;
        if gate.phase == Phase::Observe {
            let (text, fix) =
                ("the phase is observe: nothing has been compared yet", "`nats-bridge shadow` begins that");
            let refused = Refused::new(RefusedCode::WrongPhase, text, fix);
            if args.control.json {
                request::print_json(&refused)?;
            }
            return Err(Failure::refused(refused));
        }
        let line = Line::new(args.control.json);
        Ok(Self { at: gate.weight_percent, args, gate, made: Vec::new(), line })
    }

    async fn all(&mut self) -> Result<Ended, Failure> {
        let ahead: Vec<f64> = self.args.steps.iter().copied().filter(|step| *step > self.at.percent()).collect();
        let count = if self.args.auto { ahead.len() } else { 1 };
        for percent in ahead.into_iter().take(count) {
            let began = Instant::now();
            if let Some(because) = self.hold(&format!("before {percent} %")).await? {
                return self.no(because).await;
            }
            let waited_ms = ms(began.elapsed());
            let asked = Asked {
                reason: &self.args.reason,
                percent: Some(percent),
                force: false,
                unrehearsed: self.args.unrehearsed,
            };
            match request::post::<Adopted>(&self.args.control, "/weight", asked).await? {
                Ok(Adopted { weight_percent, took_ms, .. }) => {
                    self.at = weight_percent;
                    self.line.say(&format!("{weight_percent} % in force after {took_ms} ms"));
                    self.made.push(Step { weight_percent, waited_ms, took_ms });
                }
                // Nothing is wrong with the weight in force.
                Err(refused) if refused.code == RefusedCode::NotRehearsed => {
                    return self.ended(Some(refused.to_string()), false).await;
                }
                Err(Refused { reason, .. }) => return self.no(reason).await,
            }
        }
        if !self.made.is_empty()
            && self.args.auto
            && let Some(because) = self.hold(&format!("at {} %", self.at)).await?
        {
            return self.no(because).await;
        }
        self.ended(None, false).await
    }

    /// Waits until the gate has let go on and the step has been in force for long enough; answers why it does not.
    async fn hold(&mut self, what: &str) -> Result<Option<String>, Failure> {
        let began = Instant::now();
        let mut away: Option<Instant> = None;
        loop {
            match request::get::<Verdict>(&self.args.control, "/gate").await {
                Ok(verdict) => {
                    away = None;
                    self.gate = verdict;
                }
                Err(failure) if away.get_or_insert_with(Instant::now).elapsed() > AWAY => return Err(failure),
                Err(_) => {
                    tokio::time::sleep(EVERY).await;
                    continue;
                }
            }
            if self.gate.weight_percent != self.at {
                let status: Status = request::get(&self.args.control, "/status").await?;
                let Status { weight_percent, by, reason, .. } = status;
                return Ok(Some(format!("the weight was changed to {weight_percent} % by {by}: {reason}")));
            }
            if self.gate.blocks() {
                return Ok(Some(self.gate.because()));
            }
            let soaked = began.elapsed() >= self.args.soak || self.at == Weight::NONE;
            if self.gate.may_go_on && soaked {
                return Ok(None);
            }
            if !self.gate.may_go_on && began.elapsed() > self.args.patience.max(self.args.soak) {
                let waited = self.args.patience.as_secs();
                return Ok(Some(format!("not within {waited} s: {}", self.gate.because())));
            }
            let state = if self.gate.may_go_on { "yes".to_owned() } else { self.gate.because() };
            let soak = self.args.soak.as_secs();
            self.line.show(began.elapsed(), self.args.soak, &format!("{what}, {soak} s of soak: {state}"));
            tokio::time::sleep(EVERY.min(self.args.soak.max(Duration::from_millis(50)))).await;
        }
    }

    /// The gate, or the sidecar, said no.
    async fn no(&mut self, because: String) -> Result<Ended, Failure> {
        let status: Status = request::get(&self.args.control, "/status").await?;
        let owns = status.weight_percent > Weight::NONE && status.phase != Phase::Native;
        // Who has changed the weight meanwhile knows what he does.
        if !owns || self.args.on_no == OnNo::Stop || status.weight_percent != self.at {
            return self.ended(Some(because), status.rolled_back.is_some()).await;
        }
        let reason = format!("promote: {because}");
        let asked = Asked { reason: &reason, ..Asked::default() };
        match request::post::<Adopted>(&self.args.control, "/rollback", asked).await? {
            Ok(_) => self.ended(Some(because), true).await,
            Err(refused) => self.ended(Some(format!("{because}; the rollback was refused: {refused}")), false).await,
        }
    }

    async fn ended(&mut self, because: Option<String>, rolled_back: bool) -> Result<Ended, Failure> {
        let Status { phase, weight_percent, .. } = request::get(&self.args.control, "/status").await?;
        let steps = std::mem::take(&mut self.made);
        let gate = self.gate.clone();
        Ok(Ended { arrived: because.is_none(), phase, weight_percent, steps, because, rolled_back, gate })
    }
}

/// What is said on the way: a bar on a terminal, lines elsewhere, nothing beside JSON.
struct Line {
    bar: ProgressBar,
    json: bool,
    said: String,
}

impl Line {
    fn new(json: bool) -> Self {
        let terminal = !json && std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(1), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {elapsed} {wide_msg}") {
            bar.set_style(style);
        }
        Self { bar, json, said: String::new() }
    }

    fn show(&mut self, is: Duration, of: Duration, text: &str) {
        self.bar.set_length(ms(of).max(1));
        self.bar.set_position(ms(is.min(of)));
        self.bar.set_message(text.to_owned());
        // Without a bar a line for each news, not for each second.
        let news: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
        if self.bar.is_hidden() && news != self.said {
            self.said = news;
            self.say(text);
        }
    }

    fn say(&self, text: &str) {
        if !self.json {
            self.bar.suspend(|| request::print(&format!("{text}\n")));
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
