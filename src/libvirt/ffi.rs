//! The only unsafe code: what the virt crate has no safe wrapper for.
//!
//! libvirt's callbacks carry a number instead of a pointer: it is looked up in
//! a table of ours, so that a callback which arrives late, after its
//! connection was closed, finds nothing instead of freed memory.

#![allow(unsafe_code)]

use super::addresses::Seen;
use super::connection::Callbacks;
use super::events::{self, CloseReason, DomainChange, DomainEvent};
use super::stats::{Figure, Told};
use crate::model::ids::VmId;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::Error as VirtError;
use virt_sys as sys;
use zeroize::{Zeroize, Zeroizing};

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

/// What libvirt's C functions return a list as: memory that must be given back.
struct Listed<T> {
    first: *mut *mut T,
    count: usize,
    /// Frees all of it.
    free: unsafe fn(*mut *mut T, usize),
}

impl<T> Listed<T> {
    /// Takes what a call returned: a count, or less than zero if it failed.
    fn take(
        first: *mut *mut T,
        count: c_int,
        free: unsafe fn(*mut *mut T, usize),
    ) -> Result<Self, VirtError> {
        let count = usize::try_from(count).map_err(|_| VirtError::last_error())?;
        Ok(Self { first, count, free })
    }

    fn elements(&self) -> &[*mut T] {
        // SAFETY: libvirt has allocated `count` pointers at `first`, and they
        // live until this is dropped.
        unsafe { array(self.first, self.count) }
    }
}

impl<T> Drop for Listed<T> {
    fn drop(&mut self) {
        // SAFETY: it is what libvirt has allocated, and given back only here.
        unsafe { (self.free)(self.first, self.count) };
    }
}

/// An array of C as a slice; a null one is empty.
///
/// # Safety
/// `count` elements are at `first`, and live and do not change as long as `'a`.
unsafe fn array<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: as promised by the caller.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// Asks for the figures of all domains with one call.
///
/// What is neither a whole number nor a text is left out.
pub(super) fn all_domain_stats(
    connection: &Connect,
    groups: c_uint,
    flags: c_uint,
) -> Result<Vec<Told>, VirtError> {
    unsafe fn free(first: *mut sys::virDomainStatsRecordPtr, _: usize) {
        // SAFETY: it ends the list with a null and is freed as a whole.
        unsafe { sys::virDomainStatsRecordListFree(first) };
    }
    let mut first = std::ptr::null_mut();
    // SAFETY: the connection is open for as long as it is borrowed; libvirt
    // writes one pointer.
    let count = unsafe {
        sys::virConnectGetAllDomainStats(connection.as_ptr(), groups, &raw mut first, flags)
    };
    let listed = Listed::take(first, count, free)?;
    let told = listed.elements().iter().filter_map(|record| {
        // SAFETY: each element points to a record that lives as long as the list.
        let record = unsafe { &**record };
        let mut bytes = [0_u8; 16];
        // SAFETY: the domain lives as long as its record; 16 bytes are written
        // (VIR_UUID_BUFLEN). It reads its own object: no call.
        if unsafe { sys::virDomainGetUUID(record.dom, bytes.as_mut_ptr()) } < 0 {
            return None;
        }
        let count = usize::try_from(record.nparams).unwrap_or(0);
        // SAFETY: the record has so many parameters, which live as long.
        let parameters = unsafe { array(record.params, count) };
        let figures = parameters
            .iter()
            .filter_map(|parameter| Some((text(parameter.field.as_ptr()), figure(parameter)?)));
        Some(Told {
            id: VmId(Uuid::from_bytes(bytes)),
            figures: figures.collect(),
        })
    });
    Ok(told.collect())
}

fn figure(parameter: &sys::virTypedParameter) -> Option<Figure> {
    let kind = sys::virTypedParameterType::try_from(parameter.type_).ok()?;
    // SAFETY: the type says which of the values was written.
    unsafe {
        Some(match kind {
            sys::VIR_TYPED_PARAM_INT => Figure::Number(parameter.value.i.try_into().ok()?),
            sys::VIR_TYPED_PARAM_UINT => Figure::Number(parameter.value.ui.into()),
            sys::VIR_TYPED_PARAM_LLONG => Figure::Number(parameter.value.l.try_into().ok()?),
            sys::VIR_TYPED_PARAM_ULLONG => Figure::Number(parameter.value.ul),
            sys::VIR_TYPED_PARAM_STRING => Figure::Text(text(parameter.value.s)),
            _ => return None,
        })
    }
}

