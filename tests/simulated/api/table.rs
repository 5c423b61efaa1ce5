//! The state table through the API: every request in every state comes to what
//! `decide` says, and to the state that it promises.

use crate::api::host::{Host, wire};
use crate::support::api::{Api, force, graceful};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::{Ask, Decision, Resting, decide};
use kvmlet::proto::v1::*;
use tonic::Code;

/// A request: a row of the table, said in its own call or as a wished power
/// state.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Row {
    Own(Ask),
    Power(PowerState, bool),
    Revert { stop_policy: bool },
}

impl Row {
    fn all() -> Vec<Self> {
        let mut rows: Vec<Self> = Ask::ALL.into_iter().map(Self::Own).collect();
        rows.extend([
            Self::Power(PowerState::On, false),
            Self::Power(PowerState::Off, false),
            Self::Power(PowerState::Off, true),
            Self::Power(PowerState::Paused, false),
            Self::Revert { stop_policy: false },
            Self::Revert { stop_policy: true },
        ]);
        rows
    }

    /// The row of the table that it is in this state.
    fn ask(self, state: Resting) -> Ask {
        match self {
            // Of a VM that is not SAVED there is nothing to give up: a stop.
            Self::Own(Ask::DiscardSaved) if state != Resting::Saved => Ask::StopGraceful,
            Self::Own(ask) => ask,
            Self::Power(PowerState::On, _) if state == Resting::Paused => Ask::Resume,
            Self::Power(PowerState::On, _) => Ask::Start,
            Self::Power(PowerState::Off, true) => Ask::StopGraceful,
            Self::Power(PowerState::Off, false) => Ask::StopForce,
            Self::Power(..) => Ask::Pause,
            Self::Revert { stop_policy } => Ask::ReplaceRoot { stop_policy },
        }
    }
}

type Answer = Result<tonic::Response<Operation>, tonic::Status>;

struct Column {
    host: Host,
    state: Resting,
    image: String,
}

impl Column {
    /// Sends a row's request. A PAUSED guest hears nothing, so that its stop
    /// policies are forced ones.
    async fn send(&self, api: &Api, row: Row, vm: &str, created: &CreateVmRequest) -> Answer {
        let vm_id = vm.to_owned();
        let mut vms = api.vms();
        let policy = |with: bool| {
            let policy = if self.state == Resting::Paused {
                force()
            } else {
                graceful()
            };
            with.then_some(policy)
        };
        macro_rules! plain {
            ($call:ident, $request:ident) => {
                vms.$call($request {
                    vm_id,
                    ..Default::default()
                })
                .await
            };
        }
        match row {
            Row::Own(ask) => match ask {
                Ask::Start => plain!(start_vm, StartVmRequest),
                Ask::StopGraceful => plain!(stop_vm, StopVmRequest),
                Ask::StopForce => {
                    vms.stop_vm(StopVmRequest {
                        vm_id,
                        stop_policy: Some(force()),
                        ..Default::default()
                    })
                    .await
                }
                Ask::DiscardSaved => {
                    vms.stop_vm(StopVmRequest {
                        vm_id,
                        discard_saved_memory: true,
                        ..Default::default()
                    })
                    .await
                }
                Ask::Reboot => plain!(reboot_vm, RebootVmRequest),
                Ask::Reset => plain!(reset_vm, ResetVmRequest),
                Ask::Pause => plain!(pause_vm, PauseVmRequest),
                Ask::Resume => plain!(resume_vm, ResumeVmRequest),
                Ask::Save => plain!(save_vm, SaveVmRequest),
                Ask::ReplaceRoot { stop_policy } => {
                    vms.replace_root_volume(ReplaceRootVolumeRequest {
                        vm_id,
                        image_id: self.image.clone(),
                        stop_policy: policy(stop_policy),
                        ..Default::default()
                    })
                    .await
                }
                Ask::Delete { stop_policy } => {
                    vms.delete_vm(DeleteVmRequest {
                        vm_id,
                        stop_policy: policy(stop_policy),
                        ..Default::default()
                    })
                    .await
                }
                Ask::Recover => plain!(recover_vm, RecoverVmRequest),
                Ask::Expunge => plain!(expunge_vm, ExpungeVmRequest),
                Ask::Describe => {
                    vms.update_vm(UpdateVmRequest {
                        vm: Some(Vm {
                            id: vm_id,
                            description: "described".to_owned(),
                            ..Default::default()
                        }),
                        update_mask: Some(prost_types::FieldMask {
                            paths: vec!["description".to_owned()],
                        }),
                        ..Default::default()
                    })
                    .await
                }
                Ask::ChangeHardware => {
                    vms.update_vm(UpdateVmRequest {
                        vm: Some(Vm {
                            id: vm_id,
                            hardware: Some(Hardware {
                                vcpus: 2,
                                ..Default::default()
                            }),
                            ..Default::default()
                        }),
                        update_mask: Some(prost_types::FieldMask {
                            paths: vec!["hardware.vcpus".to_owned()],
                        }),
                        ..Default::default()
                    })
                    .await
                }
                Ask::CreateAgain => vms.create_vm(created.clone()).await,
            },
            Row::Power(power_state, graceful_shutdown) => {
                vms.set_vm_power_state(SetVmPowerStateRequest {
                    vm_id,
                    power_state: power_state as i32,
                    graceful_shutdown,
                    ..Default::default()
                })
                .await
            }
            Row::Revert { stop_policy } => {
                vms.revert_root_volume(RevertRootVolumeRequest {
                    vm_id,
                    stop_policy: policy(stop_policy),
                    ..Default::default()
                })
                .await
            }
        }
    }

