//! Whose turn it is: of the calls of one caller, few are worked on at the same moment.
//! The others wait for those, and not the other callers for all of them.
//!
//! A call has its turn only while it does something. One that waits, for an operation
//! or for a disk, holds up none of its caller's.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use tokio::sync::Semaphore;
use tokio_util::sync::PollSemaphore;

/// Calls of one caller that are worked on at the same moment.
const AT_ONCE: usize = 2;
/// Callers, before those who have gone are forgotten.
const REMEMBERED: usize = 64;

/// The turns of all callers.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<Semaphore>>>);

impl Turns {
    /// Has `call` done in the turns of this caller.
    pub(super) fn take<F: Future>(&self, name: &str, call: F) -> InTurn<F> {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = callers.get(name).and_then(Weak::upgrade);
        let turns = known.unwrap_or_else(|| {
            if callers.len() >= REMEMBERED {
                callers.retain(|_, turns| turns.strong_count() > 0);
            }
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            callers.insert(name.to_owned(), Arc::downgrade(&turns));
            turns
        });
        InTurn {
            turn: PollSemaphore::new(turns),
            call: Box::pin(call),
        }
    }
}

/// A call that goes on when it is its caller's turn.
pub struct InTurn<F> {
    turn: PollSemaphore,
    call: Pin<Box<F>>,
}

impl<F: Future> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // Until this returns; it is never closed.
        let _turn = ready!(self.turn.poll_acquire(context));
        self.call.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn calls_that_wait_hold_up_no_other_and_who_has_gone_is_forgotten() {
        let turns = Turns::default();
        let (go, waiting) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        let calls: Vec<_> = (0..3 * AT_ONCE)
            .map(|_| {
                let (go, waiting) = (go.clone(), waiting.clone());
                tokio::spawn(turns.take("a", async move {
                    let told = go.notified();
                    waiting.fetch_add(1, Ordering::Relaxed);
                    told.await;
                }))
            })
            .collect();
        while waiting.load(Ordering::Relaxed) < 3 * AT_ONCE {
            tokio::task::yield_now().await;
        }
        assert_eq!(turns.take("a", async { 1 }).await, 1);
        while calls.iter().any(|call| !call.is_finished()) {
            go.notify_waiters();
            tokio::task::yield_now().await;
        }
        for name in 0..2 * REMEMBERED {
            turns.take(&name.to_string(), async {}).await;
        }
        assert!(turns.0.lock().unwrap().len() <= REMEMBERED);
    }
}
