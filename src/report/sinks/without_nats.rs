//! NATS in a program that was built without it: no server is ever reached.
//!
//! The configuration refuses `[[nats]]` then, so that nobody makes such a sink but in
//! code.

use super::{Link, Problem, Sink, Wish};
use crate::config::NatsSettings;
use crate::proto::report::v1::Hello;
use async_trait::async_trait;

/// A NATS server that is not called.
#[derive(Debug)]
pub struct NatsSink {
    servers: Vec<String>,
}

impl NatsSink {
    /// The one that is configured so.
    pub fn new(settings: NatsSettings) -> Self {
        Self {
            servers: settings.servers,
        }
    }
}

#[async_trait]
impl Sink for NatsSink {
    fn endpoints(&self) -> &[String] {
        &self.servers
    }

    async fn connect(&self, _: &str, _: Hello) -> Result<(Box<dyn Link>, Wish), Problem> {
        Err(Problem::new("this kvmlet was built without NATS"))
    }
}
