//! The sides that are compared: kvmlet's API, and the tools that an
//! administrator has.

use crate::ceph::Cluster;
use crate::host::{Failure, Host, command, run};
use kvmlet::proto::v1::image_service_client::ImageServiceClient;
use kvmlet::proto::v1::operation_service_client::OperationServiceClient;
use kvmlet::proto::v1::vm_service_client::VmServiceClient;
use kvmlet::proto::v1::{
    CreateVmRequest, DeleteVmRequest, Hardware, ImageFormat, ImportImageRequest, NewVolume,
    Operation, OperationState, ReplaceRootVolumeRequest, SizePolicy, WaitOperationRequest,
    operation,
};
use rand::RngCore as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

const MIB: u64 = 1 << 20;

/// Where the disks are.
pub(crate) enum Disks<'a> {
    /// Files; those made by hand are in this folder.
    Qcow2(PathBuf),
    /// Images in the cluster's pools.
    Rbd(&'a Cluster),
}

impl Disks<'_> {
    /// The name of kvmlet's pool with them.
    pub(crate) fn pool(&self) -> &'static str {
        match self {
            Self::Qcow2(_) => "bench",
            Self::Rbd(_) => "ceph",
        }
    }
}

/// kvmlet: a call, then a wait for the operation that it answered with.
pub(crate) struct Kvmlet {
    runtime: Runtime,
    channel: Channel,
}

impl Kvmlet {
    pub(crate) fn connect(host: &Host) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let address = format!("unix://{}", host.socket().display());
        let channel = runtime.block_on(Endpoint::from_shared(address)?.connect())?;
        Ok(Self { runtime, channel })
    }

    /// Makes an image of `size` MiB with `data` MiB of random bytes, and imports
    /// it into a pool.
    pub(crate) fn import(
        &self,
        host: &Host,
        pool: &str,
        name: &str,
        size: u64,
        data: u64,
    ) -> Result<String, Failure> {
        let raw = host.path("image.raw");
        let mut file = fs::File::create(&raw)?;
        let mut bytes = vec![0; usize::try_from(MIB)?];
        for _ in 0..data {
            rand::rng().fill_bytes(&mut bytes);
            file.write_all(&bytes)?;
        }
        file.set_len(size * MIB)?;
        drop(file);
        let source = host.path(&format!("import/{name}.qcow2"));
        let (from, to) = (text(&raw)?, text(&source)?);
        run(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "qcow2", from, to],
        )?;
        fs::remove_file(&raw)?;
        let request = ImportImageRequest {
            image_id: Uuid::new_v4().to_string(),
            name: name.to_owned(),
            source: to.to_owned(),
            format: ImageFormat::Qcow2.into(),
            pool: pool.to_owned(),
            ..ImportImageRequest::default()
        };
        let mut images = ImageServiceClient::new(self.channel.clone());
        self.carry_out(until_ready(async || {
            images.import_image(request.clone()).await
        }))?;
        fs::remove_file(&source)?;
        Ok(request.image_id)
    }

    /// Creates a VM that is not started.
    pub(crate) fn create(&self, pool: &str, image_id: &str) -> Result<String, Failure> {
        let request = CreateVmRequest {
            name: "bench".to_owned(),
            image_id: image_id.to_owned(),
            hardware: Some(Hardware {
                vcpus: 1,
                memory_bytes: 64 * MIB,
                ..Hardware::default()
            }),
            root_volume: Some(NewVolume {
                pool: pool.to_owned(),
                ..NewVolume::default()
            }),
            ..CreateVmRequest::default()
        };
        match self.carry_out(self.vms().create_vm(request))?.result {
            Some(operation::Result::Vm(vm)) => Ok(vm.id),
            other => Err(format!("a created VM is answered with {other:?}").into()),
        }
    }

    /// Gives a VM a new root volume.
    pub(crate) fn replace_root(&self, vm_id: &str, image_id: &str) -> Result<(), Failure> {
        let request = ReplaceRootVolumeRequest {
            vm_id: vm_id.to_owned(),
            image_id: image_id.to_owned(),
            size_policy: SizePolicy::Image.into(),
            ..ReplaceRootVolumeRequest::default()
        };
        self.carry_out(self.vms().replace_root_volume(request))?;
        Ok(())
    }

    /// Removes a VM for good.
    pub(crate) fn remove(&self, vm_id: &str) -> Result<(), Failure> {
        let request = DeleteVmRequest {
            vm_id: vm_id.to_owned(),
            retention: Some(prost_types::Duration::default()),
            ..DeleteVmRequest::default()
        };
        self.carry_out(self.vms().delete_vm(request))?;
        Ok(())
    }

    fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel.clone())
    }

    fn carry_out(
        &self,
        call: impl Future<Output = Result<tonic::Response<Operation>, tonic::Status>>,
    ) -> Result<Operation, Failure> {
        let mut operation = self.runtime.block_on(call)?.into_inner();
        let mut operations = OperationServiceClient::new(self.channel.clone());
        loop {
            match operation.state() {
                OperationState::Succeeded => return Ok(operation),
                OperationState::Pending | OperationState::Running => {}
                OperationState::Failed
                | OperationState::Cancelled
                | OperationState::Unspecified => {
                    return Err(format!("an operation did not succeed: {operation:?}").into());
                }
            }
            let request = WaitOperationRequest {
                operation_id: operation.id,
                timeout: Some(prost_types::Duration {
                    seconds: 60,
                    nanos: 0,
                }),
            };
            let answer = self.runtime.block_on(operations.wait_operation(request))?;
            operation = answer.into_inner();
        }
    }
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

