//! The man pages: kvmlet(1) with a page for each command, kvmlet(8), kvmlet.toml(5).
//!
//! Invariant: a page says nothing of commands, options, keys and defaults by itself: that
//! comes from the arguments that the program reads and from the configuration that it
//! is shipped with.

mod client;
mod configuration;
mod daemon;
mod page;

use super::fault::Fault;
use clap::Command;
use page::Page;
use std::fs;
use std::io;
use std::path::Path;

/// Writes all pages into a folder, which is made: `kvmlet.1`, `kvmlet-vm.1`, …
pub(super) fn write(command: Command, folder: &Path) -> Result<(), Fault> {
    all(command)
        .and_then(|pages| {
            fs::create_dir_all(folder)?;
            pages
                .iter()
                .try_for_each(|(name, text)| fs::write(folder.join(name), text))
        })
        .map_err(|error| Fault::internal(format!("can't write {}: {error}", folder.display())))
}

/// Each page by the name of its file.
fn all(command: Command) -> io::Result<Vec<(String, String)>> {
    let source = format!("kvmlet {}", command.get_version().unwrap_or_default());
    let mut pages = client::pages(&command, &source)?;
    pages.push(("kvmlet.8".into(), daemon::page(&command, &source)));
    pages.push(("kvmlet.toml.5".into(), configuration::page(&source)));
    Ok(pages)
}
