//! The configured pools: found by name, called through the gate, measured.

use super::fault::{chain, from_gate_storage, from_storage};
use super::gate::{Gate, Lane};
use crate::config::{Config, Keyring, PoolBackend, PoolSettings, RbdSettings};
use crate::model::bytes::Bytes;
use crate::model::fault::Fault;
use crate::model::ids::ImageId;
use crate::model::reason::Reason;
use crate::model::volume::VolumeRef;
use crate::pace;
use crate::storage::{
    self, Pool, PoolUsage, Qcow2Pool, RbdPool, RbdPoolSpec, StorageError, StorageErrorKind, Task,
};
use futures_util::future::join_all;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How long a quick call to a pool may take.
const QUICK: Duration = Duration::from_secs(60);
/// How long removing what has had its time in the trash may take.
const EMPTYING: Duration = Duration::from_secs(3600);
/// How long a worker waits for what is nice to know.
const GLANCE: Duration = Duration::from_millis(500);
/// How long the agent's start waits for a cluster; it goes on without it.
const FIRST_LOOK: Duration = Duration::from_secs(12);
/// For how long a cluster that was found away is not asked again by calls.
const SPARED: Duration = Duration::from_secs(45);

/// How long a call to a pool takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Seconds at most.
    Quick,
    /// Minutes: it moves data.
    Long,
}

/// One configured pool.
pub struct PoolEntry {
    /// What it can do.
    pub pool: Arc<dyn Pool>,
    /// Whether VMs are created here unless another pool is named.
    pub default: bool,
    measured: Arc<Mutex<Measured>>,
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
    /// When the trouble was seen last.
    seen: Option<Instant>,
}

/// All configured pools.
pub struct Pools {
    entries: Vec<PoolEntry>,
    gate: Arc<Gate>,
    /// Whether it is known which pools hold something.
    settled: AtomicBool,
}

impl Pools {
    /// The pools of the configuration, none of them touched yet. `node` is this host's
    /// id.
    pub fn new(config: &Config, gate: Arc<Gate>, node: Uuid) -> Self {
        let entry = |settings: &PoolSettings| PoolEntry {
            pool: match &settings.backend {
                PoolBackend::Qcow2 => Arc::new(Qcow2Pool::new(&settings.name, &settings.path)),
                PoolBackend::Rbd(rbd) => Arc::new(rbd_pool(settings, rbd, node)),
            },
            default: settings.default,
            measured: Arc::default(),
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
        self.call_task(name, Work::Quick, QUICK, Task::within(QUICK), call)
            .await
    }

    /// Makes a call to a pool with a leash and a deadline of its own.
    ///
    /// # Errors
    /// As [`Pools::call`].
    pub async fn call_task<T: Send + 'static>(
        &self,
        name: &str,
        work: Work,
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
        if let Some(trouble) = spared(&entry.measured, entry.pool.is_shared()) {
            return Err(trouble);
        }
        let measured = entry.measured.clone();
        self.ask(entry, work, deadline, task, move |pool, task| {
            // Those that waited for their turn must not wait in vain after that.
            match spared(&measured, pool.is_shared()) {
                Some(trouble) => Ok(Err(trouble)),
                None => call(pool, task).map(Ok),
            }
        })
        .await?
    }

    /// Makes a call to a pool, also to one that is known to be away.
    async fn ask<T: Send + 'static>(
        &self,
        entry: &PoolEntry,
        work: Work,
        deadline: Duration,
        task: Task,
        call: impl FnOnce(&dyn Pool, &Task) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Fault> {
        let pool = entry.pool.clone();
        let name = entry.pool.name();
        // The task ends by itself a little before the gate gives up on it.
        let grace = deadline + Duration::from_secs(5);
        match self
            .gate
            .run(entry.lane(work), grace, move || call(pool.as_ref(), &task))
            .await
        {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::warn!(pool = name, error = chain(&error), "pool call failed");
                Err(entry.fault(&error))
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

    /// Removes for ever what has had its time in the pools' trash.
    pub async fn empty_trash(&self) {
        for entry in self.entries.iter().filter(|entry| entry.pool.is_shared()) {
            let name = entry.pool.name();
            let task = Task::within(EMPTYING);
            let emptied = self
                .call_task(name, Work::Long, EMPTYING, task, |pool, _| {
                    pool.empty_trash()
                })
                .await;
            for gone in emptied.unwrap_or_default() {
                tracing::info!(pool = name, name = gone, "it has had its time in the trash");
            }
        }
    }

    /// Measures every pool; prepares those that were in trouble.
    pub async fn measure(&self) {
        self.look(false).await;
    }

    /// Looks for the clusters that are away, until the agent stops.
    pub async fn await_return(&self, stopping: &CancellationToken) {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = tokio::time::sleep(pace::absent_pool()) => {}
            }
            let away = self
                .entries
                .iter()
                .filter(|entry| entry.pool.is_shared() && entry.measured().trouble.is_some());
            join_all(away.map(|entry| self.look_at(entry, false))).await;
        }
    }

