//! What kvmlet knows, as values: no I/O, no clock, no tasks.
//!
//! Everything here can be built, compared and tested without a host. The
//! adapters and the use cases speak in these types; the wire has its own.

pub mod access;
pub mod bytes;
pub mod event;
pub mod fault;
pub mod hardware;
pub mod host_run;
pub mod ids;
pub mod image;
pub mod lifecycle;
pub mod maintenance;
pub mod nic;
pub mod operation;
pub mod orphan;
pub mod reason;
pub mod request;
pub mod stop;
pub mod tag;
pub mod time;
pub mod trace;
pub mod view;
pub mod vm;
pub mod volume;
