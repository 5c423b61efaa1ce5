//! A control plane that calls the agent over mutual TLS.

use crate::first_steps;
use crate::guest::{self, Guest};
use crate::host::Host;
use crate::support::api::{Api, graceful, small};
use crate::support::pki::{Authority, Issued, Wish};
use kvmlet::proto::v1::*;
use std::fs;
use std::net::SocketAddr;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Where the agent listens.
pub const ADDRESS: &str = "127.0.0.1:7443";
/// By what the control plane is known.
pub const CONTROL_PLANE: &str = "spiffe://test.example/control-plane";
/// By what another caller is known, who has no role at first.
pub const AUDITOR: &str = "spiffe://test.example/auditor";
/// Memory in which the test's guests boot, in bytes.
const MEMORY: u64 = 192 << 20;

/// The authorities, and what is configured.
pub struct Remote {
    pub server_ca: Authority,
    pub client_ca: Authority,
    own: Issued,
}

impl Remote {
    /// Gives the agent certificates, the key as a credential of its service, and
    /// restarts it.
    pub fn open(host: &Host) -> Self {
        let (server_ca, client_ca) = (Authority::new("servers"), Authority::new("clients"));
        let issued = server_ca.server();
        host.run("mkdir -p /etc/kvmlet/tls");
        put(host, "/etc/kvmlet/tls/cert.pem", &issued.cert);
        put(host, "/etc/kvmlet/tls/client-ca.pem", &client_ca.pem());
        put(host, "/etc/kvmlet/credentials/tls.key", &issued.key);
        host.run("chmod 600 /etc/kvmlet/credentials/tls.key");
        let own = client_ca.issue(&Wish::uri(CONTROL_PLANE));
        let remote = Self {
            server_ca,
            client_ca,
            own,
        };
        let tls = "cert_file = \"/etc/kvmlet/tls/cert.pem\", key_credential = \"kvmlet_tls.key\", \
                   client_ca_file = \"/etc/kvmlet/tls/client-ca.pem\"";
        put(host, "/etc/kvmlet/kvmlet.toml", &config(tls, ""));
        host.run("kvmlet config check && systemctl restart kvmlet");
        remote
    }

    /// The API for the control plane.
    pub fn api(&self, host: &Host) -> Api {
        self.api_for(host, &self.own)
    }

    /// The API for who has this certificate.
    pub fn api_for(&self, host: &Host, own: &Issued) -> Api {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.server_ca.pem()))
            .domain_name("localhost")
            .identity(Identity::from_pem(&own.cert, &own.key));
        let address: SocketAddr = ADDRESS.parse().unwrap();
        host.api_at(address, tls)
    }

    /// What a control plane does with a VM, while the first guest goes on.
    pub async fn provisions_and_drives_a_vm(&self, host: &Host, guest: &Guest) {
        let api = self.api(host);
        let known = api.vm(&guest.vm_id).await.unwrap();
        assert_eq!(known.state(), VmState::Running);
        let vm_id = made(&api, &known.image_id, Some("default")).await;
        first_steps::booted(host, &vm_id).await;
        let of = || vm_id.clone();
        let paused = api
            .vms()
            .pause_vm(PauseVmRequest {
                vm_id: of(),
                ..Default::default()
            })
            .await;
        api.done(paused).await;
        assert_eq!(api.state(&vm_id).await, VmState::Paused);
        let resumed = api
            .vms()
            .resume_vm(ResumeVmRequest {
                vm_id: of(),
                ..Default::default()
            })
            .await;
        api.done(resumed).await;
        let console = api
            .consoles()
            .get_vnc_console(GetVncConsoleRequest { vm_id: of() })
            .await;
        assert_eq!(console.unwrap().into_inner().password.len(), 8);

        // Onto a new root, in full function under the sandbox.
        let image = guest::image(host, "acpi", "2");
        let imported = host.run(&format!(
            "kvmlet --quiet image import {image} --name second"
        ));
        let replaced = api
            .vms()
            .replace_root_volume(ReplaceRootVolumeRequest {
                vm_id: of(),
                image_id: imported,
                stop_policy: Some(graceful()),
                start_after: true,
                ..Default::default()
            })
            .await;
        api.done(replaced).await;
        crate::support::until("the new root", crate::support::PATIENCE, async || {
            guest::console(host, &vm_id)
                .contains("version 2 kind acpi up")
                .then_some(())
        })
        .await;
        let stopped = api
            .vms()
            .stop_vm(StopVmRequest {
                vm_id: of(),
                stop_policy: Some(graceful()),
                ..Default::default()
            })
            .await;
        let operation = api.done(stopped).await;
        assert!(!operation.power_outcome.unwrap().forced);
        removed(&api, &vm_id).await;
    }
}

/// A VM that runs.
pub async fn made(api: &Api, image_id: &str, network: Option<&str>) -> String {
    let nic = network.map(|name| NewNic {
        attachment: Some(new_nic::Attachment::LibvirtNetwork(
            LibvirtNetworkAttachment {
                name: name.to_owned(),
            },
        )),
        ..Default::default()
    });
    let request = CreateVmRequest {
        hardware: Some(Hardware {
            vcpus: 1,
            memory_bytes: MEMORY,
            ..Default::default()
        }),
        nics: nic.into_iter().collect(),
        start: true,
        ..small(image_id)
    };
    let answer = api.vms().create_vm(request).await;
    api.done(answer).await.vm_id
}

/// Deletes a VM without power, for later.
pub async fn removed(api: &Api, vm_id: &str) {
    let deleted = api
        .vms()
        .delete_vm(DeleteVmRequest {
            vm_id: vm_id.to_owned(),
            ..Default::default()
        })
        .await;
    api.done(deleted).await;
}

/// The configuration of these tests, with this `[api] tls`, and more at its end.
pub fn config(tls: &str, more: &str) -> String {
    format!(
        "[api]\nlisten = \"{ADDRESS}\"\ntls = {{ {tls} }}\n\
         [access.operator]\ngroups = [\"kvmlet\"]\nuris = [\"{CONTROL_PLANE}\"]\n{more}"
    )
}

/// Replaces a file, as a whole and at once.
pub fn put(host: &Host, inside: &str, text: &str) {
    let beside = format!("{inside}.new");
    fs::write(host.path(&beside), text).unwrap();
    host.run(&format!("mv {beside} {inside}"));
}
