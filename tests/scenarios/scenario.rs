//! Doing the steps.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nats_bridge::encryption::{Keyring, Keys};
use nats_bridge::schema::Draft;
use nats_bridge::{
    Bridge, Config, ConsumeConfig, Consumer, ConsumerHandle, ConsumerState, Delivery, Error, Failure, Message,
    PublishConfig, Published, Reason, Received, Result, RetryPolicy, Settled, StreamSpec,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use test_support::nats::NatsServer;

use super::outbox::TheOutbox;

/// How long a step may wait for what must come.
pub const PATIENCE: Duration = Duration::from_secs(15);

const REGISTRY: &str = "SCHEMAS";

fn registry(wanted: &Value) -> Option<String> {
    (*wanted == true).then(|| REGISTRY.to_owned())
}

struct World {
    server: NatsServer,
    // Directories of keys.
    keys: TempDir,
    bridge: Bridge,
    consumers: HashMap<String, (Option<Consumer>, ConsumerHandle)>,
    deliveries: HashMap<String, Option<Delivery>>,
    outbox: TheOutbox,
}

/// Does the scenario that this JSON is.
pub async fn run(text: &str) {
    let scenario: Value = serde_json::from_str(text).unwrap();
    let server = NatsServer::start();
    let bridge = connect(&server, None, None).await.unwrap();
    let keys = tempfile::tempdir().unwrap();
    let (consumers, deliveries) = (HashMap::new(), HashMap::new());
    let mut world = World { server, keys, bridge, consumers, deliveries, outbox: TheOutbox::default() };
    for step in scenario["steps"].as_array().unwrap() {
        let outcome = world.act(step).await;
        match (&step["error"], outcome) {
            (Value::Null, Ok(found)) => check(&found, &step["expect"], step),
            (Value::Null, Err(error)) => panic!("{step}: {error}"),
            (wanted, Err(error)) => {
                let context: HashMap<_, _> = error.context().iter().cloned().collect();
                let found = json!({ "code": error.kind().name(), "landed": error.landed().name(), "context": context });
                check(&found, wanted, step);
            }
            (_, Ok(found)) => panic!("{step}: an error was expected, not {found}"),
        }
    }
}

async fn connect(server: &NatsServer, encrypt: Option<Keys>, schemas: Option<String>) -> Result<Bridge> {
    let no_stream_wait = Duration::from_millis(500);
    let config = Config {
        servers: vec![server.url()],
        reconnect_pause_max: Duration::from_millis(100),
        publish: PublishConfig { no_stream_wait, encrypt, schemas, ..PublishConfig::default() },
        ..Config::default()
    };
    Bridge::connect_with(config).await
}

/// Everything that is expected must be so; what is not named is not looked at.
fn check(found: &Value, expected: &Value, step: &Value) {
    match (found, expected) {
        (_, Value::Null) => {}
        (Value::Object(found), Value::Object(expected)) => {
            for (name, expected) in expected {
                let found = found.get(name).unwrap_or_else(|| panic!("{step}: there is no {name}"));
                match expected {
                    Value::Null => assert!(found.is_null(), "{step}: {name} is {found}"),
                    expected => check(found, expected, step),
                }
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{step}: {found:?}");
            found.iter().zip(expected).for_each(|(found, expected)| check(found, expected, step));
        }
        (found, expected) => assert_eq!(found, expected, "{step}"),
    }
}

pub fn text(step: &Value, name: &str) -> String {
    step[name].as_str().unwrap_or_else(|| panic!("{step}: {name} is missing")).to_owned()
}

fn message(given: &Value) -> Message {
    let mut message = Message::new(text(given, "subject"), text(given, "payload"));
    if let Some(id) = given["id"].as_str() {
        message = message.id(id);
    }
    if let Some(schema) = given["schema"].as_str() {
        message = message.schema(schema);
    }
    for (name, values) in given["headers"].as_object().unwrap_or(&Map::new()) {
        for value in values.as_array().unwrap() {
            message = message.header(name, value.as_str().unwrap());
        }
    }
    message
}

fn stored(at: Published) -> Value {
    json!({ "stream": &*at.stream, "sequence": at.sequence, "duplicate": at.duplicate, "id": at.id, "landed": "yes" })
}

fn received(message: &Received) -> Value {
    let mut headers = Map::new();
    for (name, values) in message.headers().into_iter().flat_map(|headers| headers.iter()) {
        headers.insert(name.to_string(), json!(values.iter().map(|value| value.as_str()).collect::<Vec<_>>()));
    }
    json!({
        "subject": message.subject(),
        "payload": payload(message),
        "id": message.id(),
        "key_id": message.key_id(),
        "attempt": message.attempt(),
        "sequence": message.sequence(),
        "fencing_number": message.fencing_number(),
        "headers": headers,
    })
}

fn payload(message: &Received) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

fn settled(settled: Settled) -> Value {
    match settled {
        Settled::Acked => json!({ "outcome": "acked" }),
        Settled::Retried { after } => json!({ "outcome": "retried", "after_ms": after.as_millis() as u64 }),
        Settled::DeadLettered { stream, sequence } => {
            json!({ "outcome": "dead_lettered", "stream": &*stream, "sequence": sequence })
        }
    }
}

fn reason(name: &str) -> Reason {
    match name {
        "schema" => Reason::Schema,
        "expired" => Reason::Expired,
        other => panic!("no scenario has the reason {other}"),
    }
}

fn consume(step: &Value) -> ConsumeConfig {
    let retry = &step["options"]["retry"];
    let retry = RetryPolicy {
        attempts: retry["attempts"].as_u64().unwrap() as u32,
        first_pause: Duration::from_millis(retry["first_pause_ms"].as_u64().unwrap()),
        factor: retry["factor"].as_f64().unwrap(),
        jitter: retry["jitter"].as_bool().unwrap(),
        ..RetryPolicy::default()
    };
    let heartbeat = Duration::from_millis(500);
    let usual = ConsumeConfig::new(text(step, "stream"), text(step, "name"));
    let ack_wait = step["options"]["ack_wait_ms"].as_u64().map_or(usual.ack_wait, Duration::from_millis);
    let single_active = step["options"]["single_active"] == true;
    ConsumeConfig { retry, heartbeat, ack_wait, single_active, ..usual }
}

impl World {
    async fn act(&mut self, step: &Value) -> Result<Value> {
        let verb = text(step, "do");
        let of_outbox = self.outbox.act(self.keys.path(), &self.bridge, &verb, step, || message(step));
        if let Some(done) = of_outbox.await {
            return done;
        }
        match verb.as_str() {
            "stream" => {
                let mut spec = step["options"].clone();
                spec["name"] = step["name"].clone();
                self.bridge.ensure_stream(&serde_json::from_value::<StreamSpec>(spec).unwrap()).await?;
            }
            "key" => {
                let directory = self.keys.path().join(text(step, "of"));
                std::fs::create_dir_all(&directory).unwrap();
                std::fs::write(directory.join(text(step, "name")), text(step, "key")).unwrap();
            }
            "connect" => {
                let keys = self.keys(&step["encrypt"])?;
                self.bridge = connect(&self.server, keys, registry(&step["schemas"])).await?;
            }
            "register" => {
                let schemas = self.bridge.schemas(REGISTRY).await?;
                let draft = Draft::json(step["schema"].to_string());
                return Ok(json!(schemas.register(&text(step, "name"), &draft).await?));
            }
            "publish" => return self.bridge.publish(message(step)).await.map(stored),
            "publish_many" => {
                let messages: Vec<Message> = step["messages"].as_array().unwrap().iter().map(message).collect();
                let outcomes = self.bridge.publish_many(messages).await.into_iter().map(|outcome| match outcome {
                    Ok(at) => stored(at),
                    Err(error) => json!({ "code": error.kind().name(), "landed": error.landed().name() }),
                });
                return Ok(outcomes.collect());
            }
            "publish_range" => {
                let subjects = step["subjects"].as_array().unwrap();
                let messages = (0..step["count"].as_u64().unwrap() as usize).map(|n| {
                    Message::new(subjects[n % subjects.len()].as_str().unwrap(), n.to_string()).id(format!("n-{n}"))
                });
                for outcome in self.bridge.publish_many(messages).await {
                    outcome?;
                }
            }
            "consume" => {
                let decrypt = self.keys(&step["options"]["decrypt"])?;
                let schemas = registry(&step["options"]["schemas"]);
                let accept_without_schema = step["options"]["accept_without_schema"] == true;
                let accept_unencrypted = step["options"]["accept_unencrypted"] == true;
                let config =
                    ConsumeConfig { decrypt, accept_unencrypted, schemas, accept_without_schema, ..consume(step) };
                let consumer = self.bridge.consume(config).await?;
                let handle = consumer.handle();
                self.consumers.insert(text(step, "as"), (Some(consumer), handle));
            }
            "next" => {
                let delivery = self.next(step, PATIENCE).await?.unwrap_or_else(|| panic!("{step}: nothing came"));
                let found = received(&delivery);
                self.deliveries.insert(text(step, "as"), Some(delivery));
                return Ok(found);
            }
            "none" => {
                let came = self.next(step, Duration::from_millis(100)).await?;
                assert!(came.is_none(), "{step}: {came:?}");
            }
            "collect" => {
                let mut expected: Vec<String> = serde_json::from_value(step["expect"].clone()).unwrap();
                let mut seen = Vec::new();
                while seen.len() < expected.len() {
                    let delivery = self.next(step, PATIENCE).await?.unwrap_or_else(|| panic!("{step}: only {seen:?}"));
                    seen.push(payload(&delivery));
                    delivery.ack().await?;
                }
                seen.sort();
                expected.sort();
                assert_eq!(seen, expected, "{step}");
                return Ok(step["expect"].clone());
            }
            "ack" | "retry" | "dead_letter" => return self.settle(&verb, step).await.map(settled),
            "run" => return self.handle(step).await,
            "drain" => {
                let budget = step["budget_ms"].as_u64().map_or(PATIENCE, Duration::from_millis);
                self.handle_of(step).drain(budget).await?;
            }
            "state" => {
                return Ok(json!(match self.handle_of(step).state() {
                    ConsumerState::Stopped => "stopped",
                    ConsumerState::Waiting => "waiting",
                    other => panic!("{step}: {other:?}"),
                }));
            }
            "kill_server" => {
                self.server.kill_9();
                self.until_connected(false).await;
            }
            "start_server" => {
                self.server.restart();
                self.until_connected(true).await;
            }
            _ => return super::letters::act(&self.bridge, self.keys.path(), &verb, step).await,
        }
        Ok(Value::Null)
    }

    /// Waits until the client has noticed. A request that is written to a socket of a killed server is lost, and waited for in vain.
    async fn until_connected(&self, connected: bool) {
        let mut connection = self.bridge.connection();
        let noticed = tokio::time::timeout(PATIENCE, connection.wait_for(|now| now.connected == connected)).await;
        assert!(noticed.is_ok_and(|now| now.is_ok()), "the client has not noticed");
    }

    fn keys(&self, name: &Value) -> Result<Option<Keys>> {
        let directory = name.as_str().map(|name| self.keys.path().join(name));
        directory.map(|directory| Keyring::from_directory(directory).map(Keys::from)).transpose()
    }

    fn handle_of(&self, step: &Value) -> ConsumerHandle {
        self.consumers[&text(step, "of")].1.clone()
    }

    async fn next(&mut self, step: &Value, patience: Duration) -> Result<Option<Delivery>> {
        let (consumer, _) = self.consumers.get_mut(&text(step, "of")).unwrap();
        let next = consumer.as_mut().expect("no handler runs over it").next();
        tokio::time::timeout(patience, next).await.unwrap_or(Ok(None))
    }

    async fn settle(&mut self, verb: &str, step: &Value) -> Result<Settled> {
        // In Rust the compiler refuses a second settlement.
        let Some(delivery) = self.deliveries.get_mut(&text(step, "delivery")).unwrap().take() else {
            return Err(Error::already_settled());
        };
        let why = step["why"].as_str().unwrap_or_default();
        match (verb, step["delay_ms"].as_u64()) {
            ("ack", _) if step["confirmed"] == true => delivery.ack_confirmed().await,
            ("ack", _) => delivery.ack().await,
            ("retry", None) => delivery.retry(why).await,
            ("retry", Some(ms)) => delivery.retry_after(Duration::from_millis(ms), why).await,
            _ => delivery.dead_letter(reason(&text(step, "reason")), why).await,
        }
    }

    async fn handle(&mut self, step: &Value) -> Result<Value> {
        let named = |name: &str| -> Vec<String> { serde_json::from_value(step[name].clone()).unwrap() };
        let (fail_once, give_up) = (named("fail_once"), named("give_up"));
        let until = step["until"].as_u64().unwrap() as usize;
        assert_eq!(step["key"], "subject");
        let (consumer, handle) = self.consumers.get_mut(&text(step, "of")).unwrap();
        let (consumer, handle) = (consumer.take().unwrap(), handle.clone());
        let handled: Arc<Mutex<BTreeMap<String, Vec<String>>>> = Arc::default();
        let (seen, ended) = (handled.clone(), Arc::new(Mutex::new(0)));
        let work = move |message: Received| {
            let payload = payload(&message);
            let outcome = if fail_once.contains(&payload) && message.attempt() == 1 {
                Err(Failure::new("not yet"))
            } else {
                *ended.lock().unwrap() += 1;
                if *ended.lock().unwrap() == until {
                    handle.begin_to_drain();
                }
                match give_up.contains(&payload) {
                    true => Err(Failure::new("never").giving_up(Reason::Rejected)),
                    false => {
                        seen.lock().unwrap().entry(message.subject().to_owned()).or_default().push(payload);
                        Ok(())
                    }
                }
            };
            async move { outcome }
        };
        let concurrency = step["concurrency"].as_u64().unwrap() as usize;
        consumer.run_keyed(concurrency, |message| message.subject().to_owned(), work).await?;
        Ok(json!(*handled.lock().unwrap()))
    }
}
