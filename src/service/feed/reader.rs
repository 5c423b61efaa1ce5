//! One reader of the feed: where it stands, and what it gets next.
//!
//! A reader pulls: what it has not taken is in the journal, not in a buffer of its
//! own, so that a slow one costs nothing and holds up nobody.

use super::{Feed, RING, lock};
use crate::model::event::{Change, Event, Filter, Position, What};
use crate::model::fault::Fault;
use crate::pace;
use crate::service::core::Core;
use crate::service::operations::now;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Events that are taken at once.
const CHUNK: usize = 256;

/// Where a reader begins.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// After this; `None`: from now on.
    pub resume: Option<Position>,
    /// With the state of everything.
    pub snapshot: bool,
    /// What it wants.
    pub filter: Filter,
}

/// What a reader gets.
#[derive(Debug, Clone)]
pub enum Item {
    /// The state of everything follows, as it is at this position or later.
    SnapshotBegin {
        /// The position.
        at: Position,
        /// It was not asked for: what the reader would go on with is gone.
        forced: bool,
    },
    /// A change; between the marks of a snapshot, a member of it.
    Event(Event),
    /// The snapshot is whole.
    SnapshotEnd(Position),
    /// The reader has everything up to here.
    Bookmark(Position),
}

/// One reader.
pub struct Reader {
    core: Arc<Core>,
    filter: Filter,
    /// What it has been given, or has passed over.
    at: u64,
    head: watch::Receiver<u64>,
    ready: VecDeque<Item>,
    /// What of a snapshot is still to come, and where it was taken.
    snapshot: Option<(Position, VecDeque<What>)>,
    bookmark: Instant,
    begin: Option<Begin>,
}

enum Begin {
    Snapshot { forced: bool },
    Bookmark,
}

impl Reader {
    /// A reader that begins where `start` says. A resume point of another epoch, or
    /// beyond the end, gets a snapshot that is marked as forced.
    pub fn new(core: &Arc<Core>, start: Start) -> Self {
        let feed = &core.feed;
        feed.readers.fetch_add(1, Ordering::Relaxed);
        let head = feed.head.subscribe();
        let end = feed.position();
        let (at, begin) = match start.resume {
            _ if start.snapshot => (end.revision, Some(Begin::Snapshot { forced: false })),
            None => (end.revision, Some(Begin::Bookmark)),
            Some(resume) if resume.epoch != end.epoch || resume.revision > end.revision => {
                (end.revision, Some(Begin::Snapshot { forced: true }))
            }
            Some(resume) => (resume.revision, None),
        };
        Self {
            core: core.clone(),
            filter: start.filter,
            at,
            head,
            ready: VecDeque::new(),
            snapshot: None,
            // The first says that it has caught up.
            bookmark: Instant::now(),
            begin,
        }
    }

    /// How many revisions it is behind.
    pub fn lag(&self) -> u64 {
        self.head.borrow().saturating_sub(self.at)
    }

    /// What comes next; waits for it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// `JOURNAL_UNAVAILABLE` where what is older can't be read.
    pub async fn next(&mut self) -> Result<Item, Fault> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            if let Some((at, left)) = &mut self.snapshot {
                let at = *at;
                match left.pop_front() {
                    Some(what) => self.add(at, what),
                    None => {
                        self.snapshot = None;
                        return Ok(Item::SnapshotEnd(at));
                    }
                }
                continue;
            }
            match self.begin {
                Some(Begin::Snapshot { forced }) => {
                    self.core.feed.settled().await;
                    self.begin = None;
                    self.take_snapshot(forced);
                    continue;
                }
                Some(Begin::Bookmark) => {
                    self.core.feed.settled().await;
                    self.begin = None;
                    self.at = self.core.feed.position().revision;
                    return Ok(self.mark());
                }
                None => {}
            }
            let head = *self.head.borrow_and_update();
            if self.at < head {
                self.take_events(head).await?;
                continue;
            }
            tokio::select! {
                changed = self.head.changed() => {
                    if changed.is_err() {
                        // The feed is gone with the agent.
                        return std::future::pending().await;
                    }
                }
                () = sleep_until(self.bookmark) => return Ok(self.mark()),
            }
        }
    }

    /// A bookmark where it stands.
    fn mark(&mut self) -> Item {
        self.bookmark = Instant::now() + pace::bookmark();
        Item::Bookmark(Position {
            revision: self.at,
            ..self.core.feed.position()
        })
    }

    async fn take_events(&mut self, head: u64) -> Result<(), Fault> {
        let next = self.at + 1;
        let events = match self.core.feed.recent(next) {
            Some(events) => events,
            None => self.core.ledger.events(self.at, CHUNK).await?,
        };
        match events.first() {
            Some(first) if first.revision == next => {}
            // Forgotten meanwhile, or before.
            Some(_) | None if next <= head => {
                self.begin = Some(Begin::Snapshot { forced: true });
                return Ok(());
            }
            Some(_) | None => return Ok(()),
        }
        for event in events {
            self.at = event.revision;
            if self.filter.wants(&event.change) {
                self.ready.push_back(Item::Event(event));
            }
        }
        if self.ready.is_empty() && Instant::now() >= self.bookmark {
            let mark = self.mark();
            self.ready.push_back(mark);
        }
        Ok(())
    }

    /// Takes the state of everything. The position is read first, so that what
    /// changes meanwhile is told again after it. Things are shared, not copied.
    fn take_snapshot(&mut self, forced: bool) {
        let at = self.core.feed.position();
        self.at = at.revision;
        self.ready.push_back(Item::SnapshotBegin { at, forced });
        let vms = self.core.vms.list().into_iter().map(What::Vm);
        let images = self.core.images.list().into_iter().map(Arc::new);
        let live = self.core.operations.all_live();
        let operations = live.iter().map(|live| What::Operation(live.get()));
        let all = vms.chain(images.map(What::Image)).chain(operations);
        self.snapshot = Some((at, all.collect()));
    }

    fn add(&mut self, at: Position, what: What) {
        let labels = match &what {
            What::Vm(view) => view.vm.as_ref().map(|vm| Arc::new(vm.labels.clone())),
            What::Operation(operation) => operation
                .vm_id
                .and_then(|id| self.core.vms.get(id).ok())
                .and_then(|view| view.vm.as_ref().map(|vm| Arc::new(vm.labels.clone()))),
            What::VmExpunged(_) | What::Image(_) | What::ImageDeleted(_) => None,
        };
        let change = Change {
            time: now(),
            cause: None,
            caller: None,
            what,
            labels: labels.unwrap_or_default(),
            former_labels: None,
        };
        if self.filter.wants(&change) {
            self.ready.push_back(Item::Event(Event {
                revision: at.revision,
                change: Arc::new(change),
            }));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.core.feed.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Feed {
    /// The events from a revision on, some of them, if that one is still in memory.
    fn recent(&self, from: u64) -> Option<Vec<Event>> {
        let ring = lock(&self.ring);
        let first = ring.front()?.revision;
        let skip = usize::try_from(from.checked_sub(first)?).unwrap_or(RING);
        let events: Vec<Event> = ring.iter().skip(skip).take(CHUNK).cloned().collect();
        (!events.is_empty()).then_some(events)
    }
}
