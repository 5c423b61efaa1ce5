//! Everything that can be seen of a host at one moment: what the API tells, what
//! libvirt has, and which files and RBD images there are.

use super::api::Api;
use super::daemon::Daemon;
use super::holdings::Holdings;
use kvmlet::proto::v1::{Image, ListImagesRequest, Operation, Vm};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use virt::connect::Connect;
use virt::domain::DomainState;
use virt::enumutil::Enum;

/// A host at one moment.
#[derive(Debug, Clone)]
pub struct World {
    /// All VMs, also the deleted ones, by id.
    pub vms: BTreeMap<String, Vm>,
    /// The newest operations, oldest first.
    pub operations: Vec<Operation>,
    /// All images, by id.
    pub images: BTreeMap<String, Image>,
    /// All domains, by UUID.
    pub domains: BTreeMap<String, Domain>,
    /// The files of the pools by their path below the daemon's directory, with a
    /// digest of what is in them.
    pub files: BTreeMap<String, String>,
    /// The VMs that have a console log.
    pub consoles: Vec<String>,
    /// The message of the host's maintenance, if it is in one.
    pub maintenance: Option<String>,
    /// What its Ceph pools hold, if it has such.
    pub ceph: Option<Holdings>,
}

/// A domain as libvirt has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Whether it has power.
    pub power: Power,
    /// Whether its memory is saved.
    pub saved: bool,
    /// The generation in kvmlet's metadata; `None` without any.
    pub generation: Option<u64>,
    /// The names of its disks' files, or `rbd:pool/image`, in order.
    pub disks: Vec<String>,
    /// Differs each time that it has power anew.
    pub incarnation: String,
}

/// Whether a domain has power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Off,
    Running,
    Paused,
}

/// Operations that are looked at; a look is made more often than there are so many
/// new ones.
const OPERATIONS: u32 = 250;

impl World {
    /// Looks at everything.
    pub async fn see(daemon: &Daemon, domains: BTreeMap<String, Domain>) -> Self {
        let api = daemon.api();
        let vms = api.all_vms().await;
        let mut operations = api.newest_operations(OPERATIONS).await;
        operations.sort_by_key(|operation| operation.id.clone());
        let files = daemon.pool_files().into_iter();
        let files = files
            .filter(|file| !file.ends_with(".kvmlet.lock"))
            .map(|file| {
                let digest = digest(&daemon.home().join(&file));
                (file, digest)
            });
        Self {
            vms: vms.into_iter().map(|vm| (vm.id.clone(), vm)).collect(),
            operations,
            images: images(&api).await,
            domains,
            files: files.collect(),
            consoles: consoles(&daemon.home().join("console")),
            maintenance: maintenance(&api).await,
            ceph: None,
        }
    }
}

async fn maintenance(api: &Api) -> Option<String> {
    let maintenance = api.node().await.maintenance.expect("it is always told");
    maintenance.enabled.then_some(maintenance.message)
}

async fn images(api: &Api) -> BTreeMap<String, Image> {
    let request = ListImagesRequest {
        page_size: 1000,
        ..Default::default()
    };
    let answer = api.images().list_images(request).await.unwrap();
    let images = answer.into_inner().images.into_iter();
    images.map(|image| (image.id.clone(), image)).collect()
}

/// A file as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Stamp {
    /// Device and inode.
    place: (u64, u64),
    length: u64,
    /// When its bytes were changed last, and when anything of it was: nanoseconds
    /// since 1970.
    written: i128,
    changed: i128,
}

/// The digests of files that have rested since.
static DIGESTS: LazyLock<Mutex<HashMap<Stamp, String>>> = LazyLock::new(Mutex::default);

/// How long a file must have rested for its digest to be remembered: the kernel tells
/// times by a clock that may stand still for 10 ms, so that a write right after
/// another one may leave no trace in them.
const RESTED: Duration = Duration::from_millis(200);

