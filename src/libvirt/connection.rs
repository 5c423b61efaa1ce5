//! The connections to one hypervisor, and the one way to make a call.

use super::embed;
use super::error::{ErrorKind, LibvirtError};
use super::events::{CloseReason, DomainEvent};
use super::ffi::{self, Subscription};
use super::owner::Owner;
use super::uri::{HypervisorKind, HypervisorUri};
use crate::model::ids::VmId;
use std::ffi::c_int;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error as VirtError;

/// Seconds between two keepalives.
const KEEPALIVE_INTERVAL: i32 = 5;
/// Keepalives without an answer until a connection counts as lost.
const KEEPALIVE_COUNT: u32 = 3;

/// Connections for calls that wait for guests' agents: five calls at a time each,
/// which leaves a fourth of the 20 threads that a libvirt daemon has for calls even if
/// all of them hang.
const AGENT_CONNECTIONS: usize = 3;

/// What to call when libvirt says something unasked.
///
/// Both are called on libvirt's event thread: they must be quick, must not
/// call libvirt, and must not drop the [`Host`].
#[derive(Clone)]
pub struct Callbacks {
    /// Called for each event of each domain.
    pub on_event: Arc<dyn Fn(DomainEvent) + Send + Sync>,
    /// Called once, when the first of the connections is lost.
    pub on_close: Arc<dyn Fn(CloseReason) + Send + Sync>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

/// One generation of connections to one hypervisor; cheap to clone.
///
/// All calls block. It never reconnects: when a connection is lost, open
/// another. The connections close when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Host {
    connections: Arc<Connections>,
    reach: Reach,
}

/// How far the calls of a [`Host`] reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// To libvirt and QEMU.
    Hypervisor,
    /// Into guests.
    Agents,
}

#[derive(Debug)]
struct Connections {
    kind: HypervisorKind,
    owner: Owner,
    /// For calls. Never empty.
    workers: Vec<Worker>,
    /// For calls that wait for a guest's agent, so that what hangs in a guest takes no
    /// place of other calls. Never empty.
    agents: Vec<Worker>,
    /// For events only, so that calls in flight can't hold them up.
    events: Connect,
    registrations: Vec<c_int>,
    calls: AtomicU64,
    /// Last, so that callbacks go unheard before this is gone, not after.
    subscription: Subscription,
}

#[derive(Debug)]
struct Worker {
    connection: Connect,
    in_flight: AtomicUsize,
}

/// Counts one call as in flight for as long as it lives.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Host {
    /// Opens `connections` (at least one) connections for calls, three for those that
    /// wait for guests' agents and one for events, and registers the callbacks.
    ///
    /// libvirt serves five calls at a time on each connection; more wait.
    /// Starts libvirt's event loop on a thread of its own the first time. The
    /// first connection to an embedded driver takes seconds: it probes QEMU. Its
    /// root is made if need be. `owner` is what our domains are marked with.
    ///
    /// # Errors
    /// `Unreachable`, or `Denied`. Nothing is left open.
    pub fn open(
        uri: &HypervisorUri,
        owner: Owner,
        connections: usize,
        callbacks: Callbacks,
    ) -> Result<Self, LibvirtError> {
        ffi::start_event_loop().map_err(|e| LibvirtError::from_virt("start event loop", &e))?;
        if let HypervisorKind::Embed { root } = uri.kind() {
            embed::prepare(root).map_err(|e| {
                LibvirtError::refused("prepare the embedded driver", ErrorKind::Unreachable, e)
            })?;
        }
        let events = connect(uri)?;
        let mut opened = Connections {
            kind: uri.kind().clone(),
            owner,
            workers: workers(uri, connections.max(1))?,
            agents: workers(uri, AGENT_CONNECTIONS)?,
            events,
            registrations: Vec::new(),
            calls: AtomicU64::new(0),
            subscription: Subscription::new(once(callbacks)),
        };
        opened.registrations = ffi::register_events(&opened.events, &opened.subscription)
            .map_err(|e| unopened("register for events", &e))?;
        for connection in opened.all() {
            ffi::register_close(connection, &opened.subscription)
                .map_err(|e| unopened("register for the connection's end", &e))?;
        }
        Ok(Self {
            connections: Arc::new(opened),
            reach: Reach::Hypervisor,
        })
    }

    /// The same host for calls that may wait for a guest's agent: they are made on
    /// connections of their own.
    pub fn for_agents(&self) -> Self {
        Self {
            connections: self.connections.clone(),
            reach: Reach::Agents,
        }
    }

    /// Whether all connections still stand, as far as this side knows. Asks
    /// nobody, and is not counted as a call.
    pub fn is_alive(&self) -> bool {
        self.connections.all().all(alive)
    }

    /// Calls made to libvirt so far.
    pub fn call_count(&self) -> u64 {
        self.connections.calls.load(Ordering::Relaxed)
    }

    /// Closes the connections, unless another clone holds them open. Guests
    /// are not touched.
    pub fn close(self) {
        drop(self);
    }

    /// Whether the guests are libvirt's simulated ones.
    pub fn is_simulated(&self) -> bool {
        matches!(self.connections.kind, HypervisorKind::Test)
    }

    pub(super) fn kind(&self) -> &HypervisorKind {
        &self.connections.kind
    }

    pub(super) fn owner(&self) -> Owner {
        self.connections.owner
    }

    /// Makes one call to libvirt, on the connection with the fewest in flight.
    pub(super) fn call<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Connect) -> Result<T, VirtError>,
    ) -> Result<T, LibvirtError> {
        self.on_worker(operation, |worker| self.run(operation, worker, body))
    }

    /// Looks a domain up, ours or not, once for several calls, which `body` makes with
    /// [`Host::on_found`].
    pub(super) fn with_any_domain<T>(
        &self,
        operation: &'static str,
        id: VmId,
        body: impl FnOnce(&Domain) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        self.on_worker(operation, |worker| {
            let domain = self
                .run(operation, worker, |c| c.lookup_domain_by_uuid(id.0))
                .map_err(before_the_call)?;
            body(&domain)
        })
    }

    /// Makes one call on a domain that was just looked up or listed.
    pub(super) fn on_found<T>(
        &self,
        operation: &'static str,
        domain: &Domain,
        body: impl FnOnce(&Domain) -> Result<T, VirtError>,
    ) -> Result<T, LibvirtError> {
        let connection = domain
            .connect()
            .map_err(|e| LibvirtError::from_virt(operation, &e))?;
        self.run(operation, &connection, |_| body(domain))
    }

    fn on_worker<T>(
        &self,
        operation: &'static str,
        body: impl FnOnce(&Connect) -> Result<T, LibvirtError>,
    ) -> Result<T, LibvirtError> {
        let workers = match self.reach {
            Reach::Hypervisor => &self.connections.workers,
            Reach::Agents => &self.connections.agents,
        };
        let worker = workers
            .iter()
            .filter(|worker| alive(&worker.connection))
            .min_by_key(|worker| worker.in_flight.load(Ordering::Relaxed))
            .ok_or_else(|| {
                LibvirtError::refused(
                    operation,
                    ErrorKind::Unreachable,
                    "the connection to libvirt is lost",
                )
            })?;
        worker.in_flight.fetch_add(1, Ordering::Relaxed);
        let _in_flight = InFlight(&worker.in_flight);
        body(&worker.connection)
    }

    /// The one place where libvirt is called: counts, and tells a lost
    /// connection from a refusal.
    fn run<T>(
        &self,
        operation: &'static str,
        connection: &Connect,
        body: impl FnOnce(&Connect) -> Result<T, VirtError>,
    ) -> Result<T, LibvirtError> {
        self.connections.calls.fetch_add(1, Ordering::Relaxed);
        body(connection).map_err(|error| {
            let mut error = LibvirtError::from_virt(operation, &error);
            // No code says so: the daemon's own errors in reaching others
            // (virtlogd, say) look the same as ours in reaching it.
            if !alive(connection) {
                error.kind = ErrorKind::Interrupted;
            }
            error
        })
    }
}

