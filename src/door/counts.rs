//! How many of something each caller has, and all of them together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts(Arc<Mutex<Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    all: usize,
    each: HashMap<String, usize>,
}

/// One of them; no longer counted when it is dropped.
#[derive(Debug)]
pub(super) struct Count {
    counts: Counts,
    many: usize,
    name: String,
}

impl Counts {
    /// One more for `name`, unless there are `most_each` for it or `most` in all.
    pub(super) fn add(&self, name: &str, most_each: usize, most: usize) -> Option<Count> {
        self.add_many(1, name, most_each, most)
    }

    /// The same for `many` at once.
    pub(super) fn add_many(
        &self,
        many: usize,
        name: &str,
        most_each: usize,
        most: usize,
    ) -> Option<Count> {
        let mut numbers = self.lock();
        let own = numbers.each.get(name).copied().unwrap_or(0);
        if own + many > most_each || numbers.all + many > most {
            return None;
        }
        numbers.all += many;
        numbers.each.insert(name.to_owned(), own + many);
        drop(numbers);
        Some(Count {
            counts: self.clone(),
            many,
            name: name.to_owned(),
        })
    }

    /// How many there are in all.
    pub(super) fn all(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        let mut numbers = self.counts.lock();
        numbers.all -= self.many;
        match numbers.each.get_mut(&self.name) {
            Some(own) if *own > self.many => *own -= self.many,
            _ => drop(numbers.each.remove(&self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_his_share_and_all_not_more_than_there_is() {
        let counts = Counts::default();
        let own: Vec<_> = (0..2).map(|_| counts.add("a", 2, 3)).collect();
        assert!(own.iter().all(Option::is_some));
        assert!(counts.add("a", 2, 3).is_none());
        let other = counts.add("b", 2, 3);
        assert!(other.is_some());
        assert!(counts.add("c", 2, 3).is_none());
        drop(own);
        assert_eq!(counts.all(), 1);
        assert!(counts.add("c", 2, 3).is_some());
        drop(other);
        assert_eq!(counts.all(), 0);
        assert!(counts.lock().each.is_empty());
    }
}
