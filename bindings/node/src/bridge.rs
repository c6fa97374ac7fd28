//! The connection.

use napi::bindgen_prelude::{Env, PromiseRaw};
use napi_derive::napi;
use nats_bridge::Config;

use crate::errors;
use crate::held::Held;

/// A connection.
#[napi]
pub struct Bridge {
    core: Held<nats_bridge::Bridge>,
}

/// What may be said about a connection; what is left out has the core's default.
#[napi(object)]
pub struct ConnectOptions {
    /// The connection's name.
    pub name: Option<String>,
}

/// Connects.
#[napi]
pub fn connect(env: &Env, servers: Vec<String>, options: ConnectOptions) -> napi::Result<PromiseRaw<'_, Bridge>> {
    let mut config = Config { servers, ..Config::default() };
    if let Some(name) = options.name {
        config.name = name;
    }
    env.spawn_future(async move {
        let core = nats_bridge::Bridge::connect_with(config).await.map_err(|e| errors::from_core(&e))?;
        Ok(Bridge { core: Held::new(core) })
    })
}

#[napi]
impl Bridge {
    /// The version of the server that is connected now.
    #[napi(getter)]
    pub fn server_version(&self) -> String {
        self.core.get().server_version()
    }
}
