//! The door: who is on the other side of a connection, what he may do, and how much
//! at once.
//!
//! Invariant: a caller is judged anew with every call, by what holds then. A role
//! that was taken away, a certificate that has expired or been revoked, an authority
//! that is trusted no more count on connections that are open already; and no
//! connection is dropped because certificates change.
//!
//! It knows nothing of what calls there are and what they do.

mod accept;
mod connection;
mod counts;
mod figures;
mod groups;
mod handshakes;
mod peer;
mod policy;
mod seldom;
mod tls;
mod turns;
mod validity;

pub use accept::{Listeners, connections};
pub use connection::Connection;
pub use figures::Figures;
pub use peer::Peer;
pub use seldom::Seldom;
pub use validity::{Validity, look_at_client, look_at_server};

/// What callers may ask for at once.
pub use crate::config::LimitSettings as Limits;

use crate::config::{AccessSettings, ApiSettings, Config, LimitSettings, ServerTls};
use crate::model::access::Role;
use counts::{Count, Counts};
use groups::Groups;
use handshakes::Handshakes;
use peer::Identity;
use policy::Policy;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use tls::{Material, Reread, Tls};
use turns::{InTurn, Turns};

/// Of the calls that there may be at once, what viewers leave to the others; of the
/// streams of events, what each caller does.
const OTHERS_SHARE: usize = 4;

/// Who a caller is, and what he may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// His name, for the record: `uid:<n>`, `uri:<name>`, `dns:<name>`,
    /// `sha256:<fingerprint of his certificate>` or `plaintext:<address>`.
    pub name: Arc<str>,
    /// What he may do; `None`: nothing.
    pub role: Option<Role>,
}

/// Why nobody knows who a caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// The connection says nothing about him.
    Nameless,
    /// His certificate has expired since he connected.
    Expired,
    /// His certificate is trusted no more: revoked, or of an authority that is gone.
    Distrusted,
}

/// What came of judging a caller.
type Verdict = Result<Known, Stranger>;

/// When certificates expire, and whether those in the files are in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificates {
    /// When the agent's own expires.
    pub own: Option<SystemTime>,
    /// When the first of the callers' authorities expires.
    pub authority: Option<SystemTime>,
    /// Why what is in the files is not in use, if it isn't.
    pub trouble: Option<String>,
}

struct Judge {
    generation: u64,
    policy: Policy,
}

/// Who may come in, and how many.
pub struct Door {
    judge: RwLock<Arc<Judge>>,
    tls: Option<Tls>,
    limits: RwLock<LimitSettings>,
    groups: Groups,
    handshakes: Handshakes,
    /// Connections, by where they came in.
    entrances: Counts,
    /// Connections, by who has them.
    callers: Counts,
    /// Calls, by who asks.
    calls: Counts,
    turns: Turns,
    /// Calls that stream, by who reads them.
    streams: Counts,
    /// How many of them one caller may have.
    streams_each: usize,
    /// Bytes of requests that are being read.
    reading: Arc<AtomicU64>,
    /// Bytes of answers that wait to be read, by who asked.
    unread: Counts,
    connections_told: Seldom,
    /// When a call that was refused at the door was told of.
    pub calls_told: Seldom,
    /// What was counted.
    pub figures: Figures,
}

/// What [`Door::reconfigure`] takes: read, checked, and not in use yet.
pub struct Prepared {
    policy: Policy,
    limits: LimitSettings,
    /// With nothing, if what the files hold is in use already.
    certificates: Option<(ServerTls, Option<Material>)>,
}

/// Reads the certificates that a configuration names, as a daemon with it would;
/// may block.
///
/// # Errors
/// In words: why they can't be used.
pub fn check_certificates(files: &ServerTls) -> Result<(), String> {
    Tls::new(files).prepare(files).map(drop)
}

/// Answers that wait to be read: of all callers, and of one.
const UNREAD: usize = 256 << 20;
const UNREAD_EACH: usize = UNREAD / 4;
/// Smaller ones are bounded by how many calls there may be.
const SMALL_ANSWER: usize = 64 << 10;

