//! Several sidecars side by side over one NATS account: one leads, the others follow.
//!
//! Whoever has the account's lease and the lock on RabbitMQ runs the cutover, as the only sidecar of an account does. The others take AMQP
//! clients too, and pass their bytes on to the one that leads (`relay`), as they pass on what is asked of their status and control
//! (`http::front`). So every client is under one engine, wherever it is connected: a change of weight is in force for all at once, and
//! whoever follows a sidecar that is gone takes up what a restarted one would.
//!
//! - `inside`: such a sidecar as one value, for a program that it is inside of.
//! - `lock`: the lock on RabbitMQ. To begin takes both, to go on takes either; `lease::terms` of amqp-compat has the rules.
//! - `members`: who lives, who leads, and which epoch each one knows.

mod inside;
pub mod lock;
mod members;
mod relay;
#[cfg(test)]
mod simulation;
use std::net::SocketAddr;
use std::sync::Arc;

use amqp_compat::backend::jetstream::Lease;
use amqp_compat::backend::jetstream::lease::{Holder, LeaseError, Reached};
use amqp_compat::gateway::GatewayError;
use nats_bridge::Bridge;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::control::Store;
use crate::running::{LAST_WORDS, Prepared, Sidecar, SidecarConfig, SidecarError};

pub use inside::{Shared, Sharing};
use lock::RabbitLock;
pub(crate) use members::Members;
pub use relay::{Leader, Relay};

/// A sidecar among others, until it leads.
pub struct Following {
    prepared: Prepared,
    here: Holder,
    contest: Contest,
    relay: Relay,
    members: Members,
    leads: watch::Receiver<Option<Holder>>,
}

enum Contest {
    Runs(AbortOnDropHandle<Result<(Lease, bool), LeaseError>>),
    Won(Lease, bool),
}

impl Following {
    /// Takes a place among the sidecars of an account: as the one that leads if there is none. `http` is where this one's status and
    /// control are served, `advertise` the host under which other machines reach it.
    ///
    /// # Errors
    /// As [`Sidecar::start`]; a gateway that serves the account without sharing it refuses this one.
    ///
    /// # Cancel safety
    /// As [`Sidecar::start`].
    pub async fn join(
        config: SidecarConfig,
        http: SocketAddr,
        advertise: Option<&str>,
    ) -> Result<Following, SidecarError> {
        let prepared = Prepared::new(config).await?;
        match Self::contend(&prepared, http, advertise).await {
            Ok((here, contest, relay, members, leads)) => {
                Ok(Following { prepared, here, contest, relay, members, leads })
            }
            Err(error) => {
                let _ = prepared.bridge.close(LAST_WORDS).await;
                Err(error)
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "what `join` puts together")]
    async fn contend(
        prepared: &Prepared,
        http: SocketAddr,
        advertise: Option<&str>,
    ) -> Result<(Holder, Contest, Relay, Members, watch::Receiver<Option<Holder>>), SidecarError> {
        let at = |address| reached(address, advertise).map_err(|why| GatewayError::Config { field: "advertise", why });
        let Prepared { rabbit, operator, sockets, bridge, .. } = prepared;
        let reached = Reached {
            amqp: at(sockets.address)?,
            amqps: sockets.tls_address.map(at).transpose()?,
            http: at(http)?,
            lock: format!("vhost {}", operator.vhost),
        };
        let here = Holder::sidecar(reached);
        let store = Store::open(bridge).await.map_err(SidecarError::State)?;
        let lock = RabbitLock::new(rabbit.clone(), operator.clone(), store.clone());
        lock.is_let_in().await.map_err(|error| SidecarError::Refused {
            rabbit: rabbit.to_string(),
            user: operator.user.clone(),
            error,
        })?;
        let (tell, mut leads) = watch::channel(None);
        let (contender, entrant) = (bridge.clone(), here.clone());
        // It ends with whoever waits for it: nobody would serve with what it wins.
        let mut contest = AbortOnDropHandle::new(tokio::spawn(async move {
            Lease::follow(&contender, entrant, Arc::new(lock), &tell).await
        }));
        let contest = tokio::select! {
            won = &mut contest => {
                let (lease, overtakes) = won.map_err(|error| SidecarError::State(error.to_string()))??;
                Contest::Won(lease, overtakes)
            }
            Ok(()) = async { leads.wait_for(Option::is_some).await.map(drop) } => Contest::Runs(contest),
        };
        let relay = Relay::new();
        let members = Members::start(bridge, &here, store, relay.clone());
        Ok((here, contest, relay, members, leads))
    }

    /// Whether another sidecar leads, so that this one takes clients already.
    pub fn follows(&self) -> bool {
        matches!(self.contest, Contest::Runs(_))
    }

    /// Where its clients connect to, and those that use TLS.
    pub fn addresses(&self) -> (SocketAddr, Option<SocketAddr>) {
        (self.prepared.sockets.address, self.prepared.sockets.tls_address)
    }

    /// Its connection, to be closed by who gives it up.
    fn bridge(&self) -> Bridge {
        self.prepared.bridge.clone()
    }

    /// Who leads, as this one reaches it.
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.relay.leader()
    }

