//! Users, and what each may do in which vhost.

use amqp_compat::model::access::Permission;
use serde_json::Value;

use super::super::broker::Broker;
use super::super::documents::refusal::Refusal;
use super::super::documents::route::Route;
use super::super::documents::user::{self, Asked};
use super::{Answer, Request, Verb};

pub(super) async fn answer(broker: &Broker, request: Request<'_>, route: Route, verb: Verb) -> Result<Answer, Refusal> {
    let backend = &broker.backend;
    match (route, verb) {
        (Route::Users, Verb::Get) => {
            request.list(backend.users().iter().map(|account| user::document(account)).collect())
        }
        (Route::UsersWithoutPermissions, Verb::Get) => {
            let users = backend.users();
            let without = users.iter().filter(|account| !account.fixed && account.permissions.is_empty());
            request.list(without.map(|account| user::document(account)).collect())
        }
        (Route::BulkDelete, Verb::Post) => bulk_delete(broker, request).await,
        (Route::User(name), Verb::Get) => {
            let account = backend.user(&name).ok_or_else(Refusal::object_not_found)?;
            request.one(user::document(&account))
        }
        (Route::User(name), Verb::Put) => {
            let asked = Asked::read(&request.fields()?)?;
            if is_so_already(broker, &name, &asked) {
                return Ok(Answer::Done);
            }
            created(backend.put_user(&name, asked.password, asked.tags).await.map_err(Refusal::of_change)?)
        }
        (Route::User(name), Verb::Delete) => deleted(backend.delete_user(&name).await.map_err(Refusal::of_change)?),
        (Route::UserPermissions(name), Verb::Get) => {
            backend.user(&name).ok_or_else(Refusal::object_not_found)?;
            request.list(permissions(broker, Some(&name), None))
        }
        (Route::VhostPermissions(name), Verb::Get) => {
            broker.vhosts(Some(&name))?;
            request.list(permissions(broker, None, Some(&name)))
        }
        (Route::Permissions, Verb::Get) => request.list(permissions(broker, None, None)),
        (Route::Permission(vhost, user), Verb::Get) => {
            let found = permissions(broker, Some(&user), Some(&vhost)).pop();
            request.one(found.ok_or_else(Refusal::object_not_found)?)
        }
        (Route::Permission(vhost, user), Verb::Put) => {
            let permission = user::read_permission(&request.fields()?)?;
            let is_known = broker.backend.about_vhost(&vhost).is_some() && backend.user(&user).is_some();
            if !is_known {
                return Err(Refusal::bad_request("vhost_or_user_not_found"));
            }
            if is_everything_already(broker, &user, &permission) {
                return Ok(Answer::Done);
            }
            created(backend.put_permission(&vhost, &user, permission).await.map_err(Refusal::of_change)?)
        }
        (Route::Permission(vhost, user), Verb::Delete) => {
            let is_there = backend.user(&user).is_some_and(|account| account.permission(&vhost).is_some());
            if !is_there {
                return Err(Refusal::object_not_found());
            }
            deleted(backend.drop_permission(&vhost, &user).await.map_err(Refusal::of_change)?)
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

fn created(is_new: bool) -> Result<Answer, Refusal> {
    Ok(if is_new { Answer::Created(None) } else { Answer::Done })
}

fn deleted(was_there: bool) -> Result<Answer, Refusal> {
    if was_there { Ok(Answer::Done) } else { Err(Refusal::object_not_found()) }
}

/// Whether this is a user that `serve` was started with, as it was started.
fn is_so_already(broker: &Broker, name: &str, asked: &Asked) -> bool {
    let mut given = broker.backend.given_users().iter();
    given.any(|given| given.name == name && asked.is_password_of(given))
}

/// Whether this is a user that `serve` was started with, which may do everything.
fn is_everything_already(broker: &Broker, name: &str, asked: &Permission) -> bool {
    broker.backend.user(name).is_some_and(|known| known.fixed) && *asked == Permission::everything()
}

/// Deletes the users that are named, all or none.
async fn bulk_delete(broker: &Broker, request: Request<'_>) -> Result<Answer, Refusal> {
    let fields = request.fields()?;
    let names = match fields.get("users") {
        None => return Err(Refusal::bad_request("[{key_missing,users}]")),
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => names.iter().filter_map(Value::as_str),
        Some(_) => return Err(Refusal::bad_request("field 'users' is not a list of names")),
    };
    for name in names.clone() {
        let account = broker.backend.user(name);
        let account = account.ok_or_else(|| Refusal::bad_request(format!("no_such_user '{name}'")))?;
        if account.fixed {
            let reason = format!("user '{name}' cannot be deleted: serve is started with it; none was deleted");
            return Err(Refusal::bad_request(reason));
        }
    }
    for name in names {
        broker.backend.delete_user(name).await.map_err(Refusal::of_change)?;
    }
    Ok(Answer::Done)
}

/// The permissions of one user or all, in one vhost or all.
pub(super) fn permissions(broker: &Broker, user: Option<&str>, vhost: Option<&str>) -> Vec<Value> {
    let users = broker.backend.users();
    let vhosts = broker.backend.vhosts();
    let vhosts = vhosts.iter().filter(|name| vhost.is_none_or(|vhost| **name == vhost));
    let of = |vhost: &String| {
        let users = users.iter().filter(|known| user.is_none_or(|user| known.name == user));
        users.filter_map(|account| user::permission(account, vhost)).collect::<Vec<_>>()
    };
    vhosts.flat_map(of).collect()
}
