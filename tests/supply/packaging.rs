//! What an administrator installs: the packages that `scripts/package` makes, and the man
//! pages in them.
//!
//! The packages are made once for all tests, of the program as it is built for tests. What installing, upgrading and removing
//! them does on a system that runs is in `tests/systemd`.

use clap::{Command as Arguments, CommandFactory};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

const NEEDS: &str = "scripts/setup --package";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[allow(clippy::disallowed_methods)] // a test has its own tools
fn ended(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(root())
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "200")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error} ({NEEDS})"))
}

/// What a program printed that ended well.
fn printed(program: &str, arguments: &[&str]) -> String {
    let output = ended(program, arguments);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("it is text")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("it is text")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Both packages, and what is in the one for Debian.
struct Packages {
    deb: PathBuf,
    rpm: PathBuf,
    unpacked: PathBuf,
    _folder: tempfile::TempDir,
}

fn packages() -> &'static Packages {
    static PACKAGES: OnceLock<Packages> = OnceLock::new();
    PACKAGES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let program = env!("CARGO_BIN_EXE_kvmlet");
        let arguments = ["--program", program, "--out", text(folder.path())];
        let told = printed("scripts/package", &arguments);
        let path = |end: &str| {
            let line = told.lines().find(|line| line.ends_with(end));
            PathBuf::from(line.unwrap_or_else(|| panic!("no {end} in\n{told}")))
        };
        let (deb, rpm) = (path(".deb"), path(".rpm"));
        let unpacked = folder.path().join("unpacked");
        printed("dpkg-deb", &["-R", text(&deb), text(&unpacked)]);
        Packages {
            deb,
            rpm,
            unpacked,
            _folder: folder,
        }
    })
}

/// What is in the package for Debian: each path with its mode and owner, and whether it
/// is a folder.
fn files_of_deb() -> BTreeMap<String, (String, bool)> {
    printed("dpkg-deb", &["-c", text(&packages().deb)])
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let path = cells[5].trim_start_matches('.').trim_end_matches('/');
            let what = format!("{} {}", cells[0], cells[1]);
            (path.to_owned(), (what, line.starts_with('d')))
        })
        .collect()
}

/// The same of the other one.
fn files_of_rpm() -> BTreeMap<String, (String, bool)> {
    let format = "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME}\\n]";
    printed("rpm", &["-qp", "--qf", format, text(&packages().rpm)])
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let what = format!("{} {}", cells[1], cells[2].replace("root", "0"));
            (cells[0].to_owned(), (what, cells[1].starts_with('d')))
        })
        .collect()
}

/// The rows of the table in docs/packages.md: which paths, with which mode.
fn documented() -> Vec<(glob::Pattern, String)> {
    let rows: Vec<(glob::Pattern, String)> = read(root().join("docs/packages.md"))
        .lines()
        .skip_while(|line| *line != "| path | mode | what it is |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let pattern = glob::Pattern::new(cells[1].trim_matches('`')).expect("a pattern");
            (pattern, cells[2].to_owned())
        })
        .collect();
    assert!(rows.len() > 10, "the table is there");
    rows
}

