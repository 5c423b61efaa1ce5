//! The link to libvirt: one loop that connects, listens, and connects again.
//!
//! Invariant: [`Link::Up`] is published only after every VM's state was read
//! anew over the new connection, and [`Link::Away`] at the latest when a call has
//! found the connection broken: who waits for libvirt after such a call waits for a
//! new one. While it is away, calls fail at once with `HYPERVISOR_AWAY` and nothing
//! is queued for later.

use super::fault::{chain, from_gate_libvirt, from_libvirt};
use super::gate::{Begun, Gate, GateError, Lane};
use crate::faultpoint;
use crate::libvirt::{
    Callbacks, CloseReason, DomainEvent, ErrorKind, Host, HostFacts, HypervisorUri, LibvirtError,
    Owner,
};
use crate::model::fault::Fault;
use crate::model::ids::VmId;
use crate::model::reason::Reason;
use crate::pace;
use async_trait::async_trait;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The first connection to an embedded driver probes QEMU, for seconds.
const OPEN_DEADLINE: Duration = Duration::from_secs(120);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Looking whether a socket is there costs nothing.
const LAST_BACKOFF: Duration = Duration::from_secs(1);
/// A save writes the guest's whole memory.
const LONG_CALL: Duration = Duration::from_secs(3600);
/// Who watches the host asks again soon, and is answered without.
const STATS_CALL: Duration = Duration::from_secs(2);
/// An agent has 5 s to wake up and 5 s for its answer, after those that it was asked for
/// before.
pub const AGENT_CALL: Duration = Duration::from_secs(20);
/// Events that wait to be routed; past it every VM is read anew instead.
const EVENTS: usize = 4096;

/// Whether libvirt is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It is not, or its VMs have not all been read yet.
    Away,
    /// It is, and every VM was read over this connection.
    Up,
}

/// Who is told what libvirt shows.
#[async_trait]
pub trait Observer: Send + Sync {
    /// A connection stands: reads everything over it.
    ///
    /// # Errors
    /// The connection is given up and another one made.
    async fn connected(&self) -> Result<(), Fault>;
    /// The connection is lost.
    fn away(&self);
    /// Something happened to a domain.
    fn event(&self, event: DomainEvent);
    /// Events were lost; everything may have happened.
    fn events_lost(&self);
}

struct Standing {
    host: Host,
    facts: Arc<HostFacts>,
    /// Told when the connection is lost; which of them it is, too.
    closed: Arc<Notify>,
}

/// The link to libvirt.
pub struct Hypervisor {
    uri: HypervisorUri,
    owner: Owner,
    connections: usize,
    call_timeout: Duration,
    gate: Arc<Gate>,
    standing: Mutex<Option<Standing>>,
    link: watch::Sender<Link>,
    former_calls: AtomicU64,
    connected: AtomicU64,
    /// The VMs whose agent was asked to end or restart its guest, and whose call has
    /// not returned.
    signalled: Arc<Mutex<HashSet<VmId>>>,
}

/// A call that was sent to libvirt; see [`Begun`].
pub struct Sent<'a, T: Send + 'static> {
    hypervisor: &'a Hypervisor,
    begun: Begun<Result<T, LibvirtError>>,
    closed: Arc<Notify>,
}

impl<T: Send + 'static> Sent<'_, T> {
    /// Waits for its answer, as [`Begun::answer`] does.
    ///
    /// # Errors
    /// Only where there is no answer of libvirt's.
    pub async fn answer(&mut self) -> Result<Result<T, LibvirtError>, Fault> {
        let answer = self.begun.answer().await.map_err(from_gate_libvirt)?;
        self.hypervisor.heard(&answer, &self.closed);
        Ok(answer)
    }
}

/// Says for as long as it lives that a VM's agent is being asked.
struct Signalled {
    all: Arc<Mutex<HashSet<VmId>>>,
    id: VmId,
}

impl Drop for Signalled {
    fn drop(&mut self) {
        lock(&self.all).remove(&self.id);
    }
}

impl Hypervisor {
    /// A link that is not connected yet; `owner` is what our domains are marked with.
    pub fn new(
        uri: HypervisorUri,
        owner: Owner,
        connections: usize,
        call_timeout: Duration,
        gate: Arc<Gate>,
    ) -> Self {
        Self {
            uri,
            owner,
            connections,
            call_timeout,
            gate,
            standing: Mutex::new(None),
            link: watch::Sender::new(Link::Away),
            former_calls: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            signalled: Arc::default(),
        }
    }

    /// Whether libvirt is there, now and later.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// Whether libvirt is there now.
    pub fn is_up(&self) -> bool {
        *self.link.borrow() == Link::Up
    }

