//! `kvmlet doctor` on a real cluster: one that is well, one that lacks a pool, and one
//! whose daemons hang or are away.

use crate::lab::breakable;
use crate::support::ceph::{Cluster, Daemon};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Writes a configuration with the pool on this cluster.
fn config(cluster: &Cluster, section: &str) -> PathBuf {
    let home = cluster.folder().display();
    let path = cluster.folder().join("doctor.toml");
    let text = format!(
        "[hypervisor]\nuri = \"test:///default\"\n[api]\nsocket = \"{home}/none.sock\"\n\
         [journal]\npath = \"{home}/none.db\"\n{section}"
    );
    fs::write(&path, text).unwrap();
    path
}

/// What it finds of Ceph: the check, the level, and what was found.
fn look(config: &PathBuf) -> Vec<[String; 3]> {
    #[allow(clippy::disallowed_methods)] // run as a person runs it
    let ended = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["doctor", "-o", "json", "--config"])
        .arg(config)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .filter(|finding| finding["subject"] == "ceph")
        .map(|finding| {
            ["check", "level", "found"].map(|key| finding[key].as_str().unwrap().to_owned())
        })
        .collect()
}

#[tokio::test]
async fn the_doctor_tells_a_cluster_that_is_well_from_one_that_is_not() {
    let cluster = breakable().await;
    let section = cluster.pool_section(&cluster.folder().join("scratch"));
    let well = config(&cluster, &section);
    let found = look(&well);
    let levels: Vec<_> = found
        .iter()
        .map(|[check, level, _]| (&**check, &**level))
        .collect();
    let checks = ["tools", "conf", "keyring", "monitors", "pools"].map(|it| format!("ceph.{it}"));
    let wanted: Vec<_> = checks.iter().map(|check| (check.as_str(), "ok")).collect();
    assert_eq!(levels, wanted, "{found:#?}");
    assert!(
        !cluster.folder().join("scratch").exists(),
        "nothing was made"
    );

    let told = |section: &str| {
        let found = look(&config(&cluster, section));
        let [_, level, words] = found.into_iter().find(|it| it[0] == "ceph.pools").unwrap();
        assert_eq!(level, "error", "{words}");
        words
    };
    let missing = told(&section.replace("\"data\"", "\"absent\""));
    assert!(missing.contains("no pool absent"), "{missing}");
    // The monitors answer for an OSD that is away.
    cluster.kill(Daemon::Osd);
    told(&section);
    cluster.kill(Daemon::Mon);
    let found = look(&config(&cluster, &section));
    let last = found.last().unwrap();
    assert_eq!(
        (&*last[0], &*last[1]),
        ("ceph.monitors", "error"),
        "{found:#?}"
    );
    cluster.up(Daemon::Mon);
    cluster.up(Daemon::Osd);
    let found = look(&config(&cluster, &section));
    assert!(found.iter().all(|it| it[1] == "ok"), "{found:#?}");
}
