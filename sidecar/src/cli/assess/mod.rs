//! `nats-bridge assess`: what of a RabbitMQ maps to JetStream, and whether the move can begin. Changes nothing anywhere.

mod limits;

use clap::Args;
use serde_json::{Value, json};

use super::native::close;
use super::nats::NatsLogin;
use super::source::{Input, Move, vhost_flags};
use super::{Failure, remedy, request};
use crate::assess::code::Severity;
use crate::assess::{Assessment, NatsLimits, Sizes, Way, assess, report};

/// Arguments of `assess`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  rabbitmqctl export_definitions definitions.json
  nats-bridge assess --definitions definitions.json

  nats-bridge assess --rabbit-management http://USER:PASSWORD@rabbit:15672 --nats nats://nats:4222 --json

Exit codes: 0 nothing blocks, 1 there are blockers, 2 it could not be assessed.")]
pub struct AssessArgs {
    /// What moves, and how.
    #[command(flatten)]
    pub moves: Move,
    /// The NATS that they are to move to: its limits are compared with what there is.
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// How to log in there.
    #[command(flatten)]
    pub login: NatsLogin,
    /// Print one JSON document instead of text.
    #[arg(long)]
    pub json: bool,
}

/// Assesses, prints, and ends with "no" when something blocks.
///
/// # Errors
/// `refused` when there are blockers; `cannot_run`, naming the flag at fault.
pub async fn run(args: AssessArgs) -> Result<(), Failure> {
    let input = args.moves.read().await?;
    let nats = match &args.nats {
        Some(url) => Some(limits_of(url, &args.login).await?),
        None => {
            args.login.none_because("it has no use without --nats URL")?;
            None
        }
    };
    let has_three = nats.as_ref().is_none_or(|nats| nats.is_clustered);
    let sizes = Sizes::of(&input.inventory, args.moves.replicas, has_three);
    let assessment = assess(&input.inventory, nats.as_ref(), args.moves.way, &sizes);
    if args.json {
        let mut document = document(&input, nats.as_ref(), &assessment);
        document["sizes"] = sizes.json();
        request::print_json(&document)?;
    } else {
        let overview = report::overview(&input.inventory, &input.source, &sizes);
        let next = next(&args, &input, &assessment);
        let digest = &input.digest;
        request::print(&format!("{overview}digest: {digest}\n{}next: {next}\n", report::text(&assessment)));
    }
    match assessment.count(Severity::Blocker) {
        0 => Ok(()),
        1 => Err(Failure::refused("1 blocker")),
        count => Err(Failure::refused(format!("{count} blockers"))),
    }
}

async fn limits_of(url: &str, login: &NatsLogin) -> Result<NatsLimits, Failure> {
    let bridge = login.connect(url, "nats-bridge-assess").await?;
    let limits = limits::of(&bridge).await;
    close(&bridge).await;
    limits
}

fn document(input: &Input, nats: Option<&NatsLimits>, assessment: &Assessment) -> Value {
    let mut document = assessment.json();
    document["rabbitmq"] = json!({
        "version": input.inventory.version,
        "source": input.source,
        "digest": input.digest,
        "vhosts": input.inventory.vhosts.keys().collect::<Vec<_>>(),
        "live": input.inventory.live.as_ref().map(|live| live.json()),
    });
    document["nats"] = json!(nats.map(NatsLimits::json));
    document
}

/// The next command to type.
fn next(args: &AssessArgs, input: &Input, assessment: &Assessment) -> String {
    let nats = args.nats.as_deref().map_or_else(|| "nats://NATS:4222".to_owned(), remedy::without_password);
    match (assessment.can_begin(), args.moves.way) {
        (false, _) => "mend what blocks, then run this again; docs/migration.md explains each code".to_owned(),
        (true, Way::Sidecar) => format!(
            "nats-bridge sidecar --rabbit amqp://USER:PASSWORD@RABBIT:5672 --rabbit-management \
             http://USER:PASSWORD@RABBIT:15672 --nats {nats}"
        ),
        (true, Way::Serve) => {
            format!(
                "nats-bridge serve --nats {nats} --management 127.0.0.1:15672 --user NAME:PASSWORD{}",
                vhost_flags(input.inventory.vhosts.keys())
            )
        }
    }
}
