//! What an administrator does to a VM at random, with what is on every host: virsh,
//! qemu-img, mv, a text editor. Whether it succeeds is the host's to say; only what
//! would itself lose a guest's data is left out.

use super::admin::{define_foreign, domain, qemu_img, try_qemu_img, try_virsh};
use super::host::World;
use std::fs;
use std::path::{Path, PathBuf};

/// The end of the name of a file that was moved.
const ASIDE: &str = ".aside";

/// One act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Nothing,
    SnapshotOutside,
    SnapshotInside,
    ForgetSnapshots,
    MergeSnapshot,
    Tune,
    Undefine,
    Start,
    Destroy,
    SaveMemory,
    RemoveMemory,
    AttachDisk,
    DetachDisk,
    Rename,
    Autostart,
    MoveFile,
    StandOnIt,
    Copy,
    RemoveMemoryFile,
}

impl Act {
    pub const ALL: [Self; 19] = [
        Self::Nothing,
        Self::SnapshotOutside,
        Self::SnapshotInside,
        Self::ForgetSnapshots,
        Self::MergeSnapshot,
        Self::Tune,
        Self::Undefine,
        Self::Start,
        Self::Destroy,
        Self::SaveMemory,
        Self::RemoveMemory,
        Self::AttachDisk,
        Self::DetachDisk,
        Self::Rename,
        Self::Autostart,
        Self::MoveFile,
        Self::StandOnIt,
        Self::Copy,
        Self::RemoveMemoryFile,
    ];
}

/// An administrator who has it in for one VM.
pub struct Administrator<'a> {
    pub world: &'a World,
    pub vm_id: String,
    /// Counts what it makes, for its names.
    pub made: u32,
}