/// The digest of what is in a file; of one that has not been touched since it was
/// read last, that one's.
fn digest(path: &Path) -> String {
    // It may be removed while it is looked at, by what is still at work.
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let Ok((before, mut file)) = opened else {
        return format!("{:x}", Sha256::digest([]));
    };
    let stamp = Stamp::of(&before);
    let digests = || DIGESTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = digests().get(&stamp) {
        return known.clone();
    }
    let begun = SystemTime::now();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let digest = format!("{:x}", Sha256::digest(bytes));
    if stamp.had_rested(begun) && stamp == Stamp::of(&file.metadata().unwrap()) {
        digests().insert(stamp, digest.clone());
    }
    digest
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let nanoseconds = |seconds, rest| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            place: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            written: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether nobody had touched it for a while.
    fn had_rested(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).expect("after 1970");
        let touched = self.written.max(self.changed);
        i128::try_from(now.as_nanos()).expect("a time") - touched
            > i128::try_from(RESTED.as_nanos()).expect("a time")
    }
}

fn consoles(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_suffix(".log").map(str::to_owned))
        .collect()
}

impl Domain {
    /// A domain by its description.
    pub fn parse(xml: &str, power: Power, saved: bool, incarnation: String) -> (String, Self) {
        let document = roxmltree::Document::parse(xml).expect("XML of libvirt's");
        let mut all = document.descendants();
        // In the description of one that has power, more is around it.
        let domain = all
            .find(|node| node.has_tag_name("domain"))
            .expect("a domain");
        let id = domain
            .children()
            .find(|node| node.has_tag_name("uuid"))
            .and_then(|node| node.text())
            .expect("a UUID");
        let ours = domain
            .descendants()
            .find(|node| node.tag_name().name() == "vm" && node.tag_name().namespace().is_some());
        let disks = domain
            .descendants()
            .filter(|node| {
                node.has_tag_name("source")
                    && node
                        .parent_element()
                        .is_some_and(|disk| disk.has_tag_name("disk"))
            })
            .filter_map(disk_source);
        let seen = Self {
            power,
            saved,
            generation: ours
                .and_then(|vm| vm.attribute("generation"))
                .map(|text| text.parse().expect("a number")),
            disks: disks.collect(),
            incarnation,
        };
        (id.to_owned(), seen)
    }
}

/// Where a disk is: a file by its name, an RBD image by its pool and name.
fn disk_source(source: roxmltree::Node<'_, '_>) -> Option<String> {
    if let Some(path) = source.attribute("file") {
        return Some(path.rsplit('/').next().unwrap_or_default().to_owned());
    }
    let (protocol, name) = (source.attribute("protocol")?, source.attribute("name")?);
    Some(format!("{protocol}:{name}"))
}

/// The domains of a libvirt daemon.
pub fn domains_of(connection: &Connect) -> BTreeMap<String, Domain> {
    let all = connection.list_all_domains(0).expect("libvirtd answers");
    let seen = all.iter().map(|domain| {
        let power = match domain.state().unwrap().0 {
            Enum::Known(DomainState::Running) => Power::Running,
            Enum::Known(DomainState::Paused) => Power::Paused,
            _ => Power::Off,
        };
        Domain::parse(
            &domain.xml_desc(0).unwrap(),
            power,
            domain.has_managed_save(0).unwrap(),
            domain
                .id()
                .map_or(String::new(), |number| number.to_string()),
        )
    });
    seen.collect()
}

/// The domains of an embedded QEMU driver, by the files below its root: no second
/// process may open it.
pub fn domains_below(root: &Path) -> BTreeMap<String, Domain> {
    let mut seen = BTreeMap::new();
    let Ok(entries) = fs::read_dir(root.join("etc/qemu")) else {
        return seen;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "xml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let status = root.join(format!("run/qemu/{name}.xml"));
        let saved = root.join(format!("lib/qemu/save/{name}.save")).exists();
        let live = fs::read_to_string(status).ok();
        let (power, incarnation) = match &live {
            None => (Power::Off, String::new()),
            Some(text) => {
                let document = roxmltree::Document::parse(text).expect("XML of libvirt's");
                let status = document.root_element();
                let power = match status.attribute("state") {
                    Some("running") => Power::Running,
                    Some("shutoff") => Power::Off,
                    _ => Power::Paused,
                };
                (
                    power,
                    status.attribute("pid").unwrap_or_default().to_owned(),
                )
            }
        };
        let Ok(xml) = fs::read_to_string(&path) else {
            continue;
        };
        let (id, domain) = Domain::parse(&xml, power, saved, incarnation);
        seen.insert(id, domain);
    }
    seen
}
