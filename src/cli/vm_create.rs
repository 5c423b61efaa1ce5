//! `kvmlet vm create`: from words to a CreateVmRequest.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::parse::{self, needed, words};
use crate::cli::resolve;
use crate::cli::wait::{self, WaitArgs};
use crate::proto::v1::{
    self, BridgeAttachment, CreateVmRequest, Hardware, LibvirtNetworkAttachment, NewNic, NewVnc,
    NewVolume, UserAttachment, VolumeQos, new_nic,
};
use clap::{Args, ValueEnum};
use uuid::Uuid;

/// For the help text.
pub(crate) const EXAMPLES: &str = "\
Examples:
  kvmlet vm create web1 --image debian --vcpus 2 --memory 2GiB --nic user --start
  kvmlet vm create db1 --image debian --profile large --root-size 40GiB \\
      --disk size=200GiB,name=data,keep --nic bridge=br0,vlan=5 --nic network=storage
  kvmlet vm create web2 --image debian --profile small --dry-run";

/// What to make.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// A name for people
    name: String,
    /// The image that the root volume is made from: its id or its name
    #[arg(long)]
    image: String,
    /// UUID of the VM [default: a new one]
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Start it when it is made
    #[arg(long)]
    start: bool,
    /// Check everything, change nothing, print the plan
    #[arg(long)]
    dry_run: bool,
    /// Size of the root volume [default: as large as the image]
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    root_size: Option<u64>,
    /// The pool of the root volume [default: the default pool]
    #[arg(long)]
    pool: Option<String>,
    /// A further volume: size=SIZE or image=IMAGE, and pool=POOL, name=NAME,
    /// id=UUID, iops=NUMBER, bandwidth=SIZE (a second), shareable, keep (when
    /// the VM goes), separated by commas (may be repeated)
    #[arg(long = "disk", value_name = "DISK", value_parser = disk)]
    disks: Vec<NewVolume>,
    /// A network interface: network=ID, bridge=NAME[,vlan=TAG], libvirt=NAME or
    /// user, and mac=MAC, model=virtio|e1000|e1000e|rtl8139, mtu=BYTES,
    /// ip=ADDRESS, id=UUID, separated by commas (may be repeated)
    #[arg(long = "nic", value_name = "NIC", value_parser = nic)]
    nics: Vec<NewNic>,
    /// Without a display
    #[arg(long)]
    no_vnc: bool,
    /// A value to select by (may be repeated)
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// A value that is returned as given (may be repeated)
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = parse::pair)]
    annotations: Vec<(String, String)>,
    /// Tag with a meaning, such as ceph::rootPoolName::fast (may be repeated)
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Tag that is carried (may be repeated)
    #[arg(long = "user-tag", value_name = "TAG")]
    user_tags: Vec<String>,
    /// Free text
    #[arg(long)]
    description: Option<String>,
    /// Package; carried
    #[arg(long)]
    package: Option<String>,
    /// Operating system inside; carried
    #[arg(long)]
    os: Option<String>,
    /// Platform; carried
    #[arg(long)]
    platform: Option<String>,
    #[command(flatten)]
    hardware: HardwareArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What a VM is made of.
