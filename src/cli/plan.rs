//! What a request would do, as a table.

use crate::cli::output::{self, Output};
use crate::cli::table::Table;
use crate::proto::v1::{Plan, PlanAction};

/// A plan as text: a line per thing, then what the caller should know.
pub(crate) fn text(out: &Output, plan: &Plan) -> String {
    let mut table = Table::new(&["ACTION", "KIND", "ID", "POOL", "SIZE", "WHEN", "WHAT"]);
    for item in &plan.items {
        let action = match item.action() {
            PlanAction::Unspecified => "?",
            PlanAction::Make => "make",
            PlanAction::Change => "change",
            PlanAction::Delete => "delete",
            PlanAction::Keep => "keep",
        };
        table.row([
            action.to_owned(),
            item.kind.clone(),
            item.id.clone(),
            item.pool.clone(),
            output::size(item.size_bytes),
            out.relative(item.time),
            item.description.clone(),
        ]);
    }
    let mut text = table.to_string();
    for note in &plan.notes {
        text.push_str("\nnote: ");
        text.push_str(&output::clean(note));
    }
    text
}