/// Holds what is in a package against the table, both ways; some rows are of the other
/// kind of package.
fn compare(files: &BTreeMap<String, (String, bool)>, elsewhere: &[&str]) {
    let rows = documented();
    let exactly = glob::MatchOptions {
        require_literal_separator: true,
        ..glob::MatchOptions::new()
    };
    let mut used = BTreeSet::new();
    for (path, (what, is_folder)) in files {
        if *is_folder {
            assert_eq!(what, "drwxr-xr-x 0/0", "{path}");
            continue;
        }
        let place = rows
            .iter()
            .position(|(pattern, _)| pattern.matches_with(path, exactly));
        let place = place.unwrap_or_else(|| panic!("{path} is not in docs/packages.md"));
        used.insert(place);
        let wanted = match rows[place].1.as_str() {
            "0644" => "-rw-r--r-- 0/0",
            "0755" => "-rwxr-xr-x 0/0",
            mode => panic!("{mode} of {path} is not known here"),
        };
        assert_eq!(what, wanted, "{path}");
    }
    for (place, (pattern, _)) in rows.iter().enumerate() {
        // The list of what it is made of is in packages for others only; a socket unit
        // is there if the sources have one.
        let missing_may_be = pattern.as_str().ends_with("kvmlet.cdx.json.gz")
            || pattern.as_str().ends_with(".socket")
                && !root().join("systemd/kvmlet.socket").exists()
            || elsewhere.contains(&pattern.as_str());
        assert!(
            used.contains(&place) != missing_may_be,
            "{pattern} in docs/packages.md"
        );
    }
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn both_packages_hold_what_is_documented_and_nothing_else() {
    let (deb, rpm) = (files_of_deb(), files_of_rpm());
    compare(&deb, &["/usr/share/licenses/kvmlet/LICENSE"]);
    compare(&rpm, &["/usr/share/lintian/overrides/kvmlet"]);
    // The .rpm has no folders; its last script removes those that are kvmlet's own.
    let removed = read(root().join("packaging/rpm/postun"));
    for path in rpm.keys() {
        let own = Path::new(path)
            .ancestors()
            .skip(1)
            .filter(|folder| folder.ends_with("kvmlet"))
            .last();
        if let Some(own) = own {
            assert!(removed.contains(text(own)), "{} stays", own.display());
        }
    }
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn what_is_in_the_package_is_that_of_the_sources() {
    let unpacked = &packages().unpacked;
    let mut compared = 0;
    for (packed, sources) in [
        ("usr/lib/systemd/system", "systemd"),
        ("usr/lib/sysusers.d", "systemd/sysusers.d"),
        ("usr/lib/tmpfiles.d", "systemd/tmpfiles.d"),
        ("etc/kvmlet", "packaging"),
        ("usr/share/kvmlet/grafana", "packaging/grafana"),
        ("usr/share/kvmlet/prometheus", "packaging/prometheus"),
        ("usr/share/kvmlet/proto", "proto"),
        ("usr/share/doc/kvmlet/docs", "docs"),
    ] {
        let pattern = format!("{}/{packed}/**/*", unpacked.display());
        let files = glob::glob(&pattern).expect("a pattern");
        for file in files.filter_map(Result::ok).filter(|file| file.is_file()) {
            let below = file.strip_prefix(unpacked.join(packed)).expect("below");
            assert_eq!(read(&file), read(root().join(sources).join(below)));
            compared += 1;
        }
    }
    assert!(compared > 25, "{compared}");
    let units = glob::glob(text(&root().join("systemd/*.s*"))).expect("a pattern");
    for unit in units.filter_map(Result::ok).filter(|unit| unit.is_file()) {
        let name = unit.file_name().expect("a name");
        let packed = unpacked.join("usr/lib/systemd/system").join(name);
        assert!(packed.exists(), "{}", packed.display());
    }
    let program = unpacked.join("usr/bin/kvmlet");
    let version = concat!("kvmlet ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(printed(text(&program), &["--version"]), version);
    for (shell, place) in [
        ("bash", "usr/share/bash-completion/completions/kvmlet"),
        ("fish", "usr/share/fish/vendor_completions.d/kvmlet.fish"),
        ("zsh", "usr/share/zsh/vendor-completions/_kvmlet"),
    ] {
        let script = printed(text(&program), &["completions", shell]);
        assert_eq!(read(unpacked.join(place)), script, "{shell}");
    }
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn debian_is_told_what_the_package_needs_and_what_is_configuration() {
    let field = |name: &str| {
        let value = printed("dpkg-deb", &["-f", text(&packages().deb), name]);
        value.trim().to_owned()
    };
    assert_eq!(field("Package"), "kvmlet");
    assert_eq!(field("Version"), concat!(env!("CARGO_PKG_VERSION"), "-1"));
    assert_eq!(field("Section"), "admin");
    let lists = |name: &str, wanted: &[&str]| {
        let value = field(name);
        let names: BTreeSet<&str> = value
            .split([',', '|'])
            .filter_map(|part| part.split_whitespace().next())
            .collect();
        for package in wanted {
            assert!(names.contains(package), "{name}: {value}");
        }
    };
    lists(
        "Depends",
        &[
            "libc6",
            "libsystemd0",
            "libvirt0",
            "libvirt-clients",
            "libvirt-daemon-driver-qemu",
            "libvirt-daemon-system",
            "qemu-utils",
            "systemd",
        ],
    );
    lists("Recommends", &["qemu-system-x86", "ovmf", "dnsmasq-base"]);
    lists(
        "Suggests",
        &["ceph-common", "qemu-block-extra", "nats-server"],
    );
    let control = packages().unpacked.join("DEBIAN");
    assert_eq!(
        read(control.join("conffiles")).trim(),
        "/etc/kvmlet/kvmlet.toml"
    );
    for script in ["postinst", "prerm", "postrm"] {
        let script = control.join(script);
        let source = root()
            .join("packaging/deb")
            .join(script.file_name().expect("a name"));
        assert_eq!(read(&script), read(source));
        printed("sh", &["-n", text(&script)]);
    }
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn lintian_finds_no_error() {
    let output = ended(
        "lintian",
        &["--allow-root", "--fail-on", "error", text(&packages().deb)],
    );
    let told = String::from_utf8_lossy(&output.stdout);
    print!("{told}");
    assert!(output.status.success(), "{told}");
    assert!(!told.lines().any(|line| line.starts_with("E:")), "{told}");
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn the_protos_in_the_package_are_complete() {
    let protos = packages().unpacked.join("usr/share/kvmlet/proto");
    printed("target/tools/bin/buf", &["build", text(&protos)]);
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn the_licence_of_each_crate_in_the_program_is_told() {
    let doc = packages().unpacked.join("usr/share/doc/kvmlet");
    let copyright = read(doc.join("copyright"));
    let paragraphs: Vec<&str> = copyright.split("\n\n").map(str::trim).collect();
    let field = |paragraph: &str, name: &str| {
        let line = paragraph.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    let stand_alone: BTreeSet<String> = paragraphs
        .iter()
        .filter(|paragraph| field(paragraph, "Files:").is_none())
        .filter_map(|paragraph| field(paragraph, "License:"))
        .collect();
    let mut crates = BTreeMap::new();
    for paragraph in &paragraphs {
        let Some(files) = field(paragraph, "Files:") else {
            continue;
        };
        let licence = field(paragraph, "License:").expect("each has one");
        assert!(field(paragraph, "Copyright:").is_some(), "{paragraph}");
        for one in licence.split(" or ").flat_map(|part| part.split(" and ")) {
            let (one, _) = one.split_once(" with ").unwrap_or((one, ""));
            assert!(stand_alone.contains(one), "{one} of {files}");
        }
        crates.insert(files, licence);
    }
    let of = |name: &str| -> &str {
        let start = format!("vendor/{name}-");
        let found = crates.iter().find(|(files, _)| {
            let rest = files.strip_prefix(&start).unwrap_or_default();
            rest.starts_with(|first: char| first.is_ascii_digit())
        });
        found.map_or("", |(_, licence)| licence)
    };
    assert_eq!(of("virt"), "LGPL-2.1");
    assert_eq!(of("virt-sys"), "LGPL-2.1");
    assert!(of("systemd").starts_with("LGPL-2.1+"));
    assert!(of("tonic").contains("Expat"));
    assert_eq!(of("protox"), "", "it only builds");
    assert_eq!(of("proptest"), "", "it only tests");
    let notices = printed("gzip", &["-dc", text(&doc.join("notices.gz"))]);
    assert!(notices.contains("GNU LESSER GENERAL PUBLIC LICENSE"));
    assert!(notices.contains("tonic "));
}

#[test]
#[ignore = "builds packages (scripts/setup --package)"]
fn rpm_reads_its_package_and_installs_it_into_an_empty_root() {
    let rpm = text(&packages().rpm);
    let query = |what: &str| printed("rpm", &["-qp", what, rpm]);
    let info = query("--info");
    for line in [
        "Name        : kvmlet",
        concat!("Version     : ", env!("CARGO_PKG_VERSION")),
        "License     : Apache-2.0",
    ] {
        assert!(info.contains(line), "{line} in\n{info}");
    }
    let lists = |what: &str, wanted: &[&str]| {
        let told = query(what);
        for name in wanted {
            assert!(told.lines().any(|line| line == *name), "{name} in\n{told}");
        }
        told
    };
    let requires = lists(
        "--requires",
        &[
            "libvirt-daemon-kvm",
            "libvirt-client",
            "qemu-img",
            "util-linux",
            "systemd",
        ],
    );
    assert!(requires.contains("libvirt.so.0()"));
    assert!(requires.contains("libsystemd.so.0()"));
    // A library of libvirt's, which other systems may have another one for.
    assert!(!requires.contains("libcurl"), "{requires}");
    lists("--recommends", &["edk2-ovmf", "dnsmasq"]);
    lists("--suggests", &["ceph-common", "nats-server"]);
    assert_eq!(query("--configfiles").trim(), "/etc/kvmlet/kvmlet.toml");
    let flags = printed(
        "rpm",
        &["-qp", "--qf", "[%{FILENAMES} %{FILEFLAGS:fflags}\\n]", rpm],
    );
    assert!(flags.contains("/etc/kvmlet/kvmlet.toml cn\n"), "{flags}");
    assert!(
        flags.contains("/usr/share/man/man8/kvmlet.8.gz d\n"),
        "{flags}"
    );
    let scripts = query("--scripts");
    for (tag, file) in [("POSTIN", "post"), ("PREUN", "preun"), ("POSTUN", "postun")] {
        let source = root().join("packaging/rpm").join(file);
        printed("sh", &["-n", text(&source)]);
        let script = printed("rpm", &["-qp", "--qf", &format!("%{{{tag}}}"), rpm]);
        assert_eq!(script.trim(), read(&source).trim(), "{scripts}");
    }
    assert!(printed("rpm", &["-K", "--nosignature", rpm]).contains("digests OK"));

    let folder = tempfile::tempdir().expect("a folder");
    let into = text(folder.path());
    let run = |arguments: &[&str]| {
        let own = ["--root", into, "--dbpath", "/rpmdb"];
        printed("rpm", &[own.as_slice(), arguments].concat())
    };
    // rpm changes its root, which only root may do.
    run(&["--initdb"]);
    run(&["-i", "--nodeps", "--noscripts", "--force-debian", rpm]);
    assert_eq!(run(&["-V", "--nodeps", "kvmlet"]), "");
    let shipped = folder.path().join("etc/kvmlet/kvmlet.toml");
    assert_eq!(read(&shipped), read(root().join("packaging/kvmlet.toml")));
    fs::write(&shipped, "# edited\n").expect("it can be written");
    run(&["-e", "--nodeps", "--noscripts", "kvmlet"]);
    let saved = folder.path().join("etc/kvmlet/kvmlet.toml.rpmsave");
    assert_eq!(read(saved), "# edited\n");
    assert!(!folder.path().join("usr/bin/kvmlet").exists());
}

/// Man pages by the names of their files, each with where it is and how it is shown.
type Manual = BTreeMap<String, (PathBuf, String)>;

fn manual() -> &'static Manual {
    static PAGES: OnceLock<(Manual, tempfile::TempDir)> = OnceLock::new();
    let (pages, _) = PAGES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let place = text(folder.path());
        printed(env!("CARGO_BIN_EXE_kvmlet"), &["manual", "--to", place]);
        let pages = fs::read_dir(folder.path())
            .expect("it can be read")
            .map(|entry| entry.expect("it can be read").path())
            .map(|path| {
                let output = ended("man", &["--warnings", "-l", text(&path)]);
                let complaints = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{}: {complaints}", path.display());
                assert_eq!(complaints, "", "{}", path.display());
                let shown = String::from_utf8(output.stdout).expect("it is text");
                let name = path.file_name().and_then(|name| name.to_str());
                (name.expect("text").to_owned(), (path, shown))
            })
            .collect();
        (pages, folder)
    });
    pages
}

#[test]
fn every_command_has_a_page_with_every_option_and_what_is_below_it() {
    fn walk(command: &Arguments, above: &str, expected: &mut BTreeSet<String>) {
        let name = match above {
            "" => command.get_name().to_owned(),
            above => format!("{above}-{}", command.get_name()),
        };
        let file = format!("{name}.1");
        let (_, page) = manual().get(&file).unwrap_or_else(|| panic!("no {file}"));
        for argument in command.get_arguments().filter(|one| !one.is_hide_set()) {
            if let Some(long) = argument.get_long() {
                assert!(page.contains(&format!("--{long}")), "--{long} in {file}");
            }
        }
        for below in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            if below.get_name() == "help" {
                continue;
            }
            let mention = format!("{name}-{}(1)", below.get_name());
            assert!(page.contains(&mention), "{mention} in {file}");
            walk(below, &name, expected);
        }
        expected.insert(file);
    }
    let mut expected = BTreeSet::from(["kvmlet.8".to_owned(), "kvmlet.toml.5".to_owned()]);
    let mut command = kvmlet::cli::Cli::command();
    command.build();
    walk(&command, "", &mut expected);
    assert_eq!(manual().keys().cloned().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn every_key_and_section_of_the_configuration_is_in_its_page() {
    let (_, page) = &manual()["kvmlet.toml.5"];
    let lines: BTreeSet<&str> = page.lines().map(str::trim).collect();
    let mut keys = 0;
    for line in read(root().join("packaging/kvmlet.toml")).lines() {
        let (line, mark) = match line.strip_prefix("# ") {
            Some(line) => (line, "    (example)"),
            None => (line, ""),
        };
        let is_key = line.split_once(" = ").is_some_and(|(key, _)| {
            !key.contains(|letter: char| !letter.is_ascii_lowercase() && letter != '_')
        });
        if is_key {
            // One is longer than a line.
            let whole = format!("{line}{mark}");
            let shown = lines
                .iter()
                .any(|one| *one == whole || one.len() > 150 && whole.starts_with(*one));
            assert!(shown, "{whole}");
            keys += 1;
        } else if line.starts_with('[') {
            assert!(lines.contains(line), "{line}");
        }
    }
    assert!(keys > 80, "{keys}");
}

#[test]
fn the_daemons_page_has_its_options_signals_exit_codes_and_files() {
    let (_, page) = &manual()["kvmlet.8"];
    for part in [
        "--config FILE",
        "--simulate",
        "SIGHUP",
        "kvmlet.socket",
        "EXIT STATUS",
        "CREDENTIALS_DIRECTORY",
        "/etc/kvmlet/kvmlet.toml",
        "/run/kvmlet/kvmlet.sock",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let unit = read(root().join("systemd/kvmlet.service"));
    let code = unit
        .lines()
        .find_map(|line| line.strip_prefix("RestartPreventExitStatus="))
        .expect("the unit does not repeat a bad configuration");
    assert!(
        page.lines()
            .any(|line| line.split_whitespace().next() == Some(code))
    );
}
