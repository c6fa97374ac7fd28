//! Who may log in, and what they may do: the users that the gateway is started with, and those that are made while it runs.
//!
//! The latter are kept in the bucket `AMQP_USERS`, a key for each, so that the next gateway, and others that share the
//! account, know them as well. Of a password its hash is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use async_nats::jetstream::kv;
use futures::{StreamExt as _, TryStreamExt as _};
use nats_bridge::Bridge;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use super::JetStreamBackend;
use super::bucket::{is_there, open_bucket};
use super::config::{JetStreamConfig, User};
use super::vhost::{VhostRuntime, made_up_name};
use crate::backend::Topology;
use crate::error::{AmqpError, ReplyCode};
use crate::mapping::name;
use crate::model::access::{self, Account, Hashing, Password, Permission, Right, Thing};

const BUCKET: &str = "AMQP_USERS";

/// The longest name of a user, in bytes: a short string of AMQP.
const LONGEST: usize = 255;

/// How long to wait before the bucket is watched again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a change is tried again that another gateway's came before.
const ATTEMPTS: usize = 10;

/// A user as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password_hash: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hashing_algorithm: Option<String>,
    tags: Vec<String>,
    /// By vhost: configure, write, read.
    permissions: BTreeMap<String, [String; 3]>,
}

impl Document {
    fn of(account: &Account) -> Self {
        let pattern =
            |(vhost, permission): (&String, &Permission)| (vhost.clone(), permission.patterns().map(str::to_owned));
        Self {
            name: account.name.clone(),
            hashing_algorithm: account.password.as_ref().map(|password| password.hashing().name().to_owned()),
            password_hash: account.password.as_ref().map(Password::hash),
            tags: account.tags.clone(),
            permissions: account.permissions.iter().map(pattern).collect(),
        }
    }

    fn account(self) -> Result<Account, String> {
        let password = match (self.hashing_algorithm, self.password_hash) {
            (Some(hashing), Some(hash)) => Some(Password::from_hash(Hashing::from_name(&hashing)?, &hash)?),
            _ => None,
        };
        let mut permissions = BTreeMap::new();
        for (vhost, [configure, write, read]) in self.permissions {
            permissions.insert(vhost, Permission::new(&configure, &write, &read)?);
        }
        Ok(Account { name: self.name, password, tags: self.tags, permissions, fixed: false })
    }
}

/// The users of a backend.
#[derive(Debug)]
pub(crate) struct Users {
    known: RwLock<BTreeMap<String, Arc<Account>>>,
    /// Counts changes, for links that are open.
    changes: watch::Sender<u64>,
    /// Held while one is changed.
    changing: Mutex<()>,
}

impl Users {
    /// Those of the configuration, and those that are stored.
    pub(super) async fn load(bridge: &Bridge, config: &JetStreamConfig) -> Result<Arc<Self>, AmqpError> {
        let fixed =
            config.users.iter().map(|user| Account::fixed(&user.name, hashed(Hashing::default(), &user.password)));
        let known = fixed.map(|account| (account.name.clone(), Arc::new(account))).collect();
        let users =
            Arc::new(Self { known: RwLock::new(known), changes: watch::Sender::new(0), changing: Mutex::default() });
        if config.behind_rabbitmq {
            return Ok(users);
        }
        if config.gateways.is_some() {
            let bucket = open(bridge).await?;
            users.read(&bucket).await?;
            tokio::spawn(follow(Arc::downgrade(&users), bucket));
        } else if is_there(bridge, BUCKET).await? {
            users.read(&open(bridge).await?).await?;
        }
        Ok(users)
    }

    async fn read(&self, bucket: &kv::Store) -> Result<(), AmqpError> {
        let keys: Vec<String> = bucket.keys().await.map_err(failed)?.try_collect().await.map_err(failed)?;
        for key in keys {
            if let Some(value) = bucket.get(&key).await.map_err(failed)? {
                self.take(&key, &value);
            }
        }
        Ok(())
    }

