//! The list of what the program is made of, as `scripts/sbom` writes it.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn printed(program: &str, arguments: &[&str]) -> Vec<u8> {
    #[allow(clippy::disallowed_methods)] // a test has its own tools
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

/// The crates that the program is built from, by name and version: what it depends on
/// other than for tests and build scripts, and so on.
fn built() -> BTreeSet<(String, String)> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let arguments = [
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        "--filter-platform",
        &target,
    ];
    let told: Value = serde_json::from_slice(&printed(env!("CARGO"), &arguments)).expect("JSON");
    let nodes: BTreeMap<&str, &Value> = list(&told["resolve"]["nodes"])
        .iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let mut wanted = vec![text(&told["resolve"]["root"])];
    let mut seen = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in list(&nodes[id]["deps"]) {
            if list(&dependency["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"].is_null())
            {
                wanted.push(text(&dependency["pkg"]));
            }
        }
    }
    list(&told["packages"])
        .iter()
        .filter(|package| seen.contains(text(&package["id"])))
        .map(|package| {
            (
                text(&package["name"]).into(),
                text(&package["version"]).into(),
            )
        })
        .filter(|(name, _)| name != "kvmlet")
        .collect()
}

#[test]
#[ignore = "needs cargo-cyclonedx (scripts/setup --audit); scripts/audit runs it"]
fn it_lists_each_crate_of_the_program_with_hash_and_licence_and_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str| {
        let file = folder.path().join(name);
        printed("scripts/sbom", &[file.to_str().expect("it is text")]);
        fs::read(file).expect("it was written")
    };
    let written = write("one");
    assert_eq!(written, write("two"), "the same sources, the same bytes");
    let sbom: Value = serde_json::from_slice(&written).expect("it is JSON");
    assert_eq!(sbom["bomFormat"], "CycloneDX");
    assert_eq!(sbom["specVersion"], "1.5");
    assert_eq!(sbom["metadata"]["component"]["name"], "kvmlet");
    assert_eq!(
        sbom["metadata"]["component"]["version"],
        env!("CARGO_PKG_VERSION")
    );

    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("it is there");
    let lock: toml::Table = lock.parse().expect("it is TOML");
    let of = |package: &toml::Value, key: &str| {
        let value = package.get(key).and_then(toml::Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let hashes: BTreeMap<(String, String), String> = lock["package"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|package| {
            let name = (of(package, "name"), of(package, "version"));
            (name, of(package, "checksum"))
        })
        .collect();
    let mut listed = BTreeSet::new();
    for component in list(&sbom["components"]) {
        let name: (String, String) = (
            text(&component["name"]).into(),
            text(&component["version"]).into(),
        );
        let purl = format!("pkg:cargo/{}@{}", name.0, name.1);
        assert_eq!(component["purl"], purl.as_str());
        assert_eq!(component["hashes"][0]["alg"], "SHA-256");
        assert_eq!(
            component["hashes"][0]["content"],
            hashes[&name].as_str(),
            "{purl}"
        );
        assert!(!list(&component["licenses"]).is_empty(), "{purl}");
        listed.insert(name);
    }
    let names: BTreeSet<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains("tonic") && names.contains("virt"));
    for other in ["proptest", "rcgen", "protox", "tonic-prost-build"] {
        assert!(!names.contains(other), "{other} is not in the program");
    }
    assert_eq!(listed, built());
}
