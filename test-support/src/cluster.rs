//! A cluster of three nats-servers with JetStream, for streams with three replicas.

use std::time::{Duration, Instant};

use crate::nats::{Builder, NatsServer};
use crate::ports;

/// Three servers on 127.0.0.1 that form one cluster. Dropping it stops them.
///
/// A client is told only of the servers that it was given (`no_advertise`), so that a proxy in front of one is not walked
/// around.
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts three servers and waits (at most 60 s) until they have elected a leader for JetStream.
    ///
    /// # Panics
    /// When no binary is found, or no leader is elected.
    pub fn start() -> NatsCluster {
        NatsCluster::start_with(&NatsServer::builder())
    }

    /// As [`NatsCluster::start`], each server by this plan, which says neither directory nor port.
    ///
    /// # Panics
    /// As [`NatsCluster::start`].
    pub fn start_with(plan: &Builder) -> NatsCluster {
        // A 2.10 that elects itself before the others have come was seen to stay with that: then there are three new ones.
        for _ in 0..3 {
            let cluster = NatsCluster { nodes: three(plan) };
            // A server that has not joined when one is killed would not be counted: two of two are no majority of three.
            if cluster.is_soon(|meta| !meta.leader.is_empty() && meta.cluster_size == 3 && meta.replicas.len() == 2) {
                return cluster;
            }
        }
        panic!("three servers elected no leader three times");
    }

    /// The servers' client URLs, separated by commas.
    pub fn urls(&self) -> String {
        self.nodes.iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
    }

    /// One of the three.
    ///
    /// # Panics
    /// When `index` is not 0, 1 or 2.
    pub fn node(&self, index: usize) -> &NatsServer {
        &self.nodes[index]
    }

    /// One of the three, to kill and start again.
    ///
    /// # Panics
    /// When `index` is not 0, 1 or 2.
    pub fn node_mut(&mut self, index: usize) -> &mut NatsServer {
        &mut self.nodes[index]
    }

    /// Waits (at most 60 s) until the servers that run have a leader for JetStream.
    ///
    /// # Panics
    /// When there is none by then.
    pub fn wait_for_leader(&self) {
        let elected = self.is_soon(|meta| !meta.leader.is_empty() && meta.cluster_size == 3);
        assert!(elected, "no leader within 60 s:\n{}", self.nodes[0].log());
    }

    /// Waits until one of the servers says so of the cluster; false when none does for 60 s.
    fn is_soon(&self, is_so: impl Fn(&Meta) -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.nodes.iter().filter_map(meta).any(|meta| is_so(&meta)) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }
}

fn three(plan: &Builder) -> Vec<NatsServer> {
    // The routes of all must be known before the first one starts.
    let routes = ports::free(3).expect("free ports");
    let urls: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let nodes = routes.iter().enumerate().map(|(i, port)| {
        let plan = plan.clone().config_line(format!("server_name: n{}", i + 1)).config_line(format!(
            "cluster {{ name: test, listen: \"127.0.0.1:{port}\", no_advertise: true, routes: [ {} ] }}",
            urls.join(", ")
        ));
        plan.start()
    });
    nodes.collect()
}

/// What a server knows of the cluster; of the others only the leader knows.
#[derive(serde::Deserialize)]
struct Meta {
    #[serde(default)]
    leader: String,
    #[serde(default)]
    cluster_size: usize,
    #[serde(default)]
    replicas: Vec<serde_json::Value>,
}

fn meta(node: &NatsServer) -> Option<Meta> {
    #[derive(serde::Deserialize)]
    struct Jsz {
        meta_cluster: Option<Meta>,
    }
    let jsz = node.monitor("/jsz").ok()?;
    serde_json::from_str::<Jsz>(&jsz).ok()?.meta_cluster
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_servers_have_a_leader_also_when_one_is_killed() {
        let mut cluster = NatsCluster::start();
        assert_eq!(cluster.urls().split(',').count(), 3);
        cluster.node_mut(1).kill_9();
        cluster.wait_for_leader();
        cluster.node_mut(1).restart();
    }
}
