//! The command as a person and a script use it, against the real daemon on a
//! simulated host.

use crate::support::daemon::{Daemon, Setup};
use crate::support::{PATIENCE, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

/// The command, on one daemon.
struct Cli<'a>(&'a Daemon);

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
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    /// What it printed; it must have succeeded, without a word of complaint.
    fn done(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.stdout
    }

    fn json(self) -> Value {
        serde_json::from_str(&self.done()).expect("JSON")
    }

    /// What it complained of; it must have ended so, and printed nothing.
    fn failed(self, code: i32) -> String {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (Some(code), ""),
            "{self:?}"
        );
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        self.stderr
    }
}

impl Cli<'_> {
    fn spawn(&self, line: &str) -> Child {
        #[allow(clippy::disallowed_methods)] // run as a person runs it
        Command::new(env!("CARGO_BIN_EXE_kvmlet"))
            .args(line.split_whitespace())
            .env(
                "KVMLET_SERVER",
                format!("unix://{}", self.0.socket().display()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a command, given as one line, to its end.
    fn run(&self, line: &str) -> Ended {
        self.spawn(line).wait_with_output().unwrap().into()
    }

    /// Imports a blank image called `disk`.
    fn import(&self) -> String {
        let source = self.0.blank("disk.qcow2", 1);
        self.run(&format!("-q image import {} --name disk", source.display()))
            .done()
            .trim()
            .to_owned()
    }
}

const SMALL: &str = "--image disk --vcpus 1 --memory 16MiB --nic user";

#[tokio::test]
async fn a_vm_lives_its_whole_life_by_commands() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    let image = cli.import();
    let plan = cli.run(&format!("vm create web1 {SMALL} --dry-run")).done();
    assert!(
        plan.starts_with("ACTION") && plan.contains(&image),
        "{plan}"
    );
    assert_eq!(cli.run("vm list -q").done(), "", "a dry run makes nothing");

    cli.run(&format!("vm create web0 {SMALL} --start")).done();
    // Addresses are learnt once a guest runs, whoever asks for what meanwhile.
    let before = until("the guest's address", PATIENCE, async || {
        let shown = cli.run("-o json vm show web0").json();
        shown["nics"][0]["guest_ip_addresses"][0]
            .is_string()
            .then_some(shown)
    })
    .await;
    let line = "vm replace-root web0 --image disk --stop force --start \
                --health guest-agent=90s --keep-old-for 2h --dry-run";
    let plan = cli.run(line).done();
    let first_words = |line: &str| {
        let mut words = line.split_whitespace();
        format!("{} {}", words.next().unwrap(), words.next().unwrap())
    };
    let actions: Vec<_> = plan
        .lines()
        .take_while(|line| !line.is_empty())
        .map(first_words)
        .filter(|words| !words.starts_with("note:"))
        .collect();
    assert_eq!(
        actions,
        [
            "ACTION KIND",
            "make volume",
            "change vm",
            "change domain",
            "change vm",
            "change vm",
            "keep volume",
        ],
        "{plan}"
    );
    for told in [
        "default",
        "1 MiB",
        "in 2h",
        "must answer within 90 s",
        "note: if a step",
    ] {
        assert!(plan.contains(told), "{told}: {plan}");
    }
    assert_eq!(cli.run("-o json vm show web0").json(), before);
    cli.run("vm delete web0 --stop force --retention 0s --yes")
        .done();

    let made = cli.run(&format!("vm create web1 {SMALL} --start")).done();
    assert!(made.starts_with("create vm: web1 (") && made.ends_with(") is RUNNING\n"));
    for (line, state) in [
        ("vm pause web1", "PAUSED"),
        ("vm resume web1", "RUNNING"),
        ("vm save web1", "SAVED"),
        ("vm start web1", "RUNNING"),
        ("vm reboot web1", "RUNNING"),
        ("vm reset web1", "RUNNING"),
        ("vm power web1 paused", "PAUSED"),
        ("vm power web1 on", "RUNNING"),
        ("vm update web1 --label tier=web", "RUNNING"),
        (
            "vm replace-root web1 --image disk --stop force --start",
            "RUNNING",
        ),
        ("vm revert-root web1 --stop force", "STOPPED"),
        ("vm start web1", "RUNNING"),
    ] {
        let told = cli.run(line).done();
        assert!(
            told.lines()
                .next()
                .unwrap()
                .ends_with(&format!(" is {state}")),
            "{line}: {told}"
        );
        let shown = cli.run("-o json vm show web1").json();
        assert_eq!(shown["state"], format!("VM_STATE_{state}"), "{line}");
    }
    let picture = daemon.home().join("picture.png");
    cli.run(&format!("vm screenshot web1 -O {}", picture.display()))
        .done();
    assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG"));

    let stopped = cli.run("vm stop web1").done();
    assert!(
        stopped.contains("\nstopped by the ACPI power button: 1 signal, "),
        "{stopped}"
    );
    cli.run("vm start web1").done();
    let stopped = cli.run("vm stop web1 --force").done();
    assert!(
        stopped.ends_with("\nstopped by cutting its power\n"),
        "{stopped}"
    );

    let deleted = cli.run("vm delete web1").done();
    assert!(deleted.contains(" is DELETED, kept until "), "{deleted}");
    cli.run("vm recover web1").done();
    cli.run("vm delete web1").done();
    let refused = cli.run("vm expunge web1").failed(2);
    assert!(refused.contains("say --yes"), "{refused}");
    cli.run("vm expunge web1 --yes").done();
    cli.run("image delete disk").done();
    assert_eq!(
        cli.run("-o json vm list --all").json(),
        Value::Array(vec![])
    );
    let mut left = daemon.pool_files();
    left.retain(|file| !file.ends_with(".lock"));
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn lists_are_tables_for_people_ids_when_quiet_and_json_for_scripts() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    cli.import();
    cli.run(&format!("vm create web1 {SMALL}")).done();
    for (what, columns) in [
        ("vm list", "ID NAME STATE VCPUS MEMORY VNC CREATED"),
        (
            "image list",
            "ID NAME STATE SIZE USED POOL VOLUMES LAST USE CREATED",
        ),
        (
            "volume list",
            "ID NAME KIND STATE POOL SIZE USED VM CREATED",
        ),
        ("op list", "ID WHAT STATE DONE OF BY ASKED TOOK"),
        (
            "pool list",
            "NAME KIND READY CAPACITY FREE PROMISED DEFAULT",
        ),
    ] {
        let table = cli.run(what).done();
        let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(head.join(" "), columns);
        let json = cli.run(&format!("{what} -o json")).json();
        let rows = json.as_array().unwrap();
        assert_eq!(table.lines().count(), 1 + rows.len(), "{what}");
        let quiet = cli.run(&format!("{what} --quiet")).done();
        let ids: Vec<_> = rows
            .iter()
            .map(|row| row.get("id").unwrap_or(&row["name"]).as_str().unwrap())
            .collect();
        assert_eq!(quiet.lines().collect::<Vec<_>>(), ids, "{what}");
    }
    let node = cli.run("node").done();
    assert!(node.contains("test:///default"), "{node}");
    assert_eq!(cli.run("node -o json").json()["accelerator"], "test");
}

#[tokio::test]
async fn maintenance_begins_and_ends_on_command() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    cli.import();
    cli.run(&format!("vm create web1 {SMALL} --start")).done();
    let begun = cli
        .run("node maintenance on --message disks --stop-vms force")
        .done();
    assert!(begun.contains("set maintenance"), "{begun}");
    let shown = cli.run("node").done();
    assert!(shown.contains(": disks"), "{shown}");
    let vm = cli.run("vm show web1 -o json").json();
    assert_eq!(vm["state"], "VM_STATE_STOPPED");
    let refused = cli.run("vm start web1").failed(4);
    assert!(
        refused.contains("reason: NODE_IN_MAINTENANCE\n")
            && refused.contains("hint: kvmlet node maintenance off\n"),
        "{refused}"
    );
    cli.run("node maintenance on --timeout 5s").failed(2);
    cli.run("node maintenance off").done();
    let node = cli.run("node -o json").json();
    assert_eq!(node["maintenance"]["enabled"], false);
    cli.run("vm start web1").done();
}

