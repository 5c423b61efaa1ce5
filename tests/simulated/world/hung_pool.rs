//! A local pool hangs, as a file system does whose server does not answer: when the
//! agent starts, while it runs, and in the middle of operations. What has nothing to do
//! with that pool must not notice; what has, goes on when the pool is back.

use crate::support::api::{force, graceful, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::fuse::Fuse;
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::Refusal;
use crate::support::{PATIENCE, known, thorough, until};
use kvmlet::proto::v1::*;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Response, Status};
use virt::connect::Connect;

/// The pool that hangs, and one that does not.
const HUNG: &str = "hung";
const WELL: &str = "default";

/// How long a call is waited for before it counts as held up by the pool. Calls that are
/// not take a moment. On a slow machine the fault is shown although it is mended; no test
/// fails because of it.
const HELD_UP: Duration = Duration::from_secs(15);

/// How many quick calls all local pools together may have at work.
const AT_ONCE: u32 = 8;

/// If no further call has reached the hung pool for this long, no more are expected.
const SETTLED: Duration = Duration::from_secs(10);

/// It says after which time systemd ends a start and tries again.
const UNIT: &str = include_str!("../../../systemd/kvmlet.service");

/// A daemon, one of whose pools can hang.
struct Place {
    // Dropped first: that releases what waits for it, so that the daemon can be ended.
    disk: Fuse,
    daemon: Daemon,
    points: TempDir,
    image: String,
    // The domains outlive the daemon as long as somebody is connected.
    connection: Connect,
    _libvirtd: Libvirtd,
}

type Answer = Result<Response<Operation>, Status>;

impl Place {
    async fn start() -> Self {
        let disk = Fuse::start();
        let libvirtd = Libvirtd::start();
        let points = tempfile::tempdir().unwrap();
        let armed = points.path().join("armed");
        fs::write(&armed, "").unwrap();
        let pool = format!(
            "[[pools]]\nname = \"{HUNG}\"\nkind = \"qcow2\"\npath = \"{}/pool\"\n",
            disk.path().display()
        );
        let setup = Setup {
            launcher: disk.launcher(),
            more: pool,
            environment: vec![("FAILPOINTS_FILE".to_owned(), armed.display().to_string())],
            ..Setup::on(libvirtd.uri())
        }
        .with("shutdown", "grace = \"2s\"");
        let daemon = Daemon::start(setup).await;
        let image = daemon.image().await;
        Self {
            disk,
            daemon,
            points,
            image,
            connection: libvirtd.connect(),
            _libvirtd: libvirtd,
        }
    }

    /// A request for a VM whose root is in a pool.
    fn wanted(&self, pool: &str) -> CreateVmRequest {
        CreateVmRequest {
            root_volume: Some(NewVolume {
                pool: pool.to_owned(),
                ..Default::default()
            }),
            start: true,
            ..small(&self.image)
        }
    }

    /// Makes such a VM, which runs.
    async fn made(&self, pool: &str) -> String {
        let api = self.daemon.api();
        let answer = api.vms().create_vm(self.wanted(pool)).await;
        api.done(answer).await.vm_id
    }

    /// Imports an image into the pool that hangs later.
    async fn import(&self) -> String {
        let source = self.daemon.blank("there.qcow2", 1);
        let request = ImportImageRequest {
            source: source.display().to_string(),
            format: ImageFormat::Qcow2 as i32,
            pool: HUNG.to_owned(),
            ..Default::default()
        };
        let api = self.daemon.api();
        let answer = api.images().import_image(request).await;
        api.done(answer).await.image_id
    }

    async fn start_vm(&self, vm_id: &str) -> Answer {
        let request = StartVmRequest {
            vm_id: vm_id.to_owned(),
            ..Default::default()
        };
        self.daemon.api().vms().start_vm(request).await
    }

    async fn stop_vm(&self, vm_id: &str, policy: StopPolicy) -> Answer {
        let request = StopVmRequest {
            vm_id: vm_id.to_owned(),
            stop_policy: Some(policy),
            ..Default::default()
        };
        self.daemon.api().vms().stop_vm(request).await
    }

    /// Whether a VM's domain has power.
    fn has_power(&self, vm_id: &str) -> bool {
        let domain = Libvirtd::domain(&self.connection, vm_id).expect("a domain");
        domain.is_active().unwrap()
    }

    /// Stops and starts a VM, which must work whichever pool hangs if its own does not.
    async fn is_operated(&self, vm_id: &str) {
        let api = self.daemon.api();
        api.done(self.stop_vm(vm_id, graceful()).await).await;
        assert!(!self.has_power(vm_id));
        api.done(self.start_vm(vm_id).await).await;
        assert!(self.has_power(vm_id));
        assert_eq!(api.state(vm_id).await, VmState::Running);
        api.done(self.stop_vm(vm_id, force()).await).await;
        assert!(!self.has_power(vm_id));
        api.done(self.start_vm(vm_id).await).await;
    }

    async fn hangs(&self) {
        self.disk.hang();
        assert_eq!(self.disk.waiting(), 0, "nothing was at work");
    }

