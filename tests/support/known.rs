//! Faults of the daemon that are known, each with the tests that show it.
//!
//! A test that shows one checks what is right. While the fault is there, the test sees
//! its wrong outcome, says so, and passes. Once the fault is mended, the test fails until
//! its mark is removed, so that a mark can't outlive its fault. Any other wrong outcome
//! fails the test as ever, so that a mark can't hide another fault.
//!
//! The faults:
//!
//! - `hung-pool-at-start`: an agent one of whose local pools hangs waits for it a minute
//!   and more before it serves, and as long again for each image in it before it says
//!   that it is ready; systemd ends it before that, and starts another.
//! - `hung-pool-takes-others-along`: calls to a local pool that hangs use up what all
//!   local pools share, and calls to the others then wait for it, or are refused.
//! - `hung-pool-holds-a-forced-stop`: while a request of a VM waits for a pool that
//!   hangs, a forced stop of that VM waits behind it.
//! - `two-hosts-one-volume-id`: of two hosts of one Ceph cluster that are asked for the
//!   same volume id, the second adopts the image of the first, and removes it.
//! - `two-hosts-leave-a-temporary-image`: of two hosts that import one image at once,
//!   the slower one now and then says that it is done, and leaves what it had made.
//! - `undo-cut-off-by-a-stop`: an operation that is being undone when the agent is told
//!   to stop is ended for good as one whose undoing failed.
//! - `journal-full-while-undoing`: a step whose undoing is a write is given up at once when
//!   the journal is full: a host whose maintenance failed stays in it.

/// Runs a test of a fault that shows each time. `shows` returns the wrong outcome of that
/// fault, or `Ok` if all is right; it panics if anything else is wrong.
///
/// # Panics
/// If all is right: the fault is mended, and its mark must be removed.
pub async fn fault<F: Future<Output = Result<(), String>>>(name: &str, shows: F) {
    match shows.await {
        Ok(()) => panic!("the fault {name} is mended: remove its mark"),
        Err(text) => println!("known fault {name}: {text}"),
    }
}

/// Notes a fault that shows only now and then, so that neither outcome fails the test.
/// Whoever mends it adds a test that shows it each time, and removes this mark.
pub fn by_chance(name: &str, shown: Result<(), String>) {
    match shown {
        Ok(()) => println!("known fault {name}: not this time"),
        Err(text) => println!("known fault {name}: {text}"),
    }
}