#[tokio::test]
async fn events_are_lines_for_people_and_for_scripts_and_go_on_after_a_point() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    cli.import();
    cli.run(&format!("vm create web1 {SMALL} --start")).done();
    let lines = |text: &str| -> Vec<Value> {
        let lines = text.lines().map(serde_json::from_str::<Value>);
        lines.map(|line| line.expect("one object each")).collect()
    };
    let told = cli.run("-o json events --snapshot --no-follow").done();
    let told = lines(&told);
    assert_eq!(told[0]["snapshot"]["end"], false);
    assert_eq!(told[told.len() - 1]["snapshot"]["end"], true);
    let vms = told.iter().filter(|event| event["vm"]["name"] == "web1");
    assert_eq!(vms.count(), 1);

    let (epoch, revision) = (&told[0]["epoch"], &told[0]["revision"]);
    let after = format!(
        "{}/{}",
        epoch.as_str().unwrap(),
        revision.as_str().expect("64 bits are text in JSON")
    );
    cli.run("vm pause web1").done();
    let since = format!("events --after {after} --no-follow --vm web1 --kind vm");
    let told = cli.run(&since).done();
    // What the agent learns of a guest by itself may come in between.
    let of_it = |line: &&str| line.contains("operation 01") && line.contains("web1 PAUSED");
    assert!(told.lines().any(|line| of_it(&line)), "{told}");
    let told = lines(&cli.run(&format!("-o json {since}")).done());
    let ended = &told[told.len() - 1];
    assert!(ended["bookmark"].is_object(), "{ended}");
    cli.run("events --after nonsense").failed(2);
    cli.run("events --after x/1 --no-follow").failed(2);
}