/// A domain whose root is replaced with qemu-img, rbd and virsh.
pub(crate) struct Hand<'a> {
    disks: &'a Disks<'a>,
    uri: String,
    name: String,
    definition: PathBuf,
    /// What the root is made from, and the root: paths, or pool/name.
    base: String,
    root: String,
    /// The root that it shared with kvmlet's VM at first.
    shared: String,
    old: Option<String>,
}

impl<'a> Hand<'a> {
    /// Defines a twin of one of kvmlet's VMs, still on that VM's root.
    pub(crate) fn like(host: &Host, disks: &'a Disks<'a>, vm_id: &str) -> Result<Self, Failure> {
        let uri = host.uri();
        let model = read("virsh", &["-c", &uri, "dumpxml", "--inactive", vm_id])?;
        let (root, base) = match disks {
            Disks::Qcow2(folder) => {
                fs::create_dir_all(folder)?;
                let mut files = sources(&model, "file")?.into_iter();
                (files.next(), files.next())
            }
            Disks::Rbd(cluster) => {
                let root = sources(&model, "name")?.into_iter().next();
                let parent = root.as_ref().map(|root| parent(cluster, root));
                (root, parent.transpose()?)
            }
        };
        let root = root.ok_or("kvmlet's VM has no root volume")?;
        let name = format!("by-hand-{}", Uuid::new_v4());
        let hand = Self {
            disks,
            uri,
            definition: host.path(&format!("{name}.xml")),
            base: base.ok_or("the root volume of kvmlet's VM has no image below it")?,
            shared: root.clone(),
            root,
            old: None,
            name,
        };
        let id = Uuid::new_v4().to_string();
        let twin = model
            .replace(
                &format!("<uuid>{vm_id}</uuid>"),
                &format!("<uuid>{id}</uuid>"),
            )
            .replace(&named(&model)?, &format!("<name>{}</name>", hand.name));
        hand.define(&twin)?;
        Ok(hand)
    }

