//! What the Ceph pools of one host hold at one moment, seen by the administrator
//! and not through kvmlet.

use super::ceph::{CephPools, Cluster};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use tempfile::TempDir;

/// What is in the Ceph pools of one host.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// The Ceph pools.
    pub pools: CephPools,
    /// The RBD images by `pool/name`, without those in the trash.
    pub images: BTreeMap<String, RbdImage>,
    /// What is in the trash.
    pub trash: Vec<Trashed>,
    /// The files in the folder in which imports are fetched.
    pub scratch: Vec<String>,
}

/// An RBD image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdImage {
    pub size: u64,
    /// What it is a clone of: `pool/name@snapshot`.
    pub parent: Option<String>,
    /// Its snapshots that are protected.
    pub protected: Vec<String>,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// The addresses of the clients that have it open for writing.
    pub watchers: Vec<String>,
    /// Of what is in it.
    pub digest: String,
}

/// An RBD image in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trashed {
    /// `pool/name` that it had.
    pub name: String,
    /// Whether it was given a time after which it goes for ever.
    pub expires: bool,
}

/// Looks at the Ceph pools of one host: one client that stays, because one for each
/// question takes most of the time that a test has.
#[derive(Debug)]
pub struct Looker {
    pools: CephPools,
    /// Where the host fetches imports.
    scratch: TempDir,
    process: Mutex<(Child, BufReader<ChildStdout>)>,
}

impl Looker {
    /// Looks at these pools, and at the scratch folder of the host.
    pub fn at(cluster: &Cluster, pools: CephPools, scratch: TempDir) -> Self {
        #[allow(clippy::disallowed_methods)] // a test has its own clients
        let mut process = Command::new("/usr/bin/python3")
            .args(["-c", LOOK])
            .arg(cluster.conf())
            .args(pools.all())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self {
            pools,
            scratch,
            process: Mutex::new((process, answers)),
        }
    }

    /// The pools that it looks at.
    pub fn pools(&self) -> &CephPools {
        &self.pools
    }

    /// What there is now.
    pub fn look(&self) -> Holdings {
        let mut line = String::new();
        let mut process = self.process.lock().unwrap();
        let (child, answers) = &mut *process;
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        answers.read_line(&mut line).unwrap();
        drop(process);
        let seen: Value = serde_json::from_str(&line).expect("the cluster can be looked at");
        let images = seen["images"].as_object().expect("images").iter();
        let trash = seen["trash"].as_array().expect("a list").iter();
        Holdings {
            pools: self.pools.clone(),
            images: images
                .map(|(name, image)| (name.clone(), rbd_image(image)))
                .collect(),
            trash: trash
                .map(|entry| Trashed {
                    name: entry["name"].as_str().expect("a name").to_owned(),
                    expires: entry["expires"].as_bool().expect("yes or no"),
                })
                .collect(),
            scratch: files(self.scratch.path()),
        }
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        let (child, _) = self.process.get_mut().unwrap();
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

fn rbd_image(seen: &Value) -> RbdImage {
    let words = |key: &str| -> Vec<String> {
        let list = seen[key].as_array().expect("a list").iter();
        list.map(|word| word.as_str().expect("text").to_owned())
            .collect()
    };
    RbdImage {
        size: seen["size"].as_u64().expect("a number"),
        parent: seen["parent"].as_str().map(str::to_owned),
        protected: words("protected"),
        snapshots: words("snapshots").len(),
        watchers: words("watchers"),
        digest: seen["digest"].as_str().expect("text").to_owned(),
    }
}

fn files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let entries = entries.map(|entry| entry.unwrap());
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// Answers each line of its input with one of what the pools hold. What vanishes
/// while it is looked at is not there. Looking opens nothing for writing, so that it
/// is no watcher itself.
const LOOK: &str = r#"
import hashlib, json, sys, rados, rbd
conf, *names = sys.argv[1:]

def image(pool, name):
    with rbd.Image(pool, name, read_only=True) as image:
        size, parent = image.size(), None
        try:
            parent = "{}/{}@{}".format(*image.parent_info())
        except rbd.ImageNotFound:
            pass
        snapshots = [snap["name"] for snap in image.list_snaps()]
        return {
            "size": size,
            "parent": parent,
            "snapshots": snapshots,
            "protected": [name for name in snapshots if image.is_protected_snap(name)],
            "watchers": [watcher["addr"] for watcher in image.watchers_list()],
            "digest": hashlib.sha256(image.read(0, size)).hexdigest(),
        }

def look(cluster):
    images, trash = {}, []
    for pool in names:
        with cluster.open_ioctx(pool) as opened:
            for name in rbd.RBD().list(opened):
                try:
                    images[pool + "/" + name] = image(opened, name)
                except rbd.ImageNotFound:
                    pass
            for entry in rbd.RBD().trash_list(opened):
                expires = entry["deferment_end_time"] > entry["deletion_time"]
                trash.append({"name": pool + "/" + entry["name"], "expires": expires})
    return {"images": images, "trash": trash}

with rados.Rados(conffile=conf, name="client.admin") as cluster:
    for _ in sys.stdin:
        print(json.dumps(look(cluster)), flush=True)
"#;
