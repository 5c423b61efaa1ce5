//! The IP addresses that guests have: asked for by the clock and when something
//! happens to a guest, never by those who read.
//!
//! Invariant: a guest's agent may hang for as long as it likes. It is asked less and
//! less often, and guests that answer have permits that it can't take.

use super::cell::Cell;
use super::core::Core;
use super::gate::Lane;
use super::hypervisor::Link;
use crate::libvirt::{AddressSource, ErrorKind, GuestAddress};
use crate::model::ids::VmId;
use crate::model::nic::Nic;
use crate::model::view::View;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// When a guest is asked again that had no address; four times as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How many guests are asked at once.
const AT_ONCE: usize = 8;
/// How many of them may be such as have not answered before.
const SILENT_AT_ONCE: usize = 4;
/// A silent agent is asked this many refreshes apart in the end.
const MOST_SKIPPED: u32 = 16;

/// The guests that should be asked soon.
#[derive(Debug, Default)]
pub struct Addresses {
    wanted: Mutex<BTreeSet<VmId>>,
    bell: Notify,
}

impl Addresses {
    /// Says that a guest may have other addresses now. Many calls come to one look.
    pub fn want(&self, id: VmId) {
        self.lock().insert(id);
        self.bell.notify_one();
    }

    fn take(&self) -> BTreeSet<VmId> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<VmId>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a guest is asked next.
#[derive(Debug)]
struct Turn {
    at: Instant,
    /// How long to wait after a look that has found nothing.
    pause: Duration,
    /// How often in a row its agent was there and did not answer.
    silent: u32,
    /// It is being asked now.
    at_work: bool,
    /// Something has happened since it was asked.
    again: bool,
}

/// What came of asking a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It has addresses.
    Found,
    /// It has none yet, or it is not known.
    Nothing,
    /// Its agent is there and did not answer.
    Silent,
    /// It has no power.
    Off,
}

/// Keeps the addresses of all guests, until the agent stops.
pub async fn run(core: Arc<Core>) {
    let refresh = core.config.vms.address_refresh;
    // Before that nobody can be asked.
    let mut link = core.hypervisor.link();
    tokio::select! {
        () = core.stopping.cancelled() => return,
        _ = link.wait_for(|link| *link == Link::Up) => {}
    }
    let mut turns = Turns::default();
    let mut looks: JoinSet<(VmId, Outcome)> = JoinSet::new();
    let mut round = Instant::now();
    loop {
        tokio::select! {
            () = core.stopping.cancelled() => return,
            () = core.addresses.bell.notified() => {}
            Some(looked) = looks.join_next() => {
                if let Ok((id, outcome)) = looked {
                    turns.settle(id, outcome, refresh, Instant::now());
                }
            }
            () = sleep_until(turns.next().unwrap_or(round).min(round)) => {}
        }
        let now = Instant::now();
        for id in core.addresses.take() {
            turns.want(id, now);
        }
        if now >= round {
            // Those whose start was missed, such as all after the agent's own.
            for cell in core
                .vms
                .cells()
                .iter()
                .filter(|cell| has_power(&cell.view()))
            {
                turns.meet(cell.id, now);
            }
            round = now + refresh;
        }
        for id in turns.due(now) {
            looks.spawn(look(core.clone(), id));
        }
    }
}

#[derive(Debug, Default)]
struct Turns(HashMap<VmId, Turn>);

impl Turns {
    /// Has a guest asked at once.
    fn want(&mut self, id: VmId, now: Instant) {
        self.meet(id, now);
        if let Some(turn) = self.0.get_mut(&id) {
            turn.at = now;
            turn.pause = FIRST_PAUSE;
            turn.again = turn.at_work;
        }
    }

    /// Has a guest asked that has no turn yet.
    fn meet(&mut self, id: VmId, now: Instant) {
        self.0.entry(id).or_insert_with(|| Turn {
            at: now,
            pause: FIRST_PAUSE,
            silent: 0,
            at_work: false,
            again: false,
        });
    }

    /// When the next one is due, if there is room for it.
    fn next(&self) -> Option<Instant> {
        if self.busy(|_| true) >= AT_ONCE {
            return None;
        }
        let silent = self.busy(|turn| turn.silent > 0) < SILENT_AT_ONCE;
        let waiting = self.0.values().filter(|turn| !turn.at_work);
        waiting
            .filter(|turn| silent || turn.silent == 0)
            .map(|turn| turn.at)
            .min()
    }

