//! An element tree to be written. Everything that becomes XML passes through
//! [`Element::to_xml`], where the text is checked and escaped.

use super::spec::XmlError;
use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};

/// An element with its attributes, its text, and the elements in it.
#[derive(Debug)]
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: Option<String>,
    children: Vec<Element>,
}

impl Element {
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            name,
            attributes: Vec::new(),
            text: None,
            children: Vec::new(),
        }
    }

    /// Sets an attribute.
    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Sets the text.
    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Adds an element at the end.
    pub(super) fn child(mut self, child: Self) -> Self {
        self.children.push(child);
        self
    }

    /// Adds elements at the end.
    pub(super) fn children(mut self, children: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(children);
        self
    }

    /// Writes the element as XML, without indentation: white space is content.
    pub(super) fn to_xml(&self) -> Result<String, XmlError> {
        let mut writer = Writer::new(Vec::new());
        self.write(&mut writer)?;
        Ok(String::from_utf8(writer.into_inner()).expect("it was written from strings"))
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> Result<(), XmlError> {
        let mut start = BytesStart::new(self.name);
        for (name, value) in &self.attributes {
            check_text(value)?;
            start.push_attribute((*name, value.as_str()));
        }
        if self.text.is_none() && self.children.is_empty() {
            emit(writer, Event::Empty(start));
            return Ok(());
        }
        emit(writer, Event::Start(start));
        if let Some(text) = &self.text {
            check_text(text)?;
            emit(writer, Event::Text(BytesText::new(text)));
        }
        for child in &self.children {
            child.write(writer)?;
        }
        emit(writer, Event::End(BytesEnd::new(self.name)));
        Ok(())
    }
}

fn emit(writer: &mut Writer<Vec<u8>>, event: Event<'_>) {
    writer
        .write_event(event)
        .expect("writing to memory can't fail");
}

/// Checks that XML can carry a text.
///
/// # Errors
/// Names the first character that it can't: the control characters except tab
/// and line breaks, U+FFFE and U+FFFF.
pub fn check_text(text: &str) -> Result<(), XmlError> {
    let illegal = |c: &char| matches!(*c, '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}');
    text.chars()
        .find(illegal)
        .map_or(Ok(()), |c| Err(XmlError::Character(c)))
}

/// Checks that a text can be a domain's title.
///
/// # Errors
/// As [`check_text`], and line breaks.
pub fn check_title(text: &str) -> Result<(), XmlError> {
    if text.contains(['\n', '\r']) {
        return Err(XmlError::TitleLines);
    }
    check_text(text)
}
