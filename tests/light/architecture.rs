//! Holds the sources against the table of layers in `ARCHITECTURE.md`, which is
//! read here: what the table does not allow is a violation, told with file and
//! line.
//!
//! The sources are taken apart by Rust's own lexer, so comments and strings don't
//! count and what stands inside a macro's brackets does. A path is completed by
//! the imports of its module (`process::exit` after `use std::process` is
//! `std::process::exit`), and `super` and `self` are resolved. Code under
//! `#[cfg(test)]` may use what it needs.
//!
//! It does not see types: what a value's methods do is not its business.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file, in lines.
const LONGEST: usize = 600;

/// Files that are longer, with what they may come to: they may shrink, and leave
/// the list when they do.
const LONGER: &[(&str, usize)] = &[];

/// What of the standard library is I/O or the clock: not for values.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime::now",
];

/// Ways to start a process.
const PROCESSES: &[&str] = &["std::process::Command", "tokio::process"];

/// Ways to make a status.
const STATUSES: &[&str] = &[
    "new",
    "with_details",
    "with_details_and_metadata",
    "with_error_details",
    "with_error_details_and_metadata",
    "with_error_details_vec",
    "with_error_details_vec_and_metadata",
    "with_metadata",
    "from_error",
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// Something that the table or a rule does not allow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A row of the table: what a layer may use, of kvmlet and of others.
#[derive(Debug, Clone)]
struct Layer {
    parts: BTreeSet<String>,
    crates: BTreeSet<String>,
}

type Layers = BTreeMap<String, Layer>;

/// A path that a source names, from its root, with its line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    path: Vec<String>,
    line: usize,
}

/// What was found in one file.
#[derive(Debug, Default)]
struct Source {
    /// Paths outside of tests, each from `crate` or a crate's name.
    named: Vec<Named>,
    /// Lines of each word outside of tests.
    words: HashMap<String, Vec<usize>>,
    /// Files of modules that are only for tests.
    tests: Vec<String>,
}

/// A module while it is read: its place, and what its imports mean.
#[derive(Debug, Clone, Default)]
struct Scope {
    module: Vec<String>,
    imports: HashMap<String, Vec<String>>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All sources, by their path from the project's root.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("src can be read") {
            let path = entry.expect("src can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(root()).expect("it is below the root");
                let text = fs::read_to_string(&path).expect("a source is text");
                found.insert(name.to_string_lossy().into_owned(), text);
            }
        }
    }
    assert!(found.len() > 50, "the sources are there");
    found
}

/// The module that a file is: `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`.
fn module(file: &str) -> Vec<String> {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if matches!(
        module.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        module.pop();
    }
    module
}

/// Names of the crates that the project depends on, as code spells them.
fn crates() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("there is a Cargo.toml");
    let manifest: toml::Table = text.parse().expect("Cargo.toml is TOML");
    let mut names: BTreeSet<String> = ["std", "core", "alloc"].map(str::to_owned).into();
    let dependencies = manifest["dependencies"].as_table().expect("it is a table");
    names.extend(dependencies.keys().map(|name| name.replace('-', "_")));
    names
}

/// The table under "Layers" in `ARCHITECTURE.md`.
fn layers() -> Layers {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there");
    read_layers(&text)
}

fn read_layers(text: &str) -> Layers {
    let mut layers = Layers::new();
    let table = text
        .lines()
        .skip_while(|line| !line.starts_with("| layer |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    for row in table {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        let [names, parts, crates, _] = cells[..] else {
            panic!("four cells: {row}");
        };
        for name in code_words(names) {
            let layer = Layer {
                parts: code_words(parts).into_iter().collect(),
                crates: code_words(crates).into_iter().collect(),
            };
            assert!(layers.insert(name, layer).is_none(), "once each: {row}");
        }
    }
    layers
}