#[tokio::test]
async fn refusals_say_why_what_helps_and_end_with_a_code_of_their_own() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    let image = cli.import();
    cli.run(&format!("vm create web1 {SMALL} --start")).done();
    cli.run("vm pause web1").done();

    let refused = cli.run("vm stop web1").failed(4);
    assert!(refused.contains("reason: WRONG_STATE\n"), "{refused}");
    assert!(
        refused.contains("hint: kvmlet vm resume VM\n  hint: kvmlet vm stop VM --force\n"),
        "{refused}"
    );
    let refused = cli.run("vm delete web1").failed(4);
    assert!(refused.contains("STOP_POLICY_REQUIRED"), "{refused}");
    assert!(refused.contains("--stop force"), "{refused}");
    let refused = cli.run("image delete disk").failed(4);
    assert!(refused.contains("IMAGE_IN_USE"), "{refused}");

    for line in ["vm show nobody", "image show nothing", "op show nothing"] {
        cli.run(line).failed(3);
    }
    let unknown = format!("vm start {}", crate::support::api::id());
    assert!(cli.run(&unknown).failed(3).contains("VM_NOT_FOUND"));
    let line = format!("vm create web2 --image {image} --vcpus 1 --memory 900TiB");
    let refused = cli.run(&line).failed(5);
    assert!(refused.contains("HOST_MEMORY"), "{refused}");
    assert_eq!(
        refused.matches("hardware.memory_bytes").count(),
        1,
        "said once: {refused}"
    );
    cli.run(&format!("vm create web2 {SMALL} --nic network=none"))
        .failed(3);
    cli.run("vm stop web1 --timeout soon");
    assert_eq!(cli.run("vm frobnicate").code, Some(2));

    cli.run(&format!("vm create web1 {SMALL}")).done();
    let refused = cli.run("vm start web1").failed(2);
    assert!(refused.contains("can mean 2 VMs: give the id"), "{refused}");
}

#[tokio::test]
async fn the_same_request_id_again_is_the_same_operation() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    cli.import();
    let request = crate::support::api::id();
    let line = format!("-o json vm create web1 {SMALL} --request-id {request}");
    let (first, second) = (cli.run(&line).json(), cli.run(&line).json());
    assert_eq!(first["id"], second["id"]);
    let refused = cli
        .run(&format!("vm create web2 {SMALL} --request-id {request}"))
        .failed(4);
    assert!(refused.contains("REQUEST_ID_REUSED"), "{refused}");
    assert!(refused.contains("field: name"), "{refused}");
}

/// A daemon, and a web server that takes a download and sends nothing.
async fn with_a_download_that_stalls() -> (Daemon, TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let prefix = format!("http://{}/", listener.local_addr().unwrap());
    let setup = Setup::default().with("images", format!("allowed_url_prefixes = [\"{prefix}\"]"));
    (
        Daemon::start(setup).await,
        listener,
        format!("image import {prefix}disk.qcow2"),
    )
}

