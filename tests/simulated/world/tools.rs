//! qemu-img hangs, is killed, or fails half-way, under the daemon.
//!
//! The daemon sees another qemu-img: a script that writes half a file and then
//! does what the test wants, or becomes the real one. It is in a mount namespace
//! of the daemon's own.

use crate::support::api::{Api, Start, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use nix::unistd::Uid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const SCRIPT: &str = r#"#!/bin/sh
for path; do :; done
case $(cat "RULES/$1" 2>/dev/null) in
hang)
    head -c 70000 /dev/zero >"$path"
    echo $$ >"RULES/pid.new"
    mv "RULES/pid.new" "RULES/pid"
    exec sleep 1000
    ;;
die)
    head -c 70000 /dev/zero >"$path"
    kill -KILL $$
    ;;
fail)
    head -c 70000 /dev/zero >"$path"
    echo "qemu-img: something went wrong with $path" >&2
    exit 1
    ;;
esac
exec /usr/bin/qemu-img "$@"
"#;

/// A daemon with that qemu-img.
struct Workshop {
    daemon: Daemon,
    rules: TempDir,
}

impl Workshop {
    async fn start() -> Self {
        let rules = tempfile::tempdir().unwrap();
        let folder = rules.path().join("bin");
        fs::create_dir(&folder).unwrap();
        let tool = folder.join("qemu-img");
        let script = SCRIPT.replace("RULES", &rules.path().display().to_string());
        fs::write(&tool, script).unwrap();
        fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
        // The first folder in which kvmlet looks for its tools.
        let enter = format!(
            "mount --bind {} /usr/local/sbin && exec \"$0\" \"$@\"",
            folder.display()
        );
        let mut launcher = vec!["unshare", "--mount", "--propagation", "private"];
        if !Uid::effective().is_root() {
            launcher.extend(["--user", "--map-root-user"]);
        }
        launcher.extend(["sh", "-c", &enter]);
        let setup = Setup {
            launcher: launcher.into_iter().map(str::to_owned).collect(),
            ..Setup::default()
        };
        let daemon = Daemon::start(setup).await;
        Self { daemon, rules }
    }

    /// What the tool does from now on when it is called so.
    fn rule(&self, call: &str, rule: &str) {
        let _ = fs::remove_file(self.rules.path().join("pid"));
        fs::write(self.rules.path().join(call), rule).unwrap();
    }

    /// The process that hangs.
    async fn hanging(&self) -> u32 {
        let path = self.rules.path().join("pid");
        until("the tool to hang", PATIENCE, async || {
            fs::read_to_string(&path).ok()?.trim().parse().ok()
        })
        .await
    }

    /// What is in the pools, and being made there.
    fn files(&self) -> Vec<String> {
        self.daemon.pool_files()
    }
}