    /// The state that a request that is done leads to; `None` is gone for good.
    fn leads_to(&self, ask: Ask) -> Option<VmState> {
        match ask {
            Ask::Start | Ask::Resume => Some(VmState::Running),
            Ask::StopGraceful | Ask::StopForce | Ask::DiscardSaved => Some(VmState::Stopped),
            Ask::Reboot => Some(VmState::Running),
            // A paused guest is paused after it, too.
            Ask::Reset | Ask::Describe => Some(wire(self.state)),
            Ask::Pause => Some(VmState::Paused),
            Ask::Save => Some(VmState::Saved),
            // What it was before it was without power is not forgotten.
            Ask::ReplaceRoot { .. } if self.state == Resting::Crashed => Some(VmState::Crashed),
            Ask::ReplaceRoot { .. } | Ask::Recover | Ask::ChangeHardware | Ask::CreateAgain => {
                Some(VmState::Stopped)
            }
            // Of a VM that was never made there is nothing to keep.
            Ask::Delete { .. } if self.state == Resting::Failed => None,
            Ask::Delete { .. } => Some(VmState::Deleted),
            Ask::Expunge => None,
        }
    }

    async fn check(&self, row: Row, vm: &str, created: &CreateVmRequest) -> Decision {
        let (api, state) = (self.host.api(), self.state);
        let ask = row.ask(state);
        let cell = format!("{row:?} in {}", state.as_str());
        let before = api.vm(vm).await.unwrap();
        let answer = self.send(&api, row, vm, created).await;
        let decision = decide(state, ask);
        match decision {
            Decision::Refuse(instead) => {
                let refusal = Refusal::from(&answer.expect_err(&cell));
                let fault = instead.fault(ask, state);
                let name = format!("{:?}", refusal.code).to_uppercase();
                assert_eq!(name, fault.code().as_str().replace('_', ""), "{cell}");
                assert_eq!(refusal.reason, fault.reason.as_str(), "{cell}");
                assert_eq!(refusal.metadata, fault.metadata, "{cell}");
                assert_eq!(refusal.message, fault.message, "{cell}");
                assert_eq!(api.vm(vm).await.unwrap(), before, "{cell}");
            }
            Decision::Already => {
                let operation = api.done(answer).await;
                if ask == Ask::CreateAgain {
                    assert_eq!(operation.r#type(), OperationType::CreateVm);
                } else {
                    assert_eq!(operation.steps, [], "{cell}: {operation:?}");
                }
                assert_eq!(api.vm(vm).await.unwrap(), before, "{cell}");
            }
            Decision::Go if matches!(row, Row::Revert { .. }) => {
                let refusal = Refusal::from(&answer.expect_err(&cell));
                let said = (refusal.code, refusal.reason.as_str());
                assert_eq!(
                    said,
                    (Code::FailedPrecondition, "NO_PREVIOUS_ROOT"),
                    "{cell}"
                );
            }
            Decision::Go => {
                let operation = match api.outcome(answer).await {
                    Ok(operation) => operation,
                    Err(refusal) => panic!("{cell}: {refusal:?}"),
                };
                assert_ne!(operation.steps, [], "{cell}");
                match self.leads_to(ask) {
                    Some(expected) => {
                        let vm = api.vm(vm).await.unwrap();
                        assert_eq!(vm.state(), expected, "{cell}: {vm:?}");
                        assert_eq!(vm.current_operation_id, "");
                    }
                    None => {
                        let gone = Refusal::from(&api.vm(vm).await.expect_err(&cell));
                        assert_eq!(gone.reason, "VM_NOT_FOUND");
                        assert!(!self.host.has_domain(vm), "{cell}");
                    }
                }
            }
        }
        decision
    }
}

async fn every_row_of(state: Resting) {
    let mut host = Host::start().await;
    let image = host.another_image().await;
    if state == Resting::Unknown {
        let made = host.vm_in(Resting::Running).await;
        host.libvirtd.kill9();
        host.wait_for(&made.0, VmState::Unknown).await;
        let column = Column { host, state, image };
        for row in Row::all() {
            column.check(row, &made.0, &made.1).await;
        }
        return;
    }
    let column = Column { host, state, image };
    let mut vm = None;
    for row in Row::all() {
        let (id, request) = match vm.take() {
            Some(same) => same,
            None => column.host.vm_in(state).await,
        };
        let decision = column.check(row, &id, &request).await;
        if decision != Decision::Go || matches!(row, Row::Revert { .. }) {
            vm = Some((id, request));
        }
    }
    // Nothing is at work any more, and each record has its domain or none.
    let api = column.host.api();
    let unfinished = until("all operations to end", PATIENCE, async || {
        let open = api.all_operations().await;
        let open = open.iter().filter(|op| op.end_time.is_none()).count();
        (open == 0).then_some(open)
    });
    assert_eq!(unfinished.await, 0);
}

macro_rules! columns {
    ($($name:ident $state:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                every_row_of(Resting::$state).await;
            }
        )*
    };
}

columns! {
    every_request_of_a_stopped_vm_comes_to_what_the_table_says Stopped,
    every_request_of_a_running_vm_comes_to_what_the_table_says Running,
    every_request_of_a_paused_vm_comes_to_what_the_table_says Paused,
    every_request_of_a_saved_vm_comes_to_what_the_table_says Saved,
    every_request_of_a_crashed_vm_comes_to_what_the_table_says Crashed,
    every_request_of_a_deleted_vm_comes_to_what_the_table_says Deleted,
    every_request_of_a_failed_vm_comes_to_what_the_table_says Failed,
    every_request_of_a_lost_vm_comes_to_what_the_table_says Lost,
    every_request_of_a_vm_of_an_absent_libvirt_comes_to_what_the_table_says Unknown,
}
