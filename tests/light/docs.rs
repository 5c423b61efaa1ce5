//! Holds the documents against the code that they describe: the table of reasons,
//! the table of states, the steps of the plans.
//!
//! What differs is told with the line as it should be.

use kvmlet::model::lifecycle::{Ask, Resting, StateReason, decide};
use kvmlet::model::reason::Reason;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).expect("the document is there")
}

/// The rows of the table that begins with this header, each as its cells.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = text
        .lines()
        .skip_while(|line| *line != header)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    assert!(!rows.is_empty(), "there is a table '{header}'");
    rows
}

fn cells(row: &str) -> Vec<String> {
    row.trim_matches('|')
        .split('|')
        .map(|cell| cell.trim().to_owned())
        .collect()
}

/// Text as Markdown shows it: angle brackets are no tags.
fn escaped(text: &str) -> String {
    text.replace('<', "\\<").replace('>', "\\>")
}

/// What stands between the first backticks of a cell.
fn code(cell: &str) -> String {
    cell.split('`').nth(1).unwrap_or_default().to_owned()
}

/// The Rust sources below a folder.
fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).expect("it can be read") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            texts.push(fs::read_to_string(path).expect("a source is text"));
        }
    }
    texts
}

/// A source without its tests, which stand last.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

#[test]
fn every_reason_is_in_the_table_with_its_code_meaning_and_remedy() {
    let text = document("errors.md");
    let wanted: Vec<String> = Reason::ALL
        .iter()
        .map(|reason| {
            format!(
                "| `{}` | {} | {} | {}. |",
                reason.as_str(),
                reason.code().as_str(),
                escaped(reason.meaning()),
                escaped(reason.remedy().trim_end_matches('.'))
            )
        })
        .collect();
    let found: Vec<&str> = text
        .lines()
        .skip_while(|line| *line != "| reason | code | what it means | what to do |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert_eq!(found, wanted, "\n{}", wanted.join("\n"));
}

#[test]
fn reasons_of_one_code_stand_together() {
    let mut codes: Vec<&str> = Reason::ALL.iter().map(|r| r.code().as_str()).collect();
    codes.dedup();
    let different: BTreeSet<&str> = codes.iter().copied().collect();
    assert_eq!(codes.len(), different.len(), "{codes:?}");
}

#[test]
fn the_keys_of_metadata_are_those_that_the_code_sets() {
    let told: BTreeSet<String> = table(&document("errors.md"), "| key | value |")
        .iter()
        .map(|row| code(&row[0]))
        .collect();
    let mut set: BTreeSet<String> = BTreeSet::new();
    // `libvirt` has a `with` of its own, for XML.
    for part in ["model", "service", "grpc"] {
        for text in sources(&root().join("src").join(part)) {
            for call in [".with(\"", "metadata.insert(\""] {
                let after = without_tests(&text).split(call).skip(1);
                set.extend(after.filter_map(|rest| rest.split('"').next().map(str::to_owned)));
            }
        }
    }
    assert_eq!(told, set);
}

#[test]
fn every_cell_of_the_lifecycle_is_what_decide_says() {
    let text = document("lifecycle.md");
    let states: Vec<&str> = Resting::ALL.iter().map(|state| state.as_str()).collect();
    let header = format!("| request | {} |", states.join(" | "));
    let found = table(&text, &header);
    let wanted: Vec<Vec<String>> = Ask::ALL
        .iter()
        .map(|ask| {
            let cells = Resting::ALL.map(|state| decide(state, *ask).as_str().to_owned());
            [&[ask.as_str().to_owned()], &cells[..]].concat()
        })
        .collect();
    let shown: String = wanted
        .iter()
        .map(|row| format!("| {} |\n", row.join(" | ")))
        .collect();
    assert_eq!(found, wanted, "\n{header}\n{shown}");
}

#[test]
fn every_resting_state_and_every_reason_of_one_is_told() {
    let text = document("lifecycle.md");
    let told: Vec<String> = table(&text, "| resting state | what it is |")
        .iter()
        .map(|row| code(&row[0]))
        .collect();
    assert_eq!(told, Resting::ALL.map(|state| state.as_str().to_owned()));

    let told: BTreeSet<String> = table(&text, "| reason | states | what it means |")
        .iter()
        .map(|row| code(&row[0]))
        .collect();
    // None of its own; the others as they are kept.
    let reasons = [
        StateReason::Operation,
        StateReason::GuestShutdown,
        StateReason::Destroyed,
        StateReason::Crashed,
        StateReason::StartFailed,
        StateReason::PausedOnHost,
        StateReason::IoError,
        StateReason::NoSpace,
        StateReason::HypervisorBusy,
        StateReason::DomainMissing,
        StateReason::HypervisorAway,
        StateReason::CreateFailed,
        StateReason::Deleted,
        StateReason::StartedOnHost,
        StateReason::JournalLost,
        StateReason::HostShutdown,
        StateReason::HostPowerLoss,
        StateReason::HostRestarted,
    ];
    let wanted: BTreeSet<String> = reasons
        .iter()
        .map(|reason| {
            let kept = serde_json::to_value(reason).expect("a reason can be kept");
            kept.as_str().expect("as a word").to_uppercase()
        })
        .collect();
    assert_eq!(told, wanted);
}

/// Every step in the sources: its name, and whether it is a point of no return
/// and may be repeated.
fn steps() -> BTreeSet<(String, bool, bool)> {
    let mut steps = BTreeSet::new();
    for text in sources(&root().join("src/service")) {
        for block in without_tests(&text).split("impl Step for ").skip(1) {
            // To the end of the block: its closing brace is the first at the margin.
            let block = block.split("\n}").next().unwrap_or(block);
            let name = block
                .split("fn name(&self)")
                .nth(1)
                .and_then(|rest| rest.split('"').nth(1))
                .expect("a step has a name");
            let says = |what: &str, value: &str| {
                block.split(what).nth(1).is_some_and(|rest| {
                    rest.split('}')
                        .next()
                        .is_some_and(|body| body.contains(value))
                })
            };
            steps.insert((
                name.to_owned(),
                says("fn is_point_of_no_return", "true"),
                !says("fn is_repeatable", "false"),
            ));
        }
    }
    assert!(steps.len() > 15, "the steps are found");
    steps
}

#[test]
fn every_step_of_a_plan_is_in_the_runbook() {
    let text = document("operations.md");
    let header = "| step | what it does | no way back | what its undo does |";
    let told: BTreeSet<(String, bool, bool)> = table(&text, header)
        .iter()
        .map(|row| {
            (
                code(&row[0]),
                row[2].starts_with("yes"),
                !row[2].contains("not repeated"),
            )
        })
        .collect();
    assert_eq!(told, steps());

    let names: BTreeSet<String> = told.into_iter().map(|(name, _, _)| name).collect();
    for row in table(&text, "| operation | steps |") {
        for name in row[1].split('`').skip(1).step_by(2) {
            assert!(names.contains(name), "{}: no step '{name}'", row[0]);
        }
    }
}

#[test]
fn every_condition_of_the_node_is_in_the_runbook() {
    let text = fs::read_to_string(root().join("src/service/node.rs")).expect("it is there");
    let told: Vec<String> = table(
        &document("operations.md"),
        "| condition | when it is false | what to do |",
    )
    .iter()
    .map(|row| code(&row[0]))
    .collect();
    assert!(told.len() >= 3);
    for name in &told {
        let kind = name.split('/').next().expect("a name has a first part");
        assert!(text.contains(&format!("\"{kind}")), "no condition {name}");
    }
    for kind in [
        "LibvirtReady",
        "JournalWritable",
        "JournalComplete",
        "ClockSane",
        "CertificatesValid",
        "Schedulable",
        "ConfigurationRead",
        "PoolReady",
        "SinkReady",
    ] {
        assert!(text.contains(&format!("\"{kind}")), "{kind} has gone");
    }
    assert_eq!(
        text.matches("condition(\n").count(),
        told.len(),
        "each condition has its row"
    );
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut documents: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    for folder in ["docs", "docs/adr"] {
        for entry in fs::read_dir(root().join(folder)).expect("it can be read") {
            let path = entry.expect("it can be read").path();
            if path.extension().is_some_and(|ext| ext == "md") {
                documents.push(path);
            }
        }
    }
    let mut broken = Vec::new();
    for path in documents {
        let text = fs::read_to_string(&path).expect("a document is text");
        let folder = path.parent().expect("it is in a folder");
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            if !target.contains("://") && !file.is_empty() && !folder.join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
