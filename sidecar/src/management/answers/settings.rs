//! Vhosts; and what is not there (limits and the like): shown as none, and refused where a request wants it otherwise.

use amqp_compat::model::access::Permission;

use super::super::broker::Broker;
use super::super::documents::fields::Fields;
use super::super::documents::listing::Listing;
use super::super::documents::refusal::Refusal;
use super::super::documents::rights;
use super::super::documents::route::Route;
use super::super::documents::vhost;
use super::{Answer, Request, Verb};

pub(super) async fn answer(broker: &Broker, request: Request<'_>, route: Route, verb: Verb) -> Result<Answer, Refusal> {
    match (route, verb) {
        (Route::Vhosts, Verb::Get) => vhosts(broker, request).await,
        (Route::Vhost(name), Verb::Get) => {
            let vhosts = broker.vhosts(Some(&name))?;
            request.one(broker.identity.vhost(&name, &broker.about(&name), broker.messages(&vhosts).await))
        }
        (Route::Vhost(name), Verb::Put) => put_vhost(broker, &name, &request.fields()?).await,
        (Route::Vhost(name), Verb::Delete) => match broker.backend.delete_vhost(&name).await {
            Ok(true) => Ok(Answer::Done),
            Ok(false) => Err(Refusal::object_not_found()),
            Err(error) => Err(Refusal::of_change(error)),
        },
        (Route::Absent(..), Verb::Get) => request.list(Vec::new()),
        (Route::AbsentOne(..), Verb::Get | Verb::Delete) => Err(Refusal::object_not_found()),
        (Route::AbsentOne(kind, name), Verb::Put) => {
            Err(Refusal::bad_request(format!("'{name}' of {kind}: {kind} are not honoured")))
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

async fn put_vhost(broker: &Broker, name: &str, fields: &Fields) -> Result<Answer, Refusal> {
    match broker.backend.put_vhost(name, vhost::about(fields)?).await {
        Ok(true) => {}
        Ok(false) => return Ok(Answer::Done),
        Err(error) => return Err(Refusal::of_change(error)),
    }
    // As in RabbitMQ, whoever makes a vhost may use it.
    let maker = broker.viewer();
    if !maker.fixed {
        let everything = Permission::everything();
        broker.backend.put_permission(name, &maker.name, everything).await.map_err(Refusal::of_change)?;
    }
    Ok(Answer::Created(None))
}

async fn vhosts(broker: &Broker, request: Request<'_>) -> Result<Answer, Refusal> {
    let is_counted = Listing::read(request.query)?.shows(&["messages", "messages_ready", "messages_unacknowledged"]);
    let mut documents = Vec::new();
    let all = match rights::sees_all_connections(broker.viewer()) {
        true => broker.backend.vhosts(),
        false => broker.vhosts(None)?,
    };
    for vhost in all {
        let messages = if is_counted { broker.messages(std::slice::from_ref(&vhost)).await } else { None };
        documents.push(broker.identity.vhost(&vhost, &broker.about(&vhost), messages));
    }
    request.list(documents)
}
