//! The configured pools: found by name, called through the gate, measured.

use super::fault::{chain, from_gate_storage, from_storage};
use super::gate::{Gate, Lane};
use crate::config::{Config, PoolSettings};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::{ImageId, VolumeId};
use crate::model::reason::Reason;
use crate::model::volume::PoolKind;
use crate::storage::{Pool, PoolUsage, Qcow2Pool, StorageError, Task, VolumeFile};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a quick call to a pool may take.
const QUICK: Duration = Duration::from_secs(60);

/// How long a worker waits for what is nice to know.
const GLANCE: Duration = Duration::from_millis(500);

/// One configured pool.
pub struct PoolEntry {
    /// What it can do.
    pub pool: Arc<dyn Pool>,
    /// Whether VMs are created here unless another pool is named.
    pub default: bool,
    measured: Mutex<Measured>,
    /// The records say that something is in it.
    used: AtomicBool,
}

/// What was last measured of a pool.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Its space; `None` if it could never be measured.
    pub usage: Option<PoolUsage>,
    /// Why it can't be used now.
    pub trouble: Option<Fault>,
}

/// All configured pools.
pub struct Pools {
    entries: Vec<PoolEntry>,
    gate: Arc<Gate>,
    /// Whether it is known which pools hold something.
    settled: AtomicBool,
}

impl Pools {
    /// The pools of the configuration, none of them touched yet.
    pub fn new(config: &Config, gate: Arc<Gate>) -> Self {
        let entry = |settings: &PoolSettings| PoolEntry {
            pool: match settings.kind {
                PoolKind::Qcow2 => Arc::new(Qcow2Pool::new(&settings.name, &settings.path)),
                PoolKind::Rbd => unreachable!("the configuration refuses rbd pools"),
            },
            default: settings.default,
            measured: Mutex::default(),
            used: AtomicBool::new(false),
        };
        Self {
            entries: config.pools.iter().map(entry).collect(),
            gate,
            settled: AtomicBool::new(true),
        }
    }

    /// All of them, in the order of the configuration.
    pub fn all(&self) -> &[PoolEntry] {
        &self.entries
    }

    /// The pool of this name.
    pub fn get(&self, name: &str) -> Option<&PoolEntry> {
        self.entries.iter().find(|entry| entry.pool.name() == name)
    }

    /// The pool of this name; else a fault about the field that named it.
    ///
    /// # Errors
    /// `POOL_NOT_FOUND`.
    pub fn named(&self, name: &str, field: &str) -> Result<&PoolEntry, Fault> {
        self.get(name).ok_or_else(|| {
            Fault::field(Reason::PoolNotFound, field, "names no configured pool").with("pool", name)
        })
    }

    /// The pool for what is made without naming one.
    pub fn default_pool(&self) -> &PoolEntry {
        self.entries
            .iter()
            .find(|entry| entry.default)
            .or(self.entries.first())
            .expect("the configuration has at least one pool")
    }

    /// Makes a quick call to a pool.
    ///
    /// # Errors
    /// What the pool's error comes to; the error itself is logged.
    pub async fn call<T: Send + 'static>(
        &self,
        name: &str,
        call: impl FnOnce(&dyn Pool, &Task) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Fault> {
        self.call_task(name, Lane::Storage, QUICK, Task::within(QUICK), call)
            .await
    }