    /// What the host is and can do, as read when the connection was made.
    ///
    /// # Errors
    /// `HYPERVISOR_AWAY`.
    pub fn facts(&self) -> Result<Arc<HostFacts>, Fault> {
        self.standing(|standing| standing.facts.clone())
            .ok_or_else(away)
    }

    /// Where libvirt is.
    pub const fn uri(&self) -> &HypervisorUri {
        &self.uri
    }

    /// Whether the host is libvirt's simulated one.
    pub fn is_simulated(&self) -> bool {
        self.uri.is_simulated()
    }

    /// How many calls were made on libvirt since the start.
    pub fn calls(&self) -> u64 {
        let now = self
            .standing(|standing| standing.host.call_count())
            .unwrap_or(0);
        self.former_calls.load(Ordering::Relaxed) + now
    }

    /// How often libvirt came back since the start.
    pub fn reconnects(&self) -> u64 {
        self.connected.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Makes a call, bounded in time.
    ///
    /// # Errors
    /// What the call's error comes to, see [`super::fault::from_libvirt`]; the
    /// error itself is logged.
    pub async fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        call: impl FnOnce(&Host) -> Result<T, LibvirtError> + Send + 'static,
    ) -> Result<T, Fault> {
        self.try_call(lane, call).await?.map_err(|error| {
            tracing::warn!(error = chain(&error), "libvirt call failed");
            from_libvirt(&error)
        })
    }