fn runs(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Other VMs are served as if nothing was.
async fn serves(api: &Api, vm_id: &str) {
    let start = StartVmRequest {
        vm_id: vm_id.to_owned(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    let stop = StopVmRequest {
        vm_id: vm_id.to_owned(),
        stop_policy: Some(crate::support::api::force()),
        ..Default::default()
    };
    api.done(api.vms().stop_vm(stop).await).await;
}

async fn cancel(api: &Api, operation_id: &str) -> Operation {
    let request = CancelOperationRequest {
        operation_id: operation_id.to_owned(),
    };
    api.operations().cancel_operation(request).await.unwrap();
    // Past its deadline, it would not end as cancelled.
    let ended = api.ended(operation_id).await;
    assert_eq!(ended.state(), OperationState::Cancelled, "{ended:?}");
    ended
}

fn refusal(operation: &Operation) -> Refusal {
    Refusal::from(operation.error.as_ref().expect("an error"))
}

fn replace(vm_id: &str, image_id: &str) -> ReplaceRootVolumeRequest {
    ReplaceRootVolumeRequest {
        vm_id: vm_id.to_owned(),
        image_id: image_id.to_owned(),
        ..Default::default()
    }
}

fn import(path: &Path) -> ImportImageRequest {
    ImportImageRequest {
        source: path.display().to_string(),
        format: ImageFormat::Qcow2 as i32,
        ..Default::default()
    }
}

/// Sends what calls the tool: a creation, a replacement, or an import.
async fn begin(workshop: &Workshop, what: &str, vm_id: &str, image: &str) -> Operation {
    let api = workshop.daemon.api();
    let answer = match what {
        "create" => api.vms().create_vm(small(image)).await,
        "replace" => api.vms().replace_root_volume(replace(vm_id, image)).await,
        _ => {
            let path = workshop.daemon.blank(&format!("{}.qcow2", id()), 1);
            api.images().import_image(import(&path)).await
        }
    };
    answer.unwrap().into_inner()
}

/// What is asked, and which call of the tool it comes to.
const CALLS: [(&str, &str); 3] = [
    ("create", "create"),
    ("replace", "create"),
    ("import", "convert"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_hangs_holds_up_nothing_else_and_a_cancellation_ends_it() {
    let workshop = Workshop::start().await;
    let api = workshop.daemon.api();
    let image = workshop.daemon.image().await;
    let vm = api.create(&image, Start::No).await;
    let other = api.create(&image, Start::No).await;
    let (files, before) = (workshop.files(), api.vm(&vm).await.unwrap());
    for (what, call) in CALLS {
        workshop.rule(call, "hang");
        let operation = begin(&workshop, what, &vm, &image).await;
        let process = workshop.hanging().await;
        serves(&api, &other).await;
        assert!(runs(process));
        let ended = cancel(&api, &operation.id).await;
        assert_eq!(
            ended.state(),
            OperationState::Cancelled,
            "{what}: {ended:?}"
        );
        assert_eq!(refusal(&ended).reason, "CANCELLED_BY_CALLER");
        assert!(!runs(process), "{what}");
        assert_eq!(workshop.files(), files, "{what}");
        workshop.rule(call, "");
        let again = begin(&workshop, what, &vm, &image).await;
        let again = api.ended(&again.id).await;
        assert_eq!(again.state(), OperationState::Succeeded, "{again:?}");
        put_away(&workshop, again).await;
        assert_eq!(workshop.files(), files, "{what}");
        assert_eq!(api.vm(&vm).await.unwrap().id, before.id);
    }
}

/// Removes what an operation has made.
async fn put_away(workshop: &Workshop, operation: Operation) {
    let api = workshop.daemon.api();
    match operation.r#type() {
        OperationType::CreateVm => {
            let request = DeleteVmRequest {
                vm_id: operation.vm_id,
                retention: Some(Default::default()),
                ..Default::default()
            };
            api.done(api.vms().delete_vm(request).await).await;
        }
        OperationType::ReplaceRootVolume => {
            let revert = RevertRootVolumeRequest {
                vm_id: operation.vm_id.clone(),
                ..Default::default()
            };
            api.done(api.vms().revert_root_volume(revert).await).await;
            // What it is replaced by is kept for a day: not left over.
            let vm = api.vm(&operation.vm_id).await.unwrap();
            for volume in vm
                .volumes
                .iter()
                .filter(|volume| volume.id != vm.root_volume_id)
            {
                let path = format!("pool/volumes/{}.qcow2", volume.id);
                fs::remove_file(workshop.daemon.home().join(path)).unwrap();
            }
        }
        _ => {
            let request = DeleteImageRequest {
                image_id: operation.image_id,
                ..Default::default()
            };
            api.done(api.images().delete_image(request).await).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_is_killed_or_fails_half_way_leaves_nothing() {
    let workshop = Workshop::start().await;
    let api = workshop.daemon.api();
    let image = workshop.daemon.image().await;
    let vm = api.create(&image, Start::No).await;
    let files = workshop.files();
    let root = api.vm(&vm).await.unwrap().root_volume_id;
    for (what, call) in CALLS {
        for rule in ["die", "fail"] {
            workshop.rule(call, rule);
            let operation = begin(&workshop, what, &vm, &image).await;
            let ended = api.ended(&operation.id).await;
            assert_eq!(ended.state(), OperationState::Failed, "{what} {rule}");
            let refusal = refusal(&ended);
            let (reason, words) = if what == "import" {
                ("IMAGE_REFUSED", "could not be converted")
            } else {
                ("POOL_AWAY", "a tool failed in pool default")
            };
            assert_eq!(refusal.reason, reason, "{what} {rule}: {refusal:?}");
            assert!(refusal.message.contains(words), "{refusal:?}");
            assert!(!refusal.message.contains('/'), "no path: {refusal:?}");
            assert_eq!(workshop.files(), files, "{what} {rule}");
        }
        workshop.rule(call, "");
    }
    assert_eq!(api.vm(&vm).await.unwrap().root_volume_id, root);
    let log = workshop.daemon.log();
    assert!(
        log.contains("something went wrong with"),
        "what it said is in the log"
    );
    assert!(log.contains("signal: 9"), "how it ended is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_hangs_is_given_up_after_a_minute() {
    let workshop = Workshop::start().await;
    let api = workshop.daemon.api();
    let image = workshop.daemon.image().await;
    let files = workshop.files();
    workshop.rule("create", "hang");
    let operation = begin(&workshop, "create", "", &image).await;
    let process = workshop.hanging().await;
    let wait = WaitOperationRequest {
        operation_id: operation.id,
        timeout: Some(prost_types::Duration {
            seconds: 100,
            nanos: 0,
        }),
    };
    let ended = api.operations().wait_operation(wait).await.unwrap();
    let ended = ended.into_inner();
    assert_eq!(ended.state(), OperationState::Failed, "{ended:?}");
    assert_eq!(refusal(&ended).reason, "DEADLINE_PASSED");
    assert!(!runs(process));
    assert_eq!(workshop.files(), files);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_ends_a_tool_that_hangs_and_goes_on_later() {
    let mut workshop = Workshop::start().await;
    let image = workshop.daemon.image().await;
    workshop.rule("create", "hang");
    let operation = begin(&workshop, "create", "", &image).await;
    let process = workshop.hanging().await;
    let took = workshop.daemon.stop().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(!runs(process));
    workshop.rule("create", "");
    workshop.daemon.restart().await;
    let ended = workshop.daemon.api().ended(&operation.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    let files = workshop.files();
    assert!(files.iter().all(|file| !file.contains("tmp/")), "{files:?}");
}
