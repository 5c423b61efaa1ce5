//! What kvmlet is built from, as far as it can be told without further tools:
//! `scripts/audit` looks closer.

use proc_macro2::{TokenStream, TokenTree};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn table(name: &str) -> toml::Table {
    let text = fs::read_to_string(root().join(name)).expect("it is there");
    text.parse().expect("it is TOML")
}

/// The crates that are built on Linux, with their licences, for tests too.
fn licences() -> BTreeMap<String, String> {
    #[allow(clippy::disallowed_methods)] // a test asks cargo
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--all-features", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let built: BTreeSet<String> = list(&told["resolve"]["nodes"])
        .iter()
        .map(|node| text(&node["id"]))
        .collect();
    let found: BTreeMap<String, String> = list(&told["packages"])
        .iter()
        .filter(|package| built.contains(&text(&package["id"])))
        .map(|package| (text(&package["name"]), text(&package["license"])))
        .collect();
    assert!(found.len() > 200, "{}", found.len());
    found
}

/// Whether a licence expression can be met by what is allowed. `AND` binds closer than
/// `OR`; a slash is an old way to write `OR`.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let text = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let mut words = text.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<String>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words, allowed);
        return words.next() == Some(")") && met;
    }
    let mut licence = words.next().unwrap_or_default().to_owned();
    if words.next_if_eq(&"WITH").is_some() {
        licence += &format!(" WITH {}", words.next().unwrap_or_default());
    }
    allowed.contains(&licence)
}

fn strings(value: &toml::Value) -> BTreeSet<String> {
    let list = value.as_array().expect("a list").iter();
    list.map(|value| value.as_str().expect("a string").to_owned())
        .collect()
}

#[test]
fn every_crate_is_of_the_registry_and_has_its_hash() {
    let lock = table("Cargo.lock");
    let packages = lock["package"].as_array().expect("a list");
    let mut sources = BTreeSet::new();
    for package in packages {
        let of = |key: &str| package.get(key).and_then(toml::Value::as_str);
        let name = of("name").expect("a name");
        if name == "kvmlet" {
            assert_eq!(of("source"), None);
            continue;
        }
        sources.insert(of("source").unwrap_or(name));
        let hash = of("checksum").unwrap_or_default();
        assert!(hash.len() == 64, "{name} has no hash");
    }
    assert_eq!(sources.len(), 1, "{sources:?}");
    assert!(
        sources
            .iter()
            .all(|source| source.starts_with("registry+https://"))
    );
}

#[test]
fn every_licence_is_one_that_deny_toml_allows() {
    let deny = table("deny.toml");
    let allowed = strings(&deny["licenses"]["allow"]);
    let mut exceptions = BTreeMap::new();
    for exception in deny["licenses"]["exceptions"].as_array().expect("a list") {
        let name = exception["crate"].as_str().expect("a name");
        exceptions.insert(name.to_owned(), strings(&exception["allow"]));
    }
    let found = licences();
    for (name, licence) in &found {
        let own = exceptions.get(name).unwrap_or(&allowed);
        assert!(is_met(licence, own), "{name} is under {licence:?}");
    }
    for name in exceptions.keys() {
        assert!(found.contains_key(name), "{name} needs no exception");
    }
}

#[test]
fn no_crate_is_built_that_deny_toml_bans() {
    let deny = table("deny.toml");
    let found = licences();
    let bans = deny["bans"]["deny"].as_array().expect("a list");
    assert!(bans.len() > 3);
    for ban in bans {
        let name = ban["crate"].as_str().expect("a name");
        assert!(!found.contains_key(name), "{name} is built");
    }
}

#[test]
fn a_licence_expression_is_met_by_its_parts() {
    let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Zlib"];
    let allowed = allowed.map(str::to_owned).into();
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("GPL-3.0 OR Zlib", true),
        ("MIT AND GPL-3.0", false),
        ("MIT OR GPL-3.0 AND BSD-3-Clause", true),
        ("(MIT OR GPL-3.0) AND BSD-3-Clause", false),
        ("(MIT OR GPL-3.0) AND (Zlib)", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("MIT MIT", false),
        ("", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression:?}");
    }
}

/// Lines of the words that make or allow code that the compiler can't vouch for.
fn unsafe_lines(tokens: TokenStream, lines: &mut Vec<usize>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) if word == "unsafe" || word == "unsafe_code" => {
                lines.push(word.span().start().line);
            }
            TokenTree::Group(group) => unsafe_lines(group.stream(), lines),
            _ => {}
        }
    }
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn unsafe_is_nowhere_but_in_one_file_in_tests_neither() {
    let mut files = vec![root().join("build.rs")];
    for folder in ["src", "tests", "benches", "examples"] {
        rust_files(&root().join(folder), &mut files);
    }
    assert!(files.len() > 200, "{}", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source is text");
        let tokens: TokenStream = text.parse().expect("a source can be read");
        let mut lines = Vec::new();
        unsafe_lines(tokens, &mut lines);
        if !lines.is_empty() {
            found.push((file, lines));
        }
    }
    let files: Vec<_> = found.iter().map(|(file, _)| file.as_path()).collect();
    assert_eq!(files, [root().join("src/libvirt/ffi.rs")], "{found:?}");
}
