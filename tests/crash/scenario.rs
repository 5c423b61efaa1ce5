//! What is asked, of a VM or an image in which state: one of each kind of
//! operation, and more where a plan has more than one shape.

use super::ask::Ask;
use super::stage::{Host, Stage};
use crate::support::PATIENCE;
use crate::support::api::{force, graceful, id};
use crate::support::images::qemu_img;
use crate::support::libvirtd::Libvirtd;
use crate::support::until;
use kvmlet::proto::v1::*;

/// What is asked, of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// With a data volume, in a pool that has no copy of the image yet, started; on
    /// Ceph in the Ceph pool of a tag, larger than the image.
    Create,
    Start,
    StartDiscardingMemory,
    StartFromMemory,
    StopByForce,
    StopGracefully,
    StopDiscardingMemory,
    Reboot,
    Reset,
    Pause,
    Resume,
    Save,
    Describe,
    ChangeHardware,
    /// Of a guest that runs, with a new one started, watched for a second; on Ceph
    /// by one in the Ceph pool of a tag.
    ReplaceRoot,
    ReplaceRootWithoutPower,
    RevertRoot,
    Delete,
    DeleteForGood,
    Recover,
    RecoverLost,
    Expunge,
    Import,
    DeleteImage,
    /// A volume that no record knows.
    DeleteOrphan,
    /// With two guests that run, which are stopped by force.
    BeginMaintenance,
    EndMaintenance,
}

/// A request that is about to be sent, and what it is about.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub ask: Ask,
    /// The VM.
    pub vm: Option<String>,
    /// An image that only this is about.
    pub image: Option<String>,
    /// A volume of no record that only this is about.
    pub stray: Option<String>,
    /// Ids that are known before, by what they are.
    pub names: Vec<(String, &'static str)>,
}

impl Scenario {
    pub const ALL: &[Self] = &[
        // The longest first: they run side by side.
        Self::ReplaceRoot,
        Self::Create,
        Self::ReplaceRootWithoutPower,
        Self::RevertRoot,
        Self::DeleteForGood,
        Self::Import,
        Self::DeleteImage,
        Self::DeleteOrphan,
        Self::BeginMaintenance,
        Self::EndMaintenance,
        Self::Delete,
        Self::Recover,
        Self::RecoverLost,
        Self::Expunge,
        Self::Start,
        Self::StartDiscardingMemory,
        Self::StartFromMemory,
        Self::StopByForce,
        Self::StopGracefully,
        Self::StopDiscardingMemory,
        Self::Reboot,
        Self::Reset,
        Self::Pause,
        Self::Resume,
        Self::Save,
        Self::Describe,
        Self::ChangeHardware,
    ];

    /// Those that touch files, memory or QEMU: what the simulated host can't show.
    pub const ON_QEMU: &[Self] = &[
        Self::ReplaceRoot,
        Self::Create,
        Self::RevertRoot,
        Self::DeleteForGood,
        Self::Delete,
        Self::Expunge,
        Self::Recover,
        Self::Import,
        Self::StartFromMemory,
        Self::Save,
        Self::Start,
        Self::StopByForce,
        Self::ChangeHardware,
    ];

    /// Those that touch the storage of VMs and images. Deleting for good is stopping
    /// and expunging; a root is replaced without power as with it.
    pub const ON_CEPH: &[Self] = &[
        Self::ReplaceRoot,
        Self::Create,
        Self::RevertRoot,
        Self::Import,
        Self::Expunge,
        Self::Recover,
        Self::RecoverLost,
        Self::Delete,
        Self::DeleteImage,
    ];

