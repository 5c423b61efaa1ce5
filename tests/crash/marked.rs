//! What the runbook says of steps: which there are, and which is the point of no
//! return of an operation.

const RUNBOOK: &str = include_str!("../../docs/operations.md");

/// The steps that the runbook describes.
pub fn described() -> impl Iterator<Item = &'static str> {
    let table = RUNBOOK.split("| step |").nth(1).expect("a table of steps");
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| row.split('`').nth(1).expect("a step's name"))
}

/// Whether the runbook marks a step as the point of no return in an operation's row.
pub fn marked(row: &str, step: &str) -> bool {
    let head = format!("| {row} |");
    let row = RUNBOOK
        .lines()
        .find(|line| line.starts_with(&head))
        .unwrap_or_else(|| panic!("the runbook has no row {head}"));
    row.contains(&format!("**`{step}`**"))
}
