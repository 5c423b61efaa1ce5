//! The command as a script sees it, as far as it needs no daemon: help, exit
//! codes, what is on standard output and what on standard error.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};

// The command under test is run as a person runs it.
#[allow(clippy::disallowed_methods)]
fn kvmlet_to(stdout: impl Into<Stdio>, args: &[&str]) -> Ended {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(args)
        .env_remove("KVMLET_SERVER")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("the command was built with this test");
    output.into()
}

fn kvmlet(args: &[&str]) -> Ended {
    kvmlet_to(Stdio::piped(), args)
}

#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }
}

/// All commands, also those that only group others.
const COMMANDS: [&[&str]; 47] = [
    &[],
    &["serve"],
    &["vm"],
    &["vm", "list"],
    &["vm", "show"],
    &["vm", "create"],
    &["vm", "update"],
    &["vm", "start"],
    &["vm", "stop"],
    &["vm", "reboot"],
    &["vm", "reset"],
    &["vm", "pause"],
    &["vm", "resume"],
    &["vm", "save"],
    &["vm", "power"],
    &["vm", "replace-root"],
    &["vm", "revert-root"],
    &["vm", "delete"],
    &["vm", "recover"],
    &["vm", "expunge"],
    &["vm", "console"],
    &["vm", "screenshot"],
    &["image"],
    &["image", "import"],
    &["image", "list"],
    &["image", "show"],
    &["image", "delete"],
    &["volume"],
    &["volume", "list"],
    &["volume", "show"],
    &["pool", "list"],
    &["op"],
    &["op", "list"],
    &["op", "show"],
    &["op", "wait"],
    &["op", "cancel"],
    &["doctor"],
    &["node"],
    &["node", "maintenance"],
    &["node", "maintenance", "on"],
    &["node", "maintenance", "off"],
    &["config"],
    &["config", "check"],
    &["journal"],
    &["journal", "check"],
    &["journal", "export"],
    &["completions"],
];

#[test]
fn every_command_explains_itself_on_standard_output() {
    for command in COMMANDS {
        let ended = kvmlet(&[command, &["--help"]].concat());
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
        assert!(ended.stdout.contains("Usage:"), "{command:?}");
        assert_eq!(ended.stderr, "", "{command:?}");
    }
}

#[test]
fn the_help_lists_all_exit_codes() {
    let help = kvmlet(&["--help"]).stdout;
    for code in ["0", "1", "2", "3", "4", "5", "6", "7", "8", "70", "130"] {
        let listed = help
            .lines()
            .skip_while(|line| *line != "Exit codes:")
            .any(|line| line.split_whitespace().next() == Some(code));
        assert!(listed, "{code} is not in\n{help}");
    }
}

#[test]
fn a_bad_command_line_is_told_and_ends_with_2() {
    let bad: [&[&str]; 14] = [
        &[],
        &["vm", "fly"],
        &["vm", "create", "web1"],
        &["vm", "create", "web1", "--image", "x", "--memory", "2GB"],
        &["vm", "create", "web1", "--image", "x", "--nic", "vlan=5"],
        &["vm", "create", "web1", "--image", "x", "--disk", "keep"],
        &["vm", "stop", "web1", "--force", "--timeout", "5s"],
        &["vm", "stop", "web1", "--timeout", "60"],
        &["vm", "delete", "web1", "--stop-timeout", "60s"],
        &["vm", "show", "web1", "-o", "yaml"],
        &["vm", "list", "--server", "https://"],
        &["vm", "screenshot", "web1"],
        &["serve"],
        &["serve", "--simulate", "--config", "x"],
    ];
    for args in bad {
        let ended = kvmlet(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{args:?}");
        assert!(!ended.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = kvmlet(&["completions", shell]);
        assert_eq!(ended.code, Some(0), "{shell}");
        assert!(ended.stdout.contains("replace-root"), "{shell}");
    }
    assert_eq!(kvmlet(&["completions", "tcsh"]).code, Some(2));
}

#[test]
fn a_daemon_that_is_not_there_is_6_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = format!("unix://{}/no.sock", folder.path().display());
    // A socket that nobody listens on any more.
    let dead = folder.path().join("dead.sock");
    drop(UnixListener::bind(&dead).expect("a socket"));
    let dead = format!("unix://{}", dead.display());
    for (server, why) in [
        (missing.as_str(), "No such file or directory"),
        (dead.as_str(), "Connection refused"),
        ("http://127.0.0.1:1", "Connection refused"),
    ] {
        for command in [&["vm", "list"][..], &["vm", "start", "web1"], &["node"]] {
            let ended = kvmlet(&[&["--server", server], command].concat());
            assert_eq!(ended.code, Some(6), "{server}: {ended:?}");
            assert_eq!(ended.stdout, "", "{server}");
            let told = format!("error: can't reach kvmlet at {server}: {why}");
            assert!(ended.stderr.starts_with(&told), "{ended:?}");
            assert!(ended.stderr.contains("\n  hint: "), "{ended:?}");
        }
    }
}

#[test]
fn a_configuration_is_checked_without_a_daemon() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kvmlet.toml");
    let path = file.to_str().expect("text");
    fs::write(&file, "").expect("a file");
    let ended = kvmlet(&["config", "check", "--config", path]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, format!("{path}: no faults\n"));

    fs::write(&file, "colour = 1\n[shape]\n").expect("a file");
    let ended = kvmlet(&["config", "check", "--config", path]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("2 faults"), "{ended:?}");
    assert!(ended.stderr.contains("colour"), "{ended:?}");
    assert!(ended.stderr.contains("shape"), "{ended:?}");

    let missing = folder.path().join("none.toml");
    let missing = missing.to_str().expect("text");
    let ended = kvmlet(&["config", "check", "--config", missing]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("can't be read"), "{ended:?}");
}

#[test]
fn an_answer_that_can_not_be_written_is_no_success() {
    let full = fs::File::options()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let ended = kvmlet_to(full, &["completions", "bash"]);
    assert_eq!(ended.code, Some(70), "{ended:?}");
    assert!(ended.stderr.contains("can't write the answer"), "{ended:?}");
}

#[test]
fn a_reader_that_has_gone_is_no_fault() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let ended = kvmlet_to(writer, &["completions", "bash"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "");
}
