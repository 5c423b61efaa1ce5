//! One man page while it is written.

use clap_mangen::roff::{Inline, Roff, bold, roman};

/// A page that is not only made of arguments.
pub(super) struct Page {
    roff: Roff,
}

impl Page {
    /// Begins a page: its name, its section, what it is about in one line, and the
    /// program and version that it is of.
    pub(super) fn new(name: &str, section: &str, about: &str, source: &str) -> Self {
        let mut roff = Roff::new();
        roff.control("TH", [name, section, "", source, ""]);
        ragged(&mut roff);
        let mut page = Self { roff };
        page.section("NAME");
        page.roff.text([roman(format!("{name} - {about}"))]);
        page
    }

    /// Goes on with a page whose title was written elsewhere.
    pub(super) fn after_title() -> Self {
        let mut roff = Roff::new();
        ragged(&mut roff);
        Self { roff }
    }

    /// Goes on with a page that was begun elsewhere: only what is added here.
    pub(super) fn rest() -> Self {
        Self { roff: Roff::new() }
    }

    /// Begins a section.
    pub(super) fn section(&mut self, name: &str) -> &mut Self {
        self.roff.control("SH", [name]);
        self
    }

    /// Begins a part of a section.
    pub(super) fn part(&mut self, name: &str) -> &mut Self {
        self.roff.control("SS", [name]);
        self
    }

    /// Adds a paragraph; what stands between backticks is bold.
    pub(super) fn paragraph(&mut self, text: &str) -> &mut Self {
        self.roff.control("PP", []);
        self.roff.text(marked(text));
        self
    }

    /// Adds a paragraph of an entry, below its name.
    pub(super) fn more(&mut self, text: &str) -> &mut Self {
        self.roff.control("IP", []);
        self.roff.text(marked(text));
        self
    }

    /// Begins an entry of several names, of which each gets a line.
    pub(super) fn entry<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) -> &mut Self {
        for (place, name) in names.into_iter().enumerate() {
            self.roff.control(if place == 0 { "TP" } else { "TQ" }, []);
            self.roff.text([bold(name)]);
        }
        self
    }

    /// Adds text to what was begun.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.roff.text(marked(text));
        self
    }

    /// Adds lines that stay as they are.
    pub(super) fn lines<'l>(&mut self, lines: impl IntoIterator<Item = &'l str>) -> &mut Self {
        self.roff.control("RS", ["4"]);
        self.roff.control("EX", []);
        for line in lines {
            // An empty line would end what is being listed.
            if line.is_empty() {
                self.roff.control("sp", []);
            } else {
                self.roff.text([roman(line)]);
            }
        }
        self.roff.control("EE", []);
        self.roff.control("RE", []);
        self
    }

    /// Names other pages.
    pub(super) fn see_also(&mut self, pages: &[&str]) -> &mut Self {
        self.section("SEE ALSO");
        let mut inlines = Vec::new();
        for (place, page) in pages.iter().enumerate() {
            if place > 0 {
                inlines.push(roman(", "));
            }
            let (name, section) = page.split_at(page.find('(').unwrap_or(page.len()));
            inlines.extend([bold(name), roman(section)]);
        }
        self.roff.text(inlines);
        self
    }

    /// The page as groff reads it.
    pub(super) fn finish(&self) -> String {
        self.roff.render()
    }
}

/// Leaves words and lines as they are: no path is broken by a hyphen, nothing is spread.
fn ragged(roff: &mut Roff) {
    roff.control("nh", []);
    roff.control("ad", ["l"]);
}

/// Text as it is written, with what stands between backticks in bold.
fn marked(text: &str) -> Vec<Inline> {
    text.split('`')
        .enumerate()
        .filter(|(_, part)| !part.is_empty())
        .map(|(place, part)| match place % 2 {
            0 => roman(part),
            _ => bold(part),
        })
        .collect()
}
