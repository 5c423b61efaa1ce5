//! Many who wait, and many who ask at once.

use crate::support::api::{Api, id, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;
use tonic::Code;

/// A daemon with a creation that is held.
struct Held {
    daemon: Daemon,
    folder: TempDir,
    operation: Operation,
}

impl Held {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("held").display().to_string();
        let setup = Setup {
            environment: vec![(
                "FAILPOINTS".to_owned(),
                format!("create-vm.make-volume.before=1*return(hold:{at})"),
            )],
            ..Setup::default()
        };
        let daemon = Daemon::start(setup).await;
        let image = daemon.image().await;
        let answer = daemon.api().vms().create_vm(small(&image)).await;
        let operation = answer.unwrap().into_inner();
        let held = Self {
            daemon,
            folder,
            operation,
        };
        let at = held.at();
        until("the step to be held", PATIENCE, async || {
            at.exists().then_some(())
        })
        .await;
        held
    }

    fn at(&self) -> PathBuf {
        self.folder.path().join("held")
    }

    fn let_go(&self) {
        fs::remove_file(self.at()).unwrap();
    }

    fn threads(&self) -> usize {
        let tasks = format!("/proc/{}/task", self.daemon.pid());
        fs::read_dir(tasks).unwrap().count()
    }

    /// Memory that the daemon uses, in KiB.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let words = line.unwrap().split_whitespace().nth(1);
        words.unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_who_wait_cost_no_thread() {
    let held = Held::start().await;
    let (threads, memory) = (held.threads(), held.memory());
    let waiters: Vec<_> = (0..10)
        .map(|_| Api::at(&held.daemon.socket()))
        .flat_map(|api| std::iter::repeat_n(api, 100))
        .map(|api| {
            let request = WaitOperationRequest {
                operation_id: held.operation.id.clone(),
                timeout: Some(prost_types::Duration {
                    seconds: 60,
                    nanos: 0,
                }),
            };
            tokio::spawn(async move { api.operations().wait_operation(request).await })
        })
        .collect();
    let (mut most_threads, mut most_memory) = (0, 0);
    // There is no sign of a call that waits; so it is looked at for a while.
    for _ in 0..150 {
        most_threads = most_threads.max(held.threads());
        most_memory = most_memory.max(held.memory());
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    held.let_go();
    for waiter in waiters {
        let operation = waiter.await.unwrap().unwrap().into_inner();
        assert_eq!(operation.state(), OperationState::Succeeded);
    }
    println!(
        "1000 waiters: {threads} threads before, {most_threads} with them; {memory} KiB before, {most_memory} KiB with them"
    );
    // Threads for calls that block come and go by themselves.
    assert!(most_threads <= threads + 8, "{threads} → {most_threads}");
    assert!(
        most_memory <= memory + (64 << 10),
        "{memory} → {most_memory} KiB"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_change_of_a_busy_vm_is_told_who_holds_it() {
    let held = Held::start().await;
    let api = held.daemon.api();
    let vm_id = held.operation.vm_id.clone();
    let begun: Vec<_> = (0..50)
        .map(|_| {
            let (api, vm_id) = (api.clone(), vm_id.clone());
            tokio::spawn(async move {
                let request = StartVmRequest {
                    vm_id,
                    request_id: id(),
                    ..Default::default()
                };
                api.vms().start_vm(request).await
            })
        })
        .collect();
    for call in begun {
        let refusal = refused(call.await.unwrap());
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::Aborted, "VM_BUSY")
        );
        assert_eq!(refusal.metadata["operation_id"], held.operation.id);
        assert!(refusal.retry.is_some(), "{refusal:?}");
    }
    let vm = api.vm(&vm_id).await.unwrap();
    assert_eq!(vm.current_operation_id, held.operation.id);
    held.let_go();
    let ended = api.ended(&held.operation.id).await;
    assert_eq!(ended.state(), OperationState::Succeeded);
    let request = StartVmRequest {
        vm_id,
        ..Default::default()
    };
    api.done(api.vms().start_vm(request).await).await;
}