    /// The name of the operation in fault points.
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Create => "create-vm",
            Self::Start | Self::StartDiscardingMemory | Self::StartFromMemory => "start-vm",
            Self::StopByForce | Self::StopGracefully | Self::StopDiscardingMemory => "stop-vm",
            Self::Reboot => "reboot-vm",
            Self::Reset => "reset-vm",
            Self::Pause => "pause-vm",
            Self::Resume => "resume-vm",
            Self::Save => "save-vm",
            Self::Describe | Self::ChangeHardware => "update-vm",
            Self::ReplaceRoot | Self::ReplaceRootWithoutPower => "replace-root-volume",
            Self::RevertRoot => "revert-root-volume",
            Self::Delete | Self::DeleteForGood => "delete-vm",
            Self::Recover | Self::RecoverLost => "recover-vm",
            Self::Expunge => "expunge-vm",
            Self::Import => "import-image",
            Self::DeleteImage => "delete-image",
            Self::DeleteOrphan => "delete-orphan",
            Self::BeginMaintenance | Self::EndMaintenance => "set-maintenance",
        }
    }

    /// Whether it is about the whole host, and so about every VM.
    pub const fn is_of_host(self) -> bool {
        matches!(self, Self::BeginMaintenance | Self::EndMaintenance)
    }

    /// The name of its row in the runbook.
    pub const fn row(self) -> &'static str {
        match self {
            Self::Create => "CreateVm",
            Self::Start | Self::StartDiscardingMemory | Self::StartFromMemory => "StartVm",
            Self::StopByForce | Self::StopGracefully | Self::StopDiscardingMemory => "StopVm",
            Self::Reboot => "RebootVm",
            Self::Reset => "ResetVm",
            Self::Pause => "PauseVm",
            Self::Resume => "ResumeVm",
            Self::Save => "SaveVm",
            Self::Describe | Self::ChangeHardware => "UpdateVm",
            Self::ReplaceRoot | Self::ReplaceRootWithoutPower => "ReplaceRootVolume",
            Self::RevertRoot => "RevertRootVolume",
            Self::Delete | Self::DeleteForGood => "DeleteVm",
            Self::Recover | Self::RecoverLost => "RecoverVm",
            Self::Expunge => "ExpungeVm",
            Self::Import => "ImportImage",
            Self::DeleteImage => "DeleteImage",
            Self::DeleteOrphan => "DeleteOrphan",
            Self::BeginMaintenance | Self::EndMaintenance => "SetMaintenance",
        }
    }

    /// Brings the host to where it is asked.
    pub async fn prepare(self, stage: &Stage) -> Prepared {
        stage.cluster_answers().await;
        match self {
            Self::Create => create(stage),
            Self::Import => {
                let image_id = id();
                let ask = Ask::Import(Box::new(ImportImageRequest {
                    request_id: id(),
                    image_id: image_id.clone(),
                    source: stage.source().display().to_string(),
                    format: ImageFormat::Qcow2 as i32,
                    ..Default::default()
                }));
                of_image(ask, image_id)
            }
            Self::DeleteImage => {
                let image_id = stage.api().import(&stage.source()).await;
                let ask = Ask::DeleteImage(DeleteImageRequest {
                    request_id: id(),
                    image_id: image_id.clone(),
                    ..Default::default()
                });
                of_image(ask, image_id)
            }
            Self::DeleteOrphan => orphan(stage).await,
            _ => self.of_vm(stage).await,
        }
    }

    async fn of_vm(self, stage: &Stage) -> Prepared {
        let powered = matches!(
            self,
            Self::StartDiscardingMemory
                | Self::StartFromMemory
                | Self::StopByForce
                | Self::StopGracefully
                | Self::StopDiscardingMemory
                | Self::Reboot
                | Self::Reset
                | Self::Pause
                | Self::Resume
                | Self::Save
                | Self::Describe
                | Self::ReplaceRoot
                | Self::RevertRoot
                | Self::Delete
                | Self::DeleteForGood
                | Self::BeginMaintenance
        );
        let wanted = CreateVmRequest {
            start: powered,
            data_volumes: vec![NewVolume {
                size_bytes: 1 << 20,
                ..Default::default()
            }],
            ..stage.small()
        };
        let vm_id = wanted.vm_id.clone();
        stage.succeeds(&Ask::Create(Box::new(wanted))).await;
        let before = stage.api().vm(&vm_id).await.unwrap();
        let data = before
            .volumes
            .iter()
            .find(|volume| volume.device_index == 1);
        let data = data.expect("a data volume").id.clone();
        self.bring(stage, &vm_id).await;
        Prepared {
            ask: self.ask(stage, &vm_id),
            names: vec![
                (vm_id.clone(), "<vm>"),
                (before.root_volume_id, "<root>"),
                (data, "<data>"),
                (stage.images[0].clone(), "<image>"),
                (stage.images[1].clone(), "<other image>"),
            ],
            vm: Some(vm_id),
            image: None,
            stray: None,
        }
    }

    /// Brings a VM to the state in which it is asked.
    async fn bring(self, stage: &Stage, vm_id: &str) {
        let vm_id = vm_id.to_owned();
        match self {
            Self::StartDiscardingMemory | Self::StartFromMemory | Self::StopDiscardingMemory => {
                let request = SaveVmRequest {
                    vm_id,
                    ..Default::default()
                };
                stage.succeeds(&Ask::Save(request)).await;
            }
            Self::Resume => {
                let request = PauseVmRequest {
                    vm_id,
                    ..Default::default()
                };
                stage.succeeds(&Ask::Pause(request)).await;
            }
            Self::Recover | Self::Expunge => {
                let request = DeleteVmRequest {
                    vm_id,
                    ..Default::default()
                };
                stage.succeeds(&Ask::Delete(request)).await;
            }
            Self::RevertRoot => {
                let request = ReplaceRootVolumeRequest {
                    vm_id,
                    image_id: stage.images[1].clone(),
                    system_tags: tags(stage),
                    stop_policy: Some(force()),
                    start_after: true,
                    ..Default::default()
                };
                stage.succeeds(&Ask::Replace(Box::new(request))).await;
            }
            Self::RecoverLost => {
                let Host::Simulated(connection, _) = &stage.host else {
                    panic!("nobody else may undefine a domain of an embedded driver");
                };
                let domain = Libvirtd::domain(connection, &vm_id).expect("a domain");
                domain.undefine().unwrap();
                let api = stage.api();
                until("the VM to be lost", PATIENCE, async || {
                    (api.state(&vm_id).await == VmState::Lost).then_some(())
                })
                .await;
            }
            Self::EndMaintenance => {
                let request = SetMaintenanceRequest {
                    enabled: true,
                    message: "soon over".to_owned(),
                    ..Default::default()
                };
                stage.succeeds(&Ask::SetMaintenance(request)).await;
            }
            _ => {}
        }
    }

    fn ask(self, stage: &Stage, vm_id: &str) -> Ask {
        let (vm_id, request_id) = (vm_id.to_owned(), id());
        macro_rules! plain {
            ($kind:ident, $request:ident) => {
                Ask::$kind($request {
                    vm_id,
                    request_id,
                    ..Default::default()
                })
            };
        }
        let stop = |stop_policy, discard_saved_memory| {
            Ask::Stop(StopVmRequest {
                vm_id: vm_id.clone(),
                request_id: request_id.clone(),
                stop_policy,
                discard_saved_memory,
                ..Default::default()
            })
        };
        match self {
            Self::Create | Self::Import | Self::DeleteImage | Self::DeleteOrphan => {
                unreachable!("not of a VM")
            }
            Self::Start | Self::StartFromMemory => plain!(Start, StartVmRequest),
            Self::StartDiscardingMemory => Ask::Start(StartVmRequest {
                vm_id,
                request_id,
                discard_saved_memory: true,
                ..Default::default()
            }),
            Self::StopByForce => stop(Some(force()), false),
            Self::StopGracefully => stop(Some(graceful()), false),
            Self::StopDiscardingMemory => stop(None, true),
            Self::Reboot => plain!(Reboot, RebootVmRequest),
            Self::Reset => plain!(Reset, ResetVmRequest),
            Self::Pause => plain!(Pause, PauseVmRequest),
            Self::Resume => plain!(Resume, ResumeVmRequest),
            Self::Save => plain!(Save, SaveVmRequest),
            Self::Describe => Ask::update(vm_id, request_id, "renamed".to_owned(), None),
            Self::ChangeHardware => {
                let hardware = Hardware {
                    vcpus: 2,
                    memory_bytes: 32 << 20,
                    ..Default::default()
                };
                Ask::update(vm_id, request_id, "renamed".to_owned(), Some(hardware))
            }
            Self::ReplaceRoot | Self::ReplaceRootWithoutPower => {
                let powered = self == Self::ReplaceRoot;
                Ask::Replace(Box::new(ReplaceRootVolumeRequest {
                    vm_id,
                    request_id,
                    image_id: stage.images[1].clone(),
                    system_tags: tags(stage),
                    stop_policy: powered.then(force),
                    start_after: powered,
                    health_check: powered.then_some(HealthCheck {
                        sign: HealthSign::StillRunning as i32,
                        timeout: Some(prost_types::Duration {
                            seconds: 1,
                            nanos: 0,
                        }),
                    }),
                    ..Default::default()
                }))
            }
            Self::RevertRoot => Ask::Revert(RevertRootVolumeRequest {
                vm_id,
                request_id,
                stop_policy: Some(force()),
                start_after: true,
                ..Default::default()
            }),
            Self::Delete => Ask::Delete(DeleteVmRequest {
                vm_id,
                request_id,
                stop_policy: Some(force()),
                ..Default::default()
            }),
            Self::DeleteForGood => Ask::Delete(DeleteVmRequest {
                vm_id,
                request_id,
                stop_policy: Some(force()),
                retention: Some(prost_types::Duration::default()),
                ..Default::default()
            }),
            Self::BeginMaintenance => Ask::SetMaintenance(SetMaintenanceRequest {
                request_id,
                enabled: true,
                message: "new disks".to_owned(),
                stop_policy: Some(force()),
            }),
            Self::EndMaintenance => Ask::SetMaintenance(SetMaintenanceRequest {
                request_id,
                ..Default::default()
            }),
            Self::Recover | Self::RecoverLost => plain!(Recover, RecoverVmRequest),
            Self::Expunge => plain!(Expunge, ExpungeVmRequest),
        }
    }
}