    /// Takes over what is stored. One that the gateway was started with comes first.
    fn take(&self, key: &str, value: &[u8]) {
        let read = serde_json::from_slice::<Document>(value).map_err(|error| error.to_string());
        match read.and_then(Document::account) {
            Ok(account) => self.put(account),
            Err(error) => tracing::error!(key, error, "a user's entry cannot be read, and it cannot log in"),
        }
    }

    fn put(&self, account: Account) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.get(&account.name).is_some_and(|known| known.fixed || **known == account) {
            return;
        }
        known.insert(account.name.clone(), Arc::new(account));
        drop(known);
        self.changes.send_modify(|count| *count += 1);
    }

    /// Forgets the user that is stored under this key.
    fn drop_key(&self, removed: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, account| account.fixed || key(name) != removed);
        drop(known);
        self.changes.send_modify(|count| *count += 1);
    }

    /// The user of this name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Account>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<Account>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Does as other gateways change the users.
async fn follow(users: std::sync::Weak<Users>, bucket: kv::Store) {
    loop {
        if let Ok(mut entries) = bucket.watch_with_history(">").await {
            while let Some(entry) = entries.next().await {
                let Some(users) = users.upgrade() else { return };
                match entry {
                    Ok(kv::Entry { operation: kv::Operation::Put, key, value, .. }) => users.take(&key, &value),
                    Ok(kv::Entry { key, .. }) => users.drop_key(&key),
                    Err(error) => {
                        tracing::warn!(%error, "the list of users is looked at anew");
                        break;
                    }
                }
            }
        }
        if users.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What one link may do.
#[derive(Debug)]
pub(crate) struct Access {
    /// The user that has logged in.
    pub(crate) user: String,
    vhost: Arc<str>,
    /// `None` where somebody else says what it may do.
    users: Option<Arc<Users>>,
    changes: watch::Receiver<u64>,
    /// `None` for everything.
    permission: Option<Permission>,
    /// Whether it may publish in the name of others (RabbitMQ's tag `impersonator`).
    impersonates: bool,
}

impl Access {
    /// The access of a user that has just logged in.
    ///
    /// # Errors
    /// `NotAllowed` when it has no permission in the vhost.
    pub(super) fn open(
        users: &Arc<Users>,
        config: &JetStreamConfig,
        user: &str,
        vhost: &Arc<str>,
    ) -> Result<Self, AmqpError> {
        let changes = users.changes.subscribe();
        let users = (!config.behind_rabbitmq).then(|| users.clone());
        let mut access =
            Self { user: user.to_owned(), vhost: vhost.clone(), users, changes, permission: None, impersonates: false };
        if let Some(users) = &access.users {
            let account = users.get(user).ok_or_else(|| access.user_is_deleted())?;
            access.permission = restricted(access::may_open(&account, vhost)?);
            access.impersonates = account.is("impersonator");
        }
        Ok(access)
    }

    /// Waits until some user is changed.
    pub(crate) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Looks up anew what the user may do. One without any permission is refused everything from now on.
    ///
    /// # Errors
    /// `ConnectionForced` when it has been deleted.
    pub(crate) fn renew(&mut self) -> Result<(), AmqpError> {
        let Some(users) = &self.users else { return Ok(()) };
        let account = users.get(&self.user).ok_or_else(|| self.user_is_deleted())?;
        let permission = account.permission(&self.vhost).or_else(|| Permission::new("", "", "").ok());
        self.permission = permission.and_then(restricted);
        self.impersonates = account.is("impersonator");
        Ok(())
    }

    /// The user that a publish's `user_id` has to name; `None` for any.
    pub(crate) fn must_be(&self) -> Option<&str> {
        (!self.impersonates).then_some(&self.user)
    }

    /// Refuses what the user may not do.
    ///
    /// # Errors
    /// `AccessRefused`, with RabbitMQ's text.
    pub(crate) fn check(&self, right: Right, thing: Thing, name: &str) -> Result<(), AmqpError> {
        match &self.permission {
            None => Ok(()),
            Some(permission) => permission.check(right, thing, name, (&self.user, &self.vhost)),
        }
    }

    /// Refuses a change of exchanges, queues or bindings that the user may not make.
    ///
    /// # Errors
    /// `AccessRefused`, with RabbitMQ's text.
    pub(super) fn check_topology(&self, vhost: &VhostRuntime, request: &Topology) -> Result<(), AmqpError> {
        if self.permission.is_none() {
            return Ok(());
        }
        // Only its beginning is known to anybody.
        let named = made_up_name();
        let is_there = |thing, name: &str| match thing {
            Thing::Exchange => vhost.state().model.exchange(name).is_some(),
            Thing::Queue => vhost.state().model.queue_slot(name).is_some(),
        };
        let needs = access::of_topology(request, &named, is_there);
        needs.into_iter().try_for_each(|(right, thing, name)| self.check(right, thing, name))
    }

    fn user_is_deleted(&self) -> AmqpError {
        AmqpError::new(ReplyCode::ConnectionForced, format!("user '{}' is deleted", self.user))
    }
}

/// `None` for a permission to do everything: nothing needs to be looked up.
fn restricted(permission: Permission) -> Option<Permission> {
    (permission != Permission::everything()).then_some(permission)
}

/// What to do with a user that is stored.
enum Changed<T> {
    Put(Account, T),
    Drop(T),
    Nothing(T),
}

impl JetStreamBackend {
    /// The users that may log in, by name.
    pub fn users(&self) -> Vec<Arc<Account>> {
        self.users.all()
    }

    /// Those of them that the gateway was started with.
    pub fn given_users(&self) -> &[User] {
        &self.config.users
    }

    /// The user of this name.
    pub fn user(&self, name: &str) -> Option<Arc<Account>> {
        self.users.get(name)
    }

    /// Makes a user, or gives one another password and other tags; its permissions stay. True when it was made. Connections
    /// that are open stay open.
    ///
    /// # Errors
    /// `PreconditionFailed` for a name that cannot be one and for a user that the gateway is started with; `ResourceLocked` when
    /// another gateway serves the account now; `InternalError` when JetStream does not answer: then it may be stored, and
    /// putting it again is safe.
    pub async fn put_user(&self, name: &str, password: Option<Password>, tags: Vec<String>) -> Result<bool, AmqpError> {
        if name.is_empty() || name.len() > LONGEST {
            let text = format!("a user's name has 1 to {LONGEST} bytes");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        self.change_user(name, |known| {
            let is_new = known.is_none();
            let permissions = known.map(|known| known.permissions).unwrap_or_default();
            let name = name.to_owned();
            let (password, tags) = (password.clone(), tags.clone());
            Ok(Changed::Put(Account { name, password, tags, permissions, fixed: false }, is_new))
        })
        .await
    }

    /// Deletes a user, and closes its connections. False when there is none.
    ///
    /// # Errors
    /// As [`Self::put_user`].
    pub async fn delete_user(&self, name: &str) -> Result<bool, AmqpError> {
        let change =
            |known: Option<Account>| Ok(if known.is_some() { Changed::Drop(true) } else { Changed::Nothing(false) });
        self.change_user(name, change).await
    }

    /// Says what a user may do in a vhost; in force at once, for open connections too. True when it had no permission
    /// there before.
    ///
    /// # Errors
    /// `NotFound` for a user or vhost that is not there; else as [`Self::put_user`].
    pub async fn put_permission(&self, vhost: &str, user: &str, permission: Permission) -> Result<bool, AmqpError> {
        self.vhosts.get(vhost).ok_or_else(|| not_there("vhost", vhost))?;
        self.change_user(user, |known| {
            let mut known = known.ok_or_else(|| not_there("user", user))?;
            let was_there = known.permissions.insert(vhost.to_owned(), permission.clone()).is_some();
            Ok(Changed::Put(known, !was_there))
        })
        .await
    }

    /// Takes a user's permission in a vhost away. False when it has none.
    ///
    /// # Errors
    /// As [`Self::put_permission`].
    pub async fn drop_permission(&self, vhost: &str, user: &str) -> Result<bool, AmqpError> {
        self.change_user(user, |known| {
            let mut known = known.ok_or_else(|| not_there("user", user))?;
            Ok(match known.permissions.remove(vhost) {
                Some(_) => Changed::Put(known, true),
                None => Changed::Nothing(false),
            })
        })
        .await
    }

    /// Takes away all permissions in a vhost that is deleted: the next one of its name is another one.
    pub(super) async fn drop_permissions(&self, vhost: &str) -> Result<(), AmqpError> {
        for account in self.users.all() {
            if account.permissions.contains_key(vhost) {
                self.drop_permission(vhost, &account.name).await?;
            }
        }
        Ok(())
    }

    /// Changes what is stored of a user, and then what is here. `change` is asked again when another gateway was faster.
    async fn change_user<T>(
        &self,
        name: &str,
        change: impl Fn(Option<Account>) -> Result<Changed<T>, AmqpError>,
    ) -> Result<T, AmqpError> {
        self.still_serves().await?;
        let _changing = self.users.changing.lock().await;
        if self.config.behind_rabbitmq {
            let text = "users are RabbitMQ's, in front of which this is";
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        if self.users.get(name).is_some_and(|known| known.fixed) {
            let text = format!("user '{name}' cannot be changed: the gateway is started with it (--user, --user-file)");
            return Err(AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        let (bucket, key) = (open(&self.bridge).await?, key(name));
        for _ in 0..ATTEMPTS {
            let entry = bucket.entry(&key).await.map_err(failed)?;
            let revision = entry.as_ref().map_or(0, |entry| entry.revision);
            let known = entry.filter(|entry| entry.operation == kv::Operation::Put);
            let known =
                known.map(|entry| serde_json::from_slice::<Document>(&entry.value).map_err(failed)).transpose()?;
            let known = known.map(|document| document.account().map_err(failed)).transpose()?;
            match change(known)? {
                Changed::Nothing(answer) => return Ok(answer),
                Changed::Put(account, answer) => {
                    let value = serde_json::to_vec(&Document::of(&account)).map_err(failed)?;
                    match bucket.update(&key, value.into(), revision).await {
                        Ok(_) => self.users.put(account),
                        Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => continue,
                        Err(error) => return Err(failed(error)),
                    }
                    return Ok(answer);
                }
                Changed::Drop(answer) => {
                    bucket.purge(&key).await.map_err(failed)?;
                    self.users.drop_key(&key);
                    return Ok(answer);
                }
            }
        }
        Err(failed(format!("user '{name}' is being changed by somebody else all the time")))
    }
}

async fn open(bridge: &Bridge) -> Result<kv::Store, AmqpError> {
    let config = kv::Config {
        bucket: BUCKET.to_owned(),
        description: "AMQP users that were made while a gateway ran".to_owned(),
        history: 1,
        ..Default::default()
    };
    open_bucket(bridge, config).await.map_err(failed)
}

fn key(name: &str) -> String {
    name::short(&name::token(name), 200)
}

/// The hash of a password with a salt of its own; `None` for an empty one, which nobody logs in with.
pub fn hashed(hashing: Hashing, password: &str) -> Option<Password> {
    let [.., a, b, c, d] = ulid::Ulid::new().to_bytes();
    Password::new(hashing, password, [a, b, c, d])
}

fn not_there(what: &str, name: &str) -> AmqpError {
    AmqpError::new(ReplyCode::NotFound, format!("{what} '{name}' not found"))
}

fn failed(error: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("cannot use the list of users: {error}"))
}
