//! Sources that a web server has.
//!
//! ```text
//! GET, Range from what is there, If-Range the same version
//!   3xx  → checked like the first URL, at most 5
//!   200  → from the start        206 → from there on
//!   416  → there was no more     broken off → again, from there on
//! ```
//!
//! Redirects are followed here and not by the client library, because each one
//! must be allowed. The environment's proxy settings are not used.

use super::super::error::{StorageError, StorageErrorKind};
use super::super::task::Task;
use super::part::{Origin, Part};
use super::{SourcePolicy, url};
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// How often in a row a server may fail without having sent a byte.
const FRUITLESS: u32 = 5;
/// How often a server may break off at all.
const BREAKS: u32 = 100;
/// How soon a cancellation is seen while a server is silent.
const LOOK: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(10);

/// Downloads a URL into a part.
pub(super) fn download(
    policy: &SourcePolicy,
    url: &str,
    part: &mut Part,
    task: &Task,
) -> Result<(), StorageError> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut transfer = Transfer {
        policy,
        url,
        boot,
        origin: None,
        part,
        task,
    };
    transfer.take_up()?;
    let agent = agent(policy);
    thread::scope(|scope| {
        let (done, ended) = channel();
        let watched = agent.clone();
        scope.spawn(move || interrupt(watched, task, &ended));
        let result = transfer.run(&agent);
        drop(done);
        // An interrupted read looks like a broken connection.
        task.check().and(result)
    })
}

/// Breaks the connections when the task should end before the download.
fn interrupt(agent: Agent, task: &Task, ended: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(LOOK) {
        if task.check().is_err() {
            agent.shutdown();
            return;
        }
    }
}

fn agent(policy: &SourcePolicy) -> Agent {
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::PlatformVerifier)
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .proxy(None)
        .user_agent(&policy.user_agent)
        .accept_encoding("identity")
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(policy.stall_timeout))
        .timeout_per_write(Some(policy.stall_timeout))
        .build()
        .new_agent()
}

/// Why one request didn't bring the rest of the file.
enum Broken {
    /// Asking again may help.
    Again(StorageError),
    /// It doesn't help.
    Final(StorageError),
}

impl From<StorageError> for Broken {
    fn from(error: StorageError) -> Self {
        Self::Final(error)
    }
}

struct Transfer<'a> {
    policy: &'a SourcePolicy,
    url: &'a str,
    boot: String,
    /// What the bytes in the part are of; none, if they can't be resumed.
    origin: Option<Origin>,
    part: &'a mut Part,
    task: &'a Task,
}

