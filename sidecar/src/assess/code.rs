//! The codes of findings. They are stable: a script may look for one.

use super::Way;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The move cannot begin, or would not be right.
    Blocker,
    /// It works, with a difference that somebody has to know.
    Caveat,
    /// Good to know.
    Info,
}

impl Severity {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Blocker => "blocker",
            Severity::Caveat => "caveat",
            Severity::Info => "info",
        }
    }
}

use Severity::{Blocker, Caveat, Info};

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// Its name, such as `Q-STREAM`.
    pub name: &'static str,
    beside: Severity,
    alone: Severity,
}

impl Code {
    /// How bad it is for those who go this way.
    pub fn severity(&self, way: Way) -> Severity {
        match way {
            Way::Sidecar => self.beside,
            Way::Serve => self.alone,
        }
    }
}

const fn code(name: &'static str, severity: Severity) -> Code {
    Code { name, beside: severity, alone: severity }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $id:ident = $code:expr;)*) => {
        $($(#[$doc])* pub const $id: &Code = &$code;)*
        /// All of them.
        pub const ALL: &[&Code] = &[$($id),*];
    };
}

codes! {
    /// A queue's argument is refused.
    Q_ARG = code("Q-ARG", Blocker);
    /// A queue's declaration is refused for another reason.
    Q_REFUSED = code("Q-REFUSED", Blocker);
    /// A stream queue, or one with a single active consumer, which the sidecar refuses.
    Q_BESIDE = code("Q-BESIDE", Blocker);
    /// A queue's type or a flag of it differs.
    Q_KIND = code("Q-KIND", Caveat);
    /// An argument of a queue differs.
    Q_DIFFERS = code("Q-DIFFERS", Caveat);
    /// An argument about RabbitMQ's own storage or placement.
    Q_HINT = code("Q-HINT", Info);
    /// An argument that neither RabbitMQ nor the gateway knows.
    Q_UNKNOWN = code("Q-UNKNOWN", Info);
    /// A queue whose name RabbitMQ made up.
    Q_NAMED = code("Q-NAMED", Info);
    /// A queue whose stream has a hash for a name.
    Q_HASHED = code("Q-HASHED", Info);
    /// A queue's dead-letter exchange is not there.
    Q_DLX = code("Q-DLX", Info);
    /// A type of exchange that is not there.
    X_TYPE = code("X-TYPE", Blocker);
    /// A type of exchange that the sidecar refuses.
    X_BESIDE = code("X-BESIDE", Blocker);
    /// An exchange's declaration is refused for another reason.
    X_REFUSED = code("X-REFUSED", Blocker);
    /// A type or an argument of an exchange differs.
    X_DIFFERS = code("X-DIFFERS", Caveat);
    /// An exchange that goes when its broker restarts.
    X_TRANSIENT = code("X-TRANSIENT", Info);
    /// An exchange's alternate exchange is not there.
    X_ALTERNATE = code("X-ALTERNATE", Info);
    /// A binding is refused.
    B_REFUSED = code("B-REFUSED", Blocker);
    /// A binding of an exchange or queue that is refused.
    B_END = code("B-END", Blocker);
    /// An exchange that stores a message in many queues.
    B_FANOUT = code("B-FANOUT", Caveat);
    /// A policy sets what would not be in force.
    P_KEY = code("P-KEY", Blocker);
    /// A key of a policy differs.
    P_DIFFERS = code("P-DIFFERS", Caveat);
    /// A policy that mirrors queues.
    P_MIRROR = code("P-MIRROR", Caveat);
    /// A policy that sets only what concerns RabbitMQ itself.
    P_HINT = code("P-HINT", Info);
    /// A policy that matches nothing.
    P_IDLE = code("P-IDLE", Info);
    /// A shovel.
    R_SHOVEL = code("R-SHOVEL", Blocker);
    /// A federation upstream.
    R_FEDERATION = code("R-FEDERATION", Blocker);
    /// A limit of a vhost or user.
    R_LIMIT = code("R-LIMIT", Caveat);
    /// Another runtime parameter.
    R_OTHER = code("R-OTHER", Caveat);
    /// A global parameter.
    R_GLOBAL = code("R-GLOBAL", Info);
    /// Permissions that restrict a user.
    U_PERMISSION = Code { name: "U-PERMISSION", beside: Caveat, alone: Blocker };
    /// Permissions on topics.
    U_TOPIC = Code { name: "U-TOPIC", beside: Caveat, alone: Blocker };
    /// Tags of a user.
    U_TAG = code("U-TAG", Info);
    /// Passwords are not carried over.
    U_PASSWORD = code("U-PASSWORD", Info);
    /// A vhost whose queues have another type unless they say so.
    V_TYPE = code("V-TYPE", Caveat);
    /// RabbitMQ has another version than the one that was compared.
    V_VERSION = code("V-VERSION", Caveat);
    /// A part of the input that was not understood, and therefore not assessed.
    V_UNREAD = code("V-UNREAD", Caveat);
    /// A connection of another protocol.
    C_PROTOCOL = code("C-PROTOCOL", Blocker);
    /// A login by certificate.
    C_LOGIN = Code { name: "C-LOGIN", beside: Blocker, alone: Caveat };
    /// A connection over TLS.
    C_TLS = code("C-TLS", Info);
    /// What a client may use that is refused, and that cannot be seen from a topology.
    C_UNSEEN = code("C-UNSEEN", Info);
    /// A client library in use.
    C_CLIENT = code("C-CLIENT", Info);
    /// A consumer's argument is refused.
    K_ARG = code("K-ARG", Blocker);
    /// A consumer without a prefetch.
    K_PREFETCH = code("K-PREFETCH", Caveat);
    /// A queue with messages and without consumers.
    K_NONE = code("K-NONE", Caveat);
    /// More queues than one account is recommended to hold.
    S_QUEUES = code("S-QUEUES", Caveat);
    /// Messages that lie in RabbitMQ.
    S_BACKLOG = Code { name: "S-BACKLOG", beside: Info, alone: Caveat };
    /// Messages larger than NATS takes.
    S_PAYLOAD = code("S-PAYLOAD", Blocker);
    /// Messages that come near to what NATS takes.
    S_LARGE = code("S-LARGE", Caveat);
    /// The JetStream account cannot hold it.
    S_ACCOUNT = code("S-ACCOUNT", Blocker);
    /// NATS is one server, and queues ask for three replicas.
    S_REPLICAS = code("S-REPLICAS", Caveat);
    /// What a confirm means.
    S_SYNC = code("S-SYNC", Caveat);
}

#[cfg(test)]
mod tests {
    use super::ALL;

    #[test]
    fn each_code_is_there_once_and_in_the_migration_guide() {
        let guide = include_str!("../../../docs/migration.md");
        for (index, code) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != code.name), "{}", code.name);
            assert!(guide.contains(&format!("`{}`", code.name)), "docs/migration.md does not explain {}", code.name);
        }
    }
}
