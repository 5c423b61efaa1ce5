//! How often kvmlet looks by itself, and how long it waits before it tries again.
//!
//! Nothing here is a promise to anybody: deadlines of calls, limits and what the
//! configuration says are where they are kept. So tests may have all of it sooner. In
//! a build with the feature `failpoints`, the environment variable `KVMLET_PACE` is a
//! factor for all of it (`0.1`: ten times as often); in all other builds it is nothing.

use std::time::Duration;

#[cfg(feature = "failpoints")]
use scaled::paced;

#[cfg(not(feature = "failpoints"))]
const fn paced(time: Duration) -> Duration {
    time
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// From one sweep to the next: what is due by the clock may be half a minute late, and
/// measuring a cluster takes its tools a second or two of a processor.
pub fn sweep() -> Duration {
    paced(seconds(30))
}

/// From one look for what has had its time in the pools' trash to the next. That time
/// is hours, and each look lists every Ceph pool.
pub fn trash() -> Duration {
    paced(seconds(300))
}

/// How often a cluster that is away is looked for: requests are refused until it is
/// found.
pub fn absent_pool() -> Duration {
    paced(seconds(3))
}

/// How often a standing connection to libvirt is looked at; its end is told by an event
/// as a rule.
pub fn libvirt() -> Duration {
    paced(seconds(5))
}

/// When a VM that could not be looked at is looked at again.
pub fn unseen_vm() -> Duration {
    paced(seconds(1))
}

/// How often the end of an operation is written again at the longest, while the journal
/// can't be written.
pub fn unwritten_end() -> Duration {
    paced(seconds(5))
}

/// How often pools are looked at that were away when a journal was rebuilt.
pub fn unread_pools() -> Duration {
    paced(seconds(5))
}

/// How long a client that ended suddenly is waited for to be forgotten by its cluster:
/// the default of `osd_client_watch_timeout`, 30 s, and some more for a cluster that is
/// slow. No factor makes it less than half of that: no cluster is quick when it is busy.
pub fn dead_client() -> Duration {
    paced(seconds(40)).max(seconds(20))
}

/// How often a reader of events is told that it has everything, so that one whose
/// connection is dead notices it.
pub fn bookmark() -> Duration {
    paced(seconds(10))
}

/// How often it is asked whether who reads a stream still may: a role that is taken away
/// counts that soon.
pub fn judging() -> Duration {
    paced(seconds(5))
}

/// How often it is looked whether the files of certificates have changed.
pub fn certificates() -> Duration {
    paced(seconds(5))
}

/// How long a receiver that can't be reached is left alone at the longest. A fleet that
/// calls more often than this keeps one that comes back from coming back.
pub fn receiver() -> Duration {
    paced(seconds(30))
}

/// A connection to a receiver that held this long was a good one, also if nothing was
/// sent: the next one is made at once.
pub fn good_connection() -> Duration {
    paced(seconds(60))
}

/// How often the audit file is tried again that can't be written.
pub fn audit() -> Duration {
    paced(seconds(5))
}

#[cfg(feature = "failpoints")]
mod scaled {
    use std::sync::LazyLock;
    use std::time::Duration;

    static FACTOR: LazyLock<f64> = LazyLock::new(|| {
        let Ok(text) = std::env::var("KVMLET_PACE") else {
            return 1.0;
        };
        let factor = text.parse().ok();
        factor
            .filter(|factor: &f64| factor.is_finite() && *factor > 0.0)
            .unwrap_or_else(|| panic!("KVMLET_PACE is {text}, and no factor"))
    });

    pub(super) fn paced(time: Duration) -> Duration {
        time.mul_f64(*FACTOR)
    }
}
