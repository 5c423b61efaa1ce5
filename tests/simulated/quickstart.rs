//! The quick starts for authors of control planes: README shows the files as they are,
//! and they do what it says, on a simulated host.

use crate::support::daemon::Daemon;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_readme_shows_them_as_they_are() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (language, file) in [("python", "quickstart.py"), ("rust", "quickstart.rs")] {
        let text = fs::read_to_string(root().join("examples").join(file)).unwrap();
        let block = format!("```{language}\n{text}```\n");
        assert!(
            readme.contains(&block),
            "examples/{file} is not in README.md"
        );
    }
}

/// Reads what a client says until it has told of its VM's events, then ends it.
#[allow(clippy::disallowed_methods)] // a test runs its own clients
async fn makes_a_vm_and_follows_it(command: &mut Command, states: [&str; 2], event: &str) {
    let mut client = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    let mut events = 0;
    for line in lines {
        let line = line.unwrap();
        events += usize::from(line.contains(event));
        said.push(line);
        if events > 0 {
            break;
        }
    }
    let ended = client.try_wait().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(
        ended, None,
        "it follows the host until it is ended: {said:#?}"
    );
    assert!(said[0].starts_with(states[0]), "{said:#?}");
    assert_eq!(said[1], format!("web1 {}", states[1]));
}

/// The example, which is built with the tests.
fn example() -> PathBuf {
    let daemon = Path::new(env!("CARGO_BIN_EXE_kvmlet"));
    let example = daemon.with_file_name("examples").join("quickstart");
    assert!(
        example.exists(),
        "{} is missing: cargo build --features failpoints --examples",
        example.display()
    );
    example
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods)] // a test runs its own clients
async fn the_one_in_rust_works() {
    let mut command = Command::new(example());
    let daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    command
        .arg(format!("unix://{}", daemon.socket().display()))
        .arg(image);
    makes_a_vm_and_follows_it(&mut command, ["Succeeded", "Running"], "Some(Vm(").await;
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::disallowed_methods)] // a test runs its own clients
async fn the_one_in_python_works_with_stubs_made_as_the_readme_says() {
    let python = root().join("target/tools/python/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup once",
        python.display()
    );
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let line = readme
        .lines()
        .find(|line| line.starts_with("python -m grpc_tools.protoc "))
        .expect("README says how stubs are made");
    let proto = root().join("proto").display().to_string();
    let made = line
        .replacen("python", &python.display().to_string(), 1)
        .replace("/usr/share/kvmlet/proto", &proto);
    let stubs = tempfile::tempdir().unwrap();
    let status = Command::new("sh")
        .args(["-ec", &made])
        .current_dir(stubs.path())
        .status()
        .unwrap();
    assert!(status.success(), "{made}");

    let daemon = Daemon::simulated().await;
    let image = daemon.image().await;
    let mut command = Command::new(python);
    command
        .arg(root().join("examples/quickstart.py"))
        .arg(format!("unix:{}", daemon.socket().display()))
        .arg(image)
        .env("PYTHONPATH", stubs.path());
    let states = ["OPERATION_STATE_SUCCEEDED", "VM_STATE_RUNNING"];
    makes_a_vm_and_follows_it(&mut command, states, " vm").await;
}
