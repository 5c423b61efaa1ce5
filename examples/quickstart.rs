//! Makes a VM, waits for it, and follows the host: quickstart SERVER IMAGE_ID

mod kvmlet {
    #![allow(clippy::all, missing_docs, unreachable_pub, unused_qualifications)]
    tonic::include_proto!("kvmlet.v1");
}
use kvmlet::{node_service_client::*, operation_service_client::*, vm_service_client::*, *};
use tonic::transport::Endpoint;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // unix:///run/kvmlet/kvmlet.sock and the id of an image.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Over the network: https://host7:7443, with .tls_config(ClientTlsConfig::new()
    // .ca_certificate(ca).identity(Identity::from_pem(cert, key)))? before .connect().
    let channel = Endpoint::from_shared(arguments[0].clone())?
        .connect()
        .await?;
    let mut vms = VmServiceClient::new(channel.clone());
    let create = CreateVmRequest {
        name: "web1".into(),
        image_id: arguments[1].clone(),
        start: true,
        hardware: Some(Hardware {
            vcpus: 1,
            memory_bytes: 256 << 20,
            ..Default::default()
        }),
        ..Default::default()
    };
    let operation = vms.create_vm(create).await?.into_inner();
    let timeout = Some(prost_types::Duration {
        seconds: 60,
        nanos: 0,
    });
    let wait = WaitOperationRequest {
        operation_id: operation.id,
        timeout,
    };
    let ended = OperationServiceClient::new(channel.clone())
        .wait_operation(wait)
        .await?;
    println!("{:?} {:?}", ended.get_ref().state(), ended.get_ref().error);
    let vm = vms
        .get_vm(GetVmRequest {
            vm_id: operation.vm_id,
        })
        .await?
        .into_inner();
    println!("{} {:?}", vm.name, vm.state());
    let watch = WatchEventsRequest {
        snapshot: true,
        ..Default::default()
    };
    let mut events = NodeServiceClient::new(channel)
        .watch_events(watch)
        .await?
        .into_inner();
    while let Some(event) = events.message().await? {
        println!("{} {:?}", event.revision, event.event);
    }
    Ok(())
}
