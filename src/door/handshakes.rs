//! Handshakes that are not done yet. Who they are is not known: when there are too
//! many, the oldest gives way to the newest, so that those who never finish theirs
//! keep nobody out who does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// All of them, in the order in which they began.
#[derive(Debug, Clone, Default)]
pub(super) struct Handshakes(Arc<Mutex<Begun>>);

#[derive(Debug, Default)]
struct Begun {
    next: u64,
    open: BTreeMap<u64, CancellationToken>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Handshake {
    all: Handshakes,
    number: u64,
    given_up: CancellationToken,
}

impl Handshakes {
    /// Begins one; there are `most`, and not more.
    pub(super) fn begin(&self, most: usize) -> Handshake {
        let given_up = CancellationToken::new();
        let mut begun = self.lock();
        while begun.open.len() >= most.max(1) {
            if let Some((_, oldest)) = begun.open.pop_first() {
                oldest.cancel();
            }
        }
        let number = begun.next;
        begun.next += 1;
        begun.open.insert(number, given_up.clone());
        drop(begun);
        Handshake {
            all: self.clone(),
            number,
            given_up,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handshake {
    /// Returns when it has to give way.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_gives_way_and_what_is_done_makes_room() {
        let all = Handshakes::default();
        let (first, second) = (all.begin(2), all.begin(2));
        drop(second);
        let third = all.begin(2);
        assert!(!first.given_up.is_cancelled());
        let fourth = all.begin(2);
        assert!(first.given_up.is_cancelled());
        drop(first);
        assert!(!third.given_up.is_cancelled());
        assert!(!fourth.given_up.is_cancelled());
        assert_eq!(all.lock().open.len(), 2);
    }
}
