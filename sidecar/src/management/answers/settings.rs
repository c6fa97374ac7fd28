//! Vhosts; and what the command line of `serve` decides (users, permissions) or is not there (parameters): shown, and refused
//! where a request wants it otherwise. A request for what is so already is done.

use serde_json::Value;

use super::super::broker::Broker;
use super::super::documents::broker::permission;
use super::super::documents::definitions::{check_permission, check_user};
use super::super::documents::fields::Fields;
use super::super::documents::listing::Listing;
use super::super::documents::refusal::Refusal;
use super::super::documents::route::Route;
use super::super::documents::vhost;
use super::{Answer, Request, Verb};

pub(super) async fn answer(broker: &Broker, request: Request<'_>, route: Route, verb: Verb) -> Result<Answer, Refusal> {
    let fixed = |what: String| {
        Err(Refusal::bad_request(format!("{what}: users and permissions are those of serve's command line")))
    };
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
        (Route::VhostPermissions(name), Verb::Get) => {
            broker.vhosts(Some(&name))?;
            request.list(permissions(broker, None, Some(&name)))
        }
        (Route::Users, Verb::Get) => request.list(broker.users()),
        (Route::User(name), Verb::Get) => {
            let found = broker.users().into_iter().find(|user| user["name"] == name.as_str());
            request.one(found.ok_or_else(Refusal::object_not_found)?)
        }
        (Route::User(name), Verb::Put) => done(check_user(&name, &request.fields()?, broker.backend.users())?),
        (Route::User(name), Verb::Delete) => {
            need_user(broker, &name)?;
            fixed(format!("user '{name}' cannot be deleted"))
        }
        (Route::UserPermissions(name), Verb::Get) => {
            need_user(broker, &name)?;
            request.list(permissions(broker, Some(&name), None))
        }
        (Route::Permissions, Verb::Get) => request.list(permissions(broker, None, None)),
        (Route::Permission(vhost, user), Verb::Get) => {
            let found = permissions(broker, Some(&user), Some(&vhost)).pop();
            request.one(found.ok_or_else(Refusal::object_not_found)?)
        }
        (Route::Permission(vhost, user), Verb::Put) => {
            done(check_permission(&vhost, &user, &request.fields()?, &broker.present())?)
        }
        (Route::Permission(vhost, user), Verb::Delete) => {
            if permissions(broker, Some(&user), Some(&vhost)).is_empty() {
                return Err(Refusal::object_not_found());
            }
            fixed(format!("permissions of user '{user}' in vhost '{vhost}' cannot be taken away"))
        }
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
        Ok(true) => Ok(Answer::Created(None)),
        Ok(false) => Ok(Answer::Done),
        Err(error) => Err(Refusal::of_change(error)),
    }
}

async fn vhosts(broker: &Broker, request: Request<'_>) -> Result<Answer, Refusal> {
    let is_counted = Listing::read(request.query)?.shows(&["messages", "messages_ready", "messages_unacknowledged"]);
    let mut documents = Vec::new();
    for vhost in broker.vhosts(None)? {
        let messages = if is_counted { broker.messages(std::slice::from_ref(&vhost)).await } else { None };
        documents.push(broker.identity.vhost(&vhost, &broker.about(&vhost), messages));
    }
    request.list(documents)
}

fn done(checked: Result<(), String>) -> Result<Answer, Refusal> {
    checked.map(|()| Answer::Done).map_err(Refusal::bad_request)
}

fn need_user(broker: &Broker, name: &str) -> Result<(), Refusal> {
    let is_there = broker.backend.users().iter().any(|user| user.name == name);
    if is_there { Ok(()) } else { Err(Refusal::object_not_found()) }
}

/// The permissions of one user or all, in one vhost or all.
fn permissions(broker: &Broker, user: Option<&str>, vhost: Option<&str>) -> Vec<Value> {
    let vhosts = broker.backend.vhosts();
    let of = |name: String| {
        let users = broker.backend.users().iter().filter(|known| user.is_none_or(|user| known.name == user));
        users.map(|user| permission(&user.name, &name)).collect::<Vec<_>>()
    };
    vhosts.into_iter().filter(|name| vhost.is_none_or(|vhost| name == vhost)).flat_map(of).collect()
}
