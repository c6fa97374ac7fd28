//! Users: their passwords, their tags, and what each may do in which vhost.
//!
//! A permission has three regular expressions, for the names of what a user may configure, write to and read from. Which
//! of them a method needs is in RabbitMQ's guide "Access control", and was seen on a running 3.10.

mod needs;
mod password;
mod permission;

use std::collections::BTreeMap;

pub use needs::{Need, of_topology};
pub use password::{Hashing, Password};
pub use permission::{Permission, Right, Thing};

use crate::error::{AmqpError, ReplyCode};

/// A user.
#[derive(Debug, Clone, PartialEq)]
pub struct Account {
    /// The name.
    pub name: String,
    /// What it logs in with; `None` for one that cannot log in by password.
    pub password: Option<Password>,
    /// What it may do over HTTP (`administrator`, `policymaker`, `monitoring`, `management`), and words of its owner's own.
    pub tags: Vec<String>,
    /// By vhost. It may not even connect to one that is not in it.
    pub permissions: BTreeMap<String, Permission>,
    /// Whether it is one that the gateway was started with: it may do everything everywhere, and cannot be changed.
    pub fixed: bool,
}

impl Account {
    /// A user that the gateway was started with.
    pub fn fixed(name: &str, password: Option<Password>) -> Self {
        Self {
            name: name.to_owned(),
            password,
            tags: vec!["administrator".to_owned()],
            permissions: BTreeMap::new(),
            fixed: true,
        }
    }

    /// Whether it logs in with this. One that the gateway was started with may have an empty password.
    pub fn is_password(&self, sent: &str) -> bool {
        match &self.password {
            Some(password) => password.is(sent),
            None => self.fixed && sent.is_empty(),
        }
    }

    /// Nobody: may do nothing.
    pub fn nobody() -> Self {
        Self { name: String::new(), password: None, tags: Vec::new(), permissions: BTreeMap::new(), fixed: false }
    }

    /// What it may do in a vhost; `None` for nothing at all.
    pub fn permission(&self, vhost: &str) -> Option<Permission> {
        if self.fixed { Some(Permission::everything()) } else { self.permissions.get(vhost).cloned() }
    }

    /// Whether it has this tag.
    pub fn is(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }
}

/// Refuses a user that has no permission in a vhost, with RabbitMQ's text for `connection.open`.
///
/// # Errors
/// `NotAllowed`.
pub fn may_open(account: &Account, vhost: &str) -> Result<Permission, AmqpError> {
    let refused = || {
        let text = format!("access to vhost '{vhost}' refused for user '{}'", account.name);
        AmqpError::new(ReplyCode::NotAllowed, text)
    };
    account.permission(vhost).ok_or_else(refused)
}
