//! A server that is killed and started again, beside everything else: a start takes seconds.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use test_support::nats::NatsServer;
use test_support::rabbit::RabbitMq;

use crate::demo::sidecar::Sidecar;
use crate::failure::Failure;

/// For how long a program is started again and again.
const SUPERVISED: Duration = Duration::from_secs(60);

/// What can be killed and started again.
pub trait Killable: Send + 'static {
    /// Its name.
    const NAME: &'static str;

    /// Ends it at once.
    fn kill_9(&mut self);

    /// Starts it again where it was.
    ///
    /// # Errors
    /// When it does not come up.
    fn again(&mut self) -> Result<(), Failure>;
}

impl Killable for RabbitMq {
    const NAME: &'static str = "RabbitMQ";

    fn kill_9(&mut self) {
        RabbitMq::kill_9(self);
    }

    fn again(&mut self) -> Result<(), Failure> {
        self.restart();
        Ok(())
    }
}

impl Killable for NatsServer {
    const NAME: &'static str = "nats-server";

    fn kill_9(&mut self) {
        NatsServer::kill_9(self);
    }

    fn again(&mut self) -> Result<(), Failure> {
        self.restart();
        Ok(())
    }
}

impl Killable for Sidecar {
    const NAME: &'static str = "sidecar";

    fn kill_9(&mut self) {
        Sidecar::kill_9(self);
    }

    /// As a supervisor: one that ends because NATS is away is started once more.
    fn again(&mut self) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut ended = self.restart();
        while ended.is_err() && begun.elapsed() < SUPERVISED {
            super::pause()?;
            ended = self.restart();
        }
        ended
    }
}

/// A server, up or on its way.
pub enum Server<T> {
    /// It runs.
    Up(T),
    /// It was killed, and is to be started again then.
    Down(T, Instant),
    /// It is starting.
    Starting(JoinHandle<Result<T, Failure>>),
    /// It did not come up again.
    Lost,
}

impl<T: Killable> Server<T> {
    /// It, while it runs.
    pub fn up(&self) -> Option<&T> {
        match self {
            Server::Up(server) => Some(server),
            _ => None,
        }
    }

    /// It, while it runs.
    pub fn up_mut(&mut self) -> Option<&mut T> {
        match self {
            Server::Up(server) => Some(server),
            _ => None,
        }
    }

    /// Kills it, to be started again then; answers whether it ran.
    pub fn kill(&mut self, back_at: Instant) -> bool {
        match std::mem::replace(self, Server::Lost) {
            Server::Up(mut server) => {
                server.kill_9();
                *self = Server::Down(server, back_at);
                true
            }
            other => {
                *self = other;
                false
            }
        }
    }

    /// Starts it again when it is time, and notices when it is up.
    ///
    /// # Errors
    /// When it did not come up.
    pub fn look(&mut self) -> Result<(), Failure> {
        *self = match std::mem::replace(self, Server::Lost) {
            Server::Down(mut server, back_at) if Instant::now() >= back_at => {
                Server::Starting(thread::spawn(move || server.again().map(|()| server)))
            }
            Server::Starting(starting) if starting.is_finished() => match starting.join() {
                Ok(Ok(server)) => Server::Up(server),
                Ok(Err(failure)) => return Err(failure),
                Err(_) => return Err(Failure::new(format_args!("{} did not come up again", T::NAME))),
            },
            other => other,
        };
        Ok(())
    }

    /// Takes it out once it is up.
    ///
    /// # Errors
    /// When it did not come up.
    pub fn into_up(mut self) -> Result<T, Failure> {
        loop {
            self.look()?;
            match self {
                Server::Up(server) => return Ok(server),
                Server::Lost => return Err(Failure::new(format_args!("{} is gone", T::NAME))),
                other => self = other,
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