    /// Makes a call to a pool with a leash and a deadline of its own.
    ///
    /// # Errors
    /// As [`Pools::call`].
    pub async fn call_task<T: Send + 'static>(
        &self,
        name: &str,
        lane: Lane,
        deadline: Duration,
        task: Task,
        call: impl FnOnce(&dyn Pool, &Task) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Fault> {
        let entry = self.get(name).ok_or_else(|| {
            Fault::new(
                Reason::PoolNotFound,
                format!("pool {name} is no longer configured"),
            )
            .with("pool", name)
        })?;
        let pool = entry.pool.clone();
        // The task ends by itself a little before the gate gives up on it.
        let grace = deadline + Duration::from_secs(5);
        match self
            .gate
            .run(lane, grace, move || call(pool.as_ref(), &task))
            .await
        {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::warn!(pool = name, error = chain(&error), "pool call failed");
                // What is wrong with the pool as a whole says more.
                let trouble = entry.measured().trouble;
                Err(trouble.unwrap_or_else(|| from_storage(&error, name)))
            }
            Err(error) => Err(from_gate_storage(error, name)),
        }
    }

    /// Prepares every pool, and measures it. A pool that can't be used is
    /// logged, and tried again by [`Pools::measure`].
    ///
    /// A pool in `used` is known to hold something: it is not made anew, because
    /// then its file system is not mounted, and what is in it would seem gone.
    pub async fn prepare(&self, used: &HashSet<String>) {
        for entry in &self.entries {
            let used = used.contains(entry.pool.name());
            entry.used.store(used, Ordering::Relaxed);
        }
        self.settled.store(true, Ordering::Relaxed);
        self.look(true).await;
    }

    /// Prepares and measures the pools that were made before. The others are left
    /// as they are, until [`Pools::prepare`] tells which of them hold something.
    pub async fn prepare_made(&self) {
        for entry in &self.entries {
            entry.used.store(true, Ordering::Relaxed);
        }
        self.settled.store(false, Ordering::Relaxed);
        self.look(true).await;
    }

    /// Removes what a former process left half made in the pools, but for the
    /// downloads of the imports in `keep`. To be called before anything is made.
    pub async fn sweep_temporary(&self, keep: Vec<ImageId>) {
        for entry in &self.entries {
            let keep = keep.clone();
            let swept = self
                .call(entry.pool.name(), move |pool, _| {
                    pool.sweep_temporary(&keep)
                })
                .await;
            for name in swept.unwrap_or_default() {
                tracing::info!(
                    pool = entry.pool.name(),
                    name,
                    "something half made was removed"
                );
            }
        }
    }

    /// Measures every pool; prepares those that were in trouble.
    pub async fn measure(&self) {
        self.look(false).await;
    }

    async fn look(&self, first: bool) {
        let settled = self.settled.load(Ordering::Relaxed);
        for entry in &self.entries {
            let prepare = first || !settled || entry.measured().trouble.is_some();
            let used = entry.used.load(Ordering::Relaxed);
            let looked = self
                .call(entry.pool.name(), move |pool, _| {
                    if prepare && used && !pool.is_made() {
                        return Ok(None);
                    }
                    if prepare {
                        pool.prepare()?;
                    }
                    pool.usage().map(Some)
                })
                .await;
            if !settled && matches!(looked, Ok(None)) {
                // Never used or not mounted: that is not known yet.
                continue;
            }
            let looked =
                looked.and_then(|usage| usage.ok_or_else(|| not_mounted(entry.pool.name())));
            let mut measured = entry
                .measured
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match looked {
                Ok(usage) => {
                    *measured = Measured {
                        usage: Some(usage),
                        trouble: None,
                    }
                }
                Err(fault) => {
                    tracing::error!(
                        pool = entry.pool.name(),
                        error = chain(&fault),
                        "pool can't be used"
                    );
                    measured.trouble = Some(fault);
                }
            }
        }
    }

    /// Measures a volume, if its pool answers at once: a worker that hangs on a
    /// pool could not take its guest's power.
    pub async fn glance(&self, name: &str, id: VolumeId) -> Option<VolumeFile> {
        let pool = self.get(name)?.pool.clone();
        let glance = self
            .gate
            .run(Lane::Storage, GLANCE, move || pool.volume(id))
            .await;
        glance.ok()?.ok()?
    }

    /// Refuses what would not fit into a pool's free space, as it is now.
    ///
    /// # Errors
    /// `POOL_FULL`, or why the pool can't be measured.
    pub async fn check_room(&self, name: &str, needed: Bytes) -> Result<(), Fault> {
        let usage = self.call(name, |pool, _| pool.usage()).await?;
        if needed <= usage.free {
            return Ok(());
        }
        Err(Fault::new(
            Reason::PoolFull,
            format!(
                "pool {name} has {} free, and {needed} may be needed",
                usage.free
            ),
        )
        .with("pool", name)
        .with("free_bytes", usage.free.get())
        .with("needed_bytes", needed.get()))
    }
}

fn not_mounted(name: &str) -> Fault {
    Fault::new(
        Reason::PoolAway,
        format!("pool {name} is recorded to hold volumes or images, and its folder is empty: is its file system mounted?"),
    )
    .with("pool", name)
}

impl PoolEntry {
    /// What was last measured of it.
    pub fn measured(&self) -> Measured {
        self.measured
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
