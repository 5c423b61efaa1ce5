//! What kvmlet is made of, and what is made of it: licences, sources, packages.

// clippy allows it in a test function, not in what it calls.
#![allow(clippy::unwrap_used)]

mod packaging;
mod sbom;
mod sources;