    /// As [`Hypervisor::call`], but leaves libvirt's own error to the caller.
    ///
    /// # Errors
    /// Only where there is no answer of libvirt's.
    pub async fn try_call<T: Send + 'static>(
        &self,
        lane: Lane,
        call: impl FnOnce(&Host) -> Result<T, LibvirtError> + Send + 'static,
    ) -> Result<Result<T, LibvirtError>, Fault> {
        let (host, closed) = self.reach(lane)?;
        let deadline = match lane {
            Lane::Memory | Lane::Import | Lane::CephImport => LONG_CALL,
            Lane::Read
            | Lane::Control
            | Lane::PowerOff
            | Lane::Storage
            | Lane::Ceph
            | Lane::Journal => self.call_timeout,
            Lane::Stats => STATS_CALL.min(self.call_timeout),
            Lane::Agent | Lane::AgentSignal => AGENT_CALL,
        };
        let answer = self
            .gate
            .run(lane, deadline, move || call(&host))
            .await
            .map_err(from_gate_libvirt)?;
        self.heard(&answer, &closed);
        Ok(answer)
    }

    /// Begins to ask a guest's agent to end or to restart its guest. Such a call may
    /// hang for a minute, and is held up by no other. `None` if no permit is free, or
    /// this agent has not yet obeyed when it was asked before: nothing was sent.
    ///
    /// # Errors
    /// `HYPERVISOR_AWAY`.
    pub fn signal_agent<T: Send + 'static>(
        &self,
        id: VmId,
        call: impl FnOnce(&Host) -> Result<T, LibvirtError> + Send + 'static,
    ) -> Result<Option<Sent<'_, T>>, Fault> {
        let (host, closed) = self.reach(Lane::AgentSignal)?;
        if !lock(&self.signalled).insert(id) {
            return Ok(None);
        }
        let until_it_returns = Signalled {
            all: self.signalled.clone(),
            id,
        };
        let begun = self.gate.begin(Lane::AgentSignal, move || {
            let _signalled = until_it_returns;
            call(&host)
        });
        Ok(begun.ok().map(|begun| Sent {
            hypervisor: self,
            begun,
            closed,
        }))
    }

    /// Whether a guest's agent was asked to end or restart its guest, and has not done
    /// so yet. It answers nobody until then.
    pub fn is_signalled(&self, id: VmId) -> bool {
        lock(&self.signalled).contains(&id)
    }

    /// The host as calls of a lane reach it, and what tells of the connection's end.
    fn reach(&self, lane: Lane) -> Result<(Host, Arc<Notify>), Fault> {
        let (host, closed) = self
            .standing(|standing| (standing.host.clone(), standing.closed.clone()))
            .ok_or_else(away)?;
        let host = match lane {
            Lane::Agent | Lane::AgentSignal => host.for_agents(),
            Lane::Read
            | Lane::Control
            | Lane::PowerOff
            | Lane::Storage
            | Lane::Memory
            | Lane::Import
            | Lane::Ceph
            | Lane::CephImport
            | Lane::Journal
            | Lane::Stats => host,
        };
        Ok((host, closed))
    }

    /// Takes in what an answer says of the connection.
    fn heard<T>(&self, answer: &Result<T, LibvirtError>, closed: &Arc<Notify>) {
        if let Err(error) = answer
            && matches!(error.kind, ErrorKind::Unreachable | ErrorKind::Interrupted)
        {
            self.found_lost(closed);
        }
    }

    /// A call has found this connection broken, perhaps before libvirt's own word of it
    /// was heard.
    fn found_lost(&self, connection: &Arc<Notify>) {
        let standing = lock(&self.standing);
        let is_the_present = standing
            .as_ref()
            .is_some_and(|standing| Arc::ptr_eq(&standing.closed, connection));
        if is_the_present {
            self.link.send_replace(Link::Away);
            connection.notify_one();
        }
    }

    /// Connects, and connects again, until told to stop.
    pub async fn run(self: Arc<Self>, observer: Arc<dyn Observer>, stop: CancellationToken) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let closed = Arc::new(Notify::new());
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = self.open(&observer, &closed) => opened,
            };
            match opened {
                Ok(()) => {
                    tracing::info!(uri = self.uri.as_str(), "connected to libvirt");
                    self.connected.fetch_add(1, Ordering::Relaxed);
                    self.link.send_replace(Link::Up);
                    backoff = FIRST_BACKOFF;
                    let stopped = self.until_lost(&closed, &stop).await;
                    if stopped {
                        // The link stays: what still runs may make its last calls.
                        return;
                    }
                    tracing::warn!("the connection to libvirt is lost");
                    let _ = faultpoint::reach("libvirt.lost").await;
                }
                // It may be away for hours: that is told a few times, not each time.
                Err(problem) if backoff == LAST_BACKOFF => {
                    tracing::debug!(problem, retry_in = ?backoff, "libvirt can't be reached");
                }
                Err(problem) => {
                    tracing::warn!(problem, retry_in = ?backoff, "libvirt can't be reached");
                }
            }
            self.link.send_replace(Link::Away);
            self.put_down();
            observer.away();
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff) => {}
            }
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    async fn open(&self, observer: &Arc<dyn Observer>, closed: &Arc<Notify>) -> Result<(), String> {
        let (events, waiting) = mpsc::channel(EVENTS);
        let overflow = Arc::new(AtomicBool::new(false));
        let callbacks = Callbacks {
            on_event: {
                let overflow = overflow.clone();
                Arc::new(move |event| {
                    if events.try_send(event).is_err() {
                        overflow.store(true, Ordering::Release);
                    }
                })
            },
            on_close: {
                let closed = closed.clone();
                Arc::new(move |reason: CloseReason| {
                    tracing::warn!(?reason, "libvirt closed the connection");
                    closed.notify_one();
                })
            },
        };
        let (uri, owner, connections) = (self.uri.clone(), self.owner, self.connections);
        let opened = self
            .gate
            .run(Lane::Control, OPEN_DEADLINE, move || {
                let host = Host::open(&uri, owner, connections, callbacks)?;
                let facts = host.facts()?;
                Ok::<_, LibvirtError>((host, facts))
            })
            .await;
        let (host, facts) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(chain(&error)),
            Err(error @ (GateError::NotSent | GateError::Abandoned | GateError::Panicked)) => {
                return Err(error.to_string());
            }
        };
        *lock(&self.standing) = Some(Standing {
            host,
            facts: Arc::new(facts),
            closed: closed.clone(),
        });
        // Events from here on are routed while everything is read, so that
        // nothing falls between the two.
        tokio::spawn(route(waiting, overflow, observer.clone()));
        observer.connected().await.map_err(|fault| chain(&fault))
    }

    /// Returns true if told to stop, false if the connection was lost.
    async fn until_lost(&self, closed: &Notify, stop: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = stop.cancelled() => return true,
                () = closed.notified() => return false,
                () = tokio::time::sleep(pace::libvirt()) => {
                    if !self.standing(|standing| standing.host.is_alive()).unwrap_or(false) {
                        return false;
                    }
                }
            }
        }
    }

    fn put_down(&self) {
        let Some(standing) = lock(&self.standing).take() else {
            return;
        };
        self.former_calls
            .fetch_add(standing.host.call_count(), Ordering::Relaxed);
        // Closing talks to the peer; that must not hold up this task.
        let gate = self.gate.clone();
        tokio::spawn(async move {
            let _ = gate
                .run(Lane::Control, OPEN_DEADLINE, move || drop(standing.host))
                .await;
        });
    }

    fn standing<T>(&self, read: impl FnOnce(&Standing) -> T) -> Option<T> {
        lock(&self.standing).as_ref().map(read)
    }
}

async fn route(
    mut waiting: mpsc::Receiver<DomainEvent>,
    overflow: Arc<AtomicBool>,
    observer: Arc<dyn Observer>,
) {
    while let Some(event) = waiting.recv().await {
        if overflow.swap(false, Ordering::AcqRel) {
            tracing::warn!("libvirt events were lost; reading every VM anew");
            observer.events_lost();
        }
        observer.event(event);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn away() -> Fault {
    Fault::new(
        Reason::HypervisorAway,
        "libvirt can't be reached; nothing was sent",
    )
}
