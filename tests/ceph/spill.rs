//! Where a secret could have spilled: what a daemon writes, tells and starts, and the
//! forms that a secret may take there.

// Each test binary uses its own part of it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use crate::support::daemon::Daemon;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

/// Becomes the daemon, with everything logged that it and its libraries say.
pub fn at_trace() -> Vec<String> {
    let script = "sed -i 's/^level = .*/level = \"trace\"/' \"$4\" && exec \"$@\"";
    ["sh", "-c", script, "sh"].map(str::to_owned).into()
}

/// A secret in the forms that it may be found in.
pub struct Secret {
    what: String,
    forms: Vec<Vec<u8>>,
}

impl Secret {
    /// As it is, as text in base64 (at any place in something longer) and in
    /// hexadecimal, and as `Debug` shows bytes.
    pub fn new(what: &str, secret: impl AsRef<[u8]>) -> Self {
        let secret = secret.as_ref();
        assert!(secret.len() >= 8, "shorter ones are anywhere");
        let hex = |digits: fn(&u8) -> String| secret.iter().map(digits).collect::<String>();
        let list = format!("{secret:?}");
        let mut texts = vec![
            secret.escape_ascii().to_string(),
            hex(|byte| format!("{byte:02x}")),
            hex(|byte| format!("{byte:02X}")),
            list.trim_matches(['[', ']']).to_owned(),
        ];
        for before in 0..3 {
            let longer = [&b"\0\0"[..before], secret].concat();
            let text = STANDARD_NO_PAD.encode(&longer);
            // What its neighbours have no part in.
            let (begin, end) = ((before * 8).div_ceil(6), longer.len() * 8 / 6);
            texts.push(text[begin..end].to_owned());
        }
        let mut forms = vec![secret.to_vec()];
        forms.extend(texts.into_iter().map(String::into_bytes));
        Self {
            what: what.to_owned(),
            forms,
        }
    }

    /// Also this text.
    pub fn or(mut self, text: &str) -> Self {
        assert!(text.len() >= 8, "shorter ones are anywhere");
        self.forms.push(text.as_bytes().to_vec());
        self
    }

    pub fn is_in(&self, content: &[u8]) -> bool {
        self.forms.iter().any(|form| holds(content, form))
    }

    /// Fails where it is.
    pub fn is_not_in(&self, place: &str, content: &[u8]) {
        let found = self.forms.iter().find(|form| holds(content, form));
        assert!(
            found.is_none(),
            "{} is in {place}, as {}",
            self.what,
            found.unwrap().escape_ascii()
        );
    }
}

/// A search that skips: logs are long.
fn holds(content: &[u8], wanted: &[u8]) -> bool {
    let (first, rest) = wanted.split_first().unwrap();
    let mut content = content;
    while let Some(at) = content.iter().position(|byte| byte == first) {
        content = &content[at + 1..];
        if content.starts_with(rest) {
            return true;
        }
    }
    false
}

/// Something that was written or said, by what it is.
pub type Place = (String, Vec<u8>);

/// Every plain file in a folder and those in it, as far as they don't vanish.
pub fn files(folder: &Path) -> Vec<Place> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            let content = fs::read(entry.path());
            found.extend(content.map(|content| (entry.path().display().to_string(), content)));
        } else {
            assert!(kind.is_symlink() || kind.is_socket() || kind.is_fifo());
        }
    }
    found
}

/// Command line and environment of each process.
pub fn processes() -> Vec<Place> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for part in ["cmdline", "environ"] {
            let path = entry.path().join(part);
            let content = fs::read(&path);
            found.extend(content.map(|content| (path.display().to_string(), content)));
        }
    }
    assert!(found.len() > 2, "processes were seen");
    found
}

/// Everything that a daemon tells an administrator of all that it has, and its metrics.
pub async fn told(daemon: &Daemon) -> Vec<Place> {
    let mut found = vec![("the metrics".to_owned(), metrics(daemon))];
    for command in [
        &["vm", "list"][..],
        &["op", "list"],
        &["image", "list"],
        &["volume", "list"],
        &["pool", "list"],
        &["node"],
        &["orphan", "list"],
        &["events", "--snapshot", "--no-follow"],
    ] {
        found.push((command.join(" "), asked(daemon, command)));
    }
    let journal = daemon.home().join("journal.db");
    let export = ["journal", "export", "--path", journal.to_str().unwrap()];
    found.push((export.join(" "), asked(daemon, &export)));
    found
}

/// What a command of the administrator's client prints.
fn asked(daemon: &Daemon, command: &[&str]) -> Vec<u8> {
    #[allow(clippy::disallowed_methods)] // a test runs the administrator's client
    let output = Command::new(env!("CARGO_BIN_EXE_kvmlet"))
        .args(["--output", "json", "--server"])
        .arg(format!("unix://{}", daemon.socket().display()))
        .args(command)
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    assert!(!output.stdout.is_empty(), "{command:?} says something");
    [output.stdout, output.stderr].concat()
}

fn metrics(daemon: &Daemon) -> Vec<u8> {
    let mut stream = UnixStream::connect(daemon.metrics_socket()).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: kvmlet\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = Vec::new();
    stream.read_to_end(&mut page).unwrap();
    assert!(holds(&page, b"kvmlet_"), "there are metrics");
    page
}