    /// Passes clients on to the one that leads, until this one does.
    ///
    /// # Errors
    /// As [`Sidecar::start`], and when a gateway has taken the account that does not share it.
    ///
    /// # Cancel safety
    /// A dropped future ends the relay, and with it the connections of its clients; a lease that was just taken runs out by itself.
    pub async fn lead(self) -> Result<Sidecar, SidecarError> {
        let Following { prepared, here, contest, relay, members, mut leads } = self;
        let (lease, overtakes) = match contest {
            Contest::Won(lease, overtakes) => (lease, overtakes),
            Contest::Runs(mut contest) => loop {
                let leader = leads.borrow_and_update().clone();
                if let Some(holder) = &leader {
                    let leader = Leader::of(holder, &here);
                    tracing::info!(leader = %holder, why = leader.unreachable, "follows the sidecar that leads");
                    relay.follow(leader);
                }
                tokio::select! {
                    won = &mut contest => {
                        break match won.map_err(|error| SidecarError::State(error.to_string())).and_then(|won| Ok(won?)) {
                            Ok(won) => won,
                            Err(error) => {
                                let _ = prepared.bridge.close(LAST_WORDS).await;
                                return Err(error);
                            }
                        };
                    }
                    Ok(()) = leads.changed() => {}
                    () = relay.run(&prepared.sockets.listener) => {}
                }
            },
        };
        let former = leads.borrow().as_ref().map(Holder::to_string);
        let how = match (former, overtakes) {
            (Some(former), true) => format!("{here} leads; {former} was silent"),
            (None, true) => format!("{here} leads; the one before was killed"),
            (Some(former), false) => format!("{here} leads; {former} has left"),
            (None, false) => format!("{here} leads"),
        };
        tracing::info!(how, "this sidecar leads those of its NATS account");
        let own = Leader::own(&here, prepared.sockets.address, prepared.sockets.tls_address);
        let sidecar = prepared.serve(lease, Some(how)).await?;
        members.leads(sidecar.cutover());
        sidecar.cutover().know_others(members.all());
        // Clients that have waited here come to its own listener.
        relay.follow(own);
        Ok(sidecar.keeping(members))
    }
}

/// What another sidecar reaches this address by.
fn reached(address: SocketAddr, host: Option<&str>) -> Result<String, String> {
    match (host, address.ip()) {
        (_, ip) if ip.is_loopback() => Ok(address.to_string()),
        (Some(host), _) if host.contains(':') && !host.starts_with('[') => Ok(format!("[{host}]:{}", address.port())),
        (Some(host), _) => Ok(format!("{host}:{}", address.port())),
        (None, ip) if ip.is_unspecified() => Err(format!(
            "{address} is every address of this machine: name the one by which the other sidecars reach it"
        )),
        (None, _) => Ok(address.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_reach_a_sidecar_by_the_host_that_is_advertised_and_this_machine_alone_by_loopback() {
        let at = |address: &str, host| reached(address.parse().expect("an address"), host);
        assert_eq!(at("10.0.0.1:5673", None).as_deref(), Ok("10.0.0.1:5673"));
        assert_eq!(at("0.0.0.0:5673", Some("a.example")).as_deref(), Ok("a.example:5673"));
        assert_eq!(at("[::]:5673", Some("fd00::1")).as_deref(), Ok("[fd00::1]:5673"));
        assert_eq!(at("127.0.0.1:8223", Some("a.example")).as_deref(), Ok("127.0.0.1:8223"));
        assert!(at("0.0.0.0:5673", None).is_err_and(|why| why.contains("every address")));
    }
}