    /// Waits until a cluster that was found away is back. False if the agent stops.
    pub async fn until_back(&self, name: &str, stopping: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return false,
                () = tokio::time::sleep(pace::absent_pool()) => {}
            }
            let away = self
                .get(name)
                .is_some_and(|entry| entry.measured().trouble.is_some());
            if !away {
                return true;
            }
        }
    }

    /// One pool that hangs holds up no other.
    async fn look(&self, first: bool) {
        join_all(self.entries.iter().map(|entry| async move {
            let look = self.look_at(entry, first);
            if !(first && entry.pool.is_shared()) {
                return look.await;
            }
            if tokio::time::timeout(FIRST_LOOK, look).await.is_err() {
                let name = entry.pool.name();
                let fault = Fault::new(
                    Reason::PoolAway,
                    format!("the Ceph cluster of pool {name} has not answered yet"),
                );
                entry.trouble(fault.with("pool", name));
            }
        }))
        .await;
    }

    async fn look_at(&self, entry: &PoolEntry, first: bool) {
        let settled = self.settled.load(Ordering::Relaxed);
        let name = entry.pool.name();
        // A cluster is proved anew each time: its monitors answer for OSDs that hang.
        let prepare =
            first || !settled || entry.measured().trouble.is_some() || entry.pool.is_shared();
        let used = entry.used.load(Ordering::Relaxed);
        let call = move |pool: &dyn Pool, _: &Task| {
            if prepare && used && !pool.is_made() {
                return Ok(None);
            }
            if prepare {
                pool.prepare()?;
            }
            pool.usage(None).map(Some)
        };
        let looked = self
            .ask(entry, Work::Quick, QUICK, Task::within(QUICK), call)
            .await;
        if !settled && matches!(looked, Ok(None)) {
            // Never used or not mounted: that is not known yet.
            return;
        }
        match looked.and_then(|usage| usage.ok_or_else(|| not_mounted(name))) {
            Ok(usage) => {
                let mut measured = entry.lock();
                if let Some(trouble) = &measured.trouble {
                    tracing::info!(
                        pool = name,
                        was = trouble.reason.as_str(),
                        "pool can be used again"
                    );
                }
                *measured = Measured {
                    usage: Some(usage),
                    trouble: None,
                    seen: None,
                };
            }
            Err(fault) => entry.trouble(fault),
        }
    }

    /// Measures the space that a volume takes, if its pool answers at once: a worker that hangs on a
    /// pool could not take its guest's power.
    pub async fn glance(&self, name: &str, volume: VolumeRef) -> Option<Bytes> {
        let entry = self.get(name)?;
        if entry.measured().trouble.is_some() {
            return None;
        }
        let pool = entry.pool.clone();
        let glance = self
            .gate
            .run(entry.lane(Work::Quick), GLANCE, move || {
                pool.actual_size(&volume)
            })
            .await;
        glance.ok()?.ok()?
    }

    /// Refuses what would not fit into a pool's free space, as it is now.
    ///
    /// # Errors
    /// `POOL_FULL`, or why the pool can't be measured.
    pub async fn check_room(
        &self,
        name: &str,
        ceph_pool: Option<&str>,
        needed: Bytes,
    ) -> Result<(), Fault> {
        let place = ceph_pool.map(str::to_owned);
        let usage = self
            .call(name, move |pool, _| pool.usage(place.as_deref()))
            .await?;
        let which = match ceph_pool {
            Some(ceph_pool) => format!("the Ceph pool {ceph_pool} of pool {name}"),
            None => format!("pool {name}"),
        };
        let (problem, words) = if usage.near_full {
            let words = format!("{which} is nearly full, and takes nothing new");
            ("near_full", words)
        } else if usage.free == Bytes::ZERO {
            ("full", format!("{which} is full, or at its quota"))
        } else if needed > usage.free {
            let free = usage.free;
            let words = format!("{which} has {free} free, and {needed} may be needed");
            ("too_little", words)
        } else {
            return Ok(());
        };
        let fault = Fault::new(Reason::PoolFull, words)
            .with("pool", name)
            .with("problem", problem)
            .with("free_bytes", usage.free.get())
            .with("needed_bytes", needed.get());
        Err(match ceph_pool {
            Some(ceph_pool) => fault.with("ceph_pool", ceph_pool),
            None => fault,
        })
    }
}