    fn busy(&self, which: impl Fn(&Turn) -> bool) -> usize {
        let busy = self.0.values().filter(|turn| turn.at_work && which(turn));
        busy.count()
    }

    /// Takes those that are due and that there is room for; those who have waited
    /// longest first.
    fn due(&mut self, now: Instant) -> Vec<VmId> {
        let mut room = AT_ONCE.saturating_sub(self.busy(|_| true));
        let mut silent_room = SILENT_AT_ONCE.saturating_sub(self.busy(|turn| turn.silent > 0));
        let mut waiting: Vec<(&VmId, &mut Turn)> = self
            .0
            .iter_mut()
            .filter(|(_, turn)| !turn.at_work && turn.at <= now)
            .collect();
        waiting.sort_by_key(|(id, turn)| (turn.at, **id));
        let mut due = Vec::new();
        for (id, turn) in waiting {
            if room == 0 {
                break;
            }
            if turn.silent > 0 {
                if silent_room == 0 {
                    continue;
                }
                silent_room -= 1;
            }
            room -= 1;
            turn.at_work = true;
            due.push(*id);
        }
        due
    }

    /// Sets when a guest is asked again.
    fn settle(&mut self, id: VmId, outcome: Outcome, refresh: Duration, now: Instant) {
        let Some(turn) = self.0.get_mut(&id) else {
            return;
        };
        turn.at_work = false;
        if std::mem::take(&mut turn.again) {
            return;
        }
        let after = match outcome {
            Outcome::Found => {
                turn.pause = FIRST_PAUSE;
                turn.silent = 0;
                refresh
            }
            // It has just got power, which its VM does not show yet; or it is off.
            Outcome::Off if turn.pause >= refresh => {
                self.0.remove(&id);
                return;
            }
            Outcome::Nothing | Outcome::Off => {
                let pause = turn.pause.min(refresh);
                turn.pause = (pause * 4).min(refresh);
                turn.silent = 0;
                pause
            }
            Outcome::Silent => {
                turn.silent = turn.silent.saturating_add(1);
                let skipped = 1_u32.checked_shl(turn.silent - 1).unwrap_or(MOST_SKIPPED);
                refresh * skipped.min(MOST_SKIPPED)
            }
        };
        turn.at = now + after;
    }
}

async fn look(core: Arc<Core>, id: VmId) -> (VmId, Outcome) {
    let Some(cell) = core.vms.cell(id).filter(|cell| has_power(&cell.view())) else {
        return (id, Outcome::Off);
    };
    if core.hypervisor.is_signalled(id) {
        // libvirt would hold this call, too, until the agent has obeyed.
        cell.note_guest_asked();
        return (id, Outcome::Nothing);
    }
    let told = core
        .hypervisor
        .try_call(Lane::Agent, move |host| host.addresses(id));
    let outcome = match told.await {
        Ok(Ok(told)) => {
            let nothing_new = told.source == AddressSource::LeasesForAgent;
            if !(nothing_new && told.addresses.is_empty()) {
                publish(&cell, &told.addresses);
            }
            match told.source {
                AddressSource::LeasesForAgent => Outcome::Silent,
                AddressSource::Agent | AddressSource::Leases if told.addresses.is_empty() => {
                    Outcome::Nothing
                }
                AddressSource::Agent | AddressSource::Leases => Outcome::Found,
            }
        }
        Ok(Err(error)) => match error.kind {
            ErrorKind::NotFound | ErrorKind::InvalidState => Outcome::Off,
            _ => {
                tracing::debug!(vm_id = %id, %error, "addresses could not be read");
                Outcome::Nothing
            }
        },
        Err(fault) => {
            tracing::debug!(vm_id = %id, error = %fault.message, "addresses could not be read");
            Outcome::Nothing
        }
    };
    cell.note_guest_asked();
    (id, outcome)
}

fn has_power(view: &View) -> bool {
    let vm = view.vm.as_ref();
    vm.is_some_and(|vm| vm.seen.resting.has_power())
}

fn publish(cell: &Cell, told: &[GuestAddress]) {
    cell.change(|view| {
        if let Some(vm) = &view.vm {
            view.addresses = by_nic(&vm.nics, told);
        }
    });
}