/// Asks for the addresses of a guest's interfaces.
///
/// The virt crate can do that too, and loses a little memory each time.
pub(super) fn interface_addresses(
    domain: &Domain,
    source: sys::virDomainInterfaceAddressesSource,
) -> Result<Vec<Seen>, VirtError> {
    unsafe fn free(first: *mut sys::virDomainInterfacePtr, count: usize) {
        // SAFETY: libvirt has allocated each interface, and the array with the
        // C library's own allocator.
        unsafe {
            for interface in array(first, count) {
                sys::virDomainInterfaceFree(*interface);
            }
            libc_free(first.cast());
        }
    }
    let mut first = std::ptr::null_mut();
    // SAFETY: the domain is held for as long as it is borrowed; libvirt writes
    // one pointer.
    let count =
        unsafe { sys::virDomainInterfaceAddresses(domain.as_ptr(), &raw mut first, source, 0) };
    let listed = Listed::take(first, count, free)?;
    let seen = listed.elements().iter().map(|interface| {
        // SAFETY: each element points to an interface that lives as long as the
        // list, and so do its addresses.
        let (interface, addresses) = unsafe {
            let interface = &**interface;
            let count = usize::try_from(interface.naddrs).unwrap_or(0);
            (interface, array(interface.addrs, count))
        };
        Seen {
            mac: text(interface.hwaddr),
            addresses: addresses.iter().map(|one| text(one.addr)).collect(),
        }
    });
    Ok(seen.collect())
}

unsafe extern "C" {
    /// The C library's `free`.
    #[link_name = "free"]
    fn libc_free(pointer: *mut c_void);
}

/// Bounds how long libvirt waits for answers of a guest's agent, in seconds, from
/// now until the guest ends.
pub(super) fn set_agent_timeout(domain: &Domain, seconds: c_int) -> Result<(), VirtError> {
    // SAFETY: the domain is held for as long as it is borrowed.
    let done = unsafe { sys::virDomainAgentSetResponseTimeout(domain.as_ptr(), seconds, 0) };
    if done < 0 {
        Err(VirtError::last_error())
    } else {
        Ok(())
    }
}

/// The definition in the file of a domain's saved memory. libvirt reads the file's
/// header for it, and refuses one that is not finished.
pub(super) fn managed_save_definition(domain: &Domain) -> Result<Zeroizing<String>, VirtError> {
    let flags = sys::VIR_DOMAIN_SAVE_IMAGE_XML_SECURE;
    // SAFETY: the domain is held for as long as it is borrowed.
    let text = unsafe { sys::virDomainManagedSaveGetXMLDesc(domain.as_ptr(), flags) };
    if text.is_null() {
        return Err(VirtError::last_error());
    }
    // SAFETY: libvirt gave a string that ends with NUL, and that is ours to free.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        std::slice::from_raw_parts_mut(text.cast::<u8>(), copy.len()).zeroize();
        libc_free(text.cast());
        Ok(Zeroizing::new(copy))
    }
}

/// Changes the definition that a domain's saved memory is restored with. The text has no
/// NUL in it.
pub(super) fn define_managed_save(domain: &Domain, xml: &str) -> Result<(), VirtError> {
    let text = secret_text(xml);
    let text = CStr::from_bytes_with_nul(&text).expect("XML has no NUL");
    // SAFETY: the domain is held for as long as it is borrowed, and the text ends
    // with its only NUL.
    let done = unsafe { sys::virDomainManagedSaveDefineXML(domain.as_ptr(), text.as_ptr(), 0) };
    if done < 0 {
        return Err(VirtError::last_error());
    }
    Ok(())
}

/// A text with the NUL that C needs, in memory that is erased.
fn secret_text(xml: &str) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(xml.len() + 1));
    text.extend_from_slice(xml.as_bytes());
    text.push(0);
    text
}

/// Changes a device of the running domain to what a text says that holds a secret:
/// the copy that C needs is erased. The text has no NUL in it.
pub(super) fn update_device_secretly(domain: &Domain, xml: &str) -> Result<(), VirtError> {
    let text = secret_text(xml);
    let text = CStr::from_bytes_with_nul(&text).expect("XML has no NUL");
    let live = sys::VIR_DOMAIN_AFFECT_LIVE;
    // SAFETY: the domain is held for as long as it is borrowed, and the text ends
    // with its only NUL.
    let done = unsafe { sys::virDomainUpdateDeviceFlags(domain.as_ptr(), text.as_ptr(), live) };
    if done < 0 {
        Err(VirtError::last_error())
    } else {
        Ok(())
    }
}