/// What names another Ceph pool than the usual one, if there are such.
fn tags(stage: &Stage) -> Vec<String> {
    let looker = stage.ceph.iter();
    looker.map(|looker| looker.pools().fast_tag()).collect()
}

fn create(stage: &Stage) -> Prepared {
    let root = if stage.ceph.is_some() {
        // Larger than the image: it is cloned, and then grown.
        NewVolume {
            size_bytes: 2 << 20,
            ..Default::default()
        }
    } else {
        NewVolume {
            pool: "other".to_owned(),
            ..Default::default()
        }
    };
    let request = CreateVmRequest {
        start: true,
        system_tags: tags(stage),
        root_volume: Some(root),
        data_volumes: vec![NewVolume {
            size_bytes: 1 << 20,
            ..Default::default()
        }],
        ..stage.small()
    };
    let vm_id = request.vm_id.clone();
    Prepared {
        ask: Ask::Create(Box::new(request)),
        names: vec![
            (vm_id.clone(), "<vm>"),
            (stage.images[0].clone(), "<image>"),
        ],
        vm: Some(vm_id),
        image: None,
        stray: None,
    }
}

fn of_image(ask: Ask, image_id: String) -> Prepared {
    Prepared {
        ask,
        vm: None,
        names: vec![(image_id.clone(), "<image>")],
        image: Some(image_id),
        stray: None,
    }
}

async fn orphan(stage: &Stage) -> Prepared {
    let volume = id();
    let file = format!("volumes/{volume}.qcow2");
    let path = stage.daemon.home().join("pool").join(&file);
    qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
    let request = ListOrphansRequest {
        page_size: 1000,
        ..Default::default()
    };
    let listed = stage.api().nodes().list_orphans(request).await;
    let listed = listed.expect("orphans can be listed").into_inner().orphans;
    let orphan = listed.into_iter().find(|orphan| orphan.name == file);
    let orphan = orphan.expect("the file is listed");
    Prepared {
        ask: Ask::DeleteOrphan(DeleteOrphanRequest {
            request_id: id(),
            orphan_id: orphan.id,
            generation: orphan.generation,
        }),
        vm: None,
        names: vec![(volume.clone(), "<stray>")],
        image: None,
        stray: Some(volume),
    }
}
