//! kvmlet, the node agent for KVM hosts.
//!
//! The layers, from the inside out: [`model`] is pure; [`libvirt`],
//! [`storage`] and [`journal`] are adapters to the outside world; `service`
//! holds the use cases; `grpc` lets callers in; `report` calls others; `cli` is
//! the administrator's client of the same API. `ARCHITECTURE.md` draws the picture
//! and `tests/light/architecture.rs` keeps it true.

pub mod cli;
pub mod config;
pub mod doctor;
pub mod door;
pub mod faultpoint;
pub mod grpc;
pub mod hardening;
pub mod journal;
pub mod libvirt;
pub mod model;
pub mod pace;
pub mod proto;
pub mod report;
pub mod run;
pub mod service;
pub mod shutdown;
pub mod spans;
pub mod storage;
pub mod systemd;
pub mod telemetry;
