//! The servers of one run: one, or three in a cluster.

use std::sync::{Arc, Mutex};

use test_support::cluster::NatsCluster;
use test_support::fault_proxy::FaultProxy;
use test_support::nats::NatsServer;

#[derive(Clone)]
pub struct Places(Arc<Mutex<Servers>>);

enum Servers {
    One(Box<NatsServer>),
    Three(NatsCluster),
}

impl Places {
    pub fn one() -> Places {
        Places(Arc::new(Mutex::new(Servers::One(Box::new(NatsServer::start())))))
    }

    pub fn three() -> Places {
        Places(Arc::new(Mutex::new(Servers::Three(NatsCluster::start()))))
    }

    pub fn ports(&self) -> Vec<u16> {
        match &*self.0.lock().unwrap() {
            Servers::One(server) => vec![server.port()],
            Servers::Three(cluster) => (0..3).map(|i| cluster.node(i).port()).collect(),
        }
    }

    /// Where each is monitored, and its name. Both stay when it is started again.
    pub fn monitors(&self) -> Vec<(u16, String)> {
        let port = |server: &NatsServer| server.monitor_url().rsplit(':').next().unwrap().parse().unwrap();
        match &*self.0.lock().unwrap() {
            Servers::One(server) => vec![(port(server), String::new())],
            Servers::Three(cluster) => (0..3).map(|i| (port(cluster.node(i)), format!("n{}", i + 1))).collect(),
        }
    }

    pub fn urls(&self) -> Vec<String> {
        self.ports().into_iter().map(|port| format!("nats://127.0.0.1:{port}")).collect()
    }

    pub fn replicas(&self) -> u8 {
        self.ports().len() as u8
    }

    /// Kills a server, and starts it again after what `meanwhile` takes. `gently`: with SIGTERM.
    pub fn kill_and_restart(&self, which: usize, meanwhile: std::time::Duration, gently: bool) {
        let mut servers = self.0.lock().unwrap();
        let server = match &mut *servers {
            Servers::One(server) => &mut **server,
            Servers::Three(cluster) => cluster.node_mut(which % 3),
        };
        match gently {
            true => server.stop(),
            false => server.kill_9(),
        }
        std::thread::sleep(meanwhile);
        server.restart();
    }
}

/// A proxy in front of each server.
pub struct Proxies(Vec<FaultProxy>);

impl Proxies {
    pub async fn start(places: &Places, seed: u64) -> Proxies {
        let mut proxies = Vec::new();
        for (i, port) in places.ports().into_iter().enumerate() {
            proxies.push(FaultProxy::start(port, seed.wrapping_add(i as u64)).await);
        }
        Proxies(proxies)
    }

    pub fn urls(&self) -> Vec<String> {
        self.0.iter().map(FaultProxy::url).collect()
    }

    pub fn each(&self, act: impl Fn(&FaultProxy)) {
        self.0.iter().for_each(act);
    }
}