    /// Waits until somebody waits for the pool.
    async fn is_missed(&self) {
        until("a call to the pool that hangs", PATIENCE, async || {
            (self.disk.waiting() > 0).then_some(())
        })
        .await;
    }

    /// Lets the pool go on, and waits until it is said to be usable.
    async fn is_back(&self) {
        self.disk.go_on();
        let kind = format!("PoolReady/{HUNG}");
        until("the pool to be back", PATIENCE, async || {
            let node = self.daemon.api().node().await;
            let mut conditions = node.conditions.iter();
            let ready = conditions.find(|c| c.r#type == kind).unwrap();
            ready.status.then_some(())
        })
        .await;
    }

    /// Begins to make a VM in the pool, which then hangs in the middle of that.
    async fn is_caught(&self) -> (String, String) {
        let held: PathBuf = self.points.path().join("held");
        let point = format!("pool.create.begun=1*return(hold:{})\n", held.display());
        fs::write(self.points.path().join("armed"), point).unwrap();
        let answer = self.daemon.api().vms().create_vm(self.wanted(HUNG)).await;
        let operation = answer.unwrap().into_inner();
        until("the step to be held", PATIENCE, async || {
            held.exists().then_some(())
        })
        .await;
        self.hangs().await;
        fs::write(self.points.path().join("armed"), "").unwrap();
        fs::remove_file(held).unwrap();
        self.is_missed().await;
        (operation.id, operation.vm_id)
    }
}

/// Systemd's side of the agent's start.
struct Systemd {
    heard: Arc<Mutex<Vec<String>>>,
    begun: Instant,
}

impl Systemd {
    /// Starts the daemon of a place again, and does not wait.
    fn starts(place: &mut Place) -> Self {
        let path = place.points.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let told = ("NOTIFY_SOCKET".to_owned(), path.display().to_string());
        place.daemon.setup_mut().environment.push(told);
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let list = heard.clone();
        // To the end: a daemon that is not listened to would wait.
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let message = String::from_utf8_lossy(&buffer[..length]);
                let lines = message.lines().map(str::to_owned);
                list.lock().unwrap().extend(lines);
            }
        });
        place.daemon.start_again();
        Self {
            heard,
            begun: Instant::now(),
        }
    }

    /// Whether the agent says that it is ready before it would be ended; in a run that
    /// is not thorough, before it is held up.
    async fn is_told_in_time(&self) -> bool {
        let mut lines = UNIT.lines();
        let seconds = lines.find_map(|line| line.strip_prefix("TimeoutStartSec="));
        let mut time = Duration::from_secs(seconds.unwrap().parse().unwrap());
        let mut read = 0;
        loop {
            let heard = self.heard.lock().unwrap().clone();
            for line in &heard[read..] {
                if line == "READY=1" {
                    return true;
                }
                // The agent asks for more time from then on.
                if let Some(micros) = line.strip_prefix("EXTEND_TIMEOUT_USEC=") {
                    let more = Duration::from_micros(micros.parse().unwrap());
                    time = time.max(self.begun.elapsed() + more);
                }
            }
            read = heard.len();
            let time = if thorough() { time } else { HELD_UP };
            if self.begun.elapsed() > time {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_one_of_whose_pools_hangs_starts_and_operates_what_is_elsewhere() {
    let mut place = Place::start().await;
    let (here, there) = (place.made(WELL).await, place.made(HUNG).await);
    let image = place.import().await;
    place.daemon.stop().await;
    place.hangs().await;
    let systemd = Systemd::starts(&mut place);
    place.is_missed().await;
    known::fault("hung-pool-at-start", async {
        if !systemd.is_told_in_time().await {
            assert!(place.daemon.is_alive(), "{}", place.daemon.log());
            assert!(place.disk.waiting() > 0, "it does not wait for the pool");
            let took = systemd.begun.elapsed();
            return Err(format!("{took:.0?} after its start the agent is not ready"));
        }
        place.is_operated(&here).await;
        let api = place.daemon.api();
        assert_eq!(api.state(&there).await, VmState::Running);
        api.done(place.stop_vm(&there, force()).await).await;
        api.done(place.start_vm(&there).await).await;
        Ok(())
    })
    .await;
    place.disk.go_on();
    place.daemon.wait_until_serving().await;
    place.is_back().await;
    for vm_id in [&here, &there] {
        assert_eq!(place.daemon.api().state(vm_id).await, VmState::Running);
        place.is_operated(vm_id).await;
    }
    let request = GetImageRequest { image_id: image };
    let image = place.daemon.api().images().get_image(request).await;
    assert_eq!(image.unwrap().get_ref().state(), ImageState::Ready);
}

/// Sends more requests for VMs in the hung pool than there are calls at once, and waits
/// until no more of them reach it, or all are answered.
async fn crowd(place: &Place) -> Vec<(CreateVmRequest, JoinHandle<Answer>)> {
    let asked = (0..2 * AT_ONCE).map(|_| {
        let (request, api) = (place.wanted(HUNG), place.daemon.api());
        let sent = request.clone();
        let answer = tokio::spawn(async move { api.vms().create_vm(sent).await });
        (request, answer)
    });
    let asked: Vec<_> = asked.collect();
    let (mut most, mut since) = (0, Instant::now());
    loop {
        let waiting = place.disk.waiting();
        if waiting > most {
            (most, since) = (waiting, Instant::now());
        }
        let answered = asked.iter().all(|(_, answer)| answer.is_finished());
        if answered || most >= AT_ONCE || since.elapsed() > SETTLED {
            return asked;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn away(status: &Status) -> String {
    let refusal = Refusal::from(status);
    assert_eq!(refusal.reason, "POOL_AWAY", "{refusal:?}");
    refusal.metadata["pool"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_hangs_takes_no_other_along() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let here = place.made(WELL).await;
    place.hangs().await;
    let asked = crowd(&place).await;
    known::fault("hung-pool-takes-others-along", async {
        let wanted = place.wanted(WELL);
        match timeout(HELD_UP, api.vms().create_vm(wanted.clone())).await {
            Err(_) => {
                let waiting = place.disk.waiting();
                assert!(waiting >= AT_ONCE, "it waits for something else");
                Err(format!(
                    "a call to another pool has no turn while {waiting} wait for the one that hangs"
                ))
            }
            Ok(Err(status)) => {
                assert_eq!(away(&status), WELL);
                Err("another pool is said to be away".to_owned())
            }
            Ok(answer) => {
                api.done(answer).await;
                Ok(())
            }
        }
    })
    .await;
    // What needs no pool works.
    place.is_operated(&here).await;
    place.is_back().await;
    for (request, answer) in asked {
        let answer = match answer.await.unwrap() {
            Err(status) => {
                assert_eq!(away(&status), HUNG);
                api.vms().create_vm(request).await
            }
            answer => answer,
        };
        api.done(answer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_a_pool_that_hangs_is_stopped_by_force() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let (idle, busy) = (place.made(HUNG).await, place.made(HUNG).await);
    place.hangs().await;
    // It needs nothing of the pool.
    api.done(place.stop_vm(&idle, force()).await).await;
    assert!(!place.has_power(&idle));

    // A request that can't be answered before the pool does.
    let replace = ReplaceRootVolumeRequest {
        vm_id: busy.clone(),
        image_id: place.image.clone(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    let replacing = {
        let api = api.clone();
        tokio::spawn(async move { api.vms().replace_root_volume(replace).await })
    };
    place.is_missed().await;
    known::fault("hung-pool-holds-a-forced-stop", async {
        match timeout(HELD_UP, place.stop_vm(&busy, force())).await {
            Err(_) => {
                assert!(place.disk.waiting() > 0, "it waits for something else");
                assert!(place.has_power(&busy));
                assert!(!replacing.is_finished());
                Err("a forced stop waits behind a request that waits for the pool".to_owned())
            }
            Ok(answer) => {
                api.done(answer).await;
                assert!(!place.has_power(&busy));
                Ok(())
            }
        }
    })
    .await;
    place.is_back().await;
    // Whichever came first, the other may be refused.
    let replaced = api.outcome(replacing.await.unwrap()).await;
    println!("the request that waited: {:?}", replaced.map(|it| it.id));
    until("the VM to be free", PATIENCE, async || {
        let vm = api.vm(&busy).await.unwrap();
        vm.current_operation_id.is_empty().then_some(())
    })
    .await;
    api.done(place.stop_vm(&busy, force()).await).await;
    assert!(!place.has_power(&busy));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_whose_pool_hangs_holds_up_no_other_and_goes_on_when_it_is_back() {
    let place = Place::start().await;
    let api = place.daemon.api();
    let (here, there) = (place.made(WELL).await, place.made(HUNG).await);
    let (operation, vm_id) = place.is_caught().await;

    place.is_operated(&here).await;
    place.made(WELL).await;
    api.done(place.stop_vm(&there, force()).await).await;
    assert!(!place.has_power(&there));
    let known = api.all_vms().await.len();
    assert_eq!(known, 4, "reads are answered");
    let request = GetOperationRequest {
        operation_id: operation.clone(),
    };
    let told = api.operations().get_operation(request).await.unwrap();
    assert_eq!(told.get_ref().state(), OperationState::Running);
    assert!(place.disk.waiting() > 0, "the pool was back too early");

    place.disk.go_on();
    let ended = api.ended(&operation).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    for vm_id in [&vm_id, &there] {
        api.done(place.start_vm(vm_id).await).await;
        place.is_operated(vm_id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_stopped_while_a_pool_hangs_ends_and_goes_on_at_its_next_start() {
    let mut place = Place::start().await;
    let (operation, vm_id) = place.is_caught().await;
    place.daemon.stop().await;
    place.disk.go_on();
    place.daemon.restart().await;
    let ended = place.daemon.api().ended(&operation).await;
    assert_eq!(ended.state(), OperationState::Succeeded, "{ended:?}");
    place.is_operated(&vm_id).await;
}
