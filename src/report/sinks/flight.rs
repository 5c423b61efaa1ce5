//! What was sent and is not acknowledged yet: pure bookkeeping.
//!
//! A snapshot counts as one thing, which is there when the mark of its end is
//! acknowledged: half of it is of no use. Its members are held back by the
//! connection alone.

use crate::proto::v1::watch_events_response::Event;
use crate::proto::v1::{ResumePoint, WatchEventsResponse};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// Changes that may be unacknowledged; the next one waits.
pub(super) const MOST: usize = 256;

/// What was sent and is not acknowledged yet.
#[derive(Debug, Default)]
pub(super) struct Flight {
    sent: VecDeque<(ResumePoint, Instant)>,
    /// When something was acknowledged last.
    progress: Option<Instant>,
    in_snapshot: bool,
}

impl Flight {
    /// Whether more may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.sent.len() < MOST
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Notes that an event is sent.
    pub(super) fn sent(&mut self, event: &WatchEventsResponse, now: Instant) {
        match &event.event {
            Some(Event::Snapshot(mark)) => {
                self.in_snapshot = !mark.end;
                if self.in_snapshot {
                    return;
                }
            }
            // It says where the reader is already.
            Some(Event::Bookmark(_)) | None => return,
            Some(_) if self.in_snapshot => return,
            Some(_) => {}
        }
        let point = ResumePoint {
            epoch: event.epoch.clone(),
            revision: event.revision,
        };
        self.sent.push_back((point, now));
    }

    /// Notes that everything up to a point is acknowledged; returns up to where
    /// that is news.
    pub(super) fn acknowledged(&mut self, upto: &ResumePoint, now: Instant) -> Option<ResumePoint> {
        let mut news = None;
        while let Some((first, _)) = self.sent.front()
            && first.epoch == upto.epoch
            && first.revision <= upto.revision
        {
            news = self.sent.pop_front().map(|(point, _)| point);
            self.progress = Some(now);
        }
        news
    }

    /// When the receiver has had its time: nothing acknowledged for `patience`
    /// while something was to be.
    pub(super) fn deadline(&self, patience: Duration) -> Option<Instant> {
        let (_, sent) = self.sent.front()?;
        let begin = self.progress.map_or(*sent, |progress| progress.max(*sent));
        Some(begin + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{Bookmark, SnapshotMark};

    fn point(revision: u64) -> ResumePoint {
        ResumePoint {
            epoch: "e".to_owned(),
            revision,
        }
    }

    fn event(revision: u64, event: Event) -> WatchEventsResponse {
        WatchEventsResponse {
            epoch: "e".to_owned(),
            revision,
            event: Some(event),
            ..Default::default()
        }
    }

    fn change(revision: u64) -> WatchEventsResponse {
        event(revision, Event::VmExpunged("x".to_owned()))
    }

    fn mark(revision: u64, end: bool) -> WatchEventsResponse {
        let mark = SnapshotMark { end, forced: false };
        event(revision, Event::Snapshot(mark))
    }

    #[test]
    fn an_acknowledgement_takes_all_before_it_and_only_that() {
        let (mut flight, now) = (Flight::default(), Instant::now());
        for revision in 1..=5 {
            flight.sent(&change(revision), now);
        }
        assert_eq!(flight.acknowledged(&point(3), now), Some(point(3)));
        assert_eq!(flight.acknowledged(&point(3), now), None);
        let elsewhere = ResumePoint {
            epoch: "f".to_owned(),
            revision: 9,
        };
        assert_eq!(flight.acknowledged(&elsewhere, now), None);
        // Nobody can have what was not sent.
        assert_eq!(flight.acknowledged(&point(99), now), Some(point(5)));
        assert!(flight.is_empty());
    }

    #[test]
    fn a_snapshot_is_there_when_its_end_is() {
        let (mut flight, now) = (Flight::default(), Instant::now());
        flight.sent(&mark(7, false), now);
        for _ in 0..2 * MOST {
            flight.sent(&change(7), now);
            assert!(flight.has_room());
        }
        assert_eq!(flight.acknowledged(&point(7), now), None);
        flight.sent(&mark(7, true), now);
        assert_eq!(flight.acknowledged(&point(7), now), Some(point(7)));
    }

    #[test]
    fn there_is_room_for_so_many_and_bookmarks_need_none() {
        let (mut flight, now) = (Flight::default(), Instant::now());
        for revision in 0..MOST {
            assert!(flight.has_room());
            flight.sent(&change(revision as u64), now);
            flight.sent(&event(revision as u64, Event::Bookmark(Bookmark {})), now);
        }
        assert!(!flight.has_room());
        flight.acknowledged(&point(0), now);
        assert!(flight.has_room());
    }

    #[test]
    fn a_receiver_that_goes_on_acknowledging_has_time() {
        let (mut flight, now) = (Flight::default(), Instant::now());
        let second = Duration::from_secs(1);
        assert_eq!(flight.deadline(second), None);
        flight.sent(&change(1), now);
        flight.sent(&change(2), now);
        assert_eq!(flight.deadline(second), Some(now + second));
        flight.acknowledged(&point(1), now + second / 2);
        assert_eq!(flight.deadline(second), Some(now + second * 3 / 2));
    }
}
