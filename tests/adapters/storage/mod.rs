//! Storage, with the real `qemu-img`, real file systems and real sockets.

mod contract;
#[path = "../../contract/mod.rs"]
mod contract_cases;
mod files;
mod hostile;
mod images;
mod pools;
mod processes;
mod support;
mod volumes;
mod web;