    /// Makes a new root in one of the two ways, and switches the domain over.
    pub(crate) fn replace_root(
        &mut self,
        make: fn(&Self, &str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let new = match self.disks {
            Disks::Qcow2(folder) => {
                let file = folder.join(format!("{}.qcow2", Uuid::new_v4()));
                text(&file)?.to_owned()
            }
            Disks::Rbd(_) => format!("vms/{}", Uuid::new_v4()),
        };
        make(self, &new)?;
        let before = read(
            "virsh",
            &["-c", &self.uri, "dumpxml", "--inactive", &self.name],
        )?;
        self.define(&before.replace(&self.root, &new))?;
        let old = std::mem::replace(&mut self.root, new);
        self.old = (old != self.shared).then_some(old);
        Ok(())
    }

    /// An overlay of the image, or a clone.
    pub(crate) fn overlay(&self, new: &str) -> Result<(), Failure> {
        match self.disks {
            Disks::Qcow2(_) => run(
                "qemu-img",
                &[
                    "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &self.base, new,
                ],
            ),
            Disks::Rbd(cluster) => rbd(
                cluster,
                &["clone", "--rbd-default-clone-format", "2", &self.base, new],
            ),
        }
    }

    /// A copy of the image's data.
    pub(crate) fn copy(&self, new: &str) -> Result<(), Failure> {
        match self.disks {
            Disks::Qcow2(_) => run(
                "qemu-img",
                &["convert", "-f", "qcow2", "-O", "qcow2", &self.base, new],
            ),
            Disks::Rbd(cluster) => {
                let conf = cluster.conf();
                let at =
                    |image: &str| Ok::<_, Failure>(format!("rbd:{image}:conf={}", text(&conf)?));
                let (from, to) = (at(&self.base)?, at(new)?);
                run(
                    "qemu-img",
                    &["convert", "-f", "raw", "-O", "raw", &from, &to],
                )
            }
        }
    }

    /// Removes the root before the present one.
    pub(crate) fn remove_old(&mut self) -> Result<(), Failure> {
        match self.old.take() {
            Some(old) => self.remove_disk(&old),
            None => Ok(()),
        }
    }

    /// Removes the domain and its root.
    pub(crate) fn remove(self) -> Result<(), Failure> {
        run("virsh", &["-c", &self.uri, "undefine", &self.name])?;
        if self.root != self.shared {
            self.remove_disk(&self.root)?;
        }
        Ok(fs::remove_file(&self.definition)?)
    }

    fn remove_disk(&self, disk: &str) -> Result<(), Failure> {
        match self.disks {
            Disks::Qcow2(_) => Ok(fs::remove_file(disk)?),
            Disks::Rbd(cluster) => rbd(cluster, &["rm", "--no-progress", disk]),
        }
    }

    fn define(&self, definition: &str) -> Result<(), Failure> {
        fs::write(&self.definition, definition)?;
        run(
            "virsh",
            &["-c", &self.uri, "define", text(&self.definition)?],
        )
    }
}

/// The attribute of each `<source>` of a definition's first disk, from the disk
/// down to its last backing file.
fn sources(definition: &str, attribute: &str) -> Result<Vec<String>, Failure> {
    let document = roxmltree::Document::parse(definition)?;
    let disk = document
        .descendants()
        .find(|node| node.has_tag_name("disk"));
    let disk = disk.ok_or("kvmlet's VM has no disk")?;
    let sources = disk
        .descendants()
        .filter(|node| node.has_tag_name("source"));
    Ok(sources
        .filter_map(|source| source.attribute(attribute))
        .map(str::to_owned)
        .collect())
}

/// The element with the domain's own name, which is its definition's first.
fn named(definition: &str) -> Result<String, Failure> {
    let document = roxmltree::Document::parse(definition)?;
    let name = document
        .root_element()
        .children()
        .find(|node| node.has_tag_name("name"));
    let name = name.ok_or("kvmlet's VM has no name")?;
    Ok(definition[name.range()].to_owned())
}

/// The snapshot that an image is a clone of, as `rbd` writes it.
fn parent(cluster: &Cluster, image: &str) -> Result<String, Failure> {
    let parent = &cluster.rbd_json(&["info", image])["parent"];
    let part = |key: &str| {
        let value = parent[key].as_str();
        value.ok_or_else(|| format!("the root volume {image} is no clone"))
    };
    Ok(format!(
        "{}/{}@{}",
        part("pool")?,
        part("image")?,
        part("snapshot")?
    ))
}

/// Runs `rbd` as the administrator.
fn rbd(cluster: &Cluster, arguments: &[&str]) -> Result<(), Failure> {
    let conf = cluster.conf();
    let arguments = [&["--conf", text(&conf)?], arguments].concat();
    run("rbd", &arguments)
}

/// What a program prints.
fn read(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    let output = command(program).args(arguments).output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{program}: {}: {}", output.status, words.trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| "a path is no text".into())
}
