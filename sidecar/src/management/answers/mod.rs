//! Each route, and what it answers.

mod bindings;
mod connections;
mod definitions;
mod exchanges;
mod health;
mod policies;
mod queues;
mod settings;
mod users;

use amqp_compat::backend::Topology;
use axum::http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::broker::Broker;
use super::client::{Caller, Client};
use super::documents::fields::Fields;
use super::documents::listing::Listing;
use super::documents::refusal::Refusal;
use super::documents::rights;
use super::documents::route::Route;
use super::documents::user;

/// A request whose login is right.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) caller: &'a Caller,
}

/// What is answered.
#[derive(Debug)]
pub(super) enum Answer {
    /// 200.
    Document(Value),
    /// Another status, with a document.
    Status(u16, Value),
    /// 201, with the place of what was made where RabbitMQ names it.
    Created(Option<String>),
    /// 204.
    Done,
}

/// The methods that mean something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Get,
    Put,
    Post,
    Delete,
}

impl Request<'_> {
    fn verb(&self) -> Result<Verb, Refusal> {
        match self.method {
            &Method::GET | &Method::HEAD => Ok(Verb::Get),
            &Method::PUT => Ok(Verb::Put),
            &Method::POST => Ok(Verb::Post),
            &Method::DELETE => Ok(Verb::Delete),
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    fn fields(&self) -> Result<Fields, Refusal> {
        Fields::read(self.body)
    }

    /// A list, as the query wants it.
    fn list(&self, items: Vec<Value>) -> Result<Answer, Refusal> {
        let listing = Listing::read(self.query)?;
        Ok(Answer::Document(listing.answer(listing.arrange(items)?)))
    }

    /// One document, as the query wants it.
    fn one(&self, document: Value) -> Result<Answer, Refusal> {
        Ok(Answer::Document(Listing::read(self.query)?.pick(document)))
    }

    /// Whether the query says `name=true`.
    fn has(&self, name: &str) -> bool {
        url::form_urlencoded::parse(self.query.as_bytes()).any(|(key, value)| key == name && value == "true")
    }

    /// Makes one change, as this caller.
    async fn change(&self, broker: &Broker, vhost: &str, change: Topology) -> Result<(), Refusal> {
        broker.need_vhost(vhost)?;
        let mut client = Client::open(&broker.backend, self.caller, vhost).await.map_err(Refusal::of_change)?;
        client.change(change).await.map_err(Refusal::of_change)?;
        client.close(&[], None).await.map_err(Refusal::of_change)
    }
}

/// Answers a request.
pub(super) async fn answer(broker: &Broker, route: Route, request: Request<'_>) -> Result<Answer, Refusal> {
    let verb = request.verb()?;
    if route == Route::Auth {
        return request.one(json!({ "enable_uaa": false, "uaa_client_id": "", "uaa_location": "" }));
    }
    rights::check(broker.viewer(), &route, verb != Verb::Get)?;
    match (route, verb) {
        (Route::Overview, Verb::Get) => request.one(broker.identity.overview(&broker.totals().await)),
        (Route::ClusterName, Verb::Get) => request.one(json!({ "name": "nats-bridge" })),
        (Route::WhoAmI, Verb::Get) => request.one(user::whoami(broker.viewer())),
        (Route::Extensions, Verb::Get) => request.list(Vec::new()),
        (Route::Nodes, Verb::Get) => request.list(vec![broker.node()]),
        (Route::Node(name), Verb::Get) if name == broker.identity.node => request.one(broker.node()),
        (Route::Node(_), Verb::Get) => Err(Refusal::object_not_found()),
        (Route::Exchanges(vhost), Verb::Get) => exchanges::list(broker, request, vhost.as_deref()),
        (Route::Exchange(vhost, name), verb) => exchanges::one(broker, request, verb, &vhost, &name).await,
        (Route::ExchangeBindings(vhost, name, from), Verb::Get) => {
            bindings::of_exchange(broker, request, &vhost, &name, from)
        }
        (Route::Publish(vhost, name), Verb::Post) => exchanges::publish(broker, request, &vhost, &name).await,
        (Route::Queues(vhost), Verb::Get) => queues::list(broker, request, vhost.as_deref()).await,
        (Route::Queue(vhost, name), verb) => queues::one(broker, request, verb, &vhost, &name).await,
        (Route::QueueBindings(vhost, name), Verb::Get) => bindings::of_queue(broker, request, &vhost, &name),
        (Route::Contents(vhost, name), Verb::Delete) => queues::purge(broker, request, &vhost, &name).await,
        (Route::Get(vhost, name), Verb::Post) => queues::get(broker, request, &vhost, &name).await,
        (Route::Bindings(vhost), Verb::Get) => bindings::list(broker, request, vhost.as_deref()),
        (Route::Between(ends), verb) => bindings::between(broker, request, verb, &ends).await,
        (Route::Binding(ends, key), verb) => bindings::one(broker, request, verb, &ends, &key).await,
        (Route::Consumers(vhost), Verb::Get) => connections::consumers(broker, request, vhost.as_deref()).await,
        (Route::Connections(vhost), Verb::Get) => connections::list(broker, request, vhost.as_deref()).await,
        (Route::Connection(name), verb) => connections::one(broker, request, verb, &name).await,
        (Route::ConnectionChannels(name), Verb::Get) => connections::channels_of(broker, request, &name).await,
        (Route::Channels(vhost), Verb::Get) => connections::channels(broker, request, vhost.as_deref()).await,
        (Route::Channel(name), Verb::Get) => connections::channel(broker, request, &name).await,
        (Route::Definitions(vhost), verb) => definitions::answer(broker, request, verb, vhost.as_deref()).await,
        (Route::Policies(scope, vhost), Verb::Get) => policies::list(broker, request, scope, vhost.as_deref()),
        (Route::Policy(scope, vhost, name), verb) => policies::one(broker, request, verb, (scope, &vhost, &name)).await,
        (Route::Parameters(component, vhost), Verb::Get) => {
            policies::parameters(broker, request, component.as_deref(), vhost.as_deref())
        }
        (Route::Parameter(component, vhost, name), verb) => {
            policies::parameter(broker, request, verb, (&component, &vhost, &name))
        }
        (Route::Aliveness(vhost), Verb::Get) => health::aliveness(broker, request, &vhost).await,
        (Route::Health(check), Verb::Get) => health::check(broker, &check),
        (Route::NodeHealth(node), Verb::Get) => health::node(broker, node.as_deref()),
        (
            route @ (Route::Users
            | Route::UsersWithoutPermissions
            | Route::BulkDelete
            | Route::User(_)
            | Route::UserPermissions(_)
            | Route::VhostPermissions(_)
            | Route::Permissions
            | Route::Permission(..)),
            verb,
        ) => users::answer(broker, request, route, verb).await,
        (route, verb) => settings::answer(broker, request, route, verb).await,
    }
}
