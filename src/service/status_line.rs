//! The line that `systemctl status` shows: what runs, what is at work, what is not
//! well, in words for who looks at the host.
//!
//! Invariant: it is one line of at most [`LONGEST`] characters without control
//! characters, whatever names VMs and pools have. It is read by every user of the
//! host: names of VMs are in it, and nothing else that callers gave.

use super::core::{Core, Readiness};
use super::current::Reading;
use super::node::{ConditionView, conditions_now};
use super::operations::LiveOperation;
use crate::model::operation::{Intent, OperationKind};
use std::collections::BTreeMap;
use std::time::Duration;

/// The longest line, in characters.
const LONGEST: usize = 240;
/// The longest name in it.
const LONGEST_NAME: usize = 32;
/// Up to so many operations are told one by one.
const NAMED: usize = 3;

/// What the line tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// libvirt was not reached yet, for so long.
    Awaiting(Duration),
    /// The host is compared with the records.
    Comparing,
    /// It serves.
    Serving,
    /// It ends.
    Stopping,
}

/// An operation at work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doing {
    /// What it does.
    pub kind: OperationKind,
    /// What it is about, as people call it; empty if nothing has a name.
    pub about: String,
}

/// What the line is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sketch {
    /// What the agent does.
    pub phase: Phase,
    /// How many VMs there are.
    pub vms: usize,
    /// How many of them have power, as far as is known.
    pub running: usize,
    /// What is at work, the oldest first.
    pub doing: Vec<Doing>,
    /// What is not as it should be, in words.
    pub wrong: Vec<String>,
}

/// The line as it is now. `awaited` is how long the agent has waited for its first
/// look at the host.
pub fn status_line(core: &Core, awaited: Duration) -> String {
    sketch(core, awaited).line()
}

fn sketch(core: &Core, awaited: Duration) -> Sketch {
    let views = core.vms.list();
    let running = views
        .iter()
        .filter_map(|view| view.vm.as_ref())
        .filter(|vm| vm.seen.resting.has_power())
        .count();
    let phase = match *core.ready.borrow() {
        // It is connected before it was compared.
        Readiness::Starting if core.hypervisor.facts().is_ok() => Phase::Comparing,
        Readiness::Starting => Phase::Awaiting(awaited),
        Readiness::Ready | Readiness::HypervisorAway => Phase::Serving,
        Readiness::Stopping => Phase::Stopping,
    };
    let live = core.operations.all_live();
    let mut wrong: Vec<String> = conditions_now(core)
        .iter()
        .filter(|condition| !condition.status)
        .map(|condition| in_words(condition, &core.current.reading()))
        .collect();
    if let Reading::Read { restart } = core.current.reading()
        && !restart.is_empty()
    {
        wrong.push(format!("needs a restart: {}", restart.join(", ")));
    }
    Sketch {
        phase,
        vms: views.len(),
        running,
        doing: live.iter().map(|live| doing(core, live)).collect(),
        wrong,
    }
}

fn doing(core: &Core, live: &LiveOperation) -> Doing {
    let operation = live.get();
    let mut about = match (&operation.intent, operation.vm_id) {
        (_, Some(id)) => {
            let view = core.vms.cell(id).map(|cell| cell.view());
            let name = view.and_then(|view| view.vm.as_ref().map(|vm| vm.name.clone()));
            name.unwrap_or_default()
        }
        (Intent::ImportImage { import }, None) => import.name.clone(),
        _ => String::new(),
    };
    if about.is_empty() {
        let id = operation.vm_id.map(|id| id.to_string());
        let image = || operation.image_id.map(|id| id.to_string());
        about = id.or_else(image).unwrap_or_default();
    }
    Doing {
        kind: operation.intent.kind(),
        about,
    }
}

