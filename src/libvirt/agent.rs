//! The guest's agent: whether it is there, and whether it answers.
//!
//! What it is asked to do stands with the call that does it.

use super::connection::Host;
use super::domain::unreadable;
use super::error::LibvirtError;
use super::ffi;
use super::xml::read;
use crate::model::ids::VmId;
use virt::enumutil::Enum;
use virt::error::ErrorNumber;

/// Seconds that a guest's agent has for an answer; what libvirt waits by itself
/// for the agent to wake up. Without it libvirt waits for ever.
const ANSWER_SECONDS: i32 = 5;

impl Host {
    /// Has libvirt wait 5 s at most for any answer of this agent, as long as the guest
    /// has power.
    ///
    /// # Errors
    /// `NotFound`, `InvalidState` without power, and those of any call.
    pub(super) fn bound_answers(&self, id: VmId) -> Result<(), LibvirtError> {
        self.on_domain("bound the agent's answers", id, |d| {
            ffi::set_agent_timeout(d, ANSWER_SECONDS)
        })
    }

    /// Whether the guest's agent has its end of the channel open.
    ///
    /// # Errors
    /// `NotFound`, and those of any call; nothing is changed.
    pub fn agent_connected(&self, id: VmId) -> Result<bool, LibvirtError> {
        const WHAT: &str = "read agent's channel";
        let live = self.on_domain(WHAT, id, |d| d.xml_desc(0))?;
        read::agent_connected(&live).map_err(|e| unreadable(WHAT, e))
    }

    /// Whether the guest's agent answers: one whose end of the channel is open may
    /// be stuck. libvirt waits 5 s for it to wake up, and 5 s for the answer.
    ///
    /// # Errors
    /// Those of any call; nothing is changed.
    pub fn agent_answers(&self, id: VmId) -> Result<bool, LibvirtError> {
        if !self.agent_connected(id)? {
            return Ok(false);
        }
        self.bound_answers(id)?;
        self.on_domain("ask agent for its time", id, |d| match d.time(0) {
            Ok(_) => Ok(true),
            Err(error) => match error.code() {
                // It has answered that it does not do that.
                Enum::Known(ErrorNumber::AgentCommandFailed) => Ok(true),
                Enum::Known(
                    ErrorNumber::AgentUnresponsive
                    | ErrorNumber::AgentUnsynced
                    | ErrorNumber::AgentCommandTimeout,
                ) => Ok(false),
                _ => Err(error),
            },
        })
    }
}