impl Administrator<'_> {
    fn folder(&self) -> PathBuf {
        self.world.host.daemon.home().join("theirs")
    }

    /// What the domain is called now.
    pub fn name(&self) -> String {
        let named = try_virsh(self.world, &["domname", &self.vm_id]);
        named.map_or_else(|_| domain(&self.vm_id), |name| name.trim().to_owned())
    }

    fn volumes(&self) -> PathBuf {
        self.world.host.daemon.home().join("pool/volumes")
    }

    /// The snapshot in the pool that was laid over the others last.
    pub fn newest_over(&self) -> Option<PathBuf> {
        let prefix = format!("{}-over", self.vm_id);
        let files = fs::read_dir(self.volumes()).unwrap();
        files
            .filter_map(|file| {
                let path = file.unwrap().path();
                let name = path.file_name()?.to_str()?;
                let number: u32 = name.strip_prefix(&prefix)?.parse().ok()?;
                Some((number, path))
            })
            .max()
            .map(|(_, path)| path)
    }

    fn virsh(&self, words: &[&str]) -> bool {
        try_virsh(self.world, words).is_ok()
    }

    /// Where the first disk of the domain is, as the next start or the guest has it.
    pub fn disk(&self) -> Option<PathBuf> {
        let list = match try_virsh(self.world, &["domblklist", &self.vm_id]) {
            Ok(list) => list,
            Err(trouble) if trouble.contains("failed to get domain") => return None,
            Err(trouble) => panic!("the disks of {} can't be read: {trouble}", self.vm_id),
        };
        let line = list.lines().find(|line| line.trim().starts_with("vda"))?;
        line.split_whitespace().nth(1).map(PathBuf::from)
    }

    fn is_active(&self) -> bool {
        let state = try_virsh(self.world, &["domstate", &self.vm_id]);
        state.is_ok_and(|state| !matches!(state.trim(), "shut off" | "crashed"))
    }

    /// Whether the disk is a snapshot over its volume.
    fn is_on_snapshot(&self) -> bool {
        let over = |disk: PathBuf| disk.to_string_lossy().contains("-over");
        self.disk().is_some_and(over)
    }

    /// Whether snapshots in and outside of the pool stand on each other.
    fn is_nested(&self) -> bool {
        let files = fs::read_dir(self.folder()).unwrap();
        let prefix = format!("{}-over", self.vm_id);
        files.into_iter().any(|file| {
            let name = file.unwrap().file_name();
            name.to_string_lossy().starts_with(&prefix)
        })
    }

    /// Where a file of the VM's was moved to.
    pub fn aside(path: &Path) -> PathBuf {
        PathBuf::from(format!("{}{ASIDE}", path.display()))
    }

    /// Does it; whether it was done.
    pub fn act(&mut self, act: Act) -> bool {
        fs::create_dir_all(self.folder()).unwrap();
        self.made += 1;
        let (name, number) = (self.name(), self.made);
        let own = |kind: &str| self.folder().join(format!("{}-{kind}{number}", self.vm_id));
        match act {
            Act::Nothing => true,
            Act::SnapshotOutside => {
                // Beside the volume, where virsh puts it if it is not told where, or not.
                let file = match number % 2 {
                    0 => own("over"),
                    _ => self.volumes().join(format!("{}-over{number}", self.vm_id)),
                };
                let spec = format!("vda,file={}", file.display());
                let words = ["--disk-only", "--atomic", "--no-metadata", "--diskspec"];
                let is_there = self.disk().is_some_and(|disk| disk.exists());
                is_there
                    && self.virsh(
                        &[&["snapshot-create-as", &name, "over"], &words[..], &[&spec]].concat(),
                    )
            }
            Act::SnapshotInside => {
                let named = format!("inside{number}");
                !self.is_on_snapshot() && self.virsh(&["snapshot-create-as", &name, &named])
            }
            Act::ForgetSnapshots => {
                let list = try_virsh(self.world, &["snapshot-list", &name, "--name"]);
                list.is_ok_and(|list| {
                    list.split_whitespace()
                        .all(|snapshot| self.virsh(&["snapshot-delete", &name, snapshot]))
                })
            }
            Act::MergeSnapshot => {
                let over = self.disk().filter(|_| self.is_on_snapshot());
                over.is_some_and(|over| {
                    let words = ["vda", "--active", "--pivot", "--wait", "--shallow"];
                    let merged = self.virsh(&[&["blockcommit", &name], &words[..]].concat());
                    // It may be a snapshot of a snapshot: what is under it stays.
                    if merged {
                        fs::remove_file(over).unwrap();
                    }
                    merged
                })
            }
            Act::Tune => {
                let words = ["dumpxml", "--inactive", "--security-info", &name];
                let Ok(xml) = try_virsh(self.world, &words) else {
                    return false;
                };
                let tuned = format!("<cputune><shares>{}</shares></cputune>", 100 + number);
                let (Some((before, _)), Some((_, after))) =
                    (xml.split_once("<cputune>"), xml.split_once("</cputune>"))
                else {
                    let xml = xml.replacen("<on_reboot>", &format!("{tuned}<on_reboot>"), 1);
                    return self.define(&xml);
                };
                self.define(&format!("{before}{tuned}{after}"))
            }
            // With a snapshot elsewhere over it, nothing would name where its data are.
            Act::Undefine => {
                let over = self.disk().filter(|_| self.is_on_snapshot());
                let is_findable =
                    over.is_none() || (over == self.newest_over() && !self.is_nested());
                !self.is_active()
                    && is_findable
                    && self.virsh(&["undefine", &name, "--snapshots-metadata", "--managed-save"])
            }
            Act::Start => self.virsh(&["start", &name]),
            Act::Destroy => self.virsh(&["destroy", &name]),
            Act::SaveMemory => self.virsh(&["managedsave", &name]),
            Act::RemoveMemory => self.virsh(&["managedsave-remove", &name]),
            Act::AttachDisk => {
                let file = own("disk.raw");
                fs::write(&file, vec![0; 1 << 20]).unwrap();
                let file = file.to_str().unwrap();
                let words = ["vdb", "--subdriver", "raw", "--config"];
                self.virsh(&[&["attach-disk", &name, file], &words[..]].concat())
            }
            Act::DetachDisk => self.virsh(&["detach-disk", &name, "vdb", "--config"]),
            Act::Rename => {
                let other = format!("theirs-{}-{number}", self.vm_id);
                self.virsh(&["domrename", &name, &other])
            }
            Act::Autostart if number % 2 == 0 => self.virsh(&["autostart", &name]),
            Act::Autostart => self.virsh(&["autostart", &name, "--disable"]),
            Act::MoveFile => {
                let disk = self.disk().filter(|_| !self.is_active());
                disk.is_some_and(|disk| {
                    let aside = Self::aside(&disk);
                    let ways = [(&aside, &disk), (&disk, &aside)];
                    let way = ways
                        .into_iter()
                        .find(|(from, to)| from.exists() && !to.exists());
                    way.is_some_and(|(from, to)| fs::rename(from, to).is_ok())
                })
            }
            // As virt-clone does: the metadata is copied, too.
            Act::Copy => {
                if let Some(copy) = self.copies().pop() {
                    return self.remove_copy(&copy);
                }
                let disk = self
                    .disk()
                    .filter(|disk| disk.exists() && !self.is_active());
                disk.is_some_and(|disk| {
                    let file = own("copy");
                    let (from, to) = (disk.to_str().unwrap(), file.to_str().unwrap());
                    let copied = try_qemu_img(&["convert", "-q", "-O", "qcow2", from, to]);
                    let words = ["dumpxml", "--inactive", &name];
                    let xml = try_virsh(self.world, &words).unwrap_or_default();
                    let called = file.file_name().unwrap().to_str().unwrap();
                    let uuid = |id: &str| format!("<uuid>{id}</uuid>");
                    let xml = xml
                        .replace(&uuid(&self.vm_id), &uuid(&crate::support::api::id()))
                        .replace(
                            &format!("<name>{name}</name>"),
                            &format!("<name>{called}</name>"),
                        )
                        .replace(from, to);
                    let defined = copied && self.define(&xml);
                    if !defined {
                        drop(fs::remove_file(file));
                    }
                    defined
                })
            }
            Act::RemoveMemoryFile => {
                let folder = self.world.libvirtd.home.path().join("lib/qemu/save");
                fs::remove_file(folder.join(format!("{name}.save"))).is_ok()
            }
            Act::StandOnIt => {
                let foreign = format!("over-{}", self.vm_id);
                if self.virsh(&["undefine", &foreign]) {
                    return true;
                }
                let base = self
                    .disk()
                    .filter(|base| base.exists() && !self.is_active());
                base.is_some_and(|base| {
                    let file = own("foreign");
                    let (base, over) = (base.to_str().unwrap(), file.to_str().unwrap());
                    qemu_img(&[
                        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, over,
                    ]);
                    let uuid = crate::support::api::id();
                    define_foreign(self.world, &uuid, &foreign, Some(&file));
                    true
                })
            }
        }
    }

    fn define(&self, xml: &str) -> bool {
        let file = self.folder().join("edited.xml");
        fs::write(&file, xml).unwrap();
        self.virsh(&["define", file.to_str().unwrap()])
    }

    /// The disks of copies of the VM.
    fn copies(&self) -> Vec<PathBuf> {
        let prefix = format!("{}-copy", self.vm_id);
        let files = fs::read_dir(self.folder()).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let is_copy = |path: &PathBuf| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&prefix)
        };
        files.filter(is_copy).collect()
    }

    /// Removes a copy of the VM, which must be as it was left.
    fn remove_copy(&self, disk: &Path) -> bool {
        let name = disk.file_name().unwrap().to_str().unwrap();
        let state = try_virsh(self.world, &["domstate", name]);
        assert_eq!(state.as_deref().map(str::trim), Ok("shut off"), "{name}");
        fs::remove_file(disk).unwrap();
        self.virsh(&["undefine", name])
    }

    /// Takes back what stands in kvmlet's way, as docs/operations.md says.
    pub fn make_good(&mut self) {
        fs::create_dir_all(self.folder()).unwrap();
        let name = self.name();
        self.virsh(&["undefine", &format!("over-{}", self.vm_id)]);
        for folder in [self.folder(), self.volumes()] {
            for file in fs::read_dir(folder).unwrap() {
                let aside = file.unwrap().path();
                let text = aside.to_str().unwrap();
                if let Some(path) = text
                    .strip_suffix(ASIDE)
                    .filter(|path| !Path::new(path).exists())
                {
                    fs::rename(text, path).unwrap();
                }
            }
        }
        while self.disk().is_none()
            && let Some(over) = self.newest_over()
        {
            qemu_img(&["commit", "-q", over.to_str().unwrap()]);
            fs::remove_file(over).unwrap();
        }
        for copy in self.copies() {
            assert!(self.remove_copy(&copy), "{}", copy.display());
        }
        if !self.virsh(&["managedsave-remove", &name]) {
            // A file that is missing libvirt forgets only with a start.
            self.virsh(&["start", &name, "--force-boot"]);
        }
        self.act(Act::ForgetSnapshots);
        if self.is_on_snapshot() {
            self.virsh(&["start", &name]);
            self.virsh(&["resume", &name]);
            while self.is_on_snapshot() {
                assert!(self.act(Act::MergeSnapshot), "a snapshot is not merged");
            }
        }
        self.virsh(&["detach-disk", &name, "vdb", "--config"]);
        self.virsh(&["destroy", &name]);
    }
}