/// A condition that does not hold.
fn in_words(condition: &ConditionView, reading: &Reading) -> String {
    let (kind, name) = match condition.kind.split_once('/') {
        Some((kind, name)) => (kind, short(name)),
        None => (condition.kind.as_str(), String::new()),
    };
    match (kind, reading) {
        ("LibvirtReady", _) => "libvirt is away".to_owned(),
        ("JournalWritable", _) => "the journal can't be written".to_owned(),
        ("JournalComplete", _) => "the journal was lost and is incomplete".to_owned(),
        ("ClockSane", _) => "the clock was set forward".to_owned(),
        ("CertificatesValid", _) => match condition.reason.as_str() {
            "Expired" => "a certificate has expired".to_owned(),
            "ExpiresSoon" => "a certificate expires soon".to_owned(),
            _ => "certificates can't be used".to_owned(),
        },
        ("ConfigurationRead", Reading::Refused { faults }) => format!(
            "configuration not read again: {}, see the journal",
            counted(*faults, "fault", "faults")
        ),
        ("Schedulable", _) => "in maintenance".to_owned(),
        ("PoolReady", _) => format!("pool {name} is not ready"),
        ("SinkReady", _) => format!("receiver {name} is not connected"),
        (kind, _) => format!("{kind} does not hold"),
    }
}

impl Sketch {
    /// The line.
    pub fn line(&self) -> String {
        let parts = match &self.phase {
            Phase::Awaiting(waited) => {
                let so = format!("waiting for libvirt since {}", about(*waited));
                self.with_what_is_wrong(so, Some("libvirt is away"))
            }
            Phase::Comparing => {
                let vms = counted(self.vms, "VM", "VMs");
                let so = format!("comparing {vms} with libvirt");
                self.with_what_is_wrong(so, Some("libvirt is away"))
            }
            Phase::Serving => {
                let vms = counted(self.vms, "VM", "VMs");
                let mut so = format!("{vms}, {} running", self.running);
                let doing = self.at_work();
                if !doing.is_empty() {
                    so = format!("{so}; {doing}");
                }
                self.with_what_is_wrong(so, None)
            }
            Phase::Stopping => match self.doing.len() {
                0 => "stopping; guests go on".to_owned(),
                count => {
                    let operations = counted(count, "operation", "operations");
                    format!("stopping; {operations} to halt; guests go on")
                }
            },
        };
        bounded(&parts, LONGEST)
    }

    fn with_what_is_wrong(&self, so: String, but: Option<&str>) -> String {
        let wrong = self.wrong.iter().map(String::as_str);
        let wrong = wrong.filter(|wrong| Some(*wrong) != but);
        let all: Vec<&str> = std::iter::once(so.as_str()).chain(wrong).collect();
        all.join("; ")
    }

    fn at_work(&self) -> String {
        if self.doing.len() <= NAMED {
            let each: Vec<String> = self.doing.iter().map(Doing::in_words).collect();
            return each.join(", ");
        }
        let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
        for doing in &self.doing {
            *kinds.entry(doing.kind.as_str()).or_default() += 1;
        }
        let kinds: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        format!(
            "{} operations at work: {}",
            self.doing.len(),
            kinds.join(", ")
        )
    }
}

impl Doing {
    fn in_words(&self) -> String {
        let does = match self.kind {
            OperationKind::CreateVm => "creating",
            OperationKind::UpdateVm => "changing",
            OperationKind::DeleteVm => "deleting",
            OperationKind::RecoverVm => "recovering",
            OperationKind::ExpungeVm => "expunging",
            OperationKind::StartVm => "starting",
            OperationKind::StopVm => "stopping",
            OperationKind::RebootVm => "rebooting",
            OperationKind::ResetVm => "resetting",
            OperationKind::PauseVm => "pausing",
            OperationKind::ResumeVm => "resuming",
            OperationKind::SaveVm => "saving",
            OperationKind::ReplaceRootVolume => "replacing the root of",
            OperationKind::RevertRootVolume => "reverting the root of",
            OperationKind::ImportImage => "importing image",
            OperationKind::DeleteImage => "deleting image",
            OperationKind::DeleteOrphan => return "removing an orphan".to_owned(),
            OperationKind::SetMaintenance => return "changing the maintenance".to_owned(),
        };
        format!("{does} {}", short(&self.about))
    }
}

/// So many of a thing.
pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    let word = if count == 1 { one } else { many };
    format!("{count} {word}")
}

/// A time as people tell it.
fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn short(name: &str) -> String {
    bounded(name, LONGEST_NAME)
}

