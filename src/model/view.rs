//! A VM as readers see it: its record, and what only the running agent knows.

use super::ids::OperationId;
use super::lifecycle::{self, Resting, StateReason};
use super::operation::OperationKind;
use super::time::Timestamp;
use super::vm::{Life, Vm};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A VM as readers see it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct View {
    /// Its record; `None` before it is made and after it is expunged.
    pub vm: Option<Vm>,
    /// The operation that holds it, and what that does.
    pub current: Option<(OperationId, OperationKind)>,
    /// Where its display listens, while it has power.
    pub vnc: Option<VncEndpoint>,
    /// Whether libvirt is away.
    pub away: bool,
    /// The IP addresses of its guest by the hardware addresses of its interfaces,
    /// as last told; none without power.
    #[serde(default)]
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// What is not as it should be with it, as last seen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<Condition, Standing>,
}

/// Something that is not as it should be with a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Its domain is not as kvmlet left it.
    Drifted,
    /// The domain under its id is not kvmlet's.
    DomainForeign,
    /// Its saved memory can't be read.
    SavedMemoryUnreadable,
    /// It is deleted, and its guest has power.
    RunsDeleted,
}

/// How and since when a condition holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What it consists in, one thing each.
    pub details: Vec<String>,
    /// Since when it was seen.
    pub since: Timestamp,
}

/// Where a running domain's display can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VncEndpoint {
    /// The address that QEMU listens on.
    pub address: IpAddr,
    /// The TCP port.
    pub port: u16,
}

impl View {
    /// The state that the VM rests in, apart from what an operation does to it.
    pub fn resting(&self) -> Option<(Resting, StateReason)> {
        self.vm
            .as_ref()
            .map(|vm| lifecycle::resting(vm.life, vm.seen, self.away))
    }

    /// Notes whether a condition holds: with these details, or not.
    pub fn note(&mut self, condition: Condition, details: Vec<String>, now: Timestamp) {
        if details.is_empty() {
            self.conditions.remove(&condition);
            return;
        }
        let standing = self.conditions.entry(condition).or_insert(Standing {
            details: Vec::new(),
            since: now,
        });
        standing.details = details;
    }

    /// Notes what the state itself says is not as it should be.
    pub fn note_by_state(&mut self, now: Timestamp) {
        let runs = |vm: &Vm| runs_deleted(vm.life, vm.seen.resting);
        if self.vm.as_ref().is_some_and(runs) {
            let words = "something else on the host has started its guest";
            self.note(Condition::RunsDeleted, vec![words.to_owned()], now);
        }
    }

    /// Drops the conditions that the state no longer allows.
    pub fn drop_outlived(&mut self) {
        let Some(vm) = &self.vm else { return };
        let (resting, life) = (vm.seen.resting, vm.life);
        self.conditions.retain(|condition, _| match condition {
            Condition::Drifted => resting != Resting::Lost,
            Condition::DomainForeign => resting == Resting::Lost || life == Life::Failed,
            Condition::SavedMemoryUnreadable => resting == Resting::Saved,
            Condition::RunsDeleted => runs_deleted(life, resting),
        });
    }

    /// Whether the VM has power, or is about to get it.
    pub fn claims_host(&self) -> bool {
        let powered = self
            .vm
            .as_ref()
            .is_some_and(|vm| vm.seen.resting.has_power());
        let starting = matches!(
            self.current,
            Some((
                _,
                OperationKind::StartVm
                    | OperationKind::CreateVm
                    | OperationKind::ReplaceRootVolume
                    | OperationKind::RevertRootVolume
            ))
        );
        powered || starting
    }

    /// The same without what is only measured now and then: how much space its
    /// volumes take. A change of that alone is no event.
    #[must_use]
    pub fn without_measures(&self) -> Self {
        let mut view = self.clone();
        for volume in view.vm.iter_mut().flat_map(|vm| &mut vm.volumes) {
            volume.actual_size = super::bytes::Bytes::ZERO;
        }
        view
    }
}

/// Whether a VM is deleted, and its guest has power.
const fn runs_deleted(life: Life, seen: Resting) -> bool {
    matches!(life, Life::Deleted { .. } | Life::Expunging) && seen.has_power()
}