impl Transfer<'_> {
    /// Takes up what a former fetch left, if it is of the same URL.
    fn take_up(&mut self) -> Result<(), StorageError> {
        let origin = self.part.origin();
        self.origin = origin.filter(|origin| origin.url == self.url && origin.boot == self.boot);
        if self.origin.is_some() {
            self.part.resume(self.task)
        } else {
            self.start_over()
        }
    }

    fn start_over(&mut self) -> Result<(), StorageError> {
        self.origin = None;
        self.part.set_origin(None)?;
        self.part.restart()
    }

    fn run(&mut self, agent: &Agent) -> Result<(), StorageError> {
        let (mut fruitless, mut breaks) = (0, 0);
        loop {
            self.task.check()?;
            let before = self.part.length();
            let error = match self.request(agent) {
                Ok(()) => return Ok(()),
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Again(error)) => error,
            };
            breaks += 1;
            fruitless = if self.part.length() > before {
                0
            } else {
                fruitless + 1
            };
            if fruitless >= FRUITLESS || breaks >= BREAKS {
                return Err(error);
            }
            if self.origin.is_none() {
                self.start_over()?;
            }
            self.pause(fruitless)?;
        }
    }

    /// Waits before a server is asked again: not at all after it sent
    /// something, else from 0.2 s on, doubled each time.
    fn pause(&self, fruitless: u32) -> Result<(), StorageError> {
        let mut left = match fruitless {
            0 => Duration::ZERO,
            n => LOOK * 2_u32.saturating_pow(n),
        };
        while !left.is_zero() {
            self.task.check()?;
            let step = left.min(LOOK);
            thread::sleep(step);
            left -= step;
        }
        Ok(())
    }

    fn request(&mut self, agent: &Agent) -> Result<(), Broken> {
        let response = self.follow(agent)?;
        let status = response.status();
        match status {
            StatusCode::OK => {
                self.start_over()?;
                let total = number(&response, header::CONTENT_LENGTH);
                self.note(&response, total)?;
                self.receive(response, total)
            }
            StatusCode::PARTIAL_CONTENT => {
                let (from, total) = content_range(&response).unwrap_or((u64::MAX, None));
                if from != self.part.length() {
                    self.start_over()?;
                    return Err(Broken::Again(unreachable("the server sent another range")));
                }
                let known = self.origin.as_ref().and_then(|origin| origin.total);
                self.receive(response, total.or(known))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let total = content_range(&response).and_then(|(_, total)| total);
                if self.part.length() > 0 && total == Some(self.part.length()) {
                    return Ok(());
                }
                self.start_over()?;
                Err(Broken::Again(unreachable("the server has no such range")))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Broken::Final(StorageError::new(
                StorageErrorKind::NotFound,
                format!("{status} for {}", self.url),
            ))),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Broken::Final(StorageError::new(
                    StorageErrorKind::Denied,
                    format!("{status} for {}", self.url),
                )))
            }
            _ => {
                let error = unreachable(format!("{status} for {}", self.url));
                let passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                Err(if passing {
                    Broken::Again(error)
                } else {
                    Broken::Final(error)
                })
            }
        }
    }

    /// Asks, and asks where the answer points to, until it isn't a redirect.
    fn follow(&self, agent: &Agent) -> Result<Response<Body>, Broken> {
        let mut target = self.url.to_owned();
        for _ in 0..=REDIRECTS {
            let uri = url::allowed(&self.policy.allowed_url_prefixes, &target)?;
            let mut request = agent.get(uri.clone());
            if let Some(origin) = &self.origin
                && self.part.length() > 0
            {
                request = request
                    .header(header::RANGE, format!("bytes={}-", self.part.length()))
                    .header(header::IF_RANGE, &origin.validator);
            }
            let response = request.call().map_err(|e| {
                // A certificate or an answer that makes no sense stays so.
                let nonsense = matches!(
                    &e,
                    ureq::Error::Io(e) if e.kind() == io::ErrorKind::InvalidData
                );
                let kind = StorageErrorKind::Unreachable;
                let error = StorageError::caused(kind, format!("asking for {target}"), e);
                if nonsense {
                    Broken::Final(error)
                } else {
                    Broken::Again(error)
                }
            })?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = text(&response, header::LOCATION)
                .ok_or_else(|| unreachable("a redirect to nowhere"))?;
            target = url::redirected(&uri, location);
        }
        Err(Broken::Final(unreachable(format!(
            "more than {REDIRECTS} redirects"
        ))))
    }

    /// Notes of what the bytes are that come now, if the server names it.
    fn note(&mut self, response: &Response<Body>, total: Option<u64>) -> Result<(), StorageError> {
        // A weak ETag doesn't promise the same bytes.
        let validator = text(response, header::ETAG)
            .filter(|etag| etag.starts_with('"'))
            .or_else(|| text(response, header::LAST_MODIFIED));
        self.origin = validator.map(|validator| Origin {
            url: self.url.to_owned(),
            validator: validator.to_owned(),
            total,
            boot: self.boot.clone(),
        });
        self.part.set_origin(self.origin.as_ref())
    }

    fn receive(&mut self, response: Response<Body>, total: Option<u64>) -> Result<(), Broken> {
        if let Some(total) = total {
            self.part.refuse_length(total)?;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 64 << 10];
        loop {
            self.task.check()?;
            let count = body.read(&mut buffer).map_err(|e| {
                Broken::Again(StorageError::caused(
                    StorageErrorKind::Unreachable,
                    format!("{} broke off after {} bytes", self.url, self.part.length()),
                    e,
                ))
            })?;
            if count == 0 {
                break;
            }
            self.part.write(&buffer[..count])?;
            self.task.report(self.part.length(), total.unwrap_or(0));
        }
        match total {
            Some(total) if self.part.length() != total => {
                let length = self.part.length();
                let message = format!("{} ended after {length} of {total} bytes", self.url);
                Err(Broken::Again(unreachable(message)))
            }
            _ => Ok(()),
        }
    }
}

fn unreachable(message: impl Into<String>) -> StorageError {
    StorageError::new(StorageErrorKind::Unreachable, message)
}

fn text(response: &Response<Body>, name: header::HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

fn number(response: &Response<Body>, name: header::HeaderName) -> Option<u64> {
    text(response, name)?.trim().parse().ok()
}

/// Reads `bytes 5-9/10`, `bytes 5-9/*` and `bytes */10`: where the range
/// begins (0 for none), and the length of the whole.
fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let (range, total) = text(response, header::CONTENT_RANGE)?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let from = match range.split_once('-') {
        Some((from, _)) => from.trim().parse().ok()?,
        None => 0,
    };
    Some((from, total.trim().parse().ok()))
}
