//! How to log in, from the options of a connection.

use std::path::PathBuf;

use nats_bridge::Login;

use crate::Fault;

/// What a connection may be given to log in with: one way, whole, or none.
#[derive(Debug, Default)]
pub struct LoginOptions {
    /// With `password` or `password_file`.
    pub user: Option<String>,
    /// Of `user`.
    pub password: Option<String>,
    /// A file with the password of `user`.
    pub password_file: Option<PathBuf>,
    /// A shared token.
    pub token: Option<String>,
    /// A file with a shared token.
    pub token_file: Option<PathBuf>,
    /// The seed of an nkey.
    pub nkey: Option<String>,
    /// A file with the seed of an nkey.
    pub nkey_file: Option<PathBuf>,
    /// A file with a JWT and a seed.
    pub credentials_file: Option<PathBuf>,
}

impl LoginOptions {
    /// The way to log in. `spell` gives an option's name as the language has it.
    ///
    /// # Errors
    /// `Argument`: two ways were given, or half of one; the option is named.
    pub fn login(self, spell: impl Fn(&'static str) -> String) -> Result<Login, Fault> {
        let LoginOptions { user, password, password_file, token, token_file, nkey, nkey_file, credentials_file } = self;
        let needs_user = [("password", password.is_some()), ("password_file", password_file.is_some())];
        let needs_user = needs_user.into_iter().find(|(_, given)| *given).map(|(name, _)| name);
        let half = |has: &'static str, lacks: &str| Err(Fault::argument(spell(has), format!("it goes with {lacks}")));
        match (&user, needs_user) {
            (Some(_), None) => return half("user", &format!("{} or {}", spell("password"), spell("password_file"))),
            (None, Some(name)) => return half(name, &spell("user")),
            _ => {}
        }
        let user = user.unwrap_or_default();
        let ways = [
            ("password", password.map(|password| Login::Password { user: user.clone(), password })),
            ("password_file", password_file.map(|file| Login::PasswordFile { user, file })),
            ("token", token.map(Login::Token)),
            ("token_file", token_file.map(Login::TokenFile)),
            ("nkey", nkey.map(Login::Nkey)),
            ("nkey_file", nkey_file.map(Login::NkeyFile)),
            ("credentials_file", credentials_file.map(Login::CredentialsFile)),
        ];
        let mut given = ways.into_iter().filter_map(|(name, login)| Some((name, login?)));
        match (given.next(), given.next()) {
            (None, _) => Ok(Login::FromUrl),
            (Some((_, login)), None) => Ok(login),
            (Some((first, _)), Some((second, _))) => {
                Err(Fault::argument(spell(second), format!("{} is given too; log in one way", spell(first))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(options: LoginOptions) -> (String, String) {
        match options.login(str::to_owned) {
            Err(Fault::Argument { field, why }) => (field, why),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_whole_way_or_none_is_taken_and_anything_else_names_the_option() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(LoginOptions::default().login(str::to_owned).ok(), Some(Login::FromUrl));
        let file = LoginOptions { user: some("u"), password_file: Some("f".into()), ..LoginOptions::default() };
        assert_eq!(file.login(str::to_owned).ok(), Some(Login::PasswordFile { user: "u".into(), file: "f".into() }));
        let nkey = LoginOptions { nkey_file: Some("f".into()), ..LoginOptions::default() };
        assert_eq!(nkey.login(str::to_owned).ok(), Some(Login::NkeyFile("f".into())));

        let half = LoginOptions { user: some("u"), ..LoginOptions::default() };
        assert_eq!(told(half), ("user".into(), "it goes with password or password_file".into()));
        let half = LoginOptions { password_file: Some("f".into()), token: some("t"), ..LoginOptions::default() };
        assert_eq!(told(half), ("password_file".into(), "it goes with user".into()));
        let two = LoginOptions { token: some("t"), nkey: some("SU"), ..LoginOptions::default() };
        assert_eq!(told(two), ("nkey".into(), "token is given too; log in one way".into()));
    }
}
