//! What a request comes to in each state.

use super::{Resting, Seen};
use crate::model::fault::Fault;
use crate::model::reason::Reason;
use crate::model::vm::Life;

/// A request, as far as the table needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Give power; restores a SAVED VM.
    Start,
    /// Ask the guest to stop.
    StopGraceful,
    /// Cut its power.
    StopForce,
    /// Give up the saved memory of a SAVED VM.
    DiscardSaved,
    /// Ask the guest to restart.
    Reboot,
    /// Press the reset button.
    Reset,
    /// Hold the processors.
    Pause,
    /// Let them go on.
    Resume,
    /// Memory to a file.
    Save,
    /// Another root volume, from an image or a kept one.
    ReplaceRoot {
        /// Whether the request says how to stop the VM.
        stop_policy: bool,
    },
    /// Take out of use.
    Delete {
        /// Whether the request says how to stop the VM.
        stop_policy: bool,
    },
    /// Bring back.
    Recover,
    /// Remove for good.
    Expunge,
    /// Change what is only recorded (name, labels and the like).
    Describe,
    /// Change the virtual machine itself.
    ChangeHardware,
    /// CreateVm again, with the same id and spec.
    CreateAgain,
}

impl Ask {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 18] = [
        Self::Start,
        Self::StopGraceful,
        Self::StopForce,
        Self::DiscardSaved,
        Self::Reboot,
        Self::Reset,
        Self::Pause,
        Self::Resume,
        Self::Save,
        Self::ReplaceRoot { stop_policy: false },
        Self::ReplaceRoot { stop_policy: true },
        Self::Delete { stop_policy: false },
        Self::Delete { stop_policy: true },
        Self::Recover,
        Self::Expunge,
        Self::Describe,
        Self::ChangeHardware,
        Self::CreateAgain,
    ];

    /// The name of its row in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::StopGraceful => "Stop, graceful",
            Self::StopForce => "Stop, force",
            Self::DiscardSaved => "Stop, discard saved memory",
            Self::Reboot => "Reboot (graceful)",
            Self::Reset => "Reset (hard)",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Save => "Save",
            Self::ReplaceRoot { stop_policy: false } => "ReplaceRoot or RevertRoot",
            Self::ReplaceRoot { stop_policy: true } => "ReplaceRoot or RevertRoot, stop policy",
            Self::Delete { stop_policy: false } => "Delete",
            Self::Delete { stop_policy: true } => "Delete, stop policy",
            Self::Recover => "Recover",
            Self::Expunge => "Expunge",
            Self::Describe => "Update, description",
            Self::ChangeHardware => "Update, hardware",
            Self::CreateAgain => "Create again, same spec",
        }
    }
}

/// What a request comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is done.
    Go,
    /// The VM is there already: success without doing anything.
    Already,
    /// It is refused, with what to do instead.
    Refuse(Instead),
}

impl Decision {
    /// The words of its cell in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Already => "already",
            Self::Refuse(instead) => instead.cell(),
        }
    }
}

/// What to do instead of a refused request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Instead {
    /// StartVm first.
    Start,
    /// StopVm first.
    Stop,
    /// ResumeVm.
    Resume,
    /// ResumeVm, or stop by force.
    ResumeOrForce,
    /// RecoverVm first.
    Recover,
    /// RecoverVm, or ExpungeVm.
    RecoverOrExpunge,
    /// DeleteVm first.
    Delete,
    /// CreateVm again with the same id and spec, or DeleteVm.
    CreateAgainOrDelete,
    /// Send a stop policy, or stop it first.
    StopPolicy,
    /// ExpungeVm: that has begun, and there is no way back.
    Expunge,
    /// Nothing: it is not deleted.
    Nothing,
    /// Wait until libvirt is back.
    Wait,
}