/// What stands between backticks.
fn code_words(text: &str) -> Vec<String> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Takes a source apart.
fn read(file: &str, text: &str, crates: &BTreeSet<String>) -> Source {
    let tokens: TokenStream = text
        .parse()
        .unwrap_or_else(|error| panic!("{file} can't be read: {error}"));
    let mut source = Source::default();
    let scope = Scope {
        module: module(file),
        imports: HashMap::new(),
    };
    walk(tokens, scope, crates, &mut source);
    source
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn word(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<&Group> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

/// Whether `#` at `index` begins `#[cfg(test)]`.
fn is_cfg_test(tokens: &[TokenTree], index: usize) -> bool {
    is_punct(tokens.get(index), '#')
        && group(tokens.get(index + 1), Delimiter::Bracket)
            .is_some_and(|group| group.stream().to_string().replace(' ', "") == "cfg(test)")
}

/// The index after the item that begins at `index`: after its braces or its
/// semicolon, whichever is first.
fn after_item(tokens: &[TokenTree], index: usize) -> usize {
    let rest = &tokens[index..];
    let end = rest.iter().position(|token| {
        is_punct(Some(token), ';') || group(Some(token), Delimiter::Brace).is_some()
    });
    end.map_or(tokens.len(), |end| index + end + 1)
}

/// Reads the tokens of one module, and those of the modules inside it.
fn walk(tokens: TokenStream, mut scope: Scope, crates: &BTreeSet<String>, source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    imports(&tokens, &mut scope);
    paths(&tokens, &scope, crates, source);
}

/// Notes what the `use` lines of a module mean, those inside functions too.
fn imports(tokens: &[TokenTree], scope: &mut Scope) {
    let mut index = 0;
    while index < tokens.len() {
        if is_cfg_test(tokens, index) {
            index = after_item(tokens, index + 2);
            continue;
        }
        match word(tokens.get(index)).as_deref() {
            // A module of this name hides a crate of the same name.
            Some("mod") => {
                if let Some(name) = word(tokens.get(index + 1)) {
                    let mut path = vec!["crate".to_owned()];
                    path.extend_from_slice(&scope.module);
                    path.push(name.clone());
                    scope.imports.insert(name, path);
                }
                index = after_item(tokens, index);
                continue;
            }
            Some("use") => {
                let end = after_use(tokens, index);
                let mut leaves = Vec::new();
                use_tree(&tokens[index + 1..end], &[], &mut leaves);
                for leaf in leaves {
                    if let Some(alias) = leaf.alias {
                        let path = absolute(&leaf.path, scope);
                        scope.imports.insert(alias, path);
                    }
                }
                index = end;
                continue;
            }
            _ => {}
        }
        if let Some(TokenTree::Group(group)) = tokens.get(index) {
            let inner: Vec<TokenTree> = group.stream().into_iter().collect();
            imports(&inner, scope);
        }
        index += 1;
    }
}

fn after_use(tokens: &[TokenTree], index: usize) -> usize {
    let end = tokens[index..]
        .iter()
        .position(|token| is_punct(Some(token), ';'));
    end.map_or(tokens.len(), |end| index + end)
}

/// One leaf of a `use` tree.
struct Leaf {
    path: Vec<String>,
    line: usize,
    /// The name that it has from here on; none for `*` and `_`.
    alias: Option<String>,
}

fn use_tree(tokens: &[TokenTree], prefix: &[String], leaves: &mut Vec<Leaf>) {
    for branch in tokens.split(|token| is_punct(Some(token), ',')) {
        let mut path = prefix.to_vec();
        let mut alias = None;
        let mut line = 0;
        let mut index = 0;
        let mut forked = false;
        while let Some(token) = branch.get(index) {
            match token {
                TokenTree::Ident(ident) if ident == "as" => {
                    alias = word(branch.get(index + 1)).filter(|name| name != "_");
                    index += 1;
                }
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    if ident != "self" || path.is_empty() {
                        path.push(ident.to_string());
                    }
                    alias = path.last().cloned();
                }
                TokenTree::Group(group) => {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    use_tree(&inner, &path, leaves);
                    forked = true;
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    line = punct.span().start().line;
                    alias = None;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            index += 1;
        }
        if !forked && !path.is_empty() && line > 0 {
            leaves.push(Leaf { path, line, alias });
        }
    }
}

/// A path from its root: `crate`, or the name of a crate or of something local.
fn absolute(path: &[String], scope: &Scope) -> Vec<String> {
    let from_here = |up: usize, skip: usize| {
        let keep = scope.module.len().saturating_sub(up);
        let mut full = vec!["crate".to_owned()];
        full.extend_from_slice(&scope.module[..keep]);
        full.extend_from_slice(&path[skip..]);
        full
    };
    match path.first().map(String::as_str) {
        Some("self") => from_here(0, 1),
        Some("super") => {
            let up = path.iter().take_while(|part| *part == "super").count();
            from_here(up, up)
        }
        Some(first) => match scope.imports.get(first) {
            Some(import) if first != "crate" => [&import[..], &path[1..]].concat(),
            _ => path.to_vec(),
        },
        None => Vec::new(),
    }
}

/// Notes every path and word outside of tests.
fn paths(tokens: &[TokenTree], scope: &Scope, crates: &BTreeSet<String>, source: &mut Source) {
    let mut note = |path: &[String], line: usize, scope: &Scope| {
        let path = absolute(path, scope);
        let root = path.first().map(String::as_str).unwrap_or_default();
        if root == "crate" || crates.contains(root) {
            source.named.push(Named { path, line });
        }
    };
    let mut inner = Vec::new();
    let mut words = Vec::new();
    let mut tests = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        if is_cfg_test(tokens, index) {
            let end = after_item(tokens, index + 2);
            let item = &tokens[index + 2..end];
            let at = item
                .iter()
                .position(|token| word(Some(token)).as_deref() == Some("mod"));
            if let Some(name) = at.and_then(|at| word(item.get(at + 1)))
                && is_punct(item.last(), ';')
            {
                let path = [&scope.module[..], &[name]].concat().join("/");
                tests.push(format!("src/{path}"));
            }
            index = end;
            continue;
        }
        match &tokens[index] {
            TokenTree::Ident(ident) if ident == "mod" => {
                if let (Some(name), Some(body)) = (
                    word(tokens.get(index + 1)),
                    group(tokens.get(index + 2), Delimiter::Brace),
                ) {
                    inner.push((Some(name), body.stream()));
                    index += 2;
                }
            }
            TokenTree::Ident(ident) if ident == "use" => {
                let end = after_use(tokens, index);
                let mut leaves = Vec::new();
                use_tree(&tokens[index + 1..end], &[], &mut leaves);
                // The import itself says what it means: no alias stands in it.
                let bare = Scope {
                    module: scope.module.clone(),
                    imports: HashMap::new(),
                };
                for leaf in leaves {
                    let first = &leaf.path[0];
                    let local = scope.imports.get(first);
                    // `use model::x` below `mod model;` is our own module.
                    if local.is_some_and(|path| path.len() > 1 && path[0] == "crate") {
                        note(&leaf.path, leaf.line, scope);
                    } else {
                        note(&leaf.path, leaf.line, &bare);
                    }
                }
                index = end;
            }
            TokenTree::Ident(ident) => {
                let line = ident.span().start().line;
                let mut path = vec![ident.to_string()];
                words.push((ident.to_string(), line));
                while is_punct(tokens.get(index + 1), ':')
                    && is_punct(tokens.get(index + 2), ':')
                    && let Some(next) = word(tokens.get(index + 3))
                {
                    words.push((next.clone(), line));
                    path.push(next);
                    index += 3;
                }
                // A single word is a path only where an import made it one, and
                // that import was noted; `x.y` and `x: T` are none at all.
                if path.len() > 1 {
                    note(&path, line, scope);
                }
            }
            TokenTree::Group(group) => inner.push((None, group.stream())),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
        index += 1;
    }
    for (word, line) in words {
        source.words.entry(word).or_default().push(line);
    }
    source.tests.extend(tests);
    for (name, stream) in inner {
        match name {
            Some(name) => {
                let mut deeper = scope.clone();
                deeper.module.push(name);
                walk(stream, deeper, crates, source);
            }
            None => {
                let tokens: Vec<TokenTree> = stream.into_iter().collect();
                paths(&tokens, scope, crates, source);
            }
        }
    }
}

fn begins_with(path: &[String], prefix: &str) -> bool {
    let prefix: Vec<&str> = prefix.split("::").collect();
    path.len() >= prefix.len() && path.iter().zip(&prefix).all(|(a, b)| a == b)
}

/// What in one file the table and the rules don't allow.
fn violations(file: &str, source: &Source, layers: &Layers) -> Vec<Violation> {
    let mut found = BTreeSet::new();
    let mut tell = |line: usize, what: String| {
        found.insert(Violation {
            file: file.to_owned(),
            line,
            what,
        });
    };
    let part = module(file).first().cloned().unwrap_or_default();
    // The crate's roots have no part; `run` names every part, and is the only one.
    let layer = match part.as_str() {
        "" | "run" => None,
        _ => Some(
            layers
                .get(&part)
                .unwrap_or_else(|| panic!("{file}: the table has no layer `{part}`")),
        ),
    };
    for Named { path, line } in &source.named {
        let whole = path.join("::");
        if let Some(layer) = layer {
            let (root, next) = (path[0].as_str(), path.get(1).map(String::as_str));
            let allowed = match (root, next) {
                ("crate", Some(other)) => other == part || layer.parts.contains(other),
                // `use crate::*` would bring in every part.
                ("crate", None) => false,
                (root, _) => layer.crates.contains(root),
            };
            if !allowed {
                tell(*line, format!("`{part}` may not use {whole}"));
            }
        }
        if part == "model" && IMPURE.iter().any(|impure| begins_with(path, impure)) {
            tell(
                *line,
                format!("`model` does no I/O and reads no clock: {whole}"),
            );
        }
        if part == "service" && begins_with(path, "std::process") {
            tell(*line, format!("`service` starts no process: {whole}"));
        }
        if file != "src/storage/command.rs"
            && PROCESSES.iter().any(|process| begins_with(path, process))
        {
            tell(
                *line,
                format!("only storage/command starts processes: {whole}"),
            );
        }
        if file != "src/grpc/status.rs"
            && begins_with(path, "tonic::Status")
            && path
                .get(2)
                .is_some_and(|call| STATUSES.contains(&call.as_str()))
        {
            tell(*line, format!("only grpc/status makes a status: {whole}"));
        }
    }
    let words = [
        ("unsafe", "src/libvirt/ffi.rs"),
        ("spawn_blocking", "src/service/gate.rs"),
        ("block_in_place", "src/service/gate.rs"),
    ];
    for (word, only) in words {
        for line in source.words.get(word).into_iter().flatten() {
            if file != only {
                tell(*line, format!("`{word}` only in {only}"));
            }
        }
    }
    found.into_iter().collect()
}

/// All sources without those of tests.
fn read_all() -> BTreeMap<String, Source> {
    let crates = crates();
    let mut read_in: BTreeMap<String, Source> = sources()
        .iter()
        .map(|(file, text)| (file.clone(), read(file, text, &crates)))
        .collect();
    let tests: Vec<String> = read_in
        .values()
        .flat_map(|source| source.tests.clone())
        .collect();
    read_in.retain(|file, _| {
        !tests.iter().any(|test| {
            file.strip_prefix(test.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        })
    });
    read_in
}

fn lines(violations: &[Violation]) -> String {
    violations
        .iter()
        .map(|violation| format!("\n  {violation}"))
        .collect()
}

#[test]
fn every_layer_uses_only_what_the_table_allows() {
    let layers = layers();
    let found: Vec<Violation> = read_all()
        .iter()
        .flat_map(|(file, source)| violations(file, source, &layers))
        .collect();
    assert!(
        found.is_empty(),
        "{} violations:{}",
        found.len(),
        lines(&found)
    );
}

#[test]
fn the_table_names_only_layers_and_crates_that_there_are() {
    let (layers, crates) = (layers(), crates());
    let there: BTreeSet<String> = sources()
        .keys()
        .filter_map(|file| module(file).first().cloned())
        .collect();
    for (name, layer) in &layers {
        for part in layer.parts.iter().chain([name]) {
            assert!(there.contains(part), "{name}: no part `{part}`");
        }
        for dependency in &layer.crates {
            assert!(crates.contains(dependency), "{name}: no `{dependency}`");
        }
    }
    for part in there.iter().filter(|part| *part != "run") {
        assert!(
            layers.contains_key(part),
            "the table has no row for `{part}`"
        );
    }
}

#[test]
fn every_file_is_short_and_says_what_it_is_for() {
    let mut wrong = Vec::new();
    for (file, text) in &sources() {
        let length = text.lines().count();
        let longer = LONGER.iter().find(|(name, _)| name == file);
        match longer {
            Some((_, most)) if length > *most => {
                wrong.push(format!("{file}:1: {length} lines, more than its {most}"));
            }
            Some(_) if length <= LONGEST => {
                wrong.push(format!("{file}:1: is short now; strike it from LONGER"));
            }
            None if length > LONGEST => {
                wrong.push(format!("{file}:1: {length} lines, more than {LONGEST}"));
            }
            _ => {}
        }
        if !text.starts_with("//! ") {
            wrong.push(format!("{file}:1: does not begin with what it is for"));
        }
    }
    for (file, _) in LONGER {
        if !Path::new(&root().join(file)).exists() {
            wrong.push(format!("{file}:1: is gone; strike it from LONGER"));
        }
    }
    let main = fs::read_to_string(root().join("src/main.rs")).expect("it is there");
    if main.lines().count() >= 60 {
        wrong.push("src/main.rs:1: does not fit on a screen".to_owned());
    }
    assert!(wrong.is_empty(), "\n  {}", wrong.join("\n  "));
}

/// What is wrong with a text that stands in `file`, as `line: what`.
fn planted(file: &str, text: &str) -> Vec<String> {
    let table = "
| layer | parts | crates | never |
|---|---|---|---|
| `model` |  | `std`, `uuid` | |
| `service` | `model`, `libvirt` | `std`, `tokio` | |
| `grpc` | `service` | `std`, `tonic` | |
";
    let crates = crates();
    violations(file, &read(file, text, &crates), &read_layers(table))
        .into_iter()
        .map(|violation| format!("{}: {}", violation.line, violation.what))
        .collect()
}

#[test]
fn a_forbidden_import_is_found_with_its_line() {
    let text =
        "//! x\n\nuse std::fmt;\nuse {\n    uuid::Uuid,\n    tokio::{sync::mpsc, task},\n};\n";
    assert_eq!(
        planted("src/model/x.rs", text),
        [
            "6: `model` may not use tokio::sync::mpsc",
            "6: `model` may not use tokio::task"
        ]
    );
}

#[test]
fn a_forbidden_path_in_an_expression_or_a_macro_is_found() {
    let text = "//! x\nfn f() {\n    crate::libvirt::Host::open();\n    vec![super::super::journal::Batch::new()];\n}\n";
    assert_eq!(
        planted("src/grpc/x.rs", text),
        [
            "3: `grpc` may not use crate::libvirt::Host::open",
            "4: `grpc` may not use crate::journal::Batch::new"
        ]
    );
}

#[test]
fn a_path_through_an_import_is_completed() {
    let text = "//! x\nuse std::process;\nuse tokio as t;\nfn f() {\n    process::Command::new(\"x\");\n    t::process::Command::new(\"x\");\n}\n";
    let found = planted("src/service/x.rs", text);
    assert!(
        found.contains(&"5: `service` starts no process: std::process::Command::new".to_owned()),
        "{found:?}"
    );
    assert!(
        found.contains(
            &"6: only storage/command starts processes: tokio::process::Command::new".to_owned()
        ),
        "{found:?}"
    );
}

#[test]
fn the_clock_and_files_are_not_for_the_model() {
    let text = "//! x\nuse std::time::{Duration, Instant};\nfn f() {\n    std::time::SystemTime::now();\n    std::fs::read(\"x\");\n}\n";
    assert_eq!(
        planted("src/model/x.rs", text),
        [
            "2: `model` does no I/O and reads no clock: std::time::Instant",
            "4: `model` does no I/O and reads no clock: std::time::SystemTime::now",
            "5: `model` does no I/O and reads no clock: std::fs::read",
        ]
    );
}

#[test]
fn what_has_one_place_is_found_in_another() {
    let text = "//! x\nuse tonic::Status;\nfn f() {\n    let _ = Status::not_found(\"x\");\n    let _ = unsafe { g() };\n    tokio.spawn_blocking(h);\n}\n";
    assert_eq!(
        planted("src/grpc/x.rs", text),
        [
            "4: only grpc/status makes a status: tonic::Status::not_found",
            "5: `unsafe` only in src/libvirt/ffi.rs",
            "6: `spawn_blocking` only in src/service/gate.rs",
        ]
    );
}

#[test]
fn comments_strings_and_tests_do_not_count() {
    let text = "//! x tokio::spawn\n// use tokio::task;\nconst A: &str = \"crate::libvirt::Host unsafe\";\nstruct B(Uuid);\n#[cfg(test)]\nmod tests {\n    use super::*;\n    use tokio::task;\n    fn f() { unsafe { crate::grpc::x() } }\n}\n";
    assert_eq!(planted("src/model/x.rs", text), [""; 0]);
}

#[test]
fn a_module_of_our_own_is_not_the_crate_of_the_same_name() {
    let text = "//! x\npub mod time;\nfn f() -> time::Timestamp { time::Timestamp(0) }\n";
    assert_eq!(planted("src/model/mod.rs", text), [""; 0]);
}
