//! libvirtd is killed and started again while there are many VMs and many operations at
//! work: some are in the middle of their calls, the others reach theirs while it is away.

use super::ask::Ask;
use super::host::{LINE, World};
use super::wire::{Cut, calls};
use crate::bench::Guest;
use crate::support::api::{Api, id};
use crate::support::{PATIENCE, thorough, until};
use kvmlet::proto::v1::*;
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;
use virt::connect::Connect;
use virt::domain::Domain;

/// A kind of operation: what is asked, the point before its first call that changes
/// something, the state of its VMs before and after (`None`: gone), and how many there
/// are of it.
struct Kind {
    ask: Ask,
    point: &'static str,
    from: VmState,
    to: Option<VmState>,
    count: usize,
}

const fn kind(
    ask: Ask,
    point: &'static str,
    from: VmState,
    to: Option<VmState>,
    count: usize,
) -> Kind {
    Kind {
        ask,
        point,
        from,
        to,
        count,
    }
}

/// 30 operations.
const KINDS: [Kind; 10] = {
    use VmState::*;
    [
        kind(
            Ask::Create,
            "create-vm.define-domain",
            Unspecified,
            Some(Running),
            5,
        ),
        kind(
            Ask::Start,
            "start-vm.start-guest",
            Stopped,
            Some(Running),
            5,
        ),
        kind(
            Ask::StopForce,
            "stop-vm.stop-guest",
            Running,
            Some(Stopped),
            4,
        ),
        kind(
            Ask::Describe,
            "update-vm.describe-domain",
            Stopped,
            Some(Stopped),
            3,
        ),
        kind(
            Ask::Redefine,
            "update-vm.redefine-domain",
            Stopped,
            Some(Stopped),
            3,
        ),
        kind(
            Ask::Delete,
            "delete-vm.mark-deleted",
            Stopped,
            Some(Deleted),
            3,
        ),
        kind(Ask::Expunge, "expunge-vm.check-power-off", Deleted, None, 3),
        kind(
            Ask::Recover,
            "recover-vm.bring-back-domain",
            Deleted,
            Some(Stopped),
            2,
        ),
        kind(Ask::Pause, "pause-vm.pause-guest", Running, Some(Paused), 1),
        kind(
            Ask::Replace,
            "replace-root-volume.switch-root",
            Stopped,
            Some(Running),
            1,
        ),
    ]
};

/// Calls that change something.
const CHANGES: &[u32] = &[
    calls::CREATE[0],
    calls::CREATE[1],
    calls::DEFINE[0],
    calls::DEFINE[1],
    calls::DESTROY[0],
    calls::DESTROY[1],
    calls::SUSPEND[0],
    calls::UNDEFINE[0],
    calls::UNDEFINE[1],
    calls::METADATA[0],
];

/// How many VMs there are, including those that nothing is asked of.
fn size() -> usize {
    if thorough() { 200 } else { 40 }
}

/// How many VMs are made at a time.
const SIDE_BY_SIDE: usize = 8;

/// One operation, and what it is about.
struct InFlight {
    kind: &'static Kind,
    vm_id: String,
    operation: String,
}

/// Makes a VM that has no power.
async fn make(api: &Api, image: &str) -> String {
    let request = CreateVmRequest {
        start: false,
        ..crate::bench::request(image)
    };
    api.done(api.vms().create_vm(request).await).await.vm_id
}

/// Makes so many VMs without power, some at a time.
async fn make_all(api: &Api, image: &str, count: usize) -> Vec<String> {
    let mut made = Vec::new();
    while made.len() < count {
        let some = (count - made.len()).min(SIDE_BY_SIDE);
        let making: Vec<_> = (0..some)
            .map(|_| {
                let (api, image) = (api.clone(), image.to_owned());
                tokio::spawn(async move { make(&api, &image).await })
            })
            .collect();
        for vm in making {
            made.push(vm.await.unwrap());
        }
    }
    made
}

/// Brings a VM to a state.
async fn bring(api: &Api, vm_id: &str, to: VmState) {
    let ask = match to {
        VmState::Running => Ask::Start,
        VmState::Deleted => Ask::Delete,
        VmState::Stopped => return,
        other => unreachable!("{other:?} is no beginning"),
    };
    api.done(ask.send(api, vm_id, "").await).await;
}

/// The ids of all domains that libvirt has, whatever they are.
fn domains(world: &World) -> Vec<String> {
    let connection = Connect::open(Some(&world.libvirtd.uri())).unwrap();
    let all = connection.list_all_domains(0).unwrap();
    let mut ids: Vec<_> = all
        .iter()
        .map(Domain::uuid_string)
        .map(Result::unwrap)
        .collect();
    ids.sort();
    ids
}

/// The states of all VMs, as they are listed.
async fn listed(api: &Api) -> BTreeMap<String, VmState> {
    let all = api.all_vms().await;
    let states: BTreeMap<_, _> = all.iter().map(|vm| (vm.id.clone(), vm.state())).collect();
    assert_eq!(states.len(), all.len(), "each VM is listed once");
    states
}

/// The operation when it has ended. A libvirtd that died in the start of a guest waits
/// long for its QEMU.
async fn ended(api: &Api, operation: &str) -> Operation {
    let request = WaitOperationRequest {
        operation_id: operation.to_owned(),
        timeout: Some(prost_types::Duration {
            seconds: 30,
            nanos: 0,
        }),
    };
    for _ in 0..6 {
        let answer = api.operations().wait_operation(request.clone()).await;
        let operation = answer.unwrap().into_inner();
        if operation.end_time.is_some() {
            return operation;
        }
    }
    panic!("{operation} does not end");
}

