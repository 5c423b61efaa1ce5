//! The only unsafe code: what the virt crate has no safe wrapper for.
//!
//! libvirt's callbacks carry a number instead of a pointer: it is looked up in
//! a table of ours, so that a callback which arrives late, after its
//! connection was closed, finds nothing instead of freed memory.

#![allow(unsafe_code)]

use super::connection::Callbacks;
use super::events::{self, CloseReason, DomainChange, DomainEvent};
use crate::model::ids::VmId;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use uuid::Uuid;
use virt::connect::Connect;
use virt::error::Error as VirtError;
use virt_sys as sys;

/// Starts libvirt's event loop on a thread of its own, once per process.
///
/// It must run before the first connection is opened: keepalives, events and
/// the embedded driver's monitors need it. The thread never ends.
pub(super) fn start_event_loop() -> Result<(), VirtError> {
    static STARTED: OnceLock<Result<(), VirtError>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // libvirt prints each error to stderr unless told otherwise.
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl()?;
            std::thread::Builder::new()
                .name("libvirt-events".to_owned())
                .spawn(|| {
                    loop {
                        if virt::event::event_run_default_impl().is_err() {
                            // Only a failing poll gets here; don't spin on it.
                            std::thread::sleep(Duration::from_millis(100));
                        }
                    }
                })
                .map_err(|_| VirtError::last_error())?;
            Ok(())
        })
        .clone()
}

type Table = HashMap<usize, Arc<Callbacks>>;

static CALLBACKS: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);
static NEXT: AtomicUsize = AtomicUsize::new(1);

fn table() -> MutexGuard<'static, Table> {
    // A map of Arcs is whole after any panic.
    CALLBACKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The callbacks' entry in the table; they are called until it is dropped.
#[derive(Debug)]
pub(super) struct Subscription(usize);

impl Subscription {
    pub(super) fn new(callbacks: Callbacks) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        table().insert(number, Arc::new(callbacks));
        Self(number)
    }

    fn opaque(&self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let gone = table().remove(&self.0);
        // Dropped outside the lock: what it captured may do anything.
        drop(gone);
    }
}

fn callbacks(opaque: *mut c_void) -> Option<Arc<Callbacks>> {
    table().get(&opaque.addr()).cloned()
}

/// Registers for every kind of event that has a [`DomainChange`].
///
/// Lifecycle events must work; the others are left out where the daemon is too
/// old to know them. Returns the numbers to deregister by.
pub(super) fn register_events(
    connection: &Connect,
    subscription: &Subscription,
) -> Result<Vec<c_int>, VirtError> {
    // SAFETY: libvirt declares every event callback as the generic type and
    // calls each with the arguments of its event id, which these functions
    // have; its own macro VIR_DOMAIN_EVENT_CALLBACK casts in the same way.
    let (lifecycle, agent, io_error) = unsafe {
        (
            transmute::<LifecycleCallback, GenericCallback>(on_lifecycle),
            transmute::<AgentCallback, GenericCallback>(on_agent),
            transmute::<IoErrorCallback, GenericCallback>(on_io_error),
        )
    };
    let first = register_one(
        connection,
        subscription,
        sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
        lifecycle,
    )?;
    let mut numbers = vec![first];
    for (event, callback) in [
        (
            sys::VIR_DOMAIN_EVENT_ID_REBOOT,
            on_reboot as GenericCallback,
        ),
        (sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, agent),
        (sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, io_error),
        (
            sys::VIR_DOMAIN_EVENT_ID_CONTROL_ERROR,
            on_control_error as GenericCallback,
        ),
    ] {
        numbers.extend(register_one(connection, subscription, event, callback));
    }
    Ok(numbers)
}