/// The addresses of each interface, by its hardware address, as far as they are of
/// use to others: none of the guest with itself, and those of its link last.
fn by_nic(nics: &[Nic], told: &[GuestAddress]) -> BTreeMap<String, Vec<IpAddr>> {
    let mut found = BTreeMap::new();
    for mac in nics.iter().map(|nic| nic.mac.to_string()) {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in told.iter().filter(|address| address.mac == mac) {
            let ip = address.ip;
            if !ip.is_loopback() && !ip.is_unspecified() && !addresses.contains(&ip) {
                addresses.push(ip);
            }
        }
        // Stable: the guest's own order stays.
        addresses.sort_by_key(|ip| of_the_link(*ip));
        if !addresses.is_empty() {
            found.insert(mac, addresses);
        }
    }
    found
}

fn of_the_link(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::NicId;
    use crate::model::nic::{Attachment, MacAddress, NicModel};

    const REFRESH: Duration = Duration::from_secs(60);

    fn nic(last: u8) -> Nic {
        Nic {
            id: NicId::random(),
            network_id: None,
            mac: MacAddress::new([0x52, 0x54, 0, 0, 0, last]).unwrap(),
            device_index: 0,
            model: NicModel::Virtio,
            mtu: None,
            ip_addresses: Vec::new(),
            metadata: BTreeMap::new(),
            attachment: Attachment::User,
        }
    }

    fn told(mac: &str, ip: &str) -> GuestAddress {
        GuestAddress {
            mac: mac.to_owned(),
            ip: ip.parse().unwrap(),
        }
    }

    #[test]
    fn addresses_go_to_their_interface_without_loopback_and_with_those_of_the_link_last() {
        let (first, second) = ("52:54:00:00:00:01", "52:54:00:00:00:02");
        let found = by_nic(
            &[nic(1), nic(2)],
            &[
                told("00:00:00:00:00:00", "127.0.0.1"),
                told(first, "fe80::1"),
                told(first, "10.0.0.7"),
                told(first, "2001:db8::7"),
                told(first, "10.0.0.7"),
                told(second, "127.0.0.1"),
                told("02:42:00:00:00:01", "172.17.0.1"),
            ],
        );
        let expected: Vec<IpAddr> = ["10.0.0.7", "2001:db8::7", "fe80::1"]
            .map(|ip| ip.parse().unwrap())
            .to_vec();
        assert_eq!(found, BTreeMap::from([(first.to_owned(), expected)]));
    }

    #[test]
    fn guests_that_hang_leave_room_for_others_and_are_asked_less_often() {
        let (mut turns, mut now) = (Turns::default(), Instant::now());
        let silent: Vec<VmId> = (0..20).map(|_| VmId::random()).collect();
        for id in &silent {
            turns.want(*id, now);
        }
        while turns.0.values().any(|turn| turn.silent < 3) {
            now += REFRESH;
            for id in turns.due(now) {
                turns.settle(id, Outcome::Silent, REFRESH, now);
            }
        }
        now += REFRESH * 100;
        assert_eq!(turns.due(now).len(), SILENT_AT_ONCE);
        assert_eq!(turns.next(), None, "no more of them");
        let healthy = VmId::random();
        turns.want(healthy, now);
        assert_eq!(turns.due(now), [healthy]);
        // What happens to it while it is asked makes it be asked again at once.
        turns.want(healthy, now);
        turns.settle(healthy, Outcome::Found, REFRESH, now);
        assert_eq!(turns.due(now), [healthy]);
        turns.settle(healthy, Outcome::Found, REFRESH, now);
        assert_eq!(turns.next(), Some(now + REFRESH));
    }

    #[test]
    fn a_guest_without_addresses_is_asked_soon_and_one_without_power_forgotten() {
        let (mut turns, mut now) = (Turns::default(), Instant::now());
        let id = VmId::random();
        turns.want(id, now);
        for seconds in [1, 4, 16, 60, 60].map(Duration::from_secs) {
            assert_eq!(turns.due(now), [id]);
            turns.settle(id, Outcome::Nothing, REFRESH, now);
            now += seconds;
            assert_eq!(turns.next(), Some(now));
        }
        assert_eq!(turns.due(now), [id]);
        turns.settle(id, Outcome::Off, REFRESH, now);
        assert!(turns.0.is_empty());
    }
}
