//! What many VMs cost, beside libvirt's own ways, in one run.
//!
//! - list: ListVms with everything, against the same through libvirt's API (list,
//!   state, definition), and against `virsh list --all` with a `dominfo` each;
//! - events: from the moment something is done to a domain to a gRPC watcher,
//!   against a bare callback of libvirt's, for the same events;
//! - memory with watchers, time from start to ready, processor time at rest.
//!
//! On two hosts: one with many VMs on libvirt's simulated driver, one with VMs that
//! are defined on real QEMU. Each has a libvirtd of its own. Needs root, libvirtd,
//! virsh, QEMU and tini.
//!
//! | variable | default | what |
//! |---|---|---|
//! | `KVMLET_BENCH_SIMULATED` | 1000 | VMs on the simulated host |
//! | `KVMLET_BENCH_DEFINED` | 300 | VMs on real libvirtd |
//! | `KVMLET_BENCH_ROUNDS` | 5 | times that each side lists |
//! | `KVMLET_BENCH_EVENTS` | 200 | events whose way is timed |
//! | `KVMLET_BENCH_WATCHERS` | 100 | watchers while memory is measured |
//! | `KVMLET_BENCH_REST` | 30 | seconds of rest |
//! | `KVMLET_BENCH_DIR` | `/var/tmp` | where journal and volumes are |

mod events;
#[allow(dead_code)] // the other bench uses the rest of it
#[path = "../overhead/host.rs"]
mod host;
mod list;
mod rest;

use host::{Failure, Host};
use kvmlet::proto::v1::node_service_client::NodeServiceClient;
use kvmlet::proto::v1::operation_service_client::OperationServiceClient;
use kvmlet::proto::v1::vm_service_client::VmServiceClient;
use kvmlet::proto::v1::*;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

/// Callers that make VMs at once.
const MAKERS: usize = 8;

/// Further configuration: the simulated host has 3 GiB.
const MORE: &str = "memory_overcommit = 10.0\n";

/// How much of everything.
struct Sizes {
    rounds: usize,
    events: usize,
    watchers: usize,
    rest: Duration,
}

