//! The configuration, from outside: what is shipped, what is refused and how.

use kvmlet::config::{Config, Keyring, LogTarget, PoolBackend, RbdSettings};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::hardware::{Accelerator, Cpu, Firmware};
use kvmlet::model::nic::Attachment;
use kvmlet::service::current::Offered;
use std::path::Path;
use std::time::Duration;

const SHIPPED: &str = include_str!("../../packaging/kvmlet.toml");

/// The faults of a text that must have some.
fn faults(text: &str) -> Vec<String> {
    let faults = Config::from_toml(text).expect_err("has faults");
    faults.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(Config::from_toml(""), Ok(Config::default()));
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    assert_eq!(Config::from_toml(SHIPPED), Ok(Config::default()));
}

/// The shipped file with the keys that are commented out there switched on.
fn shipped_with_all_examples() -> String {
    let is_example = |line: &str| {
        line.starts_with("[[")
            || line.split_once(" = ").is_some_and(|(key, _)| {
                key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !key.is_empty()
            })
    };
    let mut text = String::new();
    for line in SHIPPED.lines() {
        match line.strip_prefix("# ") {
            Some(rest) if is_example(rest) => text.push_str(rest),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_examples_in_the_shipped_file_are_valid() {
    // What says what holds without TLS can't stand beside it.
    let examples = shipped_with_all_examples().replace("plaintext_role =", "# plaintext_role =");
    let config = Config::from_toml(&examples).expect("valid");
    assert_eq!(config.networks.len(), 3);
    assert_eq!((config.report.len(), config.nats.len()), (1, 2));
    assert_eq!(config.pools.len(), 3);
    assert_eq!(config.hardware_profiles.len(), 1);
    assert!(config.node.id.is_some());
    assert!(config.api.listen.is_some());
    assert!(config.api.tls.is_some());
    assert!(config.audit.file.is_some());
    assert_eq!(config.api.socket_group.as_deref(), Some("kvmlet"));
}

#[test]
fn the_shipped_file_names_every_key() {
    // A key that nobody knows in each section makes the reader list those it knows.
    let mut asked = String::from("zzz = 1\n");
    for line in shipped_with_all_examples().lines() {
        asked.push_str(line);
        asked.push('\n');
        if line.starts_with('[') {
            asked.push_str("zzz = 1\n");
        }
    }
    for fault in faults(&asked) {
        if fault.starts_with("api.plaintext_role: can't be given besides tls") {
            continue;
        }
        let (path, known) = fault
            .split_once(": unknown key (known here: ")
            .expect(&fault);
        let (known, _) = known.split_once(')').expect(&fault);
        let section = path.trim_end_matches("zzz").trim_end_matches('.');
        let section = section.split('[').next().expect("the first part");
        for key in known.split(", ") {
            let named = shipped_with_all_examples().lines().any(|line| {
                line.starts_with(&format!("{key} = "))
                    || line == format!("[{key}]")
                    || line == format!("[[{key}]]")
                    || line.starts_with(&format!("[{key}."))
                    || line.ends_with(&format!(".{key}]"))
            });
            assert!(named, "{section}.{key} is not in packaging/kvmlet.toml");
        }
    }
}

#[test]
fn all_faults_are_reported_at_once_with_their_paths_and_lines() {
    let text = "\
colour = \"red\"
[hypervisor]
uri = \"qemu+ssh://elsewhere/system\"
connection = 3
connections = 0
[api]
listen = \"0.0.0.0:7443\"
socket_mode = \"0066\"
[[pools]]
name = \"a\"
path = \"/pool\"
default = true
[[pools]]
name = \"b/c\"
path = \"relative\"
[vms]
retention = \"soon\"
memory_overcommit = \"much\"
";
    let faults = faults(text);
    let expected = [
        "colour: unknown key (known here: access, api, audit, events, hardware_profiles, hypervisor, images, \
         journal, limits, log, metrics, nats, networks, node, operations, pools, report, shutdown, traces, \
         vms, vnc) (line 1)",
        "hypervisor.uri: must be qemu:///system, qemu:///session, qemu:///embed?root=DIR or \
         test:///default, the daemons' also as qemu+unix or test+unix with ?socket=PATH (line 3)",
        "hypervisor.connection: unknown key (known here: accelerator, call_timeout, connections, \
         uri) (line 4)",
        "hypervisor.connections: must be a whole number from 1 to 32 (line 5)",
        "api.listen: needs tls; or, on a loopback address, plaintext_role, which says what \
         everyone on this host may do (line 7)",
        "api.socket_mode: must let the owner in (line 8)",
        "pools[1].name: must be 1 to 64 letters, digits, dots, underscores or hyphens (line 14)",
        "pools[1].path: must be absolute (line 15)",
        "vms.retention: is not a duration such as \"90s\" or \"7d\": expected number at 0 \
         (line 17)",
        "vms.memory_overcommit: must be a number from 0.1 to 100 (line 18)",
    ];
    assert_eq!(faults, expected);
}

#[test]
fn metrics_are_off_unless_configured_and_never_leave_the_host() {
    assert!(!Config::default().metrics.is_on());
    let told = faults(
        "[metrics]\nlisten = \"192.0.2.1:9177\"\nsocket = \"metrics.sock\"\nsocket_group = \"a:b\"\n",
    );
    assert_eq!(
        told,
        [
            "metrics.listen: must be a loopback address: metrics name all VMs, and are neither \
             encrypted nor guarded; let a proxy with TLS pass them on (line 2)",
            "metrics.socket: must be absolute (line 3)",
            "metrics.socket_group: is not the name of a group (line 4)",
        ]
    );
    let told = faults("[metrics]\nsocket_group = \"prometheus\"\n");
    assert_eq!(told, ["metrics.socket_group: needs a socket (line 2)"]);
    let config = Config::from_toml("[metrics]\nlisten = \"[::1]:9177\"\n").expect("valid");
    assert!(config.metrics.is_on());
}

#[test]
fn several_mistakes_of_syntax_are_reported_with_their_lines() {
    let faults = faults("[node\n[vms]\nretention = \n");
    assert!(faults.len() >= 2, "{faults:?}");
    assert!(
        faults.iter().any(|fault| fault.ends_with("(line 1)")),
        "{faults:?}"
    );
    assert!(
        faults.iter().any(|fault| fault.ends_with("(line 3)")),
        "{faults:?}"
    );
}

#[test]
fn pools_have_names_and_places_of_their_own_and_one_default() {
    let two = |second: &str| {
        format!("[[pools]]\nname='a'\npath='/p/a'\ndefault=true\n[[pools]]\n{second}")
    };
    for (second, fault) in [
        (
            "name='a'\npath='/p/b'",
            "pools[1].name: \"a\" is taken by another pool (line 6)",
        ),
        (
            "name='b'\npath='/p/a/'",
            "pools[1].path: overlaps with the pool \"a\" (line 7)",
        ),
        (
            "name='b'\npath='/p/a/x'",
            "pools[1].path: overlaps with the pool \"a\" (line 7)",
        ),
        (
            "name='b'\npath='/p'",
            "pools[1].path: overlaps with the pool \"a\" (line 7)",
        ),
        (
            "name='b'\npath='/x/../p'",
            "pools[1].path: must not hold \"..\" (line 7)",
        ),
        (
            "name='b'\npath='/b'\ndefault=true",
            "pools[1].default: \"a\" is the default pool already (line 8)",
        ),
        ("name='b'", "pools[1].path: is missing (line 5)"),
    ] {
        assert_eq!(faults(&two(second)), [fault]);
    }
    // A longer name is not a place inside.
    let config = Config::from_toml(&two("name='b'\npath='/p/ab'")).expect("valid");
    assert_eq!(config.default_pool().name, "a");
    // The only pool is the default one without saying so.
    let config = Config::from_toml("[[pools]]\nname='x'\npath='/x'").expect("valid");
    assert_eq!(config.default_pool().name, "x");
    let none = faults("[[pools]]\nname='x'\npath='/x'\n[[pools]]\nname='y'\npath='/y'");
    assert_eq!(
        none,
        ["pools: one of them must have default = true (line 1)"]
    );
}

#[test]
fn images_are_never_imported_from_a_pool() {
    for dir in [
        "/var/lib/kvmlet/pool",
        "/var/lib/kvmlet/pool/x",
        "/var/lib",
        "/",
    ] {
        let faults = faults(&format!("[images]\nallowed_dirs = [\"/ok\", \"{dir}\"]"));
        assert_eq!(
            faults,
            [
                "images.allowed_dirs[1]: overlaps with the pool \"default\", whose volumes could \
              then be read as images (line 2)"
            ]
        );
    }
}

#[test]
fn a_network_plugs_in_at_exactly_one_place() {
    let config = Config::from_toml(
        "[[networks]]\nid='lan'\nbridge='br0'\nvlan=7\nmtu=9000\n\
         [[networks]]\nid='nat'\nlibvirt_network='default'\n\
         [[networks]]\nid='own'\nuser=true\n",
    )
    .expect("valid");
    let offered = Offered::of(&config);
    let lan = offered.network("lan").expect("configured");
    let bridge = Attachment::Bridge {
        name: "br0".to_owned(),
        vlan: Some(7),
    };
    assert_eq!((&lan.attachment, lan.mtu), (&bridge, Some(9000)));
    assert_eq!(
        offered.network("own").expect("configured").attachment,
        Attachment::User
    );
    let needs =
        "networks[0]: needs exactly one of bridge, libvirt_network and user = true (line 1)";
    for keys in [
        "",
        "user=false",
        "bridge='a'\nuser=true",
        "bridge='a'\nlibvirt_network='b'",
    ] {
        assert_eq!(faults(&format!("[[networks]]\nid='n'\n{keys}")), [needs]);
    }
    assert_eq!(
        faults("[[networks]]\nid='n'\nuser=true\nvlan=5000"),
        [
            "networks[0].vlan: must be a whole number from 1 to 4094 (line 4)",
            "networks[0].vlan: needs a bridge (line 4)",
        ]
    );
}

#[test]
fn a_hardware_profile_has_every_choice_made() {
    let config = Config::from_toml(
        "[hypervisor]\naccelerator='tcg'\n\
         [[hardware_profiles]]\nid='small'\nvcpus=2\nmemory='2 GiB'\n\
         [[hardware_profiles]]\nid='big'\nvcpus=8\nmemory='64 GiB'\ncpu_mode='custom'\n\
         cpu_model='EPYC-Milan'\nmachine='pc'\nfirmware='uefi'\naccelerator='kvm'\n",
    )
    .expect("valid");
    let offered = Offered::of(&config);
    let small = &offered
        .hardware_profile("small")
        .expect("configured")
        .hardware;
    assert_eq!((small.vcpus, small.memory), (2, Bytes::gib(2)));
    assert_eq!((small.machine.as_str(), &small.cpu), ("q35", &Cpu::Auto));
    assert_eq!(
        (small.firmware, small.accelerator),
        (Firmware::Bios, Accelerator::Tcg)
    );
    let big = &offered
        .hardware_profile("big")
        .expect("configured")
        .hardware;
    assert_eq!(big.cpu, Cpu::Custom("EPYC-Milan".to_owned()));
    assert_eq!(
        (big.firmware, big.accelerator),
        (Firmware::Uefi, Accelerator::Kvm)
    );
    assert_eq!(
        faults("[[hardware_profiles]]\nid='x'\nmemory='1 GB'\ncpu_model='q'"),
        [
            "hardware_profiles[0].vcpus: is missing (line 1)",
            "hardware_profiles[0].memory: is not a size such as \"512 MiB\" or \"20 GiB\" (line 3)",
            "hardware_profiles[0].cpu_model: needs cpu_mode = \"custom\" (line 4)",
        ]
    );
}

#[test]
fn a_mistyped_log_level_is_refused_and_pairs_are_taken() {
    assert_eq!(
        faults("[log]\nlevel='verbose'"),
        ["log.level: \"verbose\" must be one of off, error, warn, info, debug, trace (line 2)"]
    );
    assert!(Config::from_toml("[log]\nlevel='info,kvmlet::libvirt=debug'").is_ok());
}

#[test]
fn durations_may_be_zero_only_where_that_means_something() {
    let config = Config::from_toml("[vms]\nretention='0s'").expect("valid");
    assert_eq!(config.vms.retention, Duration::ZERO);
    assert_eq!(
        faults("[vms]\nstop_timeout='0s'"),
        ["vms.stop_timeout: must be from 1s to 1day (line 2)"]
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let faults = Config::load(Path::new("/no/such/kvmlet.toml")).expect_err("not there");
    assert!(
        faults
            .to_string()
            .starts_with("/no/such/kvmlet.toml: can't be read: ")
    );
}

#[test]
fn the_simulated_host_stays_in_its_directory() {
    let config = Config::simulated(Path::new("/s"));
    for path in [
        &config.api.socket,
        &config.journal.path,
        &config.default_pool().path,
        &config.images.allowed_dirs[0],
        &config.vms.console_dir,
    ] {
        assert!(path.starts_with("/s"), "{}", path.display());
    }
    assert_eq!(config.hypervisor.uri, "test:///default");
    assert_eq!(config.log.target, LogTarget::Stderr);
}

#[test]
fn the_hypervisor_is_on_this_host_and_may_be_reached_over_its_socket() {
    for uri in [
        "qemu:///system",
        "qemu:///session",
        "qemu+unix:///system?socket=/run/private/libvirt-sock",
        "qemu:///embed?root=/tmp/k",
        "test:///default",
        "test+unix:///default?socket=/tmp/d/libvirt-sock",
    ] {
        let config = Config::from_toml(&format!("[hypervisor]\nuri = \"{uri}\""));
        assert_eq!(config.expect("is taken").hypervisor.uri, uri);
    }
    for uri in [
        "",
        "qemu",
        "xen:///system",
        "qemu:///other",
        "qemu+unix:///embed?root=/tmp/k",
        "test:///",
        "qemu+ssh://elsewhere/system",
        "qemu+unix://elsewhere/system",
        "qemu://elsewhere/system",
        "qemu:///embed?root=relative",
        "test:///default other",
    ] {
        let faults = faults(&format!("[hypervisor]\nuri = \"{uri}\""));
        assert_eq!(faults.len(), 1, "{uri}");
        assert!(faults[0].starts_with("hypervisor.uri: must"), "{faults:?}");
    }
}

#[test]
fn a_pools_images_have_no_limit_unless_one_is_given() {
    let pool = "[[pools]]\nname = \"a\"\npath = \"/a\"\n";
    let config = Config::from_toml(pool).expect("valid");
    assert_eq!(config.pools[0].image_cache_max, None);
    let limited = format!("{pool}image_cache_max = \"50 GiB\"\n");
    let config = Config::from_toml(&limited).expect("valid");
    assert_eq!(config.pools[0].image_cache_max, Some(Bytes::gib(50)));
    let told = faults(&format!("{pool}image_cache_max = \"1 KiB\"\n"));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with("pools[0].image_cache_max: "),
        "{told:?}"
    );
}

/// A pool of files, which is the default one, and one of Ceph with these lines more.
fn with_rbd(lines: &str) -> String {
    format!(
        "[[pools]]\nname='a'\npath='/a'\ndefault=true\n\
         [[pools]]\nname='ceph'\nkind='rbd'\n{lines}"
    )
}

fn rbd_settings(lines: &str) -> RbdSettings {
    let config = Config::from_toml(&with_rbd(lines)).expect("valid");
    match &config.pools[1].backend {
        PoolBackend::Rbd(rbd) => (**rbd).clone(),
        PoolBackend::Qcow2 => panic!("it is of kind rbd"),
    }
}

#[test]
fn a_pool_on_ceph_needs_its_ceph_pools_named_and_has_the_usual_places_else() {
    let usual = rbd_settings("image_pool='i'\ndefault_root_pool='r'\n");
    assert_eq!(usual.conf, Path::new("/etc/ceph/ceph.conf"));
    assert_eq!(usual.user, "kvmlet");
    let file = Path::new("/etc/ceph/ceph.client.kvmlet.keyring").to_owned();
    assert_eq!(usual.keyring, Keyring::File(file));
    assert_eq!(
        (usual.image_pool.as_str(), usual.default_root_pool.as_str()),
        ("i", "r")
    );
    assert_eq!(usual.default_data_pool, "r", "as the roots");
    assert!(usual.allowed_root_pools.is_empty());
    assert_eq!(usual.trash_expiry, Duration::from_secs(86400));
    let config = Config::from_toml(&with_rbd("image_pool='i'\ndefault_root_pool='r'"));
    let pool = &config.expect("valid").pools[1];
    assert_eq!(pool.path, Path::new("/var/lib/kvmlet/scratch/ceph"));
    assert!(!pool.default);

    let other = rbd_settings(
        "conf='/c/x.conf'\nuser='node-7'\nimage_pool='i'\ndefault_root_pool='r'\n\
         default_data_pool='d'\nallowed_root_pools=['r-*', 'ss?']\ntrash_expiry='90m'\n\
         scratch='/s'",
    );
    assert_eq!(other.conf, Path::new("/c/x.conf"));
    let file = Path::new("/etc/ceph/ceph.client.node-7.keyring").to_owned();
    assert_eq!(other.keyring, Keyring::File(file), "that of its user");
    assert_eq!(other.default_data_pool, "d");
    assert_eq!(other.trash_expiry, Duration::from_secs(5400));
    let allows = |name: &str| other.allowed_root_pools.iter().any(|p| p.matches(name));
    assert!(allows("r-fast") && allows("ssd"));
    assert!(!allows("r") && !allows("ss") && !allows("xr-fast"));
    let credential =
        rbd_settings("keyring_credential='ceph'\nimage_pool='i'\ndefault_root_pool='r'");
    assert_eq!(credential.keyring, Keyring::Credential("ceph".to_owned()));
}

#[test]
fn every_fault_of_a_pool_on_ceph_is_told_with_its_path() {
    let lines = "\
conf = 'ceph.conf'
user = 'client.kvmlet'
keyring = 'k'
keyring_credential = '../k'
image_pool = '-i'
default_root_pool = 'a/b'
default_data_pool = ''
allowed_root_pools = ['ok-*', 'a[b', '']
trash_expiry = '59s'
scratch = 's'
path = '/p'
image_cache_max = '1 GiB'
";
    let faults = faults(&with_rbd(lines));
    let name = "is not the name of a Ceph pool: 1 to 128 letters, digits, dots, underscores or \
                hyphens, beginning with a letter, a digit or an underscore";
    let pattern = "is not a pattern for the names of Ceph pools, such as \"vms-*\"";
    let expected = [
        "conf: must be absolute (line 8)".to_owned(),
        "user: is named without \"client.\" (line 9)".to_owned(),
        "keyring: must be absolute (line 10)".to_owned(),
        "keyring_credential: must be 1 to 64 letters, digits, dots, underscores or hyphens (line 11)"
            .to_owned(),
        "keyring_credential: can't be given besides keyring (line 11)".to_owned(),
        format!("image_pool: {name} (line 12)"),
        format!("default_root_pool: {name} (line 13)"),
        format!("default_data_pool: {name} (line 14)"),
        format!("allowed_root_pools[1]: {pattern} (line 15)"),
        format!("allowed_root_pools[2]: {pattern} (line 15)"),
        "trash_expiry: must be 0s, or from 1m to 365d (line 16)".to_owned(),
        "scratch: must be absolute (line 17)".to_owned(),
    ];
    for expected in expected {
        let expected = format!("pools[1].{expected}");
        assert!(
            faults.contains(&expected),
            "{expected} is not in {faults:#?}"
        );
    }
    for key in ["path", "image_cache_max"] {
        let unknown = format!("pools[1].{key}: unknown key (known here: ");
        let told = faults.iter().any(|fault| fault.starts_with(&unknown));
        assert!(told, "{unknown} is not in {faults:#?}");
    }
    assert_eq!(faults.len(), 14, "{faults:#?}");
}

#[test]
fn a_pool_on_ceph_without_its_ceph_pools_is_refused() {
    let expected = [
        "pools[1].image_pool: is missing (line 5)",
        "pools[1].default_root_pool: is missing (line 5)",
    ];
    assert_eq!(faults(&with_rbd("")), expected);
}

#[test]
fn what_is_deleted_on_ceph_is_kept_from_a_minute_to_a_year_or_not_at_all() {
    let expiring =
        |text: &str| format!("image_pool='i'\ndefault_root_pool='r'\ntrash_expiry='{text}'");
    for (text, seconds) in [("0s", 0), ("1m", 60), ("365d", 365 * 86400)] {
        let found = rbd_settings(&expiring(text)).trash_expiry;
        assert_eq!(found, Duration::from_secs(seconds), "{text}");
    }
    for (text, problem) in [
        ("59s", "must be 0s, or from 1m to 365d"),
        ("366d", "must be 0s, or from 1m to 365d"),
        ("never", "is not a duration such as \"1h\" or \"7d\""),
    ] {
        let expected = format!("pools[1].trash_expiry: {problem} (line 10)");
        assert_eq!(faults(&with_rbd(&expiring(text))), [expected]);
    }
}

#[test]
fn the_places_of_imports_into_ceph_are_no_other_pools_and_not_imported_from() {
    let text = with_rbd("image_pool='i'\ndefault_root_pool='r'\nscratch='/a/scratch'");
    let expected = "pools[1].scratch: overlaps with the pool \"a\" (line 10)";
    assert_eq!(faults(&text), [expected]);
    let text = with_rbd("image_pool='i'\ndefault_root_pool='r'\nscratch='/s'");
    let text = format!("[images]\nallowed_dirs=['/s/in']\n{text}");
    let told = faults(&text);
    assert!(
        told.len() == 1 && told[0].starts_with("images.allowed_dirs[0]: overlaps"),
        "{told:?}"
    );
}

#[test]
fn an_embedded_hypervisor_can_not_have_a_pool_on_ceph() {
    let pools = with_rbd("image_pool='i'\ndefault_root_pool='r'");
    let text = format!("[hypervisor]\nuri='qemu:///embed?root=/x'\n{pools}");
    assert_eq!(
        faults(&text),
        [
            "pools[1].kind: can't be rbd with qemu:///embed, which keeps no secrets for Ceph (line 9)"
        ]
    );
}

#[test]
fn a_pool_on_ceph_can_be_the_only_one() {
    let text = "[[pools]]\nname='c'\nkind='rbd'\nimage_pool='i'\ndefault_root_pool='r'";
    let config = Config::from_toml(text).expect("valid");
    assert_eq!(config.default_pool().name, "c");
}

#[test]
fn a_sink_has_a_name_of_its_own_and_somewhere_to_report_to() {
    assert_eq!(
        faults(
            "[[report]]\nname='a'\nendpoints=['http://127.0.0.1:1', 'http://10.0.0.1:1']\n\
             [[report]]\nendpoints=[]\nheartbeat='0s'\n\
             [[nats]]\nname='a'\nservers=['nats://127.0.0.1:4222']\nsubject_prefix='a.*'\n"
        ),
        [
            "report[0].endpoints[1]: must be https:// beyond this host, or insecure = true (line 3)",
            "report[1].name: is missing (line 4)",
            "report[1].endpoints: must name at least one (line 5)",
            "report[1].heartbeat: must be from 1s to 1h (line 6)",
            "nats[0].name: \"a\" is taken by another sink (line 8)",
            "nats[0].subject_prefix: must be made of letters, digits, underscores and hyphens (line 10)",
        ]
    );
}

#[test]
fn a_sink_that_needs_two_files_is_not_given_one() {
    let nats = "[[nats]]\nname='a'\nservers=['tls://bus:1']\n";
    assert_eq!(
        faults(&format!("{nats}user='me'\ncredentials_file='/c'\n")),
        [
            "nats[0]: needs both of user and password_file, or none (line 1)",
            "nats[0]: needs one of credentials_file and user, not both (line 1)",
        ]
    );
    assert_eq!(
        faults(&format!("{nats}tls={{ca_file='/ca', key_file='/k'}}\n")),
        ["nats[0].tls: needs both of cert_file and key_file, or none (line 4)"]
    );
    let config = Config::from_toml(&format!("{nats}tls={{ca_file='/ca'}}")).expect("valid");
    assert_eq!(config.nats[0].stream, "KVMLET");
    assert_eq!(config.nats[0].subject_prefix, "kvmlet");
}
