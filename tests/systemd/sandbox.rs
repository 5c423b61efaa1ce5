//! The unit's sandbox: what systemd thinks of it, and what it does.

use crate::host::{Host, project};
use crate::support::{PATIENCE, until};
use std::fs;

/// The most that `systemd-analyze security` may say; 0 is a closed box, 10 an open one.
const EXPOSURE: f64 = 2.0;
/// `CAP_DAC_OVERRIDE` and `CAP_FOWNER`.
const CAPABILITIES: u64 = 1 << 1 | 1 << 3;

/// Prints what systemd says of the unit, and holds it to the figure.
pub fn judged(host: &Host) {
    let verified = host.try_run("systemd-analyze verify kvmlet.service kvmlet.socket 2>&1");
    println!("# systemd-analyze verify\n{}", verified.out);
    assert_eq!(verified.code, Some(0), "{}", verified.out);
    assert!(!verified.out.contains("kvmlet"), "{}", verified.out);
    let security = host.run("systemd-analyze security kvmlet.service");
    println!("# systemd-analyze security\n{security}");
    let json = host.run("systemd-analyze security kvmlet.service --json=short --threshold=20");
    assert!(json.starts_with('['), "{json}");
    let line = security.lines().last().unwrap();
    let figure = line
        .split(": ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let figure: f64 = figure.unwrap().parse().unwrap();
    println!("exposure {figure}, at most {EXPOSURE}");
    assert!(figure <= EXPOSURE, "{line}");
}

/// The running agent has what the unit says, and full function with it: a pool on
/// another file system works once the documented drop-in is there, and not before.
pub async fn holds(host: &Host) {
    let agent = host.agent().expect("the agent runs");
    let status = fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect(name).trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        let set = u64::from_str_radix(&field(set), 16).unwrap();
        assert_eq!(set & !CAPABILITIES, 0, "{status}");
    }
    // The unit's own, or what a container is held to.
    let open_files = |process: i32| -> u64 {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let hard = line.unwrap().split_whitespace().nth(4).unwrap();
        hard.parse().unwrap()
    };
    assert_eq!(
        open_files(agent.as_raw()),
        open_files(host.first()).min(65536)
    );
    let mounts = fs::read_to_string(format!("/proc/{agent}/mountinfo")).unwrap();
    let read_only = |place: &str| {
        // The last mount on the way to a place is the one that counts.
        let of = mounts
            .lines()
            .rfind(|line| line.split(' ').nth(4) == Some(place));
        of.map(|line| {
            line.split(' ')
                .nth(5)
                .unwrap()
                .split(',')
                .any(|o| o == "ro")
        })
    };
    assert_eq!(read_only("/"), Some(true), "{mounts}");
    assert_eq!(read_only("/var/lib/kvmlet"), Some(false), "{mounts}");

    // A pool elsewhere, as an administrator would add it.
    host.run("mkdir /srv/disks && mount -t tmpfs -o size=512M disks /srv/disks");
    let file = host.path("/etc/kvmlet/kvmlet.toml");
    let config = fs::read_to_string(&file).unwrap();
    let more = "\n[[pools]]\nname = \"more\"\nkind = \"qcow2\"\npath = \"/srv/disks/pool\"\n";
    fs::write(&file, format!("{config}{more}")).unwrap();
    host.run("systemctl restart kvmlet");
    let api = host.api();
    let ready = async || {
        let node = api.node().await;
        let condition = node.conditions.into_iter();
        condition
            .filter(|condition| condition.r#type == "PoolReady/more")
            .map(|condition| (condition.status, condition.message))
            .next()
    };
    let (well, message) = until("the pool's condition", PATIENCE, ready).await;
    assert!(!well, "a pool outside of the sandbox can't be written");
    println!("without the drop-in: {message}");

    let folder = "/etc/systemd/system/kvmlet.service.d";
    host.run(&format!("mkdir -p {folder}"));
    fs::write(host.path(&format!("{folder}/pools.conf")), drop_in()).unwrap();
    host.run("systemctl daemon-reload && systemctl restart kvmlet");
    until("the pool to be ready", PATIENCE, async || {
        ready().await.filter(|(well, _)| *well)
    })
    .await;
    let made = host.run(
        "kvmlet --quiet vm create elsewhere --image debian --pool more --vcpus 1 --memory 192MiB \
         --nic libvirt=default --start",
    );
    crate::first_steps::booted(host, &made).await;
    let files = host.run("find /srv/disks/pool/volumes -type f");
    assert!(!files.is_empty(), "the root volume is in the pool");
    host.run(&format!(
        "kvmlet vm stop {made} --timeout 60s && kvmlet vm delete {made} --retention 0s --yes"
    ));
    fs::write(&file, config).unwrap();
    host.run(&format!(
        "rm -r {folder} && systemctl daemon-reload && systemctl restart kvmlet && umount /srv/disks"
    ));
}

/// The drop-in for pools elsewhere, as the documentation has it, for another folder.
fn drop_in() -> String {
    let page = fs::read_to_string(project().join("docs/hardening.md")).unwrap();
    let block = page
        .split("```ini\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .find(|block| block.contains("ReadWritePaths="))
        .expect("docs/hardening.md has the drop-in");
    let lines = block
        .lines()
        .map(|line| match line.split_once("ReadWritePaths=") {
            Some(_) => "ReadWritePaths=/srv/disks".to_owned(),
            None => line.to_owned(),
        });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}
