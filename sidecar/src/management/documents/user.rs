//! Users and what they may do, as documents, and bodies as requests.

use amqp_compat::backend::jetstream::{User, hashed};
use amqp_compat::model::access::{Account, Hashing, Password, Permission};
use serde_json::{Value, json};

use super::fields::Fields;
use super::refusal::Refusal;

/// What a body says of a user.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::management) struct Asked {
    /// `None`: it cannot log in by password.
    pub(in crate::management) password: Option<Password>,
    pub(in crate::management) tags: Vec<String>,
}

impl Asked {
    /// Reads a body: `tags`, and `password` or `password_hash`, with `hashing_algorithm`.
    ///
    /// # Errors
    /// 400 naming the field.
    pub(in crate::management) fn read(fields: &Fields) -> Result<Self, Refusal> {
        let hashing = match fields.text("hashing_algorithm")? {
            "" => Hashing::default(),
            name => Hashing::from_name(name).map_err(Refusal::bad_request)?,
        };
        let tags = match fields.get("tags") {
            None => return Err(Refusal::bad_request("tags_not_present")),
            Some(Value::String(text)) => words(text.split(',')),
            Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
                words(items.iter().filter_map(Value::as_str))
            }
            Some(_) => {
                return Err(Refusal::bad_request("field 'tags' is neither a text with commas nor a list of texts"));
            }
        };
        let password = match (fields.text("password")?, fields.text("password_hash")?) {
            ("", "") => None,
            ("", hash) => Some(Password::from_hash(hashing, hash).map_err(Refusal::bad_request)?),
            (password, _) => hashed(hashing, password),
        };
        Ok(Self { password, tags })
    }

    /// Whether a user that `serve` was started with has this password.
    pub(in crate::management) fn is_password_of(&self, given: &User) -> bool {
        self.password.as_ref().map_or(given.password.is_empty(), |password| password.is(&given.password))
    }
}

fn words<'a>(words: impl Iterator<Item = &'a str>) -> Vec<String> {
    words.map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// A user. The hash is RabbitMQ's, so that exported definitions can be imported there.
pub(in crate::management) fn document(account: &Account) -> Value {
    let hashing = account.password.as_ref().map(Password::hashing).unwrap_or_default();
    json!({
        "name": account.name,
        "password_hash": account.password.as_ref().map(Password::hash).unwrap_or_default(),
        "hashing_algorithm": hashing.name(),
        "tags": account.tags,
        "limits": {},
    })
}

/// Who is asking.
pub(in crate::management) fn whoami(account: &Account) -> Value {
    json!({ "name": account.name, "tags": account.tags })
}

/// A user's permission in a vhost; `None` where it has none.
pub(in crate::management) fn permission(account: &Account, vhost: &str) -> Option<Value> {
    let permission = account.permission(vhost)?;
    let [configure, write, read] = permission.patterns();
    Some(json!({ "user": account.name, "vhost": vhost, "configure": configure, "write": write, "read": read }))
}

/// The permission that a body describes.
///
/// # Errors
/// 400 naming the field.
pub(in crate::management) fn read_permission(fields: &Fields) -> Result<Permission, Refusal> {
    let missing: Vec<String> = ["configure", "write", "read"]
        .into_iter()
        .filter(|name| fields.get(name).is_none())
        .map(|name| format!("{{key_missing,{name}}}"))
        .collect();
    if !missing.is_empty() {
        return Err(Refusal::bad_request(format!("[{}]", missing.join(","))));
    }
    let permission = Permission::new(fields.text("configure")?, fields.text("write")?, fields.text("read")?);
    permission.map_err(Refusal::bad_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<Asked, String> {
        Asked::read(&Fields::of(body, "the body").expect("an object")).map_err(|refusal| refusal.reason)
    }

    #[test]
    fn a_user_is_read_as_rabbitmq_reads_it() {
        let user = read(json!({ "password": "secret", "tags": "administrator, own" })).expect("valid");
        assert!(user.password.is_some_and(|password| password.is("secret")));
        assert_eq!(user.tags, ["administrator", "own"]);
        assert_eq!(
            read(json!({ "tags": ["a", ""] })).map(|user| (user.password, user.tags)),
            Ok((None, vec!["a".into()]))
        );
        assert_eq!(read(json!({ "password": "" })), Err("tags_not_present".to_owned()));
        let hash = "eBUYjg8UChvIIDLLB3wTlYm+gttRS0vI/OXL13Ijr/uuZqXZ";
        let user = read(json!({ "tags": "", "password_hash": hash })).expect("valid");
        assert!(user.password.is_some_and(|password| password.is("guest")));
        for (body, field) in [
            (json!({ "tags": 5 }), "'tags'"),
            (json!({ "tags": "", "password": 5 }), "'password'"),
            (json!({ "tags": "", "password_hash": "x" }), "password_hash"),
            (json!({ "tags": "", "hashing_algorithm": "md5" }), "hashing_algorithm 'md5'"),
        ] {
            assert!(read(body).is_err_and(|reason| reason.contains(field)), "{field}");
        }
    }

    #[test]
    fn a_permission_comes_back_as_it_was_given() {
        let given = json!({ "user": "u", "vhost": "v", "configure": "^c", "write": "", "read": ".*" });
        let read = read_permission(&Fields::of(given.clone(), "the body").expect("an object")).expect("valid");
        let mut account = Account::fixed("u", None);
        account.fixed = false;
        assert_eq!(permission(&account, "v"), None);
        account.permissions.insert("v".to_owned(), read);
        assert_eq!(permission(&account, "v"), Some(given));
        let refused =
            |body| read_permission(&Fields::of(body, "the body").expect("an object")).expect_err("refused").reason;
        assert_eq!(refused(json!({ "configure": "" })), "[{key_missing,write},{key_missing,read}]");
        assert!(refused(json!({ "configure": "(", "write": "", "read": "" })).starts_with("configure: '('"));
    }
}
