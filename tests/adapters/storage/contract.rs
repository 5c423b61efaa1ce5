//! The contract of pools, kept by a folder of qcow2 files.

use super::contract_cases::{Backend, CASES};
use super::support::{Place, command, path_of, run};
use kvmlet::model::volume::DiskSource;
use kvmlet::storage::Pool;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};

impl Backend for Place {
    fn pool(&self) -> &dyn Pool {
        &self.pool
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("incoming")
    }

    fn read(&self, source: &DiskSource) -> Vec<u8> {
        let out = self.folder().join("read.raw");
        let path = path_of(source.clone());
        run(
            "qemu-img",
            &[&"convert", &"-f", &"qcow2", &"-O", &"raw", &path, &out],
        );
        std::fs::read(out).expect("a raw disk")
    }

    fn write(&self, source: &DiskSource, offset: usize, bytes: &[u8]) {
        let file = self.folder().join("write.bytes");
        std::fs::write(&file, bytes).expect("a file");
        let length = bytes.len();
        let write = format!("write -s {} {offset} {length}", file.display());
        let path = path_of(source.clone());
        run("qemu-io", &[&"-f", &"qcow2", &"-c", &write, &path]);
    }

    fn open(&self, source: &DiskSource) -> Box<dyn std::any::Any> {
        let mut child = command("qemu-io")
            .args(["-f", "qcow2"])
            .arg(path_of(source.clone()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io starts");
        // It answers when the disk is open.
        let stdin = child.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"length\n").expect("it listens");
        let mut answer = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut answer).expect("text");
        Box::new(Open(child))
    }
}

struct Open(Child);

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

#[test]
fn a_pool_of_qcow2_files_keeps_the_contract_of_pools() {
    for (name, case) in CASES {
        println!("{name}");
        case(&Place::new());
    }
}
