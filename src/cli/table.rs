//! Text in columns: many things as a [`Table`], one thing as a [`Sheet`].
//!
//! Invariant: each cell is cleaned on its way in.

use crate::cli::output::clean;
use std::fmt::{self, Write as _};
use unicode_width::UnicodeWidthStr;

/// Columns as wide as their widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[&str]) -> Self {
        let head = columns.iter().map(|&name| name.to_owned()).collect();
        Self { rows: vec![head] }
    }

    /// Adds a row; its cells are cleaned.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells = cells.into_iter().map(|cell| clean(&cell)).collect();
        self.rows.push(cells);
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.width()).max().unwrap_or(0)
            })
            .collect();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.width()));
            }
            if number > 0 {
                f.write_char('\n')?;
            }
            f.write_str(line.trim_end())?;
        }
        Ok(())
    }
}

/// One thing with all that is known about it: a line per value, then tables.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    lines: Vec<(&'static str, String)>,
    tables: Vec<(&'static str, Table)>,
}

impl Sheet {
    /// Adds a value, unless it is empty. Further lines of it are indented.
    pub(crate) fn add(&mut self, label: &'static str, value: impl fmt::Display) {
        let value = value.to_string();
        for (number, line) in value.lines().enumerate() {
            let label = if number == 0 { label } else { "" };
            self.lines.push((label, clean(line)));
        }
    }

    /// Adds a table below, unless it is empty.
    pub(crate) fn table(&mut self, title: &'static str, table: Table) {
        if !table.is_empty() {
            self.tables.push((title, table));
        }
    }
}

impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.lines.iter().map(|(label, _)| label.len());
        let width = labels.max().unwrap_or(0);
        for (label, value) in &self.lines {
            writeln!(f, "{}", format!("{label:width$}  {value}").trim_end())?;
        }
        for (title, table) in &self.tables {
            writeln!(f, "\n{title}:")?;
            for line in table.to_string().lines() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(["a".into(), "RUNNING".into()]);
        table.row(["日本語の名前".into(), "x".into()]);
        assert_eq!(
            table.to_string(),
            "NAME          STATE\na             RUNNING\n日本語の名前  x"
        );
    }

    #[test]
    fn a_cell_can_not_command_the_terminal() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\x1b[2J\u{9b}b\u{202e}c\nd".into()]);
        assert_eq!(table.to_string(), "NAME\na[2Jbc d");
    }

    #[test]
    fn a_sheet_leaves_out_what_is_empty_and_indents_further_lines() {
        let mut sheet = Sheet::default();
        sheet.add("id", "1");
        sheet.add("none", "");
        sheet.add("description", "one\ntwo");
        assert_eq!(
            sheet.to_string(),
            "id           1\ndescription  one\n             two\n"
        );
    }
}
