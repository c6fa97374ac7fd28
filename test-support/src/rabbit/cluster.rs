//! Three RabbitMQ nodes as one cluster on one machine, for quorum queues with three members.

use std::time::{Duration, Instant};

use super::RabbitMq;

/// Three nodes with one cookie and one epmd, each with its own name, ports and directory. Dropping it stops them.
pub struct RabbitCluster {
    // The last one first: the epmd is the first one's, and fields are dropped in order.
    others: Vec<RabbitMq>,
    first: RabbitMq,
}

impl RabbitCluster {
    /// Starts three nodes and waits (at most 60 s beyond their start) until each runs as a member of the same cluster.
    ///
    /// # Panics
    /// As [`RabbitCluster::try_start`] says.
    pub fn start() -> RabbitCluster {
        Self::try_start().unwrap_or_else(|e| panic!("{e}"))
    }

    /// As [`RabbitCluster::start`].
    ///
    /// # Errors
    /// As [`RabbitMq::try_start`], or what the nodes know of each other when they did not become one cluster.
    pub fn try_start() -> Result<RabbitCluster, String> {
        let first = RabbitMq::try_start()?;
        let mut cluster = RabbitCluster { others: Vec::new(), first };
        for _ in 0..2 {
            let node = cluster.join()?;
            cluster.others.push(node);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let nodes = cluster.first.api("GET", "/api/nodes", "").map(|(_, body)| body).unwrap_or_default();
            if nodes.matches("\"running\":true").count() == 3 {
                return Ok(cluster);
            }
            if Instant::now() > deadline {
                return Err(format!("three RabbitMQ nodes did not become one cluster: {nodes}"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The node that was there first; what is declared over it is led by it.
    pub fn first(&self) -> &RabbitMq {
        &self.first
    }

    /// All three, the first one first.
    pub fn nodes(&self) -> impl Iterator<Item = &RabbitMq> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// A new node that becomes a member when it starts for the first time.
    fn join(&self) -> Result<RabbitMq, String> {
        let mut last = String::new();
        for _ in 0..3 {
            let mut node = RabbitMq::prepare(&[])?;
            node.ports.epmd = self.first.ports.epmd;
            node.home.clone_from(&self.first.home);
            node.is_guest = true;
            let peers = [&self.first.node, &node.node];
            let mut lines = vec!["cluster_formation.peer_discovery_backend = classic_config".to_owned()];
            for (number, peer) in peers.iter().enumerate() {
                lines.push(format!("cluster_formation.classic_config.nodes.{} = {peer}", number + 1));
            }
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            node.write_files(&lines).map_err(|e| format!("cannot write the node's configuration: {e}"))?;
            match node.spawn() {
                Ok(()) => return Ok(node),
                Err(why) if why.contains("eaddrinuse") || why.contains("in use") => last = why,
                Err(why) => return Err(why),
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_queue_of_a_cluster_has_three_members() {
        let cluster = RabbitCluster::start();
        let queue = r#"{"durable":true,"arguments":{"x-queue-type":"quorum"}}"#;
        let (status, said) = cluster.first().api("PUT", "/api/queues/%2F/q", queue).expect("the API answers");
        assert_eq!(status, 201, "{said}");
        crate::eventually::eventually("it has three members that are online", || {
            let (_, said) = cluster.first().api("GET", "/api/queues/%2F/q", "").expect("the API answers");
            let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
            let count = |field: &str| said[field].as_array().map_or(0, Vec::len);
            count("members") == 3 && count("online") == 3
        });
        let dirs: Vec<_> = cluster.nodes().map(|node| node.dir().to_owned()).collect();
        assert_eq!(dirs.len(), 3);
        drop(cluster);
        assert!(dirs.iter().all(|dir| !dir.exists()));
    }
}
