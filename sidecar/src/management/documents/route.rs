//! Paths, as what they name.

use amqp_compat::model::policy::Scope;
use percent_encoding::percent_decode_str;

use super::exchange;

/// What a path under `/api/` names. `None` for a vhost means all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::management) enum Route {
    /// `overview`
    Overview,
    /// `cluster-name`
    ClusterName,
    /// `whoami`
    WhoAmI,
    /// `auth`
    Auth,
    /// `extensions`
    Extensions,
    /// `nodes`
    Nodes,
    /// `nodes/N`
    Node(String),
    /// `vhosts`
    Vhosts,
    /// `vhosts/V`
    Vhost(String),
    /// `vhosts/V/permissions`
    VhostPermissions(String),
    /// `users`
    Users,
    /// `users/without-permissions`
    UsersWithoutPermissions,
    /// `users/bulk-delete`
    BulkDelete,
    /// `users/U`
    User(String),
    /// `users/U/permissions`
    UserPermissions(String),
    /// `permissions`
    Permissions,
    /// `permissions/V/U`
    Permission(String, String),
    /// `parameters`, `parameters/COMPONENT`, `parameters/COMPONENT/V`
    Parameters(Option<String>, Option<String>),
    /// `parameters/COMPONENT/V/P`
    Parameter(String, String, String),
    /// A list of what is never there: `vhost-limits` and the like.
    Absent(&'static str, Option<String>),
    /// One of those.
    AbsentOne(&'static str, String),
    /// `policies`, `policies/V`, and the same of `operator-policies`
    Policies(Scope, Option<String>),
    /// `policies/V/P`, `operator-policies/V/P`
    Policy(Scope, String, String),
    /// `exchanges`, `exchanges/V`
    Exchanges(Option<String>),
    /// `exchanges/V/X`
    Exchange(String, String),
    /// `exchanges/V/X/bindings/source` or, with `false`, `/destination`
    ExchangeBindings(String, String, bool),
    /// `exchanges/V/X/publish`
    Publish(String, String),
    /// `queues`, `queues/V`
    Queues(Option<String>),
    /// `queues/V/Q`
    Queue(String, String),
    /// `queues/V/Q/bindings`
    QueueBindings(String, String),
    /// `queues/V/Q/contents`
    Contents(String, String),
    /// `queues/V/Q/get`
    Get(String, String),
    /// `bindings`, `bindings/V`
    Bindings(Option<String>),
    /// `bindings/V/e/X/q/Q` and `bindings/V/e/X/e/X`
    Between(Ends),
    /// The same with a properties key.
    Binding(Ends, String),
    /// `consumers`, `consumers/V`
    Consumers(Option<String>),
    /// `connections`, `vhosts/V/connections`
    Connections(Option<String>),
    /// `connections/C`
    Connection(String),
    /// `connections/C/channels`
    ConnectionChannels(String),
    /// `channels`, `vhosts/V/channels`
    Channels(Option<String>),
    /// `channels/C`
    Channel(String),
    /// `definitions`, `definitions/V`
    Definitions(Option<String>),
    /// `aliveness-test/V`
    Aliveness(String),
    /// `health/checks/...`
    Health(Vec<String>),
    /// `healthchecks/node`, `healthchecks/node/N`
    NodeHealth(Option<String>),
}

/// The two ends of bindings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::management) struct Ends {
    /// The vhost.
    pub(in crate::management) vhost: String,
    /// The exchange that messages come from.
    pub(in crate::management) source: String,
    /// Whether the other end is a queue and not an exchange.
    pub(in crate::management) to_queue: bool,
    /// The other end.
    pub(in crate::management) destination: String,
}

/// What is listed and never there.
const ABSENT: [&str; 5] = ["global-parameters", "vhost-limits", "user-limits", "topic-permissions", "feature-flags"];

/// What a path names, if it names something. An empty last segment is as none.
pub(in crate::management) fn read(path: &str) -> Option<Route> {
    let path = path.strip_prefix("/api/")?;
    let segments: Option<Vec<String>> = path
        .strip_suffix('/')
        .unwrap_or(path)
        .split('/')
        .map(|segment| Some(percent_decode_str(segment).decode_utf8().ok()?.into_owned()))
        .collect();
    named(&segments?.iter().map(String::as_str).collect::<Vec<_>>())
}