impl Instead {
    const fn cell(self) -> &'static str {
        match self {
            Self::Start => "refuse: Start",
            Self::Stop => "refuse: Stop",
            Self::Resume => "refuse: Resume",
            Self::ResumeOrForce => "refuse: Resume, or force",
            Self::Recover => "refuse: Recover",
            Self::RecoverOrExpunge => "refuse: Recover, or Expunge",
            Self::Delete => "refuse: Delete",
            Self::CreateAgainOrDelete => "refuse: Create again, or Delete",
            Self::StopPolicy => "refuse: stop policy",
            Self::Expunge => "refuse: Expunge",
            Self::Nothing => "refuse",
            Self::Wait => "refuse: wait",
        }
    }

    /// The calls to make instead, for programs; empty if there is none.
    pub const fn calls(self) -> &'static str {
        match self {
            Self::Start => "StartVm",
            Self::Stop | Self::StopPolicy => "StopVm",
            Self::Resume => "ResumeVm",
            Self::ResumeOrForce => "ResumeVm,StopVm",
            Self::Recover => "RecoverVm",
            Self::RecoverOrExpunge => "RecoverVm,ExpungeVm",
            Self::Delete => "DeleteVm",
            Self::CreateAgainOrDelete => "CreateVm,DeleteVm",
            Self::Expunge => "ExpungeVm",
            Self::Nothing | Self::Wait => "",
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Start => "start it first (StartVm)",
            Self::Stop => "stop it first (StopVm)",
            Self::Resume => "resume it first (ResumeVm)",
            Self::ResumeOrForce => "resume it first (ResumeVm), or stop it by force (StopVm)",
            Self::Recover => "recover it first (RecoverVm)",
            Self::RecoverOrExpunge => "recover it (RecoverVm) or expunge it (ExpungeVm)",
            Self::Delete => "delete it first (DeleteVm)",
            Self::CreateAgainOrDelete => {
                "create it again with the same id and spec (CreateVm), or delete it (DeleteVm)"
            }
            Self::StopPolicy => "say how to stop it (stop_policy), or stop it first (StopVm)",
            Self::Expunge => "parts of it are gone for good; expunge the rest (ExpungeVm)",
            Self::Nothing => "there is nothing to be brought back",
            Self::Wait => "wait until libvirt is back",
        }
    }

    /// The refusal as the caller gets it.
    pub fn fault(self, ask: Ask, state: Resting) -> Fault {
        let reason = match self {
            Self::Wait => Reason::HypervisorAway,
            Self::StopPolicy => Reason::StopPolicyRequired,
            Self::Start
            | Self::Stop
            | Self::Resume
            | Self::ResumeOrForce
            | Self::Recover
            | Self::RecoverOrExpunge
            | Self::Delete
            | Self::CreateAgainOrDelete
            | Self::Expunge
            | Self::Nothing => Reason::WrongState,
        };
        let fault = Fault::new(
            reason,
            format!(
                "the VM is {}, which forbids '{}': {}",
                state.as_str(),
                ask.as_str(),
                self.sentence()
            ),
        )
        .with("state", state.as_str());
        if self.calls().is_empty() {
            fault
        } else {
            fault.with("instead", self.calls())
        }
    }
}

/// Decides what `ask` comes to for a VM whose life has come to `life`, that rests in
/// `state`, and whose domain was last `seen`. It is the table, but for two: one that is
/// half expunged is shown DELETED, can't be brought back, and deleting it goes on with
/// it; and the guest of a deleted one that something else has started can be stopped by
/// force.
pub const fn decide_for(life: Life, state: Resting, seen: Seen, ask: Ask) -> Decision {
    match (life, ask) {
        (Life::Deleted { .. } | Life::Expunging, Ask::StopForce)
            if seen.resting.has_power() && matches!(state, Resting::Deleted) =>
        {
            Decision::Go
        }
        (Life::Expunging, Ask::Delete { .. }) => Decision::Go,
        (Life::Expunging, Ask::Recover) => Decision::Refuse(Instead::Expunge),
        (
            Life::Making | Life::Present | Life::Failed | Life::Deleted { .. } | Life::Expunging,
            _,
        ) => decide(state, ask),
    }
}

