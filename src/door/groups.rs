//! Which groups a local user is in, as this host's databases say.
//!
//! The kernel tells of a peer only its user and its first group without code that
//! is unsafe. The databases may be somewhere else (LDAP) and slow, so they are asked
//! on a thread of their own, and an answer is believed for a short while.

use nix::unistd::{Gid, Uid, User, getgrouplist};
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long an answer is believed.
const BELIEVED: Duration = Duration::from_secs(10);
/// How long the databases may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Users that are remembered.
const REMEMBERED: usize = 1024;

/// What was asked lately.
#[derive(Debug, Default)]
pub(super) struct Groups(Mutex<HashMap<u32, (Instant, Vec<u32>)>>);

impl Groups {
    /// The groups of a user, `first` among them.
    pub(super) async fn of(&self, uid: u32, first: u32) -> Vec<u32> {
        let mut groups = match self.known(uid) {
            Some(known) => known,
            None => self.ask(uid, first).await,
        };
        if !groups.contains(&first) {
            groups.push(first);
        }
        groups
    }

    fn known(&self, uid: u32) -> Option<Vec<u32>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, groups) = known.get(&uid)?;
        (asked.elapsed() < BELIEVED).then(|| groups.clone())
    }

    async fn ask(&self, uid: u32, first: u32) -> Vec<u32> {
        let (told, answer) = oneshot::channel();
        let asked = thread::Builder::new()
            .name("groups".to_owned())
            .spawn(move || drop(told.send(look_up(uid, first))));
        let answer = match asked {
            Ok(_) => tokio::time::timeout(PATIENCE, answer).await,
            Err(error) => {
                tracing::warn!(%error, uid, "a user's groups can't be looked up");
                return Vec::new();
            }
        };
        let Ok(Ok(groups)) = answer else {
            tracing::warn!(uid, "looking up a user's groups takes too long");
            return Vec::new();
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(uid, (Instant::now(), groups.clone()));
        groups
    }
}

fn look_up(uid: u32, first: u32) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    let groups = name.and_then(|name| getgrouplist(&name, Gid::from_raw(first)).ok());
    groups
        .unwrap_or_default()
        .into_iter()
        .map(Gid::as_raw)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_is_in_the_groups_that_the_host_says_and_in_its_first() {
        let groups = Groups::default();
        assert!(groups.of(0, 0).await.contains(&0));
        // Asked once more within the time, it is the same.
        assert!(groups.of(0, 4711).await.contains(&4711));
        // Of nobody whom the host knows, only what the kernel says.
        assert_eq!(groups.of(3_999_999_999, 4711).await, [4711]);
    }
}
