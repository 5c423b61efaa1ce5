//! The audit log: one record for each change and each look at a console.

use crate::access::stand::{OPERATOR, Stand, VIEWER};
use crate::support::api::{Start, force};
use crate::support::{PATIENCE, until};
use kvmlet::proto::v1::{
    GetNodeRequest, GetVncConsoleRequest, SaveVmRequest, StartVmRequest, StopVmRequest,
};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

fn by_force(vm: &str) -> StopVmRequest {
    StopVmRequest {
        vm_id: vm.to_owned(),
        stop_policy: Some(force()),
        ..Default::default()
    }
}

struct Records(PathBuf);

impl Records {
    fn all(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Those of a call, once there are as many.
    async fn of(&self, rpc: &str, count: usize) -> Vec<Value> {
        until("the records to be written", PATIENCE, async || {
            let mut found = self.all();
            found.retain(|record| record["rpc"] == rpc);
            assert!(found.len() <= count, "{found:#?}");
            (found.len() == count).then_some(found)
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_and_look_at_a_console_is_recorded_once_with_its_answer() {
    let mut stand = Stand::with(|setup, folder| {
        let mut setup = setup;
        let path = folder.join("audit.log");
        setup.more += &format!("[audit]\nfile = \"{}\"\n", path.display());
        setup
    })
    .await;
    let records = Records(stand.folder().join("audit.log"));
    let image = stand.daemon.image().await;
    let vm = stand.daemon.api().create(&image, Start::No).await;
    let operator = stand.operator();
    let start = StartVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    let answer = operator.vms().start_vm(start).await;
    let started = operator.outcome(answer).await.unwrap();
    let found = &records.of("StartVm", 1).await[0];
    assert_eq!(found["caller"], format!("uri:{OPERATOR}"));
    assert_eq!(found["role"], "operator");
    assert_eq!(found["vm_id"], vm);
    assert_eq!(found["answer"], "OK");
    assert_eq!(found["operation_id"], started.id);
    assert!(found["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(found["took_us"].as_u64().is_some());

    // By the Unix socket.
    let local = &records.of("CreateVm", 1).await[0];
    assert_eq!(
        (&local["caller"], &local["from"]),
        (&"uid:0".into(), &"unix".into())
    );
    assert_eq!(records.of("ImportImage", 1).await[0]["on"], image);

    // A console, that this host does not have.
    let console = GetVncConsoleRequest { vm_id: vm.clone() };
    operator
        .consoles()
        .get_vnc_console(console.clone())
        .await
        .unwrap_err();
    assert_eq!(
        records.of("GetVncConsole", 1).await[0]["answer"],
        "CONSOLE_UNSUPPORTED"
    );

    // Refused: by the role, by the state, by the form.
    let viewer = stand.viewer();
    viewer
        .consoles()
        .get_vnc_console(console)
        .await
        .unwrap_err();
    let denied = &records.of("GetVncConsole", 2).await[1];
    assert_eq!(denied["answer"], "NOT_ALLOWED");
    assert_eq!(denied["caller"], format!("uri:{VIEWER}"));
    let stop = StopVmRequest {
        vm_id: "'; drop table vms".to_owned(),
        ..Default::default()
    };
    operator.vms().stop_vm(stop).await.unwrap_err();
    let malformed = &records.of("StopVm", 1).await[0];
    assert_eq!(malformed["answer"], "MALFORMED_ID");
    assert_eq!(malformed["vm_id"], Value::Null);
    let mut asked = by_force(&vm);
    asked.expected_generation = Some(4711);
    operator.vms().stop_vm(asked).await.unwrap_err();
    assert_eq!(
        records.of("StopVm", 2).await[1]["answer"],
        "STALE_GENERATION"
    );

    // Reads are not.
    viewer.nodes().get_node(GetNodeRequest {}).await.unwrap();
    assert!(
        records
            .all()
            .iter()
            .all(|record| record["rpc"] != "GetNode")
    );

    // The log has them, too, also if nothing else is logged.
    assert!(stand.daemon.log().contains("rpc=\"StartVm\""));
    let mode = fs::metadata(&records.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // Moved away, it is begun anew.
    fs::rename(&records.0, stand.folder().join("audit.log.1")).unwrap();
    stand.hang_up();
    until("the file to be begun anew", PATIENCE, async || {
        let empty = SaveVmRequest::default();
        operator.vms().save_vm(empty).await.unwrap_err();
        records.0.exists().then_some(())
    })
    .await;

    // What was answered is there when the daemon has ended.
    let answer = operator.vms().stop_vm(by_force(&vm)).await;
    operator.outcome(answer).await.unwrap();
    stand.daemon.stop().await;
    assert_eq!(records.of("StopVm", 1).await[0]["answer"], "OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_log_still_has_the_records() {
    let stand = Stand::with(|mut setup, _| {
        setup.log_level = "off";
        setup
    })
    .await;
    let operator = stand.operator();
    operator
        .vms()
        .stop_vm(StopVmRequest::default())
        .await
        .unwrap_err();
    until("the record to be there", PATIENCE, async || {
        let log = stand.daemon.log();
        let lines: Vec<_> = log
            .lines()
            .filter(|line| line.contains("kvmlet::audit") && line.contains("StopVm"))
            .collect();
        assert!(lines.len() < 2, "{lines:?}");
        (lines.len() == 1).then_some(())
    })
    .await;
}
