//! The API as a test speaks it: a client per service, and whole operations.

use super::refusal::Refusal;
use kvmlet::proto::v1::console_service_client::ConsoleServiceClient;
use kvmlet::proto::v1::image_service_client::ImageServiceClient;
use kvmlet::proto::v1::node_service_client::NodeServiceClient;
use kvmlet::proto::v1::operation_service_client::OperationServiceClient;
use kvmlet::proto::v1::vm_service_client::VmServiceClient;
use kvmlet::proto::v1::volume_service_client::VolumeServiceClient;
use kvmlet::proto::v1::*;
use std::path::Path;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// How often the end of an operation is waited for, a minute each.
const WAITS: u32 = 4;

/// An answer's size that no test reaches.
const LARGEST: usize = 64 << 20;

/// A connection to a daemon; cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    pub channel: Channel,
}

/// A new random UUID.
pub fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

impl Api {
    /// Connects at the first call, and again whenever needed.
    pub fn at(socket: &Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        Self {
            channel: endpoint.connect_lazy(),
        }
    }

    pub fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    pub fn consoles(&self) -> ConsoleServiceClient<Channel> {
        ConsoleServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    pub fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    pub fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    /// Whether the daemon says that it serves; an error if it does not answer.
    pub async fn serving(&self, service: &str) -> Result<bool, tonic::Status> {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = self.health().check(request).await?.into_inner();
        Ok(answer.status == 1)
    }

    /// The operation once it has ended, however it did.
    pub async fn ended(&self, operation_id: &str) -> Operation {
        let request = WaitOperationRequest {
            operation_id: operation_id.to_owned(),
            timeout: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
        };
        let mut last = None;
        // Some wait for guests to boot, on a machine that does much else.
        for _ in 0..WAITS {
            let answer = self.operations().wait_operation(request.clone()).await;
            let operation = answer.expect("an operation can be waited for").into_inner();
            if operation.state >= OperationState::Succeeded as i32 {
                return operation;
            }
            last = Some(operation);
        }
        panic!("an operation does not end: {last:?}");
    }

    /// What came of a mutation: its operation if it succeeded, else why not.
    pub async fn outcome(
        &self,
        answer: Result<tonic::Response<Operation>, tonic::Status>,
    ) -> Result<Operation, Refusal> {
        let operation = answer.map_err(|status| Refusal::from(&status))?;
        let operation = self.ended(&operation.get_ref().id).await;
        match operation.state() {
            OperationState::Succeeded => {
                assert_eq!(operation.progress_percent, 100, "{operation:?}");
                assert_eq!(operation.error, None);
                Ok(operation)
            }
            _ => Err(Refusal::from(operation.error.as_ref().expect("an error"))),
        }
    }

    /// The operation of a mutation that must succeed.
    pub async fn done(
        &self,
        answer: Result<tonic::Response<Operation>, tonic::Status>,
    ) -> Operation {
        match self.outcome(answer).await {
            Ok(operation) => operation,
            Err(refusal) => panic!("an operation did not succeed: {refusal:?}"),
        }
    }

    pub async fn vm(&self, vm_id: &str) -> Result<Vm, tonic::Status> {
        let request = GetVmRequest {
            vm_id: vm_id.to_owned(),
        };
        Ok(self.vms().get_vm(request).await?.into_inner())
    }

    pub async fn state(&self, vm_id: &str) -> VmState {
        self.vm(vm_id).await.expect("a VM that is known").state()
    }

    pub async fn node(&self) -> Node {
        let answer = self.nodes().get_node(GetNodeRequest {}).await;
        answer.expect("GetNode always answers").into_inner()
    }

    /// All VMs, also the deleted ones.
    pub async fn all_vms(&self) -> Vec<Vm> {
        let request = ListVmsRequest {
            page_size: 1000,
            show_deleted: true,
            ..Default::default()
        };
        self.vms().list_vms(request).await.unwrap().into_inner().vms
    }

    /// All operations, newest first; at most 1000.
    pub async fn all_operations(&self) -> Vec<Operation> {
        self.newest_operations(1000).await
    }

    /// So many operations, newest first.
    pub async fn newest_operations(&self, page_size: u32) -> Vec<Operation> {
        let request = ListOperationsRequest {
            page_size,
            ..Default::default()
        };
        let answer = self.operations().list_operations(request).await;
        answer.unwrap().into_inner().operations
    }

    /// Imports a qcow2 image and returns its id.
    pub async fn import(&self, source: &Path) -> String {
        let request = ImportImageRequest {
            source: source.display().to_string(),
            format: ImageFormat::Qcow2 as i32,
            ..Default::default()
        };
        let answer = self.images().import_image(request).await;
        self.done(answer).await.image_id
    }

    /// Makes a small VM of the image and returns its id.
    pub async fn create(&self, image_id: &str, start: Start) -> String {
        let request = CreateVmRequest {
            start: start == Start::Yes,
            ..small(image_id)
        };
        let answer = self.vms().create_vm(request).await;
        self.done(answer).await.vm_id
    }
}

/// Whether a VM is started once it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Yes,
    No,
}

/// The request for a small VM of the image, with an id of its own.
pub fn small(image_id: &str) -> CreateVmRequest {
    CreateVmRequest {
        vm_id: id(),
        name: "small".to_owned(),
        hardware: Some(Hardware {
            vcpus: 1,
            memory_bytes: 16 << 20,
            ..Default::default()
        }),
        image_id: image_id.to_owned(),
        ..Default::default()
    }
}

/// Stop by force.
pub fn force() -> StopPolicy {
    StopPolicy {
        mode: StopMode::Force as i32,
        ..Default::default()
    }
}

/// Ask to stop.
pub fn graceful() -> StopPolicy {
    StopPolicy {
        mode: StopMode::Graceful as i32,
        ..Default::default()
    }
}
