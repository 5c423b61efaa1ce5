//! The one door to calls that block.
//!
//! A call to libvirt, to a file system or to the journal may hang for as long as
//! it likes; an async task must not. The gate runs each on a thread of its own,
//! at most so many at once per lane, and gives up on it at its deadline.
//!
//! Invariant: a call that was given up goes on and keeps its permit until it
//! really returns, so that what hangs is bounded. What came of it is unknown.
//! Power-off and reads have lanes of their own, so that slow storage can't
//! starve them; so has what reaches into guests, which answer when they like.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

/// Which kind of call it is; each kind has permits of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Reads from libvirt.
    Read,
    /// Changes through libvirt.
    Control,
    /// Taking power from a guest.
    PowerOff,
    /// Reads and quick changes of pools.
    Storage,
    /// Saving and restoring a guest's memory, which takes minutes.
    Memory,
    /// Imports of images, which take minutes.
    Import,
    /// As [`Lane::Storage`], of Ceph: a cluster that hangs holds up no other pool.
    Ceph,
    /// As [`Lane::Import`], of Ceph.
    CephImport,
    /// Reads from the journal.
    Journal,
    /// Figures of all VMs, for who watches the host.
    Stats,
    /// Questions to guests' agents, which may hang.
    Agent,
    /// Requests to guests' agents to end or to restart their guest. libvirt holds such
    /// a call until the guest has obeyed, for a minute.
    AgentSignal,
}

impl Lane {
    const ALL: [(Self, usize); 12] = [
        (Self::Read, 4),
        (Self::Control, 8),
        (Self::PowerOff, 8),
        (Self::Storage, 8),
        (Self::Memory, 4),
        (Self::Import, 2),
        (Self::Ceph, 8),
        (Self::CephImport, 2),
        (Self::Journal, 4),
        (Self::Stats, 1),
        // Together what the connections for agents serve at a time.
        (Self::Agent, 8),
        (Self::AgentSignal, 7),
    ];

    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Control => "control",
            Self::PowerOff => "power-off",
            Self::Storage => "storage",
            Self::Memory => "memory",
            Self::Import => "import",
            Self::Ceph => "ceph",
            Self::CephImport => "ceph-import",
            Self::Journal => "journal",
            Self::Stats => "stats",
            Self::Agent => "agent",
            Self::AgentSignal => "agent-signal",
        }
    }
}

/// How busy a lane is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneUse {
    /// Which.
    pub lane: Lane,
    /// Permits that calls hold, also those that were given up.
    pub in_use: usize,
    /// All its permits.
    pub permits: usize,
}

/// Why a call has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No permit was free before the deadline: nothing was sent.
    #[error("no permit was free before the deadline")]
    NotSent,
    /// It was sent and had not returned by the deadline.
    #[error("the call had not returned by its deadline")]
    Abandoned,
    /// The call panicked.
    #[error("the call panicked")]
    Panicked,
}

/// A call that was sent. Dropped before it was answered it is given up, and goes on
/// as one that has passed its deadline does.
#[derive(Debug)]
pub struct Begun<T: Send + 'static> {
    thread: Option<JoinHandle<T>>,
    abandoned: Arc<AtomicU64>,
}

impl<T: Send + 'static> Begun<T> {
    /// Waits for its answer, which it has once; never resolves after that. May be
    /// dropped and called again.
    ///
    /// # Errors
    /// [`GateError::Panicked`].
    pub async fn answer(&mut self) -> Result<T, GateError> {
        let Some(thread) = &mut self.thread else {
            return std::future::pending().await;
        };
        let answer = thread.await.map_err(|_| GateError::Panicked);
        self.thread = None;
        answer
    }
}