/// On one line, with an ellipsis where there is more.
fn bounded(text: &str, longest: usize) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let kept: String = plain.clone().take(longest).collect();
    if plain.count() <= longest {
        return kept;
    }
    let cut: String = kept.chars().take(longest - 1).collect();
    format!("{cut}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doing(kind: OperationKind, about: &str) -> Doing {
        let about = about.to_owned();
        Doing { kind, about }
    }

    fn serving() -> Sketch {
        Sketch {
            phase: Phase::Serving,
            vms: 3,
            running: 2,
            doing: Vec::new(),
            wrong: Vec::new(),
        }
    }

    #[test]
    fn few_operations_are_named_and_many_are_counted_by_kind() {
        let mut sketch = serving();
        assert_eq!(sketch.line(), "3 VMs, 2 running");
        sketch.doing = vec![
            doing(OperationKind::ReplaceRootVolume, "web1"),
            doing(OperationKind::ImportImage, "debian"),
            doing(OperationKind::SetMaintenance, ""),
        ];
        assert_eq!(
            sketch.line(),
            "3 VMs, 2 running; replacing the root of web1, importing image debian, \
             changing the maintenance"
        );
        sketch.doing.push(doing(OperationKind::ImportImage, "arch"));
        assert_eq!(
            sketch.line(),
            "3 VMs, 2 running; 4 operations at work: 2 import-image, 1 replace-root-volume, \
             1 set-maintenance"
        );
    }

    #[test]
    fn what_is_wrong_is_told_last_and_one_vm_is_a_vm() {
        let mut sketch = serving();
        (sketch.vms, sketch.running) = (1, 0);
        sketch.wrong = vec!["libvirt is away".to_owned(), "in maintenance".to_owned()];
        let line = sketch.line();
        assert_eq!(line, "1 VM, 0 running; libvirt is away; in maintenance");
    }

    #[test]
    fn starting_and_stopping_say_what_is_waited_for() {
        let mut sketch = serving();
        sketch.wrong = vec!["libvirt is away".to_owned(), "in maintenance".to_owned()];
        sketch.phase = Phase::Awaiting(Duration::from_secs(200));
        let line = sketch.line();
        assert_eq!(line, "waiting for libvirt since 3 min; in maintenance");
        sketch.phase = Phase::Awaiting(Duration::from_secs(7300));
        assert!(sketch.line().starts_with("waiting for libvirt since 2 h"));
        sketch.phase = Phase::Comparing;
        assert_eq!(
            sketch.line(),
            "comparing 3 VMs with libvirt; in maintenance"
        );
        sketch.phase = Phase::Stopping;
        assert_eq!(sketch.line(), "stopping; guests go on");
        sketch.doing = vec![doing(OperationKind::SaveVm, "web1")];
        assert_eq!(sketch.line(), "stopping; 1 operation to halt; guests go on");
    }

    #[test]
    fn conditions_that_do_not_hold_have_words_of_their_own() {
        let told = |kind: &str, reason: &str, reading: &Reading| {
            let condition = ConditionView {
                kind: kind.to_owned(),
                status: false,
                reason: reason.to_owned(),
                message: "/a/path".to_owned(),
                since: crate::model::time::Timestamp(0),
            };
            in_words(&condition, reading)
        };
        let read = Reading::Read { restart: vec![] };
        let refused = Reading::Refused { faults: 2 };
        assert_eq!(told("PoolReady/ceph", "", &read), "pool ceph is not ready");
        assert_eq!(
            told("SinkReady/cp", "", &read),
            "receiver cp is not connected"
        );
        assert_eq!(
            told("CertificatesValid", "Expired", &read),
            "a certificate has expired"
        );
        assert_eq!(
            told("ConfigurationRead", "Refused", &refused),
            "configuration not read again: 2 faults, see the journal"
        );
    }

    #[test]
    fn it_is_one_bounded_line_whatever_things_are_called() {
        let mut sketch = serving();
        let name = format!("a\nREADY=1\u{0}{}", "é".repeat(500));
        sketch.doing = vec![doing(OperationKind::StopVm, &name); 3];
        sketch.wrong = vec!["x".repeat(400)];
        let line = sketch.line();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_eq!(line.chars().count(), LONGEST);
        assert!(line.contains("stopping a READY=1 é"), "{line}");
        assert!(line.ends_with('…'), "{line}");
    }
}