/// Guests that run and are the object of nothing, with their processes.
async fn bystanders(world: &World) -> Vec<(Guest, Pid)> {
    let mut guests = Vec::new();
    for _ in 0..2 {
        let guest = world.guest(&world.deaf).await;
        let process = world.qemu(&guest.id).expect("it runs");
        guests.push((guest, process));
    }
    guests
}

pub async fn libvirtd_is_killed_under_many_vms_and_many_operations(mut world: World) {
    let seed = match std::env::var("KVMLET_SEED") {
        Ok(text) => text.parse().expect("KVMLET_SEED is a number"),
        Err(_) => rand::random_range(0..1_000_000),
    };
    let mut random = StdRng::seed_from_u64(seed);
    let api = world.api();
    let bystanders = bystanders(&world).await;
    let made = make_all(&api, &world.deaf, size() - bystanders.len()).await;
    println!("{} VMs; KVMLET_SEED={seed}", size());

    // Which VM each operation is about.
    let mut free = made.iter();
    let mut about: Vec<(&'static Kind, String)> = Vec::new();
    for kind in &KINDS {
        for _ in 0..kind.count {
            let vm_id = match kind.ask {
                Ask::Create => id(),
                _ => free.next().expect("enough VMs").clone(),
            };
            if kind.ask != Ask::Create {
                bring(&api, &vm_id, kind.from).await;
            }
            about.push((kind, vm_id));
        }
    }
    about.shuffle(&mut random);
    let before = listed(&api).await;

    // All are at work, each held before its first call.
    let home = world.host.daemon.home().to_owned();
    let held = |kind: &Kind| -> Vec<PathBuf> {
        let files = (0..kind.count).map(|number| home.join(format!("{}-{number}", kind.point)));
        files.collect()
    };
    let points = KINDS.iter().map(|kind| {
        let holds = held(kind).into_iter();
        let holds = holds.map(|path| format!("1*return(hold:{})", path.display()));
        let holds: Vec<_> = holds.collect();
        format!("{}.before={}\n", kind.point, holds.join("->"))
    });
    fs::write(world.points(), points.collect::<String>()).unwrap();
    let mut flights = Vec::new();
    for (kind, vm_id) in about {
        let answer = kind.ask.send(&api, &vm_id, &world.obedient).await;
        let answer = answer.unwrap_or_else(|status| panic!("{:?}: {status:?}", kind.ask));
        flights.push(InFlight {
            kind,
            vm_id,
            operation: answer.into_inner().id,
        });
    }
    let mut holds: Vec<PathBuf> = KINDS.iter().flat_map(held).collect();
    assert_eq!((flights.len(), holds.len()), (30, 30));
    until("all steps to be held", PATIENCE, async || {
        holds.iter().all(|path| path.exists()).then_some(())
    })
    .await;
    fs::write(world.points(), "").unwrap();

    // Some go on, and libvirtd dies under them; the others find it away.
    holds.shuffle(&mut random);
    let racing = random.random_range(8..=24);
    let begin = Instant::now();
    let trap = world.cut(CHANGES, Cut::Never);
    for path in &holds[..racing] {
        fs::remove_file(path).unwrap();
    }
    world.sprung(&trap).await;
    world.libvirtd.kill9();
    for path in &holds[racing..] {
        fs::remove_file(path).unwrap();
    }
    world.libvirtd.restart();
    world.host.daemon.wait_until_serving().await;

    // Each ends as an undisturbed one does.
    let mut due = before;
    for flight in &flights {
        let (ask, vm_id) = (flight.kind.ask, &flight.vm_id);
        let ended = ended(&api, &flight.operation).await;
        assert_eq!(
            ended.state(),
            OperationState::Succeeded,
            "{ask:?}: {ended:?}"
        );
        match flight.kind.to {
            Some(state) => due.insert(vm_id.clone(), state),
            None => due.remove(vm_id),
        };
    }
    let took = begin.elapsed();

    // Every VM is there once, and its state is libvirt's and the right one.
    let mut wrong = Vec::new();
    for (vm_id, state) in &due {
        let told = world.agrees(vm_id).await;
        // A libvirtd that died after it had cut the power, and before it had noted
        // that, finds a guest whose QEMU is gone.
        let forgotten = *state == VmState::Stopped && told == VmState::Crashed;
        if told != *state && !forgotten {
            wrong.push(format!("{vm_id} is {told:?}, and not {state:?}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
    let states = listed(&api).await;
    let ids = |states: &BTreeMap<String, VmState>| -> BTreeSet<String> {
        states.keys().cloned().collect()
    };
    assert_eq!(ids(&states), ids(&due));
    let there: Vec<String> = due.keys().cloned().collect();
    assert_eq!(
        domains(&world),
        there,
        "libvirt has each once, and no other"
    );
    let request = ListOrphansRequest {
        page_size: 1000,
        ..Default::default()
    };
    let orphans = api.nodes().list_orphans(request).await.unwrap();
    assert_eq!(orphans.into_inner().orphans, []);
    // A QEMU for each that has power, and none besides.
    let powered = states
        .values()
        .filter(|state| matches!(state, VmState::Running | VmState::Paused));
    assert_eq!(world.host.qemus().len(), powered.count());
    for (guest, process) in &bystanders {
        assert_eq!(world.qemu(&guest.id), Some(*process));
        assert_eq!(guest.says(LINE), 1, "it has not noticed");
    }

    // The journal has what was shown.
    world.host.daemon.stop().await;
    world.host.daemon.restart().await;
    assert_eq!(listed(&world.api()).await, states);
    println!(
        "libvirtd killed under {} VMs and {} operations, {racing} of them at their \
         calls: all succeeded, {took:.1?}",
        size(),
        flights.len()
    );
}