impl<T: Send + 'static> Drop for Begun<T> {
    fn drop(&mut self) {
        let unanswered = self.thread.take().filter(|thread| !thread.is_finished());
        // Without a runtime the process ends.
        if let (Some(thread), Ok(runtime)) = (unanswered, Handle::try_current()) {
            let abandoned = self.abandoned.clone();
            abandoned.fetch_add(1, Ordering::Relaxed);
            runtime.spawn(async move {
                drop(thread.await);
                abandoned.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// The door; see the module's text.
#[derive(Debug)]
pub struct Gate {
    lanes: [(Lane, Arc<Semaphore>); 12],
    abandoned: Arc<AtomicU64>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            lanes: Lane::ALL.map(|(lane, permits)| (lane, Arc::new(Semaphore::new(permits)))),
            abandoned: Arc::default(),
        }
    }
}

impl Gate {
    /// Runs `call` on a thread that may block, and waits for it until
    /// `deadline` from now.
    ///
    /// # Errors
    /// See [`GateError`]. After [`GateError::Abandoned`] the call may still take
    /// effect.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GateError> {
        let until = Instant::now() + deadline;
        let permits = self.permits(lane);
        let permit = timeout_at(until, permits.acquire_owned())
            .await
            .map_err(|_| GateError::NotSent)?
            .map_err(|_| GateError::NotSent)?;
        let mut begun = self.start(permit, call);
        timeout_at(until, begun.answer())
            .await
            .unwrap_or(Err(GateError::Abandoned))
    }

    /// Begins a call if a permit is free now. Whoever waits for its answer can do
    /// something else meanwhile, and gives it up by dropping it.
    ///
    /// # Errors
    /// [`GateError::NotSent`].
    pub fn begin<T: Send + 'static>(
        &self,
        lane: Lane,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Begun<T>, GateError> {
        let permit = self.permits(lane).try_acquire_owned();
        let permit = permit.map_err(|_| GateError::NotSent)?;
        Ok(self.start(permit, call))
    }

    fn start<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Begun<T> {
        #[allow(clippy::disallowed_methods)] // this is the gate
        let thread = tokio::task::spawn_blocking(move || {
            let answer = call();
            drop(permit);
            answer
        });
        Begun {
            thread: Some(thread),
            abandoned: self.abandoned.clone(),
        }
    }

    /// How many calls were given up and have not returned yet.
    pub fn abandoned(&self) -> u64 {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// How busy each lane is.
    pub fn lanes(&self) -> impl Iterator<Item = LaneUse> {
        let all = Lane::ALL.into_iter().zip(&self.lanes);
        all.map(|((lane, permits), (_, free))| LaneUse {
            lane,
            in_use: permits.saturating_sub(free.available_permits()),
            permits,
        })
    }

    fn permits(&self, lane: Lane) -> Arc<Semaphore> {
        let (_, permits) = self
            .lanes
            .iter()
            .find(|(known, _)| *known == lane)
            .expect("every lane is in Lane::ALL");
        permits.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_call_past_its_deadline_keeps_its_permit_until_it_returns() {
        let gate = Gate::default();
        let (release, held) = mpsc::channel::<()>();
        let (release_2, held_2) = mpsc::channel::<()>();
        let short = Duration::from_millis(20);
        let first = gate.run(Lane::Import, short, move || held.recv()).await;
        assert_eq!(first, Err(GateError::Abandoned));
        let second = gate.run(Lane::Import, short, move || held_2.recv()).await;
        assert_eq!(second, Err(GateError::Abandoned));
        assert_eq!(gate.abandoned(), 2);
        let used: Vec<LaneUse> = gate.lanes().filter(|lane| lane.in_use > 0).collect();
        let imports = LaneUse {
            lane: Lane::Import,
            in_use: 2,
            permits: 2,
        };
        assert_eq!(used, [imports]);
        assert_eq!(
            gate.run(Lane::Import, short, || 1).await,
            Err(GateError::NotSent)
        );
        assert_eq!(
            gate.run(Lane::Read, short, || 1).await,
            Ok(1),
            "other lanes go on"
        );
        drop((release, release_2));
        assert_eq!(
            gate.run(Lane::Import, Duration::from_secs(5), || 1).await,
            Ok(1)
        );
    }

    #[tokio::test]
    async fn a_call_that_was_begun_is_answered_later_or_given_up() {
        let gate = Gate::default();
        let (release, held) = mpsc::channel::<()>();
        let mut slow = gate.begin(Lane::Stats, move || held.recv()).unwrap();
        let early = tokio::time::timeout(Duration::from_millis(20), slow.answer()).await;
        assert!(early.is_err(), "it hangs");
        assert_eq!(gate.abandoned(), 0, "it is waited for");
        assert_eq!(
            gate.begin(Lane::Stats, || ()).err(),
            Some(GateError::NotSent)
        );
        drop(release);
        assert!(slow.answer().await.unwrap().is_err(), "its answer");
        drop(slow);
        assert_eq!(gate.abandoned(), 0);

        let (release, held) = mpsc::channel::<()>();
        drop(gate.begin(Lane::Stats, move || held.recv()).unwrap());
        assert_eq!(gate.abandoned(), 1);
        drop(release);
        let later = Duration::from_secs(5);
        assert_eq!(gate.run(Lane::Stats, later, || 1).await, Ok(1));
    }
}
