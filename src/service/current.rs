//! The part of the configuration that changes while the agent runs, as far as the
//! service reads it: networks and hardware profiles; and whether the file was read.
//!
//! Invariant: what is taken once is one configuration. Who needs several things for
//! one request takes them all from one [`Offered`]. What an operation has resolved is
//! in its intent and in the VM's record, and does not change with the file.

use crate::config::{Config, HardwareProfile, Network};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// What VMs can ask for by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// `[[networks]]`, with unique ids.
    pub networks: Vec<Network>,
    /// `[[hardware_profiles]]`, with unique ids.
    pub hardware_profiles: Vec<HardwareProfile>,
}

impl Offered {
    /// What a configuration offers.
    pub fn of(config: &Config) -> Self {
        Self {
            networks: config.networks.clone(),
            hardware_profiles: config.hardware_profiles.clone(),
        }
    }

    /// The network with this id.
    pub fn network(&self, id: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.id == id)
    }

    /// The hardware profile with this id.
    pub fn hardware_profile(&self, id: &str) -> Option<&HardwareProfile> {
        let mut profiles = self.hardware_profiles.iter();
        profiles.find(|profile| profile.id == id)
    }
}

/// What came of reading the configuration the last time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// It is in use, but for these keys, which need a restart.
    Read {
        /// The keys' paths; none: all of it is in use.
        restart: Vec<String>,
    },
    /// It was refused whole; the former one is in use.
    Refused {
        /// How many faults it has.
        faults: usize,
    },
}

/// What holds now.
#[derive(Debug)]
pub struct Current {
    offered: RwLock<Arc<Offered>>,
    reading: watch::Sender<Reading>,
}

impl Current {
    /// The configuration that the agent starts with.
    pub fn new(config: &Config) -> Self {
        let restart = Vec::new();
        Self {
            offered: RwLock::new(Arc::new(Offered::of(config))),
            reading: watch::Sender::new(Reading::Read { restart }),
        }
    }

    /// What is offered now; to be taken once for one request.
    pub fn offered(&self) -> Arc<Offered> {
        let offered = self.offered.read();
        offered.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Offers this from now on.
    pub fn offer(&self, offered: Offered) {
        let mut own = self.offered.write().unwrap_or_else(PoisonError::into_inner);
        *own = Arc::new(offered);
    }

    /// What came of reading the last time.
    pub fn reading(&self) -> Reading {
        self.reading.borrow().clone()
    }

    /// The same, now and later.
    pub fn readings(&self) -> watch::Receiver<Reading> {
        self.reading.subscribe()
    }

    /// Notes what came of reading.
    pub fn note(&self, reading: Reading) {
        self.reading.send_replace(reading);
    }
}
