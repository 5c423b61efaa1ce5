//! `kvmlet volume` and `kvmlet pool`.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::output;
use crate::cli::resolve::{self, Gone, PAGE};
use crate::cli::table::{Sheet, Table};
use crate::proto::v1::{
    CephPoolState, GetVolumeRequest, ListPoolsRequest, ListVolumesRequest, Pool, Volume,
};
use clap::Subcommand;

/// Commands on volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List volumes
    #[command(after_help = "Example:\n  kvmlet volume list --vm web1")]
    List {
        /// Only of this VM
        #[arg(long, value_name = "VM")]
        vm: Option<String>,
        /// Only in this pool
        #[arg(long, value_name = "POOL")]
        pool: Option<String>,
        /// Only made from this image
        #[arg(long, value_name = "IMAGE")]
        image: Option<String>,
    },
    /// Show one volume
    #[command(after_help = "Example:\n  kvmlet volume show 0b0e1c52")]
    Show {
        /// The volume's id, the beginning of it, or its name
        volume: String,
    },
}

/// Commands on pools.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// List the configured pools with their space
    #[command(after_help = "Example:\n  kvmlet pool list")]
    List,
}

/// Carries out a command on volumes.
pub(crate) async fn run(session: &Session, command: VolumeCommand) -> Result<(), Fault> {
    match command {
        VolumeCommand::List { vm, pool, image } => list(session, vm, pool, image).await,
        VolumeCommand::Show { volume } => show(session, &volume).await,
    }
}

/// Carries out a command on pools.
pub(crate) async fn run_pool(session: &Session, command: &PoolCommand) -> Result<(), Fault> {
    match command {
        PoolCommand::List => {
            let request = ListPoolsRequest {};
            let pools = session
                .volumes()
                .list_pools(request)
                .await?
                .into_inner()
                .pools;
            session.out.many(&pools, || pool_table(&pools))
        }
    }
}

async fn list(
    session: &Session,
    vm: Option<String>,
    pool: Option<String>,
    image: Option<String>,
) -> Result<(), Fault> {
    let vm_id = match vm {
        Some(vm) => resolve::vm(session, &vm, Gone::Yields).await?,
        None => String::new(),
    };
    let image_id = match image {
        Some(image) => resolve::image(session, &image).await?,
        None => String::new(),
    };
    let filter = ListVolumesRequest {
        page_size: PAGE,
        page_token: String::new(),
        vm_id,
        pool: pool.unwrap_or_default(),
        image_id,
    };
    let volumes = resolve::pages(|page_token| {
        let mut client = session.volumes();
        let request = ListVolumesRequest {
            page_token,
            ..filter.clone()
        };
        async move {
            let page = client.list_volumes(request).await?.into_inner();
            Ok((page.volumes, page.next_page_token))
        }
    })
    .await?;
    session.out.many(&volumes, || {
        let mut table = Table::new(&[
            "ID", "NAME", "KIND", "STATE", "POOL", "SIZE", "USED", "VM", "CREATED",
        ]);
        for volume in &volumes {
            table.row([
                volume.id.clone(),
                volume.name.clone(),
                kind(volume),
                state(volume),
                place(volume),
                output::size(volume.size_bytes),
                output::size(volume.actual_size_bytes),
                volume.vm_id.clone(),
                session.out.relative(volume.create_time),
            ]);
        }
        table
    })
}

async fn show(session: &Session, volume: &str) -> Result<(), Fault> {
    let volume_id = resolve::volume(session, volume).await?;
    let request = GetVolumeRequest { volume_id };
    let volume = session.volumes().get_volume(request).await?.into_inner();
    session.out.one(&volume, || {
        let out = &session.out;
        let mut sheet = Sheet::default();
        sheet.add("id", &volume.id);
        sheet.add("name", &volume.name);
        sheet.add("kind", kind(&volume));
        sheet.add("state", state(&volume));
        sheet.add("VM", &volume.vm_id);
        sheet.add("device index", volume.device_index);
        sheet.add("pool", &volume.pool);
        sheet.add("Ceph pool", &volume.ceph_pool);
        sheet.add(
            "format",
            output::word(volume.format().as_str_name(), "VOLUME_FORMAT_"),
        );
        sheet.add("path in the pool", &volume.install_path);
        sheet.add("image", &volume.image_id);
        sheet.add("size", output::size(volume.size_bytes));
        sheet.add("used", output::size(volume.actual_size_bytes));
        sheet.add("shareable", yes(volume.shareable));
        sheet.add("goes with its VM", yes(volume.delete_with_vm));
        if let Some(qos) = &volume.qos {
            if qos.bytes_per_second > 0 {
                sheet.add("limit", format!("{}/s", output::size(qos.bytes_per_second)));
            }
            if qos.iops > 0 {
                sheet.add("limit", format!("{} reads and writes/s", qos.iops));
            }
        }
        sheet.add("created", out.local(volume.create_time));
        sheet.add("kept until", out.local(volume.expire_time));
        sheet.to_string()
    })
}

/// Pools with their space.
pub(crate) fn pool_table(pools: &[Pool]) -> Table {
    let mut table = Table::new(&[
        "NAME", "KIND", "READY", "CAPACITY", "FREE", "PROMISED", "DEFAULT",
    ]);
    for pool in pools {
        let ready = match (pool.ready, pool.reason.as_str()) {
            (true, _) => "yes".to_owned(),
            (false, "") => "no".to_owned(),
            (false, reason) => format!("no: {reason}"),
        };
        table.row([
            pool.name.clone(),
            output::word(pool.kind().as_str_name(), "POOL_KIND_"),
            ready,
            output::size(pool.capacity_bytes),
            output::size(pool.free_bytes),
            output::size(pool.promised_bytes),
            if pool.default {
                "yes".into()
            } else {
                String::new()
            },
        ]);
        for inner in &pool.ceph_pools {
            let state = match inner.state() {
                CephPoolState::Ready => "yes".to_owned(),
                state => {
                    let name = output::name(state.as_str_name(), "CEPH_POOL_STATE_");
                    format!("no: {}", name.replace('_', " ").to_lowercase())
                }
            };
            table.row([
                format!("{}/{}", pool.name, inner.name),
                "Ceph pool".to_owned(),
                state,
                output::size(inner.capacity_bytes),
                output::size(inner.free_bytes),
                String::new(),
                String::new(),
            ]);
        }
    }
    table
}

/// The pool that a volume is in, and the Ceph pool in that.
pub(crate) fn place(volume: &Volume) -> String {
    match volume.ceph_pool.as_str() {
        "" => volume.pool.clone(),
        inner => format!("{}/{inner}", volume.pool),
    }
}

/// Root or data, in a word.
pub(crate) fn kind(volume: &Volume) -> String {
    output::word(volume.kind().as_str_name(), "VOLUME_KIND_")
}

/// Its state, as the API calls it.
pub(crate) fn state(volume: &Volume) -> String {
    output::name(volume.state().as_str_name(), "VOLUME_STATE_").to_owned()
}

/// Yes or no.
pub(crate) fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
