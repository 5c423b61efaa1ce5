//! Why a guest restarts: who has asked it to, and what libvirt does by itself.
//!
//! libvirt makes a restart of a press of the power button: it notes that the guest is to
//! begin anew once it has shut down. The note stays until then, however long it takes,
//! unless the guest is asked to shut down or is reset. So a guest that has ignored a
//! RebootVm and powers itself off a day later is started again, for that RebootVm.
//! libvirt tells such a start with the same event as a restart by the guest itself: the
//! first restart after the press is put down to it.
//!
//! What is known here ends with the agent; libvirt's note does not.

use crate::model::event::Cause;
use crate::model::ids::OperationId;
use std::time::{Duration, Instant};

/// How long after it was asked a guest may restart by itself and it is still for that.
const OBEYS: Duration = Duration::from_secs(300);

/// What is known of a guest's next restart.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// The operation that asked for one last.
    asked: Option<(OperationId, Instant)>,
    /// The operation for which libvirt has its note.
    noted: Option<OperationId>,
}

impl Restarts {
    /// An operation begins to ask for a restart.
    pub(super) const fn ask(&mut self, id: OperationId, now: Instant) {
        self.asked = Some((id, now));
    }

    /// An operation presses the power button for a restart.
    pub(super) const fn press(&mut self, id: OperationId) {
        self.noted = Some(id);
    }

    /// The guest is asked to shut down, is reset, or was given power: libvirt has no
    /// note any more.
    pub(super) const fn forget_press(&mut self) {
        self.noted = None;
    }

    /// The guest has restarted: why.
    pub(super) fn restarted(&mut self, now: Instant) -> Cause {
        let asked = self.asked.take();
        let asked = asked.filter(|(_, at)| now.duration_since(*at) < OBEYS);
        let noted = self.noted.take();
        noted
            .or(asked.map(|(id, _)| id))
            .map_or(Cause::REBOOT, Cause::operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(3600);

    #[test]
    fn the_first_restart_after_a_press_is_for_it_however_late() {
        let (mut restarts, id, now) = (Restarts::default(), OperationId::random(), Instant::now());
        restarts.ask(id, now);
        restarts.press(id);
        assert_eq!(restarts.restarted(now + LATER), Cause::operation(id));
        assert_eq!(restarts.restarted(now + LATER), Cause::REBOOT, "only once");
    }

    #[test]
    fn a_restart_is_for_a_request_without_a_press_only_soon_after_it() {
        let (mut restarts, id, now) = (Restarts::default(), OperationId::random(), Instant::now());
        restarts.ask(id, now);
        assert_eq!(restarts.restarted(now), Cause::operation(id));
        restarts.ask(id, now);
        assert_eq!(restarts.restarted(now + LATER), Cause::REBOOT);
        restarts.press(id);
        restarts.forget_press();
        assert_eq!(restarts.restarted(now), Cause::REBOOT);
    }
}