impl Connections {
    fn all(&self) -> impl Iterator<Item = &Connect> {
        let workers = self.workers.iter().chain(&self.agents);
        std::iter::once(&self.events).chain(workers.map(|worker| &worker.connection))
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        // Registrations hold references to their connection: without this,
        // libvirt would keep it open for ever.
        ffi::deregister_events(&self.events, &self.registrations);
        for connection in self.all() {
            ffi::unregister_close(connection);
        }
    }
}

fn alive(connection: &Connect) -> bool {
    connection.is_alive().unwrap_or(false)
}

fn workers(uri: &HypervisorUri, count: usize) -> Result<Vec<Worker>, LibvirtError> {
    let worker = |_| {
        Ok(Worker {
            connection: connect(uri)?,
            in_flight: AtomicUsize::new(0),
        })
    };
    (0..count).map(worker).collect()
}

fn connect(uri: &HypervisorUri) -> Result<Connect, LibvirtError> {
    let connection =
        Connect::open(Some(uri.as_str())).map_err(|e| unopened("connect to libvirt", &e))?;
    // Drivers without a transport have no keepalive and say so.
    let keepalive = connection.set_keep_alive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT);
    match keepalive.map_err(|e| LibvirtError::from_virt("set keepalive", &e)) {
        Err(error) if error.kind != ErrorKind::Unsupported => Err(LibvirtError {
            kind: ErrorKind::Unreachable,
            ..error
        }),
        _ => Ok(connection),
    }
}

/// A connection that was lost while the domain was looked up: the call itself
/// was never sent.
pub(super) fn before_the_call(error: LibvirtError) -> LibvirtError {
    match error.kind {
        ErrorKind::Interrupted => LibvirtError {
            kind: ErrorKind::Unreachable,
            ..error
        },
        _ => error,
    }
}

/// An error before there is a connection: nothing can have happened.
fn unopened(operation: &'static str, error: &VirtError) -> LibvirtError {
    let mut error = LibvirtError::from_virt(operation, error);
    if error.kind != ErrorKind::Denied {
        error.kind = ErrorKind::Unreachable;
    }
    error
}

/// Makes `on_close` be called for the first lost connection only, and not for
/// those that we close.
fn once(callbacks: Callbacks) -> Callbacks {
    let told = AtomicBool::new(false);
    let on_close = callbacks.on_close;
    Callbacks {
        on_event: callbacks.on_event,
        on_close: Arc::new(move |reason| {
            if reason != CloseReason::Client && !told.swap(true, Ordering::SeqCst) {
                on_close(reason);
            }
        }),
    }
}
