//! The pages of the commands: kvmlet(1), kvmlet-vm(1), kvmlet-vm-create(1), …

use super::Page;
use clap::Command;
use clap_mangen::Man;
use std::io;

/// A page for each command that is shown, by the name of its file.
pub(super) fn pages(command: &Command, source: &str) -> io::Result<Vec<(String, String)>> {
    let mut root = command.clone().disable_help_subcommand(true);
    root.build();
    let mut pages = Vec::new();
    add(&root, None, source, &mut pages)?;
    Ok(pages)
}

fn add(
    command: &Command,
    above: Option<&str>,
    source: &str,
    pages: &mut Vec<(String, String)>,
) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or("kvmlet");
    pages.push((format!("{name}.1"), page(command, above, source)?));
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
        .try_for_each(|below| add(below, Some(name), source, pages))
}

fn page(command: &Command, above: Option<&str>, source: &str) -> io::Result<String> {
    let man = Man::new(command.clone()).source(source);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    page.extend(Page::after_title().finish().into_bytes());
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    let mut rest = Page::rest();
    let after = command
        .get_after_long_help()
        .or_else(|| command.get_after_help());
    if let Some(after) = after {
        add_rest(&mut rest, &after.to_string());
    }
    let mut others = vec!["kvmlet(8)", "kvmlet.toml(5)"];
    let above = above.map(|name| format!("{name}(1)"));
    if let Some(above) = &above {
        others.insert(0, above);
    }
    rest.see_also(&others);
    page.extend(rest.finish().into_bytes());
    String::from_utf8(page).map_err(io::Error::other)
}

/// What stands below the options in the help: lines that end in a colon are headings,
/// those that are indented stay as they are.
fn add_rest(page: &mut Page, text: &str) {
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.is_empty() {
            continue;
        }
        if line.starts_with(' ') {
            let mut kept = vec![line];
            while let Some(line) = lines.next_if(|line| line.starts_with(' ')) {
                kept.push(line);
            }
            let indent = kept
                .iter()
                .map(|line| line.len() - line.trim_start().len())
                .min();
            page.lines(kept.iter().map(|line| &line[indent.unwrap_or(0)..]));
        } else if let Some(heading) = line
            .strip_suffix(':')
            .filter(|_| lines.peek().is_some_and(|next| next.starts_with(' ')))
        {
            page.section(&heading.to_uppercase());
        } else {
            let mut paragraph = line.to_owned();
            while let Some(line) = lines.next_if(|line| !line.is_empty() && !line.starts_with(' '))
            {
                paragraph.push(' ');
                paragraph.push_str(line);
            }
            page.paragraph(&paragraph);
        }
    }
}
