//! Logins that RabbitMQ has accepted, for when it cannot be asked any more.

use std::sync::{Mutex, PoisonError};

use amqp_compat::backend::Login;
use foldhash::HashMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Logins that RabbitMQ has accepted: user and vhost, and a salted hash of the password.
///
/// They are asked only when RabbitMQ is detached, or away while NATS owns everything.
#[derive(Debug, Default)]
pub struct Logins {
    known: Mutex<HashMap<(String, String), Accepted>>,
}

/// One login that RabbitMQ has accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The user.
    pub user: String,
    /// The vhost.
    pub vhost: String,
    /// Random, hexadecimal.
    pub salt: String,
    /// Of salt and password, hexadecimal.
    pub hash: String,
}

impl Logins {
    /// How many logins are remembered. One more is not, and is refused once RabbitMQ is gone.
    const MOST: usize = 10_000;
    /// Rounds of SHA-256 over a password. RabbitMQ's own store has one.
    const ROUNDS: u32 = 4_096;

    /// Remembers a login that RabbitMQ has just accepted. Answers it when it is new or has another password.
    pub fn accept(&self, login: &Login) -> Option<Accepted> {
        if self.check(login) {
            return None;
        }
        let salt = format!("{:032x}", ulid::Ulid::new().0);
        let hash = hash(&salt, &login.password, Self::ROUNDS);
        let accepted = Accepted { user: login.user.clone(), vhost: login.vhost.clone(), salt, hash };
        self.remember(accepted.clone()).then_some(accepted)
    }

    /// Remembers a login of an earlier run. False when there are too many.
    pub fn remember(&self, accepted: Accepted) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (accepted.user.clone(), accepted.vhost.clone());
        let fits = known.len() < Self::MOST || known.contains_key(&key);
        if fits {
            known.insert(key, accepted);
        }
        fits
    }

    /// Whether RabbitMQ has accepted this login before.
    pub fn check(&self, login: &Login) -> bool {
        let accepted = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&(login.user.clone(), login.vhost.clone())).cloned()
        };
        accepted.is_some_and(|a| same(&hash(&a.salt, &login.password, Self::ROUNDS), &a.hash))
    }

    /// The vhosts of the logins that are known.
    pub fn vhosts(&self) -> Vec<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<String> = known.keys().map(|(_, vhost)| vhost.clone()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn hash(salt: &str, password: &str, rounds: u32) -> String {
    let mut digest = Sha256::new().chain_update(salt).chain_update(password).finalize();
    for _ in 1..rounds {
        digest = Sha256::new().chain_update(salt).chain_update(digest).finalize();
    }
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares without telling by its time where the first difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(user: &str, password: &str, vhost: &str) -> Login {
        Login {
            vhost: vhost.into(),
            user: user.into(),
            password: password.into(),
            certificate: None,
            client_properties: Default::default(),
            peer: "test".into(),
        }
    }

    #[test]
    fn only_what_rabbitmq_accepted_is_let_in_and_no_password_is_kept() {
        let logins = Logins::default();
        let accepted = logins.accept(&login("app", "secret", "/")).expect("new");
        assert!(!format!("{accepted:?} {logins:?}").contains("secret"));
        assert_eq!(logins.accept(&login("app", "secret", "/")), None);
        assert!(logins.check(&login("app", "secret", "/")));
        assert!(!logins.check(&login("app", "Secret", "/")));
        assert!(!logins.check(&login("app", "secret", "other")));
        assert!(!logins.check(&login("apps", "secret", "/")));
        let next_run = Logins::default();
        next_run.remember(accepted);
        assert!(next_run.check(&login("app", "secret", "/")));
        assert!(next_run.accept(&login("app", "changed", "/")).is_some());
        assert!(!next_run.check(&login("app", "secret", "/")));
    }
}
