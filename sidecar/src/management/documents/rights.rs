//! What a user's tags allow over HTTP, as RabbitMQ 3.10 has it (its guide "Management Plugin", section "Permissions").

use amqp_compat::model::access::Account;

use super::refusal::Refusal;
use super::route::Route;

/// What a request needs its caller to be; a caller without any of RabbitMQ's tags may ask for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Management,
    Policymaker,
    Monitoring,
    Administrator,
}

impl Role {
    /// By these tags one is.
    fn tags(self) -> &'static [&'static str] {
        match self {
            Role::Management => &["administrator", "monitoring", "policymaker", "management"],
            Role::Policymaker => &["administrator", "policymaker"],
            Role::Monitoring => &["administrator", "monitoring"],
            Role::Administrator => &["administrator"],
        }
    }

    fn refusal(self) -> &'static str {
        match self {
            Role::Management => "Not management user",
            Role::Policymaker => "User not authorised to access object",
            Role::Monitoring => "Not monitor user",
            Role::Administrator => "Not administrator user",
        }
    }
}

fn is(account: &Account, role: Role) -> bool {
    role.tags().iter().any(|tag| account.is(tag))
}

fn needed(route: &Route, is_change: bool) -> Role {
    match route {
        Route::Vhost(_)
        | Route::VhostPermissions(_)
        | Route::Users
        | Route::UsersWithoutPermissions
        | Route::BulkDelete
        | Route::User(_)
        | Route::UserPermissions(_)
        | Route::Permissions
        | Route::Permission(..)
        | Route::Definitions(_)
        | Route::Absent("topic-permissions" | "feature-flags", _)
        | Route::AbsentOne("topic-permissions" | "feature-flags", _) => Role::Administrator,
        Route::Policy(amqp_compat::model::policy::Scope::Operator, ..) if is_change => Role::Administrator,
        Route::Policy(..) if is_change => Role::Policymaker,
        Route::Parameters(..)
        | Route::Parameter(..)
        | Route::Absent("global-parameters", _)
        | Route::AbsentOne("global-parameters", _) => Role::Policymaker,
        Route::Absent(..) | Route::AbsentOne(..) if is_change => Role::Administrator,
        Route::Nodes | Route::Node(_) => Role::Monitoring,
        _ => Role::Management,
    }
}

/// Refuses a caller whose tags do not allow a request.
///
/// # Errors
/// 401, with RabbitMQ's texts.
pub(in crate::management) fn check(account: &Account, route: &Route, is_change: bool) -> Result<(), Refusal> {
    let refused = [Role::Management, needed(route, is_change)].into_iter().find(|role| !is(account, *role));
    refused.map_or(Ok(()), |role| Err(Refusal::not_authorised(role.refusal())))
}

/// Whether a caller sees the vhosts that it may not use, and what is theirs.
pub(in crate::management) fn sees_all_vhosts(account: &Account) -> bool {
    is(account, Role::Administrator)
}

/// Whether a caller sees other users' connections, and the names of all vhosts.
pub(in crate::management) fn sees_all_connections(account: &Account) -> bool {
    is(account, Role::Monitoring)
}