fn register_one(
    connection: &Connect,
    subscription: &Subscription,
    event: sys::virDomainEventID,
    callback: GenericCallback,
) -> Result<c_int, VirtError> {
    let event = c_int::try_from(event).expect("libvirt's event ids are small");
    // SAFETY: the connection is open for as long as it is borrowed; a null
    // domain means all; the opaque value is a number that is never
    // dereferenced and needs no freeing.
    let number = unsafe {
        sys::virConnectDomainEventRegisterAny(
            connection.as_ptr(),
            std::ptr::null_mut(),
            event,
            Some(callback),
            subscription.opaque(),
            None,
        )
    };
    if number < 0 {
        Err(VirtError::last_error())
    } else {
        Ok(number)
    }
}

/// Takes back registrations. A failure means that the connection is gone, and
/// the registrations with it.
pub(super) fn deregister_events(connection: &Connect, numbers: &[c_int]) {
    for number in numbers {
        // SAFETY: the connection is open for as long as it is borrowed.
        unsafe { sys::virConnectDomainEventDeregisterAny(connection.as_ptr(), *number) };
    }
}

/// One value, because libvirt compares the pointer when it is taken back.
static ON_CLOSE: sys::virConnectCloseFunc = Some(on_close);

/// Registers to be told when the connection ends.
pub(super) fn register_close(
    connection: &Connect,
    subscription: &Subscription,
) -> Result<(), VirtError> {
    // SAFETY: as for events: an open connection and a number as opaque value.
    let done = unsafe {
        sys::virConnectRegisterCloseCallback(
            connection.as_ptr(),
            ON_CLOSE,
            subscription.opaque(),
            None,
        )
    };
    if done < 0 {
        Err(VirtError::last_error())
    } else {
        Ok(())
    }
}

/// Takes that back; without it the registration keeps the connection open.
pub(super) fn unregister_close(connection: &Connect) {
    // SAFETY: the connection is open for as long as it is borrowed.
    unsafe { sys::virConnectUnregisterCloseCallback(connection.as_ptr(), ON_CLOSE) };
}

type GenericCallback = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
type LifecycleCallback =
    extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type AgentCallback =
    extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
type IoErrorCallback = extern "C" fn(
    sys::virConnectPtr,
    sys::virDomainPtr,
    *const c_char,
    *const c_char,
    c_int,
    *const c_char,
    *mut c_void,
);

fn publish(domain: sys::virDomainPtr, opaque: *mut c_void, what: DomainChange) {
    let Some(callbacks) = callbacks(opaque) else {
        return;
    };
    let mut bytes = [0_u8; 16];
    // SAFETY: libvirt owns the domain for the length of the callback, and
    // writes 16 bytes (VIR_UUID_BUFLEN). It reads its own object: no call.
    let read = unsafe { sys::virDomainGetUUID(domain, bytes.as_mut_ptr()) };
    if read < 0 {
        return;
    }
    let id = VmId(Uuid::from_bytes(bytes));
    // A panic must not unwind into libvirt; the hook has already reported it.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        (callbacks.on_event)(DomainEvent { id, what });
    }));
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: not null, and libvirt passes NUL-terminated strings that live
    // for the length of the callback.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

extern "C" fn on_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    publish(domain, opaque, events::lifecycle(event, detail));
    0
}

unsafe extern "C" fn on_reboot(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
) {
    publish(domain, opaque, DomainChange::Rebooted);
}

unsafe extern "C" fn on_control_error(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    opaque: *mut c_void,
) {
    publish(domain, opaque, DomainChange::ControlLost);
}

extern "C" fn on_agent(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    publish(domain, opaque, events::agent(state));
}

extern "C" fn on_io_error(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    source: *const c_char,
    _alias: *const c_char,
    action: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    publish(
        domain,
        opaque,
        events::io_error(text(source), action, text(reason)),
    );
}

unsafe extern "C" fn on_close(_: sys::virConnectPtr, reason: c_int, opaque: *mut c_void) {
    let Some(callbacks) = callbacks(opaque) else {
        return;
    };
    let reason: CloseReason = events::close_reason(reason);
    let _ = catch_unwind(AssertUnwindSafe(|| (callbacks.on_close)(reason)));
}
