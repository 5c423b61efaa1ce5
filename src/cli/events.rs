//! `kvmlet events`: what happens on the host, as it happens.
//!
//! Goes on where it was when the daemon restarts; no change is missed. Where the
//! daemon does not know any more what came after, it says so.

use crate::cli::connect::Session;
use crate::cli::fault::{self, Fault};
use crate::cli::json;
use crate::cli::output;
use crate::cli::parse;
use crate::cli::resolve::{self, Gone};
use crate::proto::v1::watch_events_response::Event;
use crate::proto::v1::{
    Cause, CauseKind, EventFilter, EventKind, ResumePoint, WatchEventsRequest, WatchEventsResponse,
};
use clap::{Args, ValueEnum};
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Code, Status};

/// Between two tries to reach a daemon that restarts.
const PAUSE: Duration = Duration::from_millis(250);

/// What to watch.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Only of this VM (may be repeated): its id, the beginning of it, or its name
    #[arg(long, value_name = "VM")]
    vm: Vec<String>,
    /// Only of VMs with this label (may be repeated: with all of them)
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Only of this kind (may be repeated)
    #[arg(long, value_enum)]
    kind: Vec<KindArg>,
    /// Begin with the present state of everything
    #[arg(long, conflicts_with = "after")]
    snapshot: bool,
    /// Go on after this point: epoch and revision as -o json prints them
    #[arg(long, value_name = "EPOCH/REVISION", value_parser = point)]
    after: Option<ResumePoint>,
    /// End with the first bookmark: when everything that is known was printed
    #[arg(long)]
    no_follow: bool,
    /// How long to try to reach a daemon that restarts
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
    reconnect: Duration,
}

/// A kind of things.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    /// VMs
    Vm,
    /// Operations
    Operation,
    /// Images
    Image,
}

fn point(text: &str) -> Result<ResumePoint, String> {
    text.split_once('/')
        .and_then(|(epoch, revision)| {
            Some(ResumePoint {
                epoch: epoch.to_owned(),
                revision: revision.parse().ok()?,
            })
        })
        .ok_or_else(|| "expected EPOCH/REVISION".to_owned())
}

/// Prints events until interrupted.
pub(crate) async fn watch(session: &Session, args: EventsArgs) -> Result<(), Fault> {
    let mut request = WatchEventsRequest {
        resume: args.after.clone(),
        snapshot: args.snapshot,
        filter: Some(filter(session, &args).await?),
    };
    let mut tried = None;
    loop {
        let problem = match follow(session, &args, &mut request, &mut tried).await {
            Ok(()) => return Ok(()),
            Err(End::Fault(fault)) => return Err(fault),
            Err(End::Status(status)) => status,
        };
        let since = *tried.get_or_insert_with(Instant::now);
        let late = since.elapsed() >= args.reconnect;
        if let Some(problem) = problem {
            let again = fault::is_broken(&problem)
                || matches!(problem.code(), Code::Unavailable | Code::Aborted);
            if !again || late {
                return Err(problem.into());
            }
            if since.elapsed() < PAUSE {
                eprintln!("The stream has ended ({}); trying again", problem.message());
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn filter(session: &Session, args: &EventsArgs) -> Result<EventFilter, Fault> {
    let mut vm_ids = Vec::new();
    for wanted in &args.vm {
        vm_ids.push(resolve::vm(session, wanted, Gone::Yields).await?);
    }
    Ok(EventFilter {
        vm_ids,
        labels: parse::map(&args.labels),
        kinds: args
            .kind
            .iter()
            .map(|kind| match kind {
                KindArg::Vm => EventKind::Vm.into(),
                KindArg::Operation => EventKind::Operation.into(),
                KindArg::Image => EventKind::Image.into(),
            })
            .collect(),
    })
}

enum End {
    /// What ended the stream, if it said so.
    Status(Option<Status>),
    Fault(Fault),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(Some(status))
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Follows one stream to its end; `request` is left so that another one goes on.
async fn follow(
    session: &Session,
    args: &EventsArgs,
    request: &mut WatchEventsRequest,
    tried: &mut Option<Instant>,
) -> Result<(), End> {
    let mut stream = session
        .node()
        .watch_events(request.clone())
        .await?
        .into_inner();
    let mut in_snapshot = false;
    while let Some(event) = stream.message().await? {
        *tried = None;
        if let Some(Event::Snapshot(mark)) = &event.event {
            in_snapshot = !mark.end;
        }
        // Half a snapshot is nothing to go on from.
        if !in_snapshot {
            request.snapshot = false;
            request.resume = Some(ResumePoint {
                epoch: event.epoch.clone(),
                revision: event.revision,
            });
        }
        print(session, &event)?;
        let over = matches!(
            &event.event,
            Some(Event::Bookmark(_)) if args.no_follow
        ) || matches!(
            &event.event,
            Some(Event::Snapshot(mark)) if args.no_follow && mark.end
        );
        if over {
            return Ok(());
        }
    }
    Err(End::Status(None))
}

fn print(session: &Session, event: &WatchEventsResponse) -> Result<(), Fault> {
    if session.out.is_json() {
        return session.out.json_line(&json::value(event)?);
    }
    let what = match &event.event {
        Some(Event::Vm(vm)) => {
            let state = output::name(vm.state().as_str_name(), "VM_STATE_");
            let reason = output::word(vm.state_reason().as_str_name(), "STATE_REASON_");
            format!("vm {} {} {state} {reason}", vm.id, vm.name)
        }
        Some(Event::Operation(operation)) => format!(
            "operation {} {} {} {}%",
            operation.id,
            output::name(operation.r#type().as_str_name(), "OPERATION_TYPE_"),
            output::name(operation.state().as_str_name(), "OPERATION_STATE_"),
            operation.progress_percent
        ),
        Some(Event::Image(image)) => format!(
            "image {} {} {}",
            image.id,
            image.name,
            output::name(image.state().as_str_name(), "IMAGE_STATE_")
        ),
        Some(Event::VmExpunged(id)) => format!("vm {id} is gone"),
        Some(Event::ImageDeleted(id)) => format!("image {id} is gone"),
        Some(Event::Snapshot(mark)) if mark.end => "-- that is everything".to_owned(),
        Some(Event::Snapshot(mark)) if mark.forced => {
            "-- what came in between is not known any more; everything as it is:".to_owned()
        }
        Some(Event::Snapshot(_)) => "-- everything as it is:".to_owned(),
        // Said only to programs.
        Some(Event::Bookmark(_)) | None => return Ok(()),
    };
    if session.out.quiet {
        return session.out.line(event.revision);
    }
    session.out.line(output::clean(
        format!(
            "{:>8}  {}  {:<23}  {what}",
            event.revision,
            session.out.clock(event.time),
            event.cause.as_ref().map(cause).unwrap_or_default(),
        )
        .trim_end(),
    ))
}

fn cause(cause: &Cause) -> String {
    let who = output::word(cause.kind().as_str_name(), "CAUSE_KIND_");
    let what = output::word(cause.detail().as_str_name(), "CAUSE_DETAIL_");
    match (cause.kind(), what.as_str()) {
        (CauseKind::Operation, _) => {
            // Ids begin with the time: fewer digits would be the same for a minute.
            let id = cause.operation_id.get(..13).unwrap_or_default();
            format!("{who} {id}").trim_end().to_owned()
        }
        (_, "") => who,
        (_, what) => format!("{who}: {what}"),
    }
}
