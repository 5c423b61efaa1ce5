//! The three ways to a VM that are compared: kvmlet's API, libvirt itself, and
//! virt-install.

use crate::host::{Failure, Host, run};
use kvmlet::proto::v1::image_service_client::ImageServiceClient;
use kvmlet::proto::v1::node_service_client::NodeServiceClient;
use kvmlet::proto::v1::operation_service_client::OperationServiceClient;
use kvmlet::proto::v1::vm_service_client::VmServiceClient;
use kvmlet::proto::v1::{
    CreateVmRequest, DeleteVmRequest, GetNodeRequest, Hardware, ImageFormat, ImportImageRequest,
    NewNic, Operation, OperationState, PauseVmRequest, ResumeVmRequest, StopMode, StopPolicy,
    UserAttachment, WaitOperationRequest, new_nic, operation,
};
use prost_types::Timestamp;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt_sys as sys;

const MEMORY_MIB: u64 = 64;

/// kvmlet: a call, then a wait for the operation that it answered with.
pub(crate) struct Kvmlet {
    runtime: Runtime,
    channel: Channel,
    image_id: String,
    /// What the operations since the last [`Kvmlet::phases`] were about.
    phases: Phases,
}

/// How long each part of some operations took, by its name.
pub(crate) type Phases = Vec<(String, Vec<Duration>)>;

impl Kvmlet {
    /// Connects, and imports a blank image.
    pub(crate) fn connect(host: &Host) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let address = format!("unix://{}", host.socket().display());
        let channel = runtime.block_on(Endpoint::from_shared(address)?.connect())?;
        let source = host.path("import/blank.qcow2").display().to_string();
        run("qemu-img", &["create", "-q", "-f", "qcow2", &source, "64M"])?;
        let mut kvmlet = Self {
            runtime,
            channel,
            image_id: Uuid::new_v4().to_string(),
            phases: Phases::new(),
        };
        let import = ImportImageRequest {
            image_id: kvmlet.image_id.clone(),
            name: "blank".to_owned(),
            source,
            format: ImageFormat::Qcow2.into(),
            ..ImportImageRequest::default()
        };
        let mut images = ImageServiceClient::new(kvmlet.channel.clone());
        kvmlet.carry_out(until_ready(async || {
            images.import_image(import.clone()).await
        }))?;
        Ok(kvmlet)
    }

    /// Creates a VM, started, and returns its id and its root volume's.
    pub(crate) fn create(&mut self) -> Result<(String, String), Failure> {
        let request = CreateVmRequest {
            name: "bench".to_owned(),
            image_id: self.image_id.clone(),
            hardware: Some(Hardware {
                vcpus: 1,
                memory_bytes: MEMORY_MIB << 20,
                ..Hardware::default()
            }),
            nics: vec![NewNic {
                attachment: Some(new_nic::Attachment::User(UserAttachment {})),
                ..NewNic::default()
            }],
            start: true,
            ..CreateVmRequest::default()
        };
        let mut vms = self.vms();
        match self.carry_out(vms.create_vm(request))?.result {
            Some(operation::Result::Vm(vm)) => Ok((vm.id, vm.root_volume_id)),
            other => Err(format!("a created VM is answered with {other:?}").into()),
        }
    }

    /// Pauses a VM, then lets it run again.
    pub(crate) fn pause_and_resume(&mut self, vm_id: &str) -> Result<(), Failure> {
        let pause = PauseVmRequest {
            vm_id: vm_id.to_owned(),
            ..PauseVmRequest::default()
        };
        let mut vms = self.vms();
        self.carry_out(vms.pause_vm(pause))?;
        let resume = ResumeVmRequest {
            vm_id: vm_id.to_owned(),
            ..ResumeVmRequest::default()
        };
        self.carry_out(vms.resume_vm(resume))?;
        Ok(())
    }

    /// Removes a VM for good.
    pub(crate) fn remove(&mut self, vm_id: &str) -> Result<(), Failure> {
        let request = DeleteVmRequest {
            vm_id: vm_id.to_owned(),
            stop_policy: Some(StopPolicy {
                mode: StopMode::Force.into(),
                ..StopPolicy::default()
            }),
            retention: Some(prost_types::Duration::default()),
            ..DeleteVmRequest::default()
        };
        let mut vms = self.vms();
        self.carry_out(vms.delete_vm(request))?;
        Ok(())
    }

    /// How many calls the daemon has made on libvirt.
    pub(crate) fn libvirt_calls(&self) -> Result<u64, Failure> {
        let mut node = NodeServiceClient::new(self.channel.clone());
        let answer = self.runtime.block_on(node.get_node(GetNodeRequest {}))?;
        Ok(answer.into_inner().libvirt_calls)
    }

    fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel.clone())
    }

    /// What the operations since the last time took, part by part.
    pub(crate) fn phases(&mut self) -> Phases {
        std::mem::take(&mut self.phases)
    }

    /// Makes a call, waits for the end of the operation that it answers with,
    /// and notes how long each part took.
    fn carry_out(
        &mut self,
        call: impl Future<Output = Result<tonic::Response<Operation>, tonic::Status>>,
    ) -> Result<Operation, Failure> {
        let called = Instant::now();
        let operation = self.runtime.block_on(call)?.into_inner();
        let answered = called.elapsed();
        let ended = self.wait(&operation)?;
        let all = called.elapsed();
        let kind = ended.r#type().as_str_name().to_owned();
        self.note(format!("{kind}: answered"), answered);
        let mut steps = Duration::ZERO;
        for step in &ended.steps {
            let took = between(step.start_time, step.end_time);
            self.note(format!("{kind}: {}", step.name), took);
            steps += took;
        }
        self.note(
            format!("{kind}: settled and told"),
            all.saturating_sub(answered + steps),
        );
        Ok(ended)
    }

    fn note(&mut self, phase: String, took: Duration) {
        match self.phases.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, times)) => times.push(took),
            None => self.phases.push((phase, vec![took])),
        }
    }

    fn wait(&self, operation: &Operation) -> Result<Operation, Failure> {
        let mut operations = OperationServiceClient::new(self.channel.clone());
        loop {
            let request = WaitOperationRequest {
                operation_id: operation.id.clone(),
                timeout: Some(prost_types::Duration {
                    seconds: 60,
                    nanos: 0,
                }),
            };
            let now = self.runtime.block_on(operations.wait_operation(request))?;
            let now = now.into_inner();
            match now.state() {
                OperationState::Succeeded => return Ok(now),
                OperationState::Pending | OperationState::Running => {}
                OperationState::Failed
                | OperationState::Cancelled
                | OperationState::Unspecified => {
                    return Err(format!("an operation did not succeed: {now:?}").into());
                }
            }
        }
    }
}