/// The id of the one operation that is at work.
async fn at_work(daemon: &Daemon) -> String {
    until("an operation at work", PATIENCE, async || {
        let all = daemon.api().all_operations().await;
        all.into_iter()
            .find(|one| one.end_time.is_none() && one.start_time.is_some())
            .map(|one| one.id)
    })
    .await
}

#[tokio::test]
async fn who_waits_no_longer_is_told_that_the_operation_goes_on() {
    let (daemon, _listener, import) = with_a_download_that_stalls().await;
    let cli = Cli(&daemon);
    let told = cli.run(&format!("{import} --wait-timeout 1s")).failed(7);
    let id = at_work(&daemon).await;
    assert!(told.contains(&format!("operation {id} goes on")), "{told}");
    assert!(told.contains(&format!("kvmlet op wait {id}")), "{told}");

    let waiting = cli.spawn(&format!("op wait {id}"));
    until_it_waits(&waiting).await;
    kill(
        Pid::from_raw(i32::try_from(waiting.id()).unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    let told = Ended::from(waiting.wait_with_output().unwrap()).failed(130);
    assert!(told.contains(&format!("operation {id} goes on")), "{told}");

    let waiting = cli.spawn(&format!("op wait {id}"));
    cli.run(&format!("op cancel {id}")).done();
    let told = Ended::from(waiting.wait_with_output().unwrap()).failed(1);
    assert!(told.contains("import image was cancelled"), "{told}");
    let shown = cli.run(&format!("op show {id}")).done();
    assert!(shown.contains("CANCELLED"), "{shown}");
}

/// Until a command has found its operation: it listens for Ctrl-C from then on.
async fn until_it_waits(command: &Child) {
    until("the command to wait", PATIENCE, async || {
        catches_interrupt(command.id()).then_some(())
    })
    .await;
}

/// Whether a process has a handler for SIGINT.
fn catches_interrupt(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigCgt:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & (1 << (Signal::SIGINT as u32 - 1)) != 0)
}

#[tokio::test]
async fn a_daemon_that_dies_meanwhile_is_waited_for_or_given_up() {
    let (mut daemon, _listener, import) = with_a_download_that_stalls().await;
    let waiting = Cli(&daemon).spawn(&format!("{import} --reconnect 1s"));
    let id = at_work(&daemon).await;
    daemon.kill9();
    let told = Ended::from(waiting.wait_with_output().unwrap()).failed(6);
    assert!(told.contains(&id), "{told}");
    let told = Cli(&daemon).run("vm list").failed(6);
    assert!(told.contains("can't reach kvmlet at unix:///"), "{told}");

    daemon.restart().await;
    let waiting = Cli(&daemon).spawn(&format!("op wait {id}"));
    until_it_waits(&waiting).await;
    daemon.kill9();
    daemon.restart().await;
    Cli(&daemon).run(&format!("op cancel {id}")).done();
    let told = Ended::from(waiting.wait_with_output().unwrap()).failed(1);
    assert!(told.contains("import image was cancelled"), "{told}");
}

#[tokio::test]
async fn a_configuration_is_checked_without_a_daemon() {
    let daemon = Daemon::simulated().await;
    let cli = Cli(&daemon);
    let good = daemon.config();
    let told = cli
        .run(&format!("config check --config {}", good.display()))
        .done();
    assert!(told.ends_with(": no faults\n"), "{told}");
    let bad = daemon.home().join("bad.toml");
    std::fs::write(
        &bad,
        "[vms]\nretention = 7\n[nodes]\n[api]\nlisten = \"0.0.0.0:1\"\n",
    )
    .unwrap();
    let told = cli
        .run(&format!("config check --config {}", bad.display()))
        .failed(2);
    for key in ["vms.retention", "nodes", "api.listen"] {
        assert!(told.contains(key), "{key}: {told}");
    }
    // Certificates are looked at if asked for: they may be on another host.
    let bare = daemon.home().join("bare.toml");
    let tls = "[api]\nlisten = \"127.0.0.1:1\"\n[api.tls]\ncert_file = \"/nowhere/cert\"\n\
               key_file = \"/nowhere/key\"\nclient_ca_file = \"/nowhere/ca\"\n";
    std::fs::write(&bare, tls).unwrap();
    let check = format!("config check --config {}", bare.display());
    cli.run(&check).done();
    let told = cli.run(&format!("{check} --certificates")).failed(2);
    assert!(
        told.contains("api.tls: /nowhere/cert can't be read"),
        "{told}"
    );
}
