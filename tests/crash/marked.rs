//! Where the runbook marks the point of no return of each operation.

use super::scenario::Scenario;

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

/// Whether the runbook says that an operation whose steps are `steps` can still be
/// cancelled at `step`: no step until there is marked.
pub fn can_be_cancelled(scenario: Scenario, steps: &[String], step: &str) -> bool {
    let head = format!("| {} |", scenario.row());
    let row = RUNBOOK
        .lines()
        .find(|line| line.starts_with(&head))
        .unwrap_or_else(|| panic!("the runbook has no row {head}"));
    let until = steps.iter().position(|known| known == step).unwrap();
    steps[..=until]
        .iter()
        .all(|step| !row.contains(&format!("**`{step}`**")))
}