/// One answer that waits to be read; no longer counted when it is dropped.
#[derive(Debug)]
pub struct Unread(#[allow(dead_code, reason = "counts until it is dropped")] Option<Count>);

/// One call at work; no longer counted when it is dropped.
#[derive(Debug)]
pub struct AtWork(#[allow(dead_code, reason = "counts until it is dropped")] Count);

impl Door {
    /// Reads certificates and looks up names, which may block. Without certificates
    /// that can be used nobody comes in over TCP, until there are some.
    pub fn open(config: &Config) -> Self {
        let watchers = config.events.watchers;
        let door = Self {
            judge: RwLock::new(Arc::new(Judge {
                generation: 1,
                policy: Policy::new(&config.access, config.api.plaintext_role),
            })),
            tls: config.api.tls.as_ref().map(Tls::new),
            limits: RwLock::new(config.limits),
            groups: Groups::default(),
            handshakes: Handshakes::default(),
            entrances: Counts::default(),
            callers: Counts::default(),
            calls: Counts::default(),
            turns: Turns::default(),
            streams: Counts::default(),
            streams_each: watchers - watchers / OTHERS_SHARE,
            reading: Arc::default(),
            unread: Counts::default(),
            connections_told: Seldom::default(),
            calls_told: Seldom::default(),
            figures: Figures::default(),
        };
        door.reread();
        door
    }

    /// What callers may ask for at once.
    pub fn limits(&self) -> LimitSettings {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up names and reads certificates, which may block, and changes nothing.
    /// Certificates are left out where TLS would be turned on or off: that needs a
    /// restart.
    ///
    /// # Errors
    /// In words: certificates that can't be used.
    pub fn prepare(
        &self,
        api: &ApiSettings,
        access: &AccessSettings,
        limits: LimitSettings,
    ) -> Result<Prepared, String> {
        let certificates = match (&self.tls, &api.tls) {
            (Some(tls), Some(files)) => Some((files.clone(), tls.prepare(files)?)),
            _ => None,
        };
        Ok(Prepared {
            policy: Policy::new(access, api.plaintext_role),
            limits,
            certificates,
        })
    }

    /// From now on, roles, limits and certificates are these; who is connected stays
    /// so.
    pub fn reconfigure(&self, prepared: Prepared) {
        let Prepared {
            policy,
            limits,
            certificates,
        } = prepared;
        {
            let mut judge = self.judge.write().unwrap_or_else(PoisonError::into_inner);
            let generation = judge.generation + 1;
            *judge = Arc::new(Judge { generation, policy });
        }
        {
            let mut own = self.limits.write().unwrap_or_else(PoisonError::into_inner);
            // Pings come as often as was said at the start: a shorter silence would
            // end connections that answer every one.
            let silence = limits.silence.max(own.silence);
            *own = LimitSettings { silence, ..limits };
        }
        if let (Some(tls), Some((files, material))) = (&self.tls, certificates) {
            tls.use_files(&files);
            if material.is_some() {
                tracing::info!("new certificates are in use; connections stay");
            }
            tls.take(material);
        }
    }

    /// Reads the certificates again, which may block, and uses what has changed.
    /// Returns why it can't be used, if that is so.
    pub fn reread(&self) -> Option<String> {
        let tls = self.tls.as_ref()?;
        let (former, had) = (tls.trouble(), tls.material().is_some());
        match tls.reread() {
            Reread::Same => None,
            Reread::Changed => {
                if had {
                    tracing::info!("new certificates are in use; connections stay");
                } else {
                    tracing::info!("certificates are in use");
                }
                None
            }
            Reread::Refused(trouble) => {
                if former.as_ref() != Some(&trouble) {
                    tracing::error!(
                        error = trouble,
                        had,
                        "certificates can't be used; those that were in use stay, if any"
                    );
                }
                Some(trouble)
            }
        }
    }

    /// The certificates in use; `None` without TLS.
    pub fn certificates(&self) -> Option<Certificates> {
        let tls = self.tls.as_ref()?;
        let material = tls.material();
        Some(Certificates {
            own: material.as_ref().and_then(|material| material.expires),
            authority: material.and_then(|material| material.authority_expires),
            trouble: tls.trouble(),
        })
    }

    /// Who is on the other side, by what holds now.
    ///
    /// # Errors
    /// If nobody knows.
    pub fn judge(&self, peer: &Peer) -> Result<Known, Stranger> {
        if let Identity::Certificate(certificate) = &peer.identity {
            let now = SystemTime::now();
            if certificate.expires.is_none_or(|expires| expires <= now) {
                return Err(Stranger::Expired);
            }
            if !self.trusts(peer, certificate) {
                return Err(Stranger::Distrusted);
            }
        }
        let judge = self
            .judge
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut judged = peer.judged.lock().unwrap_or_else(PoisonError::into_inner);
        match &*judged {
            Some((generation, verdict)) if *generation == judge.generation => verdict.clone(),
            _ => {
                let verdict = match peer.identity {
                    Identity::Unknown => Err(Stranger::Nameless),
                    _ => {
                        let (role, name) = judge.policy.role(&peer.identity);
                        Ok(Known {
                            name: name.into(),
                            role,
                        })
                    }
                };
                *judged = Some((judge.generation, verdict.clone()));
                verdict
            }
        }
    }

    fn trusts(&self, peer: &Peer, certificate: &peer::Certificate) -> bool {
        let Some(material) = self.tls.as_ref().and_then(Tls::material) else {
            return false;
        };
        if peer.verified.load(Ordering::Relaxed) == material.generation {
            return true;
        }
        let trusted = material.trusts(certificate);
        if trusted {
            peer.verified.store(material.generation, Ordering::Relaxed);
        }
        trusted
    }

    /// Counts a call of a caller; `None`: he, or all together, have enough of them.
    pub fn begin(&self, known: &Known) -> Option<AtWork> {
        let limits = self.limits();
        let most = match known.role {
            Some(Role::Operator | Role::Admin) => limits.calls,
            Some(Role::Viewer) | None => limits.calls - limits.calls / OTHERS_SHARE,
        };
        self.calls
            .add(&known.name, limits.calls_per_caller, most)
            .map(AtWork)
    }

    /// Has a call go on when it is its caller's turn.
    pub fn in_turn<F: Future>(&self, name: &str, call: F) -> InTurn<F> {
        self.turns.take(name, call)
    }

    /// Counts a stream of events of a caller; `None`: he has enough of them. How many
    /// there may be in all is not looked at.
    pub fn watch(&self, name: &str) -> Option<AtWork> {
        let streams = &self.streams;
        streams.add(name, self.streams_each, usize::MAX).map(AtWork)
    }

    /// Counts the memory of an answer to a caller; `None`: he, or all together, have
    /// left too much unread.
    pub fn answer(&self, name: &str, bytes: usize) -> Option<Unread> {
        if bytes <= SMALL_ANSWER {
            return Some(Unread(None));
        }
        let count = self.unread.add_many(bytes, name, UNREAD_EACH, UNREAD)?;
        Some(Unread(Some(count)))
    }

    /// Ends a connection because its answers are not read.
    pub fn is_unread(&self, peer: &Peer) {
        self.cut_off(peer, figures::UNREAD);
    }

    /// Counts a call that is refused, and ends the connection if too many are.
    pub fn is_refused(&self, peer: &Peer) {
        if !peer.may_be_refused() {
            self.cut_off(peer, figures::FLOOD);
        }
    }

    fn cut_off(&self, peer: &Peer, reason: &str) {
        if peer.cut_off() {
            let figures = &self.figures.connections_refused;
            figures.with_label_values(&[reason]).inc();
            tracing::debug!(from = peer.place(), reason, "connection cut off");
        }
    }

    /// Calls that are at work.
    pub fn at_work(&self) -> usize {
        self.calls.all()
    }

    /// Connections that are open.
    pub fn open_connections(&self) -> usize {
        self.entrances.all()
    }

    /// How many bytes of requests are being read.
    pub fn reading(&self) -> Arc<AtomicU64> {
        self.reading.clone()
    }
}
