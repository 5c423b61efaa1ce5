//! A simulated host of the bench's own: the daemon and all its files.

use kvmlet::proto::v1::image_service_client::ImageServiceClient;
use kvmlet::proto::v1::node_service_client::NodeServiceClient;
use kvmlet::proto::v1::operation_service_client::OperationServiceClient;
use kvmlet::proto::v1::vm_service_client::VmServiceClient;
use kvmlet::proto::v1::{
    CreateVmRequest, GetNodeRequest, Hardware, ImportImageRequest, Node, Operation, OperationState,
    PauseVmRequest, ResumeVmRequest, WaitOperationRequest,
};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// What any part of the bench fails with.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

const PATIENCE: Duration = Duration::from_secs(60);

/// The daemon; it ends when this is dropped, and its files go.
pub(crate) struct Host {
    process: Child,
    channel: Channel,
    folder: TempDir,
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Host {
    /// Starts the daemon on a folder below `parent`, and waits until it serves.
    pub(crate) async fn start(parent: &Path) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new()
            .prefix("kvmlet-bench-")
            .tempdir_in(parent)?;
        let at = folder.path().display();
        fs::create_dir(folder.path().join("import"))?;
        let text = format!(
            r#"
[node]
id = "6f1f3f3e-0f0b-4c43-9d0e-5a1f0c1de001"
[hypervisor]
uri = "test:///default"
[api]
socket = "{at}/kvmlet.sock"
[journal]
path = "{at}/journal.db"
[log]
target = "stderr"
level = "warn"
[[pools]]
name = "bench"
path = "{at}/pool"
[images]
allowed_dirs = ["{at}/import"]
[vms]
console_dir = "{at}/console"
reserved_memory = "0 MiB"
vcpu_overcommit = 1000.0
"#
        );
        let config = folder.path().join("kvmlet.toml");
        fs::write(&config, text)?;
        let program = std::env::var_os("KVMLET_BENCH_DAEMON")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_kvmlet").into());
        #[allow(clippy::disallowed_methods)] // a bench starts its own daemon
        let process = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(program)
            .args(["serve", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stderr(fs::File::create(folder.path().join("kvmlet.log"))?)
            .spawn()?;
        let socket = folder.path().join("kvmlet.sock");
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?.connect_lazy();
        let host = Self {
            process,
            channel,
            folder,
        };
        let deadline = Instant::now() + PATIENCE;
        while !host.is_up().await {
            if Instant::now() > deadline {
                return Err(format!("kvmlet does not serve:\n{}", host.log()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(host)
    }

    async fn is_up(&self) -> bool {
        let ready = |node: Node| node.conditions.iter().all(|condition| condition.status);
        self.node().await.is_ok_and(ready)
    }

    /// What the daemon said, for a failure's report.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("kvmlet.log")).unwrap_or_default()
    }

    /// A path below the host's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The daemon's process, to be looked at from outside.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) async fn node(&self) -> Result<Node, Failure> {
        let mut nodes = NodeServiceClient::new(self.channel.clone());
        Ok(nodes.get_node(GetNodeRequest {}).await?.into_inner())
    }

    /// Makes running VMs of one image.
    pub(crate) async fn create(&self, count: usize) -> Result<Vec<Vm>, Failure> {
        let source = self.path("import/blank.qcow2");
        #[allow(clippy::disallowed_methods)] // a bench makes its own image
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&source)
            .arg("1M")
            .status()?;
        if !made.success() {
            return Err("qemu-img can't make an image".into());
        }
        let import = ImportImageRequest {
            source: source.display().to_string(),
            ..Default::default()
        };
        let mut images = ImageServiceClient::new(self.channel.clone());
        let image = ended(&self.channel, images.import_image(import).await).await?;
        let mut vms = Vec::new();
        for _ in 0..count {
            let request = CreateVmRequest {
                name: "bench".to_owned(),
                image_id: image.image_id.clone(),
                hardware: Some(Hardware {
                    vcpus: 1,
                    memory_bytes: 16 << 20,
                    ..Default::default()
                }),
                start: true,
                ..Default::default()
            };
            let mut calls = VmServiceClient::new(self.channel.clone());
            let made = ended(&self.channel, calls.create_vm(request).await).await?;
            vms.push(Vm {
                id: made.vm_id,
                channel: self.channel.clone(),
            });
        }
        Ok(vms)
    }
}

/// A running VM, and the way to it.
#[derive(Clone)]
pub(crate) struct Vm {
    id: String,
    channel: Channel,
}

impl Vm {
    /// Pauses and resumes it: two operations, each waited for.
    pub(crate) async fn pause_and_resume(&self) -> Result<(), Failure> {
        let mut vms = VmServiceClient::new(self.channel.clone());
        let pause = PauseVmRequest {
            vm_id: self.id.clone(),
            ..Default::default()
        };
        ended(&self.channel, vms.pause_vm(pause).await).await?;
        let resume = ResumeVmRequest {
            vm_id: self.id.clone(),
            ..Default::default()
        };
        ended(&self.channel, vms.resume_vm(resume).await).await?;
        Ok(())
    }
}

/// The operation once it has succeeded.
async fn ended(
    channel: &Channel,
    answer: Result<Response<Operation>, Status>,
) -> Result<Operation, Failure> {
    let request = WaitOperationRequest {
        operation_id: answer?.into_inner().id,
        timeout: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
    };
    let mut operations = OperationServiceClient::new(channel.clone());
    let operation = operations.wait_operation(request).await?.into_inner();
    if operation.state() == OperationState::Succeeded {
        Ok(operation)
    } else {
        Err(format!("an operation did not succeed: {operation:?}").into())
    }
}