fn named(segments: &[&str]) -> Option<Route> {
    let own = |name: &str| name.to_owned();
    let x = |name: &str| exchange::name_in_path(name).to_owned();
    Some(match *segments {
        ["overview"] => Route::Overview,
        ["cluster-name"] => Route::ClusterName,
        ["whoami"] => Route::WhoAmI,
        ["auth"] => Route::Auth,
        ["extensions"] => Route::Extensions,
        ["nodes"] => Route::Nodes,
        ["nodes", node] => Route::Node(own(node)),
        ["vhosts"] => Route::Vhosts,
        ["vhosts", vhost] => Route::Vhost(own(vhost)),
        ["vhosts", vhost, "permissions"] => Route::VhostPermissions(own(vhost)),
        ["vhosts", vhost, "connections"] => Route::Connections(Some(own(vhost))),
        ["vhosts", vhost, "channels"] => Route::Channels(Some(own(vhost))),
        ["users"] => Route::Users,
        ["users", "without-permissions"] => Route::UsersWithoutPermissions,
        ["users", "bulk-delete"] => Route::BulkDelete,
        ["users", user] => Route::User(own(user)),
        ["users", user, "permissions"] => Route::UserPermissions(own(user)),
        ["permissions"] => Route::Permissions,
        ["permissions", vhost, user] => Route::Permission(own(vhost), own(user)),
        ["policies"] => Route::Policies(Scope::User, None),
        ["policies", vhost] => Route::Policies(Scope::User, Some(own(vhost))),
        ["policies", vhost, name] => Route::Policy(Scope::User, own(vhost), own(name)),
        ["operator-policies"] => Route::Policies(Scope::Operator, None),
        ["operator-policies", vhost] => Route::Policies(Scope::Operator, Some(own(vhost))),
        ["operator-policies", vhost, name] => Route::Policy(Scope::Operator, own(vhost), own(name)),
        ["parameters"] => Route::Parameters(None, None),
        ["parameters", component] => Route::Parameters(Some(own(component)), None),
        ["parameters", component, vhost] => Route::Parameters(Some(own(component)), Some(own(vhost))),
        ["parameters", component, vhost, name] => Route::Parameter(own(component), own(vhost), own(name)),
        ["exchanges"] => Route::Exchanges(None),
        ["exchanges", vhost] => Route::Exchanges(Some(own(vhost))),
        ["exchanges", vhost, name] => Route::Exchange(own(vhost), x(name)),
        ["exchanges", vhost, name, "bindings", "source"] => Route::ExchangeBindings(own(vhost), x(name), true),
        ["exchanges", vhost, name, "bindings", "destination"] => Route::ExchangeBindings(own(vhost), x(name), false),
        ["exchanges", vhost, name, "publish"] => Route::Publish(own(vhost), x(name)),
        ["queues"] => Route::Queues(None),
        ["queues", vhost] => Route::Queues(Some(own(vhost))),
        ["queues", vhost, name] => Route::Queue(own(vhost), own(name)),
        ["queues", vhost, name, "bindings"] => Route::QueueBindings(own(vhost), own(name)),
        ["queues", vhost, name, "contents"] => Route::Contents(own(vhost), own(name)),
        ["queues", vhost, name, "get"] => Route::Get(own(vhost), own(name)),
        ["bindings"] => Route::Bindings(None),
        ["bindings", vhost] => Route::Bindings(Some(own(vhost))),
        ["bindings", vhost, "e", source, kind @ ("q" | "e"), destination, ref rest @ ..] => {
            let to_queue = kind == "q";
            let destination = if to_queue { own(destination) } else { x(destination) };
            let ends = Ends { vhost: own(vhost), source: x(source), to_queue, destination };
            match *rest {
                [] => Route::Between(ends),
                [key] => Route::Binding(ends, own(key)),
                _ => return None,
            }
        }
        ["consumers"] => Route::Consumers(None),
        ["consumers", vhost] => Route::Consumers(Some(own(vhost))),
        ["connections"] => Route::Connections(None),
        ["connections", name] => Route::Connection(own(name)),
        ["connections", name, "channels"] => Route::ConnectionChannels(own(name)),
        ["channels"] => Route::Channels(None),
        ["channels", name] => Route::Channel(own(name)),
        ["definitions"] => Route::Definitions(None),
        ["definitions", vhost] => Route::Definitions(Some(own(vhost))),
        ["aliveness-test", vhost] => Route::Aliveness(own(vhost)),
        ["health", "checks", ref check @ ..] if !check.is_empty() => {
            Route::Health(check.iter().map(|word| own(word)).collect())
        }
        ["healthchecks", "node"] => Route::NodeHealth(None),
        ["healthchecks", "node", node] => Route::NodeHealth(Some(own(node))),
        [kind, ref rest @ ..] => {
            let kind = ABSENT.into_iter().find(|absent| *absent == kind)?;
            match *rest {
                [] => Route::Absent(kind, None),
                [scope] if kind != "global-parameters" => Route::Absent(kind, Some(own(scope))),
                [.., name] => Route::AbsentOne(kind, own(name)),
            }
        }
        [] => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_one_segment_at_a_time() {
        assert_eq!(read("/api/queues/%2F/a%2Fb%20c"), Some(Route::Queue("/".into(), "a/b c".into())));
        assert_eq!(read("/api/exchanges/%2f/"), Some(Route::Exchanges(Some("/".into()))));
        assert_eq!(read("/api/exchanges/%2f/amq.default/publish"), Some(Route::Publish("/".into(), "".into())));
        assert_eq!(read("/api/vhosts/a/connections"), Some(Route::Connections(Some("a".into()))));
        assert_eq!(
            read("/api/health/checks/port-listener/1"),
            Some(Route::Health(vec!["port-listener".into(), "1".into()]))
        );
        assert_eq!(
            read("/api/parameters/shovel/%2F/s"),
            Some(Route::Parameter("shovel".into(), "/".into(), "s".into()))
        );
        for nothing in ["/", "/api", "/api/", "/api/nope", "/api/queues/%2F/q/nope", "/api/queues/%ff/q", "/queues"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn bindings_have_two_ends_and_a_key() {
        let ends = |source: &str, to_queue, destination: &str| Ends {
            vhost: "/".into(),
            source: source.into(),
            to_queue,
            destination: destination.into(),
        };
        assert_eq!(read("/api/bindings/%2F/e/x/q/y"), Some(Route::Between(ends("x", true, "y"))));
        assert_eq!(read("/api/bindings/%2F/e//q/y"), Some(Route::Between(ends("", true, "y"))));
        let key = "/api/bindings/%2F/e/x/e/y/a%252Fb";
        assert_eq!(read(key), Some(Route::Binding(ends("x", false, "y"), "a%2Fb".into())));
        assert_eq!(read("/api/bindings/%2F/e/x/z/y"), None);
    }
}