fn between(start: Option<Timestamp>, end: Option<Timestamp>) -> Duration {
    let since_epoch = |time: Option<Timestamp>| {
        let time = time.unwrap_or_default();
        let seconds = u64::try_from(time.seconds).unwrap_or(0);
        Duration::new(seconds, u32::try_from(time.nanos).unwrap_or(0))
    };
    since_epoch(end).saturating_sub(since_epoch(start))
}

/// Repeats a call until the daemon has seen its host.
async fn until_ready<T>(
    mut call: impl AsyncFnMut() -> Result<T, tonic::Status>,
) -> Result<T, tonic::Status> {
    loop {
        match call().await {
            Err(status) if status.code() == tonic::Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            answer => return answer,
        }
    }
}

/// libvirt without anything in between, with the domain that kvmlet defines.
pub(crate) struct Direct {
    connection: Connect,
    model: String,
    model_ids: (String, String),
    backing: String,
    pool: PathBuf,
}

/// A domain that libvirt or virt-install was asked for directly.
pub(crate) struct Made {
    domain: Domain,
    disk: PathBuf,
}

impl Direct {
    /// Takes the definition of one of kvmlet's VMs as the model of its own.
    pub(crate) fn like(host: &Host, vm_id: &str, root_volume_id: &str) -> Result<Self, Failure> {
        let connection = Connect::open(Some(&host.uri()))?;
        let model = connection
            .lookup_domain_by_uuid_string(vm_id)?
            .xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)?;
        let document = roxmltree::Document::parse(&model)?;
        let backing = document
            .descendants()
            .find(|node| node.has_tag_name("backingStore"))
            .and_then(|node| node.children().find(|node| node.has_tag_name("source")))
            .and_then(|source| source.attribute("file"))
            .ok_or("the root volume of kvmlet's VM has no image below it")?
            .to_owned();
        Ok(Self {
            backing,
            connection,
            model_ids: (vm_id.to_owned(), root_volume_id.to_owned()),
            pool: host.path("pool"),
            model,
        })
    }

    /// Whether the guests run on KVM; else on QEMU's translator.
    pub(crate) fn is_kvm(&self) -> bool {
        self.model.contains("type='kvm'")
    }

    /// Makes an overlay, defines a domain and starts it.
    pub(crate) fn create(&self) -> Result<Made, Failure> {
        let (id, volume) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        // Name, UUID, console and disk all have one of these two in them.
        let definition = self
            .model
            .replace(&self.model_ids.0, &id)
            .replace(&self.model_ids.1, &volume);
        let disk = self.overlay(&volume)?;
        let domain = self.connection.define_domain_xml(&definition)?;
        domain.create()?;
        Ok(Made { domain, disk })
    }

    /// Pauses a domain, then lets it run again.
    pub(crate) fn pause_and_resume(&self, made: &Made) -> Result<(), Failure> {
        made.domain.suspend()?;
        made.domain.resume()?;
        Ok(())
    }

    /// Makes an overlay and has virt-install do the rest.
    pub(crate) fn virt_install(&self, uri: &str) -> Result<Made, Failure> {
        let volume = Uuid::new_v4().to_string();
        let name = format!("virt-install-{volume}");
        let disk = self.overlay(&volume)?;
        run(
            "virt-install",
            &[
                "--connect",
                uri,
                "--name",
                &name,
                "--memory",
                &MEMORY_MIB.to_string(),
                "--vcpus",
                "1",
                "--virt-type",
                if self.is_kvm() { "kvm" } else { "qemu" },
                "--machine",
                "q35",
                "--osinfo",
                "detect=off,require=off",
                "--import",
                "--disk",
                &format!("path={},format=qcow2,bus=virtio", disk.display()),
                "--network",
                "user",
                "--graphics",
                "vnc,listen=127.0.0.1",
                "--noautoconsole",
            ],
        )?;
        let domain = self.connection.lookup_domain_by_name(&name)?;
        Ok(Made { domain, disk })
    }

    /// Removes what was made.
    pub(crate) fn remove(&self, made: Made) -> Result<(), Failure> {
        made.domain.destroy()?;
        made.domain.undefine()?;
        std::fs::remove_file(made.disk)?;
        Ok(())
    }

    fn overlay(&self, volume: &str) -> Result<PathBuf, Failure> {
        let disk = self.pool.join("volumes").join(format!("{volume}.qcow2"));
        let text = disk.display().to_string();
        run(
            "qemu-img",
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                "-b",
                &self.backing,
                &text,
            ],
        )?;
        Ok(disk)
    }
}