/// A pool of Ceph pools as it is configured; touches nothing.
pub fn rbd_pool(settings: &PoolSettings, rbd: &RbdSettings, node: Uuid) -> RbdPool {
    let spec = RbdPoolSpec {
        conf: rbd.conf.clone(),
        user: rbd.user.clone(),
        keyring: match &rbd.keyring {
            Keyring::File(path) => storage::Keyring::File(path.clone()),
            Keyring::Credential(name) => storage::Keyring::Credential(name.clone()),
        },
        image_pool: rbd.image_pool.clone(),
        root_pool: rbd.default_root_pool.clone(),
        data_pool: rbd.default_data_pool.clone(),
        allowed_root_pools: rbd.allowed_root_pools.clone(),
        trash_expiry: rbd.trash_expiry,
        scratch: settings.path.clone(),
        node,
    };
    RbdPool::new(&settings.name, spec)
}

fn not_mounted(name: &str) -> Fault {
    Fault::new(
        Reason::PoolAway,
        format!("pool {name} is recorded to hold volumes or images, and its folder is empty: is its file system mounted?"),
    )
    .with("pool", name)
}

/// Why a pool is not asked now: it was away a moment ago, and whoever asks it would
/// wait in vain. [`Pools::await_return`] sees when it is back.
fn spared(measured: &Mutex<Measured>, shared: bool) -> Option<Fault> {
    let measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
    let recent = measured.seen.is_some_and(|seen| seen.elapsed() < SPARED);
    let away = |trouble: &&Fault| matches!(trouble.reason, Reason::PoolAway | Reason::PoolDenied);
    let trouble = measured.trouble.as_ref().filter(away)?;
    (shared && recent).then(|| trouble.clone())
}

impl PoolEntry {
    /// What was last measured of it.
    pub fn measured(&self) -> Measured {
        self.lock().clone()
    }

    /// The lane of calls to it.
    pub fn lane(&self, work: Work) -> Lane {
        match (self.pool.is_shared(), work) {
            (false, Work::Quick) => Lane::Storage,
            (false, Work::Long) => Lane::Import,
            (true, Work::Quick) => Lane::Ceph,
            (true, Work::Long) => Lane::CephImport,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why it can't be used.
    fn trouble(&self, fault: Fault) {
        let mut measured = self.lock();
        let known = measured.trouble.as_ref();
        if known.is_none_or(|known| known.reason != fault.reason) {
            let (pool, error) = (self.pool.name(), chain(&fault));
            tracing::error!(pool, error, "pool can't be used");
        }
        measured.trouble = Some(fault);
        measured.seen = Some(Instant::now());
    }

    /// What an error comes to for a caller. What is wrong with the pool as a whole
    /// says more; of a cluster, an error may be the first to tell it.
    fn fault(&self, error: &StorageError) -> Fault {
        let fault = from_storage(error, self.pool.name());
        match error.kind() {
            StorageErrorKind::Away | StorageErrorKind::Forbidden => {
                self.trouble(fault.clone());
                fault
            }
            StorageErrorKind::Denied | StorageErrorKind::Io | StorageErrorKind::ToolFailed => {
                self.measured().trouble.unwrap_or(fault)
            }
            _ => fault,
        }
    }
}
