//! `kvmlet doctor` on this machine, with configurations for which it must find
//! something, and with one for which it must not.

use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::pki::{Authority, ServerFiles, Wish};
use crate::support::{PATIENCE, until};
use kvmlet::doctor::Check;
use nix::unistd::Uid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A libvirt that is not there, and of which nothing on this machine is used.
const NOWHERE: &str = "qemu+unix:///system?socket=/nonexistent/libvirt-sock";
const SIMULATED: &str = "test:///default";

/// A folder with a configuration in it.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let home = tempfile::Builder::new()
            .prefix("kvmlet-doc")
            .tempdir_in("/tmp")
            .unwrap();
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(home.path().join("import")).unwrap();
        fs::create_dir(home.path().join("pool")).unwrap();
        Self(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("kvmlet.toml")
    }

    /// Writes a configuration in which all is in this folder.
    fn write(&self, uri: &str, api: &str, more: &str) -> &Self {
        let home = self.0.path().display();
        let text = format!(
            "[hypervisor]\nuri = \"{uri}\"\n[api]\nsocket = \"{home}/kvmlet.sock\"\n{api}\n\
             [journal]\npath = \"{home}/journal.db\"\n[images]\nallowed_dirs = [\"{home}/import\"]\n\
             [vms]\nconsole_dir = \"{home}/console\"\n{more}\n"
        );
        fs::write(self.config(), text).unwrap();
        self
    }

    /// The lines of the pool in this folder.
    fn pool(&self) -> String {
        format!(
            "[[pools]]\nname = \"p\"\npath = \"{}\"",
            self.path("pool").display()
        )
    }

    /// What the doctor finds.
    fn look(&self) -> Found {
        look(&[], &self.config())
    }
}

/// What the doctor printed as JSON, and how it ended.
#[derive(Debug)]
struct Found {
    code: Option<i32>,
    report: Value,
}

impl Found {
    /// The findings of one check.
    fn of(&self, check: &str) -> Vec<&Value> {
        let findings = self.report["findings"].as_array().unwrap();
        findings.iter().filter(|it| it["check"] == check).collect()
    }

    /// The only finding of a check, of this level and with this in what was found.
    fn tells(&self, check: &str, level: &str, word: &str) -> &Value {
        let found = self.of(check);
        let [one] = found[..] else {
            panic!("one finding of {check}: {found:#?} in {self:#?}");
        };
        assert_eq!(one["level"], level, "{one:#}");
        assert!(one["found"].as_str().unwrap().contains(word), "{one:#}");
        one
    }
}