fn main() -> ExitCode {
    // `cargo test --all-targets` runs it without this.
    if !std::env::args().any(|argument| argument == "--bench") {
        eprintln!("scale: measures only under `cargo bench --bench scale`");
        return ExitCode::SUCCESS;
    }
    match measured() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("scale: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measured() -> Result<(), Failure> {
    let sizes = Sizes {
        rounds: setting("KVMLET_BENCH_ROUNDS", 5)?,
        events: setting("KVMLET_BENCH_EVENTS", 200)?,
        watchers: setting("KVMLET_BENCH_WATCHERS", 100)?,
        rest: Duration::from_secs(u64::try_from(setting("KVMLET_BENCH_REST", 30)?)?),
    };
    let simulated = setting("KVMLET_BENCH_SIMULATED", 1000)?;
    let defined = setting("KVMLET_BENCH_DEFINED", 300)?;
    let parent =
        std::env::var_os("KVMLET_BENCH_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let runtime = tokio::runtime::Runtime::new()?;

    let mut host = Host::start(&parent)?;
    let uri = format!(
        "test+unix:///default?socket={}",
        host.path("run/libvirt-sock").display()
    );
    println!("{simulated} VMs on the simulated host, every second one running");
    runtime
        .block_on(on_host(&mut host, &uri, simulated, true, &sizes))
        .map_err(|failure| format!("{failure}\n{}", host.last_words()))?;
    drop(host);

    let mut host = Host::start(&parent)?;
    let uri = host.uri();
    println!("\n{defined} VMs on real libvirtd, one running");
    runtime
        .block_on(on_host(&mut host, &uri, defined, false, &sizes))
        .map_err(|failure| format!("{failure}\n{}", host.last_words()).into())
}

async fn on_host(
    host: &mut Host,
    uri: &str,
    count: usize,
    half_running: bool,
    sizes: &Sizes,
) -> Result<(), Failure> {
    host.start_kvmlet_on(uri, MORE)?;
    let api = Api::connect(host).await?;
    let begin = Instant::now();
    let image = api.import(host).await?;
    let vms = api.make(&image, count, half_running).await?;
    println!("  made in {:.1} s", begin.elapsed().as_secs_f64());
    list::compare(&api, uri, count, sizes.rounds).await?;
    events::compare(&api, uri, &vms[0], sizes.events).await?;
    drop(api);
    rest::measure(host, uri, count, sizes).await
}

/// A connection to the daemon.
#[derive(Clone)]
struct Api {
    channel: Channel,
}

impl Api {
    /// Connects, and waits until the daemon is ready.
    async fn connect(host: &Host) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", host.socket().display()))?;
        let api = Self {
            channel: endpoint.connect().await?,
        };
        api.until_ready().await?;
        Ok(api)
    }

    async fn until_ready(&self) -> Result<(), Failure> {
        use tonic_health::pb::health_client::HealthClient;
        use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
        let mut health = HealthClient::new(self.channel.clone());
        let mut told = health
            .watch(HealthCheckRequest::default())
            .await?
            .into_inner();
        while let Some(status) = told.message().await? {
            if status.status() == ServingStatus::Serving {
                return Ok(());
            }
        }
        Err("the daemon has gone".into())
    }

    fn vms(&self) -> VmServiceClient<Channel> {
        VmServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20)
    }

    fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    /// Waits for an operation that must succeed.
    async fn done(&self, operation: Operation) -> Result<Operation, Failure> {
        let mut operation = operation;
        let mut operations = OperationServiceClient::new(self.channel.clone());
        while operation.end_time.is_none() {
            operation = operations
                .wait_operation(WaitOperationRequest {
                    operation_id: operation.id,
                    timeout: Some(prost_types::Duration {
                        seconds: 30,
                        nanos: 0,
                    }),
                })
                .await?
                .into_inner();
        }
        match operation.error {
            None => Ok(operation),
            Some(error) => Err(error.message.into()),
        }
    }

    async fn import(&self, host: &Host) -> Result<String, Failure> {
        let source = host.path("import/blank.raw");
        std::fs::write(&source, vec![0; 1 << 20])?;
        let request = ImportImageRequest {
            source: source.display().to_string(),
            format: ImageFormat::Raw.into(),
            ..Default::default()
        };
        let mut images = image_service_client::ImageServiceClient::new(self.channel.clone());
        let operation = images.import_image(request).await?.into_inner();
        Ok(self.done(operation).await?.image_id)
    }

    /// Makes VMs; the first one runs.
    async fn make(
        &self,
        image: &str,
        count: usize,
        half_running: bool,
    ) -> Result<Vec<String>, Failure> {
        let mut makers = JoinSet::new();
        for maker in 0..MAKERS {
            let (api, image) = (self.clone(), image.to_owned());
            makers.spawn(async move {
                let mut made = Vec::new();
                for number in (maker..count).step_by(MAKERS) {
                    let request = CreateVmRequest {
                        name: format!("vm-{number}"),
                        image_id: image.clone(),
                        hardware: Some(Hardware {
                            vcpus: 1,
                            memory_bytes: 16 << 20,
                            ..Default::default()
                        }),
                        nics: vec![NewNic {
                            attachment: Some(new_nic::Attachment::User(UserAttachment {})),
                            ..Default::default()
                        }],
                        labels: [("number".to_owned(), number.to_string())].into(),
                        vnc: Some(NewVnc { enabled: false }),
                        start: number == 0 || half_running && number % 2 == 0,
                        ..Default::default()
                    };
                    let operation = api.vms().create_vm(request).await?.into_inner();
                    made.push((number, api.done(operation).await?.vm_id));
                }
                Ok::<_, Failure>(made)
            });
        }
        let mut made = Vec::new();
        while let Some(some) = makers.join_next().await {
            made.extend(some??);
        }
        made.sort_unstable();
        Ok(made.into_iter().map(|(_, id)| id).collect())
    }
}

/// The middle one, and the one that 99 % are not above.
fn percentiles(times: &mut [Duration]) -> (Duration, Duration) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    (at(50), at(99))
}

fn setting(name: &str, default: usize) -> Result<usize, Failure> {
    match std::env::var(name) {
        Err(_) => Ok(default),
        Ok(text) => text
            .parse()
            .ok()
            .filter(|number| *number > 0)
            .ok_or_else(|| format!("{name} must be a number above 0, not {text:?}").into()),
    }
}

/// Milliseconds, for tables.
fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// One line about a process, as the kernel has it.
fn status(process: u32, field: &str) -> Result<u64, Failure> {
    let text =
        std::fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| format!("the kernel does not tell {field}").into())
}