/// Decides what `ask` comes to for a VM that rests in `state`.
pub const fn decide(state: Resting, ask: Ask) -> Decision {
    use Decision::{Already, Go, Refuse};
    match state {
        Resting::Stopped => match ask {
            Ask::Start
            | Ask::ReplaceRoot { .. }
            | Ask::Delete { .. }
            | Ask::Describe
            | Ask::ChangeHardware => Go,
            Ask::StopGraceful | Ask::StopForce | Ask::DiscardSaved | Ask::CreateAgain => Already,
            Ask::Reboot | Ask::Reset | Ask::Pause | Ask::Resume | Ask::Save => {
                Refuse(Instead::Start)
            }
            Ask::Recover => Refuse(Instead::Nothing),
            Ask::Expunge => Refuse(Instead::Delete),
        },
        Resting::Running => match ask {
            Ask::StopGraceful
            | Ask::StopForce
            | Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Save
            | Ask::ReplaceRoot { stop_policy: true }
            | Ask::Delete { stop_policy: true }
            | Ask::Describe => Go,
            Ask::Start | Ask::Resume | Ask::CreateAgain => Already,
            Ask::ReplaceRoot { stop_policy: false } | Ask::Delete { stop_policy: false } => {
                Refuse(Instead::StopPolicy)
            }
            Ask::DiscardSaved | Ask::ChangeHardware => Refuse(Instead::Stop),
            Ask::Recover => Refuse(Instead::Nothing),
            Ask::Expunge => Refuse(Instead::Delete),
        },
        Resting::Paused => match ask {
            Ask::StopForce
            | Ask::Reset
            | Ask::Resume
            | Ask::Save
            | Ask::ReplaceRoot { stop_policy: true }
            | Ask::Delete { stop_policy: true }
            | Ask::Describe => Go,
            Ask::Pause | Ask::CreateAgain => Already,
            Ask::Start | Ask::Reboot => Refuse(Instead::Resume),
            Ask::StopGraceful => Refuse(Instead::ResumeOrForce),
            Ask::ReplaceRoot { stop_policy: false } | Ask::Delete { stop_policy: false } => {
                Refuse(Instead::StopPolicy)
            }
            Ask::DiscardSaved | Ask::ChangeHardware => Refuse(Instead::Stop),
            Ask::Recover => Refuse(Instead::Nothing),
            Ask::Expunge => Refuse(Instead::Delete),
        },
        Resting::Saved => match ask {
            Ask::Start | Ask::DiscardSaved | Ask::Delete { .. } | Ask::Describe => Go,
            Ask::StopGraceful | Ask::StopForce | Ask::Save | Ask::CreateAgain => Already,
            Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Resume
            | Ask::ReplaceRoot { .. }
            | Ask::ChangeHardware => Refuse(Instead::Start),
            Ask::Recover => Refuse(Instead::Nothing),
            Ask::Expunge => Refuse(Instead::Delete),
        },
        Resting::Crashed => match ask {
            Ask::Start | Ask::ReplaceRoot { .. } | Ask::Delete { .. } | Ask::Describe => Go,
            Ask::StopGraceful | Ask::StopForce | Ask::DiscardSaved | Ask::CreateAgain => Already,
            Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Resume
            | Ask::Save
            | Ask::ChangeHardware => Refuse(Instead::Start),
            Ask::Recover => Refuse(Instead::Nothing),
            Ask::Expunge => Refuse(Instead::Delete),
        },
        Resting::Deleted => match ask {
            Ask::Recover | Ask::Expunge => Go,
            Ask::Delete { .. } | Ask::CreateAgain => Already,
            Ask::Start
            | Ask::StopGraceful
            | Ask::StopForce
            | Ask::DiscardSaved
            | Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Resume
            | Ask::Save
            | Ask::ReplaceRoot { .. }
            | Ask::Describe
            | Ask::ChangeHardware => Refuse(Instead::Recover),
        },
        Resting::Failed => match ask {
            Ask::Delete { .. } | Ask::Expunge | Ask::CreateAgain => Go,
            Ask::Start
            | Ask::StopGraceful
            | Ask::StopForce
            | Ask::DiscardSaved
            | Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Resume
            | Ask::Save
            | Ask::ReplaceRoot { .. }
            | Ask::Recover
            | Ask::Describe
            | Ask::ChangeHardware => Refuse(Instead::CreateAgainOrDelete),
        },
        Resting::Lost => match ask {
            Ask::Recover | Ask::Delete { .. } | Ask::Expunge => Go,
            Ask::CreateAgain => Already,
            Ask::Start
            | Ask::StopGraceful
            | Ask::StopForce
            | Ask::DiscardSaved
            | Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Resume
            | Ask::Save
            | Ask::ReplaceRoot { .. }
            | Ask::Describe
            | Ask::ChangeHardware => Refuse(Instead::RecoverOrExpunge),
        },
        Resting::Unknown => match ask {
            Ask::CreateAgain => Already,
            Ask::Start
            | Ask::StopGraceful
            | Ask::StopForce
            | Ask::DiscardSaved
            | Ask::Reboot
            | Ask::Reset
            | Ask::Pause
            | Ask::Resume
            | Ask::Save
            | Ask::ReplaceRoot { .. }
            | Ask::Delete { .. }
            | Ask::Recover
            | Ask::Expunge
            | Ask::Describe
            | Ask::ChangeHardware => Refuse(Instead::Wait),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the API's documentation, retyped here as the reviewer's
    /// copy: rows by request, columns in the order of `Resting::ALL`.
    const TABLE: &str = "
Start|go|already|refuse: Resume|go|go|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Stop, graceful|already|go|refuse: Resume, or force|already|already|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Stop, force|already|go|go|already|already|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Stop, discard saved memory|already|refuse: Stop|refuse: Stop|go|already|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Reboot (graceful)|refuse: Start|go|refuse: Resume|refuse: Start|refuse: Start|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Reset (hard)|refuse: Start|go|go|refuse: Start|refuse: Start|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Pause|refuse: Start|go|already|refuse: Start|refuse: Start|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Resume|refuse: Start|already|go|refuse: Start|refuse: Start|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Save|refuse: Start|go|go|already|refuse: Start|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
ReplaceRoot or RevertRoot|go|refuse: stop policy|refuse: stop policy|refuse: Start|go|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
ReplaceRoot or RevertRoot, stop policy|go|go|go|refuse: Start|go|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Delete|go|refuse: stop policy|refuse: stop policy|go|go|already|go|go|refuse: wait
Delete, stop policy|go|go|go|go|go|already|go|go|refuse: wait
Recover|refuse|refuse|refuse|refuse|refuse|go|refuse: Create again, or Delete|go|refuse: wait
Expunge|refuse: Delete|refuse: Delete|refuse: Delete|refuse: Delete|refuse: Delete|go|go|go|refuse: wait
Update, description|go|go|go|go|go|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Update, hardware|go|refuse: Stop|refuse: Stop|refuse: Start|refuse: Start|refuse: Recover|refuse: Create again, or Delete|refuse: Recover, or Expunge|refuse: wait
Create again, same spec|already|already|already|already|already|already|go|already|already
";

    #[test]
    fn every_cell_is_as_the_table_says() {
        let rows: Vec<&str> = TABLE.trim().lines().collect();
        assert_eq!(rows.len(), Ask::ALL.len());
        for (row, ask) in rows.iter().zip(Ask::ALL) {
            let cells: Vec<&str> = row.split('|').collect();
            assert_eq!(cells[0], ask.as_str());
            assert_eq!(cells.len(), 1 + Resting::ALL.len(), "{row}");
            for (cell, state) in cells[1..].iter().zip(Resting::ALL) {
                assert_eq!(
                    decide(state, ask).as_str(),
                    *cell,
                    "{} in {}",
                    ask.as_str(),
                    state.as_str()
                );
            }
        }
    }

    #[test]
    fn every_refusal_says_the_state_and_what_to_do() {
        for state in Resting::ALL {
            for ask in Ask::ALL {
                if let Decision::Refuse(instead) = decide(state, ask) {
                    let fault = instead.fault(ask, state);
                    assert!(fault.message.contains(state.as_str()), "{fault}");
                    assert_eq!(fault.metadata["state"], state.as_str());
                }
            }
        }
    }
}