#[allow(clippy::disallowed_methods)] // run as a person runs it
fn command(launcher: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_kvmlet");
    match launcher.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

/// Runs it through a launcher, and holds what it prints to what it promises.
fn look(launcher: &[&str], config: &Path) -> Found {
    let ended = command(launcher)
        .args(["doctor", "-o", "json", "--config"])
        .arg(config)
        .env_remove("KVMLET_SERVER")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report =
        serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    let found = Found {
        code: ended.status.code(),
        report,
    };
    found.keeps_its_promises();
    found
}

impl Found {
    /// The form is stable, the sums are right, and what is not well has advice.
    fn keeps_its_promises(&self) {
        let keys =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(
            keys(&self.report),
            [
                "config", "errors", "findings", "ok", "skipped", "version", "warnings"
            ]
        );
        let known: BTreeSet<&str> = Check::ALL.iter().map(|check| check.id()).collect();
        let mut sums = [0, 0, 0, 0];
        for finding in self.report["findings"].as_array().unwrap() {
            assert_eq!(
                keys(finding),
                [
                    "about", "advice", "check", "found", "level", "meaning", "subject"
                ]
            );
            let text = |key: &str| finding[key].as_str().unwrap();
            assert!(known.contains(text("check")), "{finding:#}");
            assert!(text("check").starts_with(&format!("{}.", text("subject"))));
            assert!(!text("found").is_empty(), "{finding:#}");
            let level = ["errors", "warnings", "skipped", "ok"]
                .iter()
                .position(|level| level.trim_end_matches('s') == text("level"));
            let level = level.unwrap_or_else(|| panic!("a level: {finding:#}"));
            sums[level] += 1;
            for words in ["meaning", "advice"] {
                assert_eq!(text(words).is_empty(), level == 3, "{finding:#}");
            }
        }
        let told = ["errors", "warnings", "skipped", "ok"].map(|key| self.report[key].as_u64());
        assert_eq!(told, sums.map(Some));
        assert_eq!(self.code, Some(i32::from(sums[0] > 0)), "{self:#?}");
    }
}

#[test]
fn a_host_with_nothing_wrong_ends_with_0_and_is_left_as_it_was() {
    let place = Place::new();
    place.write(SIMULATED, "", &place.pool());
    let names = || -> BTreeSet<PathBuf> {
        let entries = ["", "pool", "import"].map(|name| fs::read_dir(place.path(name)).unwrap());
        entries
            .into_iter()
            .flatten()
            .map(|it| it.unwrap().path())
            .collect()
    };
    let before = names();
    let found = place.look();
    assert_eq!(found.code, Some(0), "{found:#?}");
    assert_eq!(names(), before);
    found.tells("config.file", "ok", "no faults");
    found.tells("libvirt.reach", "ok", "answers");
    found.tells("libvirt.qemu", "warning", "simulated");
    found.tells("pool.folder", "ok", "is there");
    found.tells("pool.write", "ok", "can be written");
    found.tells("journal.file", "ok", "not there yet");
    found.tells("tool.qemu_img", "ok", "qemu-img");
    let answers = found.tells("daemon.answers", "warning", "No such file");
    assert!(answers["advice"].as_str().unwrap().contains("kvmlet"));
}

#[test]
fn people_are_told_in_lines_and_with_quiet_only_what_is_not_well() {
    let place = Place::new();
    place.write(SIMULATED, "", &place.pool());
    let run = |quiet: &[&str]| {
        let mut command = command(&[]);
        command.args(["doctor", "--config"]).arg(place.config());
        let ended = command
            .args(quiet)
            .env_remove("KVMLET_SERVER")
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        String::from_utf8(ended.stdout).unwrap()
    };
    let all = run(&[]);
    let level_and_check = |line: &str| {
        let mut words = line.split_whitespace();
        (
            words.next().map(str::to_owned),
            words.next().map(str::to_owned),
        )
    };
    let first = level_and_check(all.lines().next().unwrap());
    assert_eq!(first, (Some("ok".into()), Some("config.file".into())));
    let sum = all.lines().last().unwrap();
    assert!(
        sum.starts_with("0 errors, ") && sum.ends_with(" ok"),
        "{sum}"
    );
    let bad = run(&["-q"]);
    assert!(!bad.lines().any(|line| line.starts_with("ok ")), "{bad}");
    assert_eq!(bad.lines().last().unwrap(), sum);
}

#[test]
fn every_fault_of_a_configuration_is_told_and_what_needs_it_is_skipped() {
    let place = Place::new();
    place.write(
        SIMULATED,
        "socket_mode = \"7\"\nfly = true",
        "[vnc]\nlisten = \"x\"",
    );
    let found = place.look();
    assert_eq!(found.of("config.file").len(), 3, "{found:#?}");
    for check in [
        "libvirt.reach",
        "journal.file",
        "pool.folder",
        "certificate.api",
    ] {
        let skipped = found.tells(check, "skipped", "configuration");
        assert!(skipped["advice"].as_str().unwrap().contains("kvmlet.toml"));
    }
    // What needs none is looked at all the same.
    found.tells("tool.launch", "ok", "setpriv");
    let absent = look(&[], &place.path("absent.toml"));
    absent.tells("config.file", "error", "can't be read");
}

#[test]
fn a_pool_that_can_not_be_used_is_told() {
    let place = Place::new();
    fs::write(place.path("file"), "").unwrap();
    let pool = |name: &str, path: &str| {
        let path = place.path(path);
        let default = name == "p";
        format!(
            "[[pools]]\nname = \"{name}\"\npath = \"{}\"\ndefault = {default}\n",
            path.display()
        )
    };
    let pools = [
        pool("p", "file"),
        pool("far", "absent/far/pool"),
        pool("new", "new"),
    ];
    place.write(SIMULATED, "", &pools.concat());
    let found = place.look();
    let levels: Vec<_> = found
        .of("pool.folder")
        .into_iter()
        .map(|it| (it["about"].as_str().unwrap(), it["level"].as_str().unwrap()))
        .collect();
    assert_eq!(levels, [("p", "error"), ("far", "warning"), ("new", "ok")]);
    assert!(!place.path("absent").exists() && !place.path("new").exists());
}

#[test]
fn a_full_pool_in_memory_is_told_and_a_read_only_one() {
    let place = Place::new();
    place.write(SIMULATED, "", &place.pool());
    let own = match Uid::effective().is_root() {
        true => "",
        false => "--user --map-root-user",
    };
    let within = |mount: &str| {
        let pool = place.path("pool");
        let script = format!(
            "{} && exec \"$@\"",
            mount.replace("POOL", &pool.display().to_string())
        );
        let mut launcher = vec!["unshare", "--mount", "--propagation", "private"];
        launcher.extend(own.split_whitespace());
        launcher.extend(["sh", "-c", &script, "sh"]);
        look(&launcher, &place.config())
    };
    let full = within(
        "mount -t tmpfs -o size=1m pool POOL && (cat /dev/zero > POOL/fill || true) 2> /dev/null",
    );
    full.tells("pool.filesystem", "warning", "tmpfs");
    full.tells("pool.write", "error", "No space left");
    full.tells("pool.space", "error", "0 B free");
    let closed = within("mount -t tmpfs -o ro,size=1m pool POOL");
    let told = closed.tells("pool.write", "error", "Read-only");
    assert!(told["advice"].as_str().unwrap().contains("remount,rw"));
}

#[test]
fn certificates_are_told_that_have_expired_expire_soon_or_do_not_fit() {
    const DAY: Duration = Duration::from_secs(86_400);
    let place = Place::new();
    let authority = Authority::new("doctor");
    let lasting = |lasts, expired| {
        authority.issue(&Wish {
            lasts,
            expired,
            ..Wish::dns("localhost")
        })
    };
    let good = lasting(Some(DAY * 90), None);
    let files = ServerFiles::write(place.0.path(), &good, &authority.pem());
    place.write(SIMULATED, &files.lines(0), &place.pool());
    place.look().tells("certificate.api", "ok", "89 days");

    let replace = |cert: &str, key: &str| {
        files.put("cert.pem", cert);
        files.put("key.pem", key);
        place.look()
    };
    let of_level = |found: &Found, level: &str| -> String {
        let findings = found.of("certificate.api");
        let one = findings.into_iter().find(|it| it["level"] == level);
        one.unwrap_or_else(|| panic!("{level}: {found:#?}"))["found"].to_string()
    };
    let soon = lasting(Some(DAY * 5), None);
    let told = of_level(&replace(&soon.cert, &soon.key), "warning");
    assert!(told.contains("expires in 4 days"), "{told}");
    let expired = lasting(None, Some(DAY * 2));
    let told = of_level(&replace(&expired.cert, &expired.key), "error");
    assert!(told.contains("expired 2 days ago"), "{told}");
    let told = of_level(&replace(&good.cert, &soon.key), "error");
    assert!(told.contains("don't fit"), "{told}");
    fs::remove_file(place.path("cert.pem")).unwrap();
    place
        .look()
        .tells("certificate.api", "error", "cert.pem can't be read");
}

#[test]
fn receivers_certificates_and_logins_are_looked_at() {
    let place = Place::new();
    let authority = Authority::new("doctor");
    fs::write(place.path("ca.pem"), authority.pem()).unwrap();
    fs::write(place.path("not.pem"), "nothing").unwrap();
    let home = place.0.path().display();
    let sinks = format!(
        "[[report]]\nname = \"good\"\nendpoints = [\"https://cp.example:1\"]\n\
         tls = {{ ca_file = \"{home}/ca.pem\" }}\n\
         [[nats]]\nname = \"bad\"\nservers = [\"tls://bus.example:1\"]\n\
         tls = {{ ca_file = \"{home}/not.pem\" }}\ncredentials_file = \"{home}/absent.creds\"\n"
    );
    place.write(SIMULATED, "", &format!("{}\n{sinks}", place.pool()));
    let found = place.look();
    let told: Vec<_> = found
        .of("certificate.sinks")
        .into_iter()
        .map(|it| (it["about"].as_str().unwrap(), it["level"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [("good", "ok"), ("bad", "error"), ("bad", "error")]);
}

#[test]
fn a_port_that_another_has_is_told_with_who_has_it() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listen = format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n{}", place.pool());
    // No host has an address for documentation.
    let api = "listen = \"192.0.2.7:7443\"\nplaintext_role = \"viewer\"";
    place.write(SIMULATED, "", &listen);
    // What another test starts has the port too, from its fork until it is another
    // program.
    let look_until = |word: &str| {
        let found = (0..20).map(|_| place.look()).find(|found| {
            let metrics = found.of("port.metrics");
            metrics
                .iter()
                .any(|one| one["found"].to_string().contains(word))
        });
        found.unwrap_or_else(|| place.look())
    };
    let own = format!("process {}", std::process::id());
    look_until(&own).tells("port.metrics", "error", &own);
    drop(taken);
    look_until("is free").tells("port.metrics", "ok", "is free");

    let authority = Authority::new("doctor");
    let files = ServerFiles::write(place.0.path(), &authority.server(), &authority.pem());
    let lines = files.lines(1).replace("127.0.0.1:1", "192.0.2.7:7443");
    place.write(SIMULATED, &lines, &place.pool());
    place
        .look()
        .tells("port.api", "error", "no address of this host");
    place.write(SIMULATED, api, &place.pool());
    assert_eq!(place.look().code, Some(1), "in clear only on this host");
}

#[test]
fn a_libvirt_a_bridge_and_a_network_that_are_not_there_are_told() {
    let place = Place::new();
    let networks = "[[networks]]\nid = \"lan\"\nbridge = \"kvmlet-none0\"\n\
        [[networks]]\nid = \"lo\"\nbridge = \"lo\"\n\
        [[networks]]\nid = \"nat\"\nlibvirt_network = \"default\"\n\
        [[networks]]\nid = \"user\"\nuser = true\n";
    place.write(NOWHERE, "", &format!("{}\n{networks}", place.pool()));
    let found = place.look();
    let reach = found.tells("libvirt.reach", "error", "socket");
    assert!(
        reach["advice"]
            .as_str()
            .unwrap()
            .contains("systemctl enable --now")
    );
    let told: BTreeSet<_> = found
        .of("network.configured")
        .into_iter()
        .map(|it| (it["about"].as_str().unwrap(), it["level"].as_str().unwrap()))
        .collect();
    let wanted = [
        ("lan", "error"),
        ("lo", "error"),
        ("nat", "skipped"),
        ("user", "ok"),
    ];
    assert_eq!(told, wanted.into());
}

#[test]
fn a_bridge_is_there_up_and_looks_at_tags() {
    let place = Place::new();
    let own = match Uid::effective().is_root() {
        true => "",
        false => "--user --map-root-user",
    };
    let with = |kind: &str, vlan: &str| {
        let network = format!("[[networks]]\nid = \"lan\"\nbridge = \"br7\"\n{vlan}\n");
        place.write(NOWHERE, "", &format!("{}\n{network}", place.pool()));
        let script = format!("mount -t sysfs sysfs /sys && {kind} && exec \"$@\"");
        let mut launcher = vec!["unshare", "--mount", "--propagation", "private", "--net"];
        launcher.extend(own.split_whitespace());
        launcher.extend(["sh", "-c", &script, "sh"]);
        look(&launcher, &place.config())
    };
    let check = "network.configured";
    let down = with("ip link add br7 type bridge", "");
    down.tells(check, "warning", "is down");
    let up = with("ip link add br7 up type bridge", "");
    up.tells(check, "ok", "is there");
    // A bridge does not, unless it is told to and its kernel can.
    let plain = with("ip link add br7 up type bridge", "vlan = 7");
    plain.tells(check, "warning", "VLAN");
    let other = with("ip link add br7 type veth", "");
    other.tells(check, "error", "no Linux bridge");
}

#[test]
fn a_libvirt_daemon_that_answers_is_looked_at_with_its_networks() {
    let libvirtd = Libvirtd::start();
    let place = Place::new();
    let networks = "[[networks]]\nid = \"nat\"\nlibvirt_network = \"default\"\n\
        [[networks]]\nid = \"none\"\nlibvirt_network = \"none\"\n";
    place.write(
        &libvirtd.uri(),
        "",
        &format!("{}\n{networks}", place.pool()),
    );
    let found = place.look();
    found.tells("libvirt.reach", "ok", "answers");
    found.tells("libvirt.version", "ok", "libvirt ");
    let network = |id: &str| {
        let findings = found.of("network.configured");
        let one = findings.into_iter().find(|it| it["about"] == id);
        one.unwrap()["found"].as_str().unwrap().to_owned()
    };
    assert!(network("nat").contains("is active"), "{found:#?}");
    assert!(network("none").contains("no network none"), "{found:#?}");
}

#[test]
fn a_journal_that_is_newer_or_none_is_told_and_left() {
    let place = Place::new();
    place.write(SIMULATED, "", &place.pool());
    let journal = place.path("journal.db");
    let connection = rusqlite::Connection::open(&journal).unwrap();
    connection
        .execute_batch(
            "PRAGMA application_id = 0x6b766d6c; PRAGMA user_version = 99; CREATE TABLE t (n);",
        )
        .unwrap();
    drop(connection);
    let before = fs::read(&journal).unwrap();
    let newer = place.look();
    let told = newer.tells("journal.file", "error", "schema 99");
    assert!(told["advice"].as_str().unwrap().contains("newer version"));
    assert_eq!(fs::read(&journal).unwrap(), before);
    fs::write(
        &journal,
        "no database, but long enough to have a header of one",
    )
    .unwrap();
    place.look().tells("journal.file", "error", "not a journal");
}

#[test]
fn what_hangs_is_a_finding_and_not_a_wait() {
    let place = Place::new();
    // A file that is never written, and a daemon that never answers.
    let fifo = place.path("cert.pem");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = place.path("libvirt-sock");
    let _silent = UnixListener::bind(&socket).unwrap();
    let authority = Authority::new("doctor");
    let sink = format!(
        "[[report]]\nname = \"cp\"\nendpoints = [\"https://cp.example:1\"]\n\
         tls = {{ ca_file = \"{}\" }}\n",
        fifo.display()
    );
    drop(authority);
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    place.write(&uri, "", &format!("{}\n{sink}", place.pool()));
    let found = place.look();
    found.tells("certificate.api", "error", "took longer than 5 s");
    found.tells("libvirt.reach", "error", "took longer than");
    // The rest went on.
    found.tells("pool.write", "ok", "can be written");
    found.tells("tool.launch", "ok", "setpriv");
}

#[test]
fn a_cluster_that_is_not_there_is_told() {
    let place = Place::new();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    fs::write(
        place.path("ceph.conf"),
        format!("[global]\nmon_host = {closed}\n"),
    )
    .unwrap();
    fs::write(place.path("keyring"), "[client.other]\nkey = AA==\n").unwrap();
    let home = place.0.path().display();
    let pool = format!(
        "[[pools]]\nname = \"ceph\"\nkind = \"rbd\"\nconf = \"{home}/ceph.conf\"\n\
         user = \"kvmlet\"\nkeyring = \"{home}/keyring\"\nscratch = \"{home}/pool\"\n\
         image_pool = \"i\"\ndefault_root_pool = \"r\"\ndefault_data_pool = \"d\"\n"
    );
    place.write(SIMULATED, "", &pool);
    let found = place.look();
    found.tells("ceph.tools", "ok", "rbd");
    found.tells("ceph.conf", "ok", "ceph.conf");
    found.tells("ceph.keyring", "error", "no client.kvmlet");
    fs::write(place.path("keyring"), "[client.kvmlet]\nkey = AA==\n").unwrap();
    let found = place.look();
    found.tells("ceph.monitors", "error", "refused");
    assert!(
        found.of("ceph.pools").is_empty(),
        "nobody is there to be asked"
    );
}

#[test]
fn a_user_is_told_what_only_root_may_look_at() {
    if !Uid::effective().is_root() {
        // The test's own user is such a one: its files closed to itself are.
        let place = Place::new();
        place.write(SIMULATED, "", &place.pool());
        fs::set_permissions(place.path("pool"), Permissions::from_mode(0o000)).unwrap();
        let found = place.look();
        found.tells("pool.write", "skipped", "may not be written");
        return;
    }
    let place = Place::new();
    place.write(SIMULATED, "", &place.pool());
    fs::set_permissions(place.config(), Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(place.path("pool"), Permissions::from_mode(0o711)).unwrap();
    fs::write(place.path("journal.db"), "closed").unwrap();
    fs::set_permissions(place.path("journal.db"), Permissions::from_mode(0o600)).unwrap();
    // The program is built where others may not look.
    let copy = place.path("kvmlet");
    fs::copy(env!("CARGO_BIN_EXE_kvmlet"), &copy).unwrap();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let run = |config: &Path| {
        #[allow(clippy::disallowed_methods)] // run as a person runs it
        let ended = Command::new(nobody[0])
            .args(&nobody[1..])
            .arg(&copy)
            .args(["doctor", "-o", "json", "--config"])
            .arg(config)
            .env_remove("KVMLET_SERVER")
            .output()
            .unwrap();
        let found = Found {
            code: ended.status.code(),
            report: serde_json::from_slice(&ended.stdout).unwrap(),
        };
        found.keeps_its_promises();
        found
    };
    let found = run(&place.config());
    assert_eq!(found.code, Some(0), "{found:#?}");
    for check in ["pool.write", "journal.file"] {
        let told = found.tells(check, "skipped", "by this user");
        assert_eq!(told["advice"], "sudo kvmlet doctor");
    }
    fs::set_permissions(place.config(), Permissions::from_mode(0o600)).unwrap();
    let found = run(&place.config());
    found.tells("config.file", "skipped", "may not be read");
    assert_eq!(found.code, Some(0), "{found:#?}");
}

#[tokio::test]
async fn a_daemon_that_runs_is_asked_and_its_own_port_is_no_fault() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let setup = Setup::default().with(
        "api",
        format!("listen = \"{port}\"\nplaintext_role = \"viewer\""),
    );
    let daemon = Daemon::start(setup).await;
    let found = look(&[], &daemon.config());
    assert_eq!(found.code, Some(0), "{found:#?}");
    found.tells("daemon.answers", "ok", "answers");
    found.tells("daemon.version", "ok", env!("CARGO_PKG_VERSION"));
    found.tells("daemon.conditions", "ok", "are well");
    found.tells("journal.file", "ok", "schema");
    let own = format!("kvmlet, process {}", daemon.pid());
    found.tells("port.api", "ok", &own);
}

#[tokio::test]
async fn what_a_daemon_says_of_the_host_is_told() {
    let mut libvirtd = Libvirtd::start();
    let daemon = Daemon::start(Setup::on(libvirtd.uri())).await;
    libvirtd.kill9();
    until("the daemon to miss libvirt", PATIENCE, async || {
        let node = daemon.api().node().await;
        let libvirt = node
            .conditions
            .iter()
            .find(|it| it.r#type == "LibvirtReady");
        (!libvirt.unwrap().status).then_some(())
    })
    .await;
    let found = look(&[], &daemon.config());
    let conditions = found.of("daemon.conditions");
    let libvirt = conditions.iter().find(|it| it["about"] == "LibvirtReady");
    assert_eq!(libvirt.unwrap()["level"], "warning");
    found.tells("libvirt.reach", "error", "socket");
}

#[test]
fn the_document_has_every_check_with_its_title_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/doctor.md")).unwrap();
    let rows: Vec<(String, String)> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
        })
        .collect();
    let wanted: Vec<(String, String)> = Check::ALL
        .iter()
        .map(|check| (check.id().to_owned(), check.title().to_owned()))
        .collect();
    assert_eq!(rows, wanted);
}