#[derive(Debug, Args)]
#[command(next_help_heading = "Hardware")]
pub(crate) struct HardwareArgs {
    /// A profile of the configuration; the options below override it
    #[arg(long)]
    pub(crate) profile: Option<String>,
    /// Number of virtual processors
    #[arg(long, value_name = "NUMBER")]
    vcpus: Option<u32>,
    /// Memory of the guest
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    memory: Option<u64>,
    /// What the guest sees as its processor
    #[arg(long, value_enum)]
    cpu_mode: Option<CpuMode>,
    /// With --cpu-mode custom: QEMU's name of the model
    #[arg(long, value_name = "MODEL")]
    cpu_model: Option<String>,
    /// QEMU machine type [default: q35]
    #[arg(long)]
    machine: Option<String>,
    /// What the guest starts from
    #[arg(long, value_enum)]
    firmware: Option<Firmware>,
    /// What executes the guest's instructions
    #[arg(long, value_enum)]
    accelerator: Option<Accelerator>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CpuMode {
    /// The host's own, unchanged (needs KVM)
    HostPassthrough,
    /// The nearest model that QEMU knows (needs KVM)
    HostModel,
    /// All that the accelerator can offer
    Maximum,
    /// The one that --cpu-model names
    Custom,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Firmware {
    /// SeaBIOS
    Bios,
    /// OVMF
    Uefi,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Accelerator {
    /// KVM where the host truly has it, else TCG
    Auto,
    /// KVM, or refuse
    Kvm,
    /// QEMU's own translator: slow, but works anywhere
    Tcg,
}

impl HardwareArgs {
    /// The hardware with what was said put over `base`; `None` if nothing was.
    pub(crate) fn over(&self, base: Option<Hardware>) -> Result<Option<Hardware>, Fault> {
        if self.cpu_model.is_some() && self.cpu_mode.is_some_and(|mode| mode != CpuMode::Custom) {
            return Err(Fault::usage("--cpu-model is for --cpu-mode custom"));
        }
        let before = base.unwrap_or_default();
        let mut hardware = before.clone();
        let mut said = false;
        if let Some(vcpus) = self.vcpus {
            (hardware.vcpus, said) = (vcpus, true);
        }
        if let Some(memory) = self.memory {
            (hardware.memory_bytes, said) = (memory, true);
        }
        if let Some(mode) = self.cpu_mode {
            let mode = match mode {
                CpuMode::HostPassthrough => v1::CpuMode::HostPassthrough,
                CpuMode::HostModel => v1::CpuMode::HostModel,
                CpuMode::Maximum => v1::CpuMode::Maximum,
                CpuMode::Custom => v1::CpuMode::Custom,
            };
            hardware.cpu_mode = mode.into();
            if mode != v1::CpuMode::Custom {
                hardware.cpu_model.clear();
            }
            said = true;
        }
        if let Some(model) = &self.cpu_model {
            hardware.cpu_mode = v1::CpuMode::Custom.into();
            hardware.cpu_model.clone_from(model);
            said = true;
        }
        if let Some(machine) = &self.machine {
            hardware.machine.clone_from(machine);
            said = true;
        }
        if let Some(firmware) = self.firmware {
            let firmware = match firmware {
                Firmware::Bios => v1::Firmware::Bios,
                Firmware::Uefi => v1::Firmware::Uefi,
            };
            (hardware.firmware, said) = (firmware.into(), true);
        }
        if let Some(accelerator) = self.accelerator {
            let accelerator = match accelerator {
                Accelerator::Auto => v1::Accelerator::Unspecified,
                Accelerator::Kvm => v1::Accelerator::Kvm,
                Accelerator::Tcg => v1::Accelerator::Tcg,
            };
            (hardware.accelerator, said) = (accelerator.into(), true);
        }
        Ok(said.then_some(hardware))
    }
}

/// CreateVm.
pub(crate) async fn run(session: &Session, args: CreateArgs) -> Result<(), Fault> {
    let wait = args.wait.clone();
    let mut wanted = request(args)?;
    wanted.image_id = resolve::image(session, &wanted.image_id).await?;
    for disk in &mut wanted.data_volumes {
        if !disk.image_id.is_empty() {
            disk.image_id = resolve::image(session, &disk.image_id).await?;
        }
    }
    wait::carry_out(session, &wait, |request_id| {
        let mut client = session.vms();
        let request = CreateVmRequest {
            request_id,
            ..wanted.clone()
        };
        async move { client.create_vm(request).await }
    })
    .await
}

/// The request, its images as they were named.
fn request(args: CreateArgs) -> Result<CreateVmRequest, Fault> {
    let root = NewVolume {
        pool: args.pool.unwrap_or_default(),
        size_bytes: args.root_size.unwrap_or_default(),
        ..NewVolume::default()
    };
    Ok(CreateVmRequest {
        request_id: String::new(),
        vm_id: args.id.map(|id| id.to_string()).unwrap_or_default(),
        name: args.name,
        description: args.description.unwrap_or_default(),
        labels: parse::map(&args.labels),
        annotations: parse::map(&args.annotations),
        package: args.package.unwrap_or_default(),
        hardware: args.hardware.over(None)?,
        hardware_profile_id: args.hardware.profile.unwrap_or_default(),
        image_id: args.image,
        root_volume: (root != NewVolume::default()).then_some(root),
        data_volumes: args.disks,
        nics: args.nics,
        vnc: args.no_vnc.then_some(NewVnc { enabled: false }),
        system_tags: args.tags,
        user_tags: args.user_tags,
        platform: args.platform.unwrap_or_default(),
        os: args.os.unwrap_or_default(),
        start: args.start,
        validate_only: args.dry_run,
    })
}

fn disk(text: &str) -> Result<NewVolume, String> {
    let mut disk = NewVolume::default();
    let mut qos = VolumeQos::default();
    for (key, value) in words(text)? {
        match key {
            "size" => disk.size_bytes = parse::size(needed(key, value)?)?,
            "image" => disk.image_id = needed(key, value)?.to_owned(),
            "pool" => disk.pool = needed(key, value)?.to_owned(),
            "name" => disk.name = needed(key, value)?.to_owned(),
            "id" => disk.volume_id = id(needed(key, value)?)?,
            "iops" => qos.iops = number(key, needed(key, value)?)?,
            "bandwidth" => qos.bytes_per_second = parse::size(needed(key, value)?)?,
            "shareable" => disk.shareable = flag(key, value)?,
            "keep" => disk.delete_with_vm = Some(!flag(key, value)?),
            _ => {
                return Err(format!(
                    "a disk has no {key:?}: size, image, pool, name, id, iops, bandwidth, \
                     shareable, keep"
                ));
            }
        }
    }
    if disk.size_bytes == 0 && disk.image_id.is_empty() {
        return Err("a disk needs size=SIZE or image=IMAGE".into());
    }
    disk.qos = (qos != VolumeQos::default()).then_some(qos);
    Ok(disk)
}

fn nic(text: &str) -> Result<NewNic, String> {
    let mut nic = NewNic::default();
    let mut vlan = None;
    let mut places = 0;
    for (key, value) in words(text)? {
        match key {
            "network" => {
                nic.network_id = needed(key, value)?.to_owned();
                places += 1;
            }
            "bridge" => {
                nic.attachment = Some(new_nic::Attachment::Bridge(BridgeAttachment {
                    name: needed(key, value)?.to_owned(),
                    vlan: 0,
                }));
                places += 1;
            }
            "libvirt" => {
                let name = needed(key, value)?.to_owned();
                nic.attachment = Some(new_nic::Attachment::LibvirtNetwork(
                    LibvirtNetworkAttachment { name },
                ));
                places += 1;
            }
            "user" => {
                flag(key, value)?;
                nic.attachment = Some(new_nic::Attachment::User(UserAttachment {}));
                places += 1;
            }
            "vlan" => vlan = Some(number(key, needed(key, value)?)?),
            "mac" => nic.mac = needed(key, value)?.to_owned(),
            "model" => nic.model = model(needed(key, value)?)?.into(),
            "mtu" => nic.mtu = number(key, needed(key, value)?)?,
            "ip" => nic.ip_addresses.push(needed(key, value)?.to_owned()),
            "id" => nic.nic_id = id(needed(key, value)?)?,
            _ => {
                return Err(format!(
                    "a NIC has no {key:?}: network, bridge, vlan, libvirt, user, mac, model, \
                     mtu, ip, id"
                ));
            }
        }
    }
    if places != 1 {
        return Err("a NIC plugs into one of network=ID, bridge=NAME, libvirt=NAME or user".into());
    }
    match (&mut nic.attachment, vlan) {
        (Some(new_nic::Attachment::Bridge(bridge)), Some(vlan)) => bridge.vlan = vlan,
        (_, Some(_)) => return Err("vlan is for bridge=NAME".into()),
        (_, None) => {}
    }
    Ok(nic)
}

fn model(text: &str) -> Result<v1::NicModel, String> {
    match text {
        "virtio" => Ok(v1::NicModel::Virtio),
        "e1000" => Ok(v1::NicModel::E1000),
        "e1000e" => Ok(v1::NicModel::E1000e),
        "rtl8139" => Ok(v1::NicModel::Rtl8139),
        _ => Err("expected model=virtio, e1000, e1000e or rtl8139".into()),
    }
}

fn id(text: &str) -> Result<String, String> {
    Uuid::try_parse(text)
        .map(|id| id.to_string())
        .map_err(|_| format!("{text:?} is no UUID"))
}

fn number<N: std::str::FromStr>(key: &str, text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{key} needs a number"))
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None => Ok(true),
        Some(_) => Err(format!("{key} takes no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn parsed(words: &[&str]) -> CreateVmRequest {
        let line = ["create"].iter().chain(words);
        request(Line::try_parse_from(line).expect("parses").args).expect("is sound")
    }

    #[test]
    fn a_small_request_leaves_everything_else_to_the_daemon() {
        let wanted = CreateVmRequest {
            name: "web1".into(),
            image_id: "debian".into(),
            ..CreateVmRequest::default()
        };
        assert_eq!(parsed(&["web1", "--image", "debian"]), wanted);
    }

    #[test]
    fn every_word_finds_its_field() {
        let request = parsed(&[
            "web1",
            "--image",
            "debian",
            "--vcpus",
            "2",
            "--memory",
            "2GiB",
            "--cpu-model",
            "qemu64",
            "--firmware",
            "uefi",
            "--accelerator",
            "tcg",
            "--root-size",
            "20GiB",
            "--pool",
            "fast",
            "--disk",
            "size=10GiB,keep,iops=100",
            "--nic",
            "bridge=br0,vlan=5,ip=10.0.0.2,ip=::1",
            "--nic",
            "user",
            "--label",
            "a=b",
            "--tag",
            "ceph::rootPoolName::x",
            "--no-vnc",
            "--start",
        ]);
        let hardware = request.hardware.expect("was said");
        assert_eq!((hardware.vcpus, hardware.memory_bytes), (2, 2 << 30));
        assert_eq!(hardware.cpu_mode(), v1::CpuMode::Custom);
        assert_eq!(hardware.firmware(), v1::Firmware::Uefi);
        assert_eq!(hardware.accelerator(), v1::Accelerator::Tcg);
        let root = request.root_volume.expect("was said");
        assert_eq!((root.size_bytes, root.pool.as_str()), (20 << 30, "fast"));
        let disk = &request.data_volumes[0];
        assert_eq!(
            (disk.size_bytes, disk.delete_with_vm),
            (10 << 30, Some(false))
        );
        assert_eq!(disk.qos.map(|qos| qos.iops), Some(100));
        assert_eq!(request.nics[0].ip_addresses, ["10.0.0.2", "::1"]);
        assert_eq!(
            request.nics[0].attachment,
            Some(new_nic::Attachment::Bridge(BridgeAttachment {
                name: "br0".into(),
                vlan: 5
            }))
        );
        assert_eq!(
            request.nics[1].attachment,
            Some(new_nic::Attachment::User(UserAttachment {}))
        );
        assert_eq!(request.vnc, Some(NewVnc { enabled: false }));
        assert!(request.start);
    }

    #[test]
    fn a_disk_that_makes_no_sense_is_refused() {
        for text in [
            "",
            "keep",
            "size",
            "size=",
            "size=1GiB,keep=yes",
            "size=1GiB,colour=red",
            "size=1GB",
        ] {
            assert!(disk(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_nic_plugs_into_one_place() {
        for text in [
            "",
            "mac=x",
            "user,bridge=br0",
            "user,vlan=5",
            "bridge",
            "user=yes",
            "network=a,mtu=x",
        ] {
            assert!(nic(text).is_err(), "{text}");
        }
        assert_eq!(nic("network=a").map(|nic| nic.network_id), Ok("a".into()));
    }
}
