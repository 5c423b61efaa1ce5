//! What the tests of the whole daemon stand on: the real binary, a libvirt
//! daemon of one's own, and short ways to say what a test wants.
//!
//! Nothing here knows what is right: that is said in the tests.

// Each test binary uses its own part of it.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

pub mod api;
pub mod ceph;
pub mod daemon;
pub mod fuse;
pub mod holdings;
pub mod images;
pub mod invariants;
pub mod known;
pub mod libvirtd;
pub mod pki;
pub mod reaper;
pub mod refusal;
pub mod small;
pub mod timed;
pub mod watch;
pub mod world;

use std::time::{Duration, Instant};

/// Whether everything is done at its full length (`scripts/test --thorough`), and not a
/// short one.
pub fn thorough() -> bool {
    std::env::var_os("KVMLET_THOROUGH").is_some_and(|set| set == "1")
}

/// The seed of what is random: another one each time, unless it is given.
pub fn seed() -> u64 {
    match std::env::var("KVMLET_SEED") {
        Ok(text) => text.parse().expect("KVMLET_SEED is a number"),
        Err(_) => rand::random_range(0..1_000_000),
    }
}

/// The longest that anything may take, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is there; there is no event to wait on where this is
/// used.
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
