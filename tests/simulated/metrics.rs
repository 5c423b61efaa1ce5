//! Metrics, as those who watch a host read them: from the real daemon, on libvirt's
//! simulated driver.
//!
//! What the dashboard, the alerts and the documents name is held against the
//! catalogue, and the catalogue against what a daemon really tells.

use crate::support::api::{Start, force};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::{PATIENCE, until};
use kvmlet::report::metrics::catalogue::{self, Kind, Metric};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// Metrics of parts that a simulated host does not have: guests that run, Ceph.
const NOT_SIMULATED: &[&str] = &[
    "kvmlet_ceph_pool_",
    "kvmlet_vm_cpu_seconds_total",
    "kvmlet_vm_vcpu_wait_seconds_total",
    "kvmlet_vm_memory_balloon_bytes",
    "kvmlet_vm_memory_resident_bytes",
    "kvmlet_vm_memory_usable_bytes",
    "kvmlet_vm_disk_",
    "kvmlet_vm_network_",
    // The test of the sinks looks at theirs.
    "kvmlet_sink_",
    // Only with TLS on the API; the tests of who may call look at it.
    "kvmlet_certificate_expiry_",
];

/// What was scraped: each line's value by its name and labels.
struct Page {
    text: String,
    values: BTreeMap<String, f64>,
}

impl Page {
    fn new(text: String) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let values = samples
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.parse().unwrap())
            })
            .collect();
        Self { text, values }
    }

    async fn of(daemon: &Daemon) -> Self {
        let stream = UnixStream::connect(daemon.metrics_socket()).await.unwrap();
        let (status, text) = get(stream, "/metrics").await;
        assert!(status.contains(" 200 "), "{status}");
        Self::new(text)
    }

    #[track_caller]
    fn value(&self, name: &str) -> f64 {
        *self
            .values
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in\n{}", self.text))
    }

    /// How many lines begin so.
    fn count(&self, beginning: &str) -> usize {
        let names = self.values.keys();
        names.filter(|name| name.starts_with(beginning)).count()
    }
}

/// Asks for a path; returns the first line of the answer and its body.
async fn get(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    path: &str,
) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: kvmlet\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn shipped(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The metric that a name in a query is of: histograms have three names each.
fn metric(name: &str) -> Option<&'static Metric> {
    let known = |name: &str| catalogue::ALL.iter().find(|metric| metric.name == name);
    let histogram = |suffix: &str| {
        let metric = known(name.strip_suffix(suffix)?)?;
        (metric.kind == Kind::Histogram).then_some(metric)
    };
    known(name).or_else(|| {
        ["_bucket", "_sum", "_count"]
            .into_iter()
            .find_map(histogram)
    })
}

/// The names of metrics of ours in a text.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("kvmlet_") || word.starts_with("process_"))
        .collect()
}

/// Has promtool check something. What it does not like, it says.
fn promtool(arguments: &[&str], input: &str) {
    #[allow(clippy::disallowed_methods)] // a test asks another program
    let mut tool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (scripts/setup)");
    let mut stdin = tool.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let output = tool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

#[tokio::test]
async fn a_scrape_has_every_metric_of_the_catalogue_and_no_other() {
    let daemon = Daemon::simulated().await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let running = api.create(&image, Start::Yes).await;
    let stopped = api.create(&image, Start::No).await;
    let page = Page::of(&daemon).await;

    promtool(&["check", "metrics"], &page.text);
    let mut told = BTreeMap::new();
    for line in page.text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            told.insert(name, kind);
        }
    }
    for (name, kind) in &told {
        let metric = metric(name).unwrap_or_else(|| panic!("{name} is not in the catalogue"));
        let expected = format!("{:?}", metric.kind).to_lowercase();
        assert_eq!(kind, &expected, "{name}");
        let help = format!("# HELP {name} {}\n", metric.help);
        assert!(page.text.contains(&help), "{name} has another text");
    }
    let missing: Vec<&str> = catalogue::ALL
        .iter()
        .map(|metric| metric.name)
        .filter(|name| !told.contains_key(name))
        .filter(|name| {
            !NOT_SIMULATED
                .iter()
                .any(|beginning| name.starts_with(beginning))
        })
        .collect();
    assert!(missing.is_empty(), "not told: {missing:?}");
    for name in page.values.keys().filter(|name| name.contains('{')) {
        let (name, labels) = name.split_once('{').unwrap();
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        let mut labels: BTreeSet<&str> = labels.map(|(label, _)| label).collect();
        labels.remove("le");
        let expected = metric(name).unwrap().labels.iter().copied().collect();
        assert_eq!(labels, expected, "{name}");
    }

    assert_eq!(page.value("kvmlet_vms{state=\"RUNNING\"}"), 1.0);
    assert_eq!(page.value("kvmlet_vms{state=\"CRASHED\"}"), 0.0);
    for (id, state) in [(&running, "RUNNING"), (&stopped, "STOPPED")] {
        let name = format!("kvmlet_vm_state{{name=\"small\",state=\"{state}\",vm_id=\"{id}\"}}");
        assert_eq!(page.value(&name), 1.0);
    }
    assert_eq!(page.value("kvmlet_libvirt_up"), 1.0);
    assert_eq!(page.value("kvmlet_libvirt_stats_up"), 1.0);
    assert_eq!(
        page.value("kvmlet_condition{condition=\"JournalWritable\"}"),
        1.0
    );
    assert!(page.value("process_resident_memory_bytes") > 1e6);
}

#[tokio::test]
async fn operations_are_counted_by_how_they_ended_and_by_how_long_they_took() {
    let daemon = Daemon::simulated().await;
    let (api, image) = (daemon.api(), daemon.image().await);
    let ended = |kind: &str, result: &str| {
        format!("kvmlet_operations_total{{result=\"{result}\",type=\"{kind}\"}}")
    };
    let before = Page::of(&daemon).await;
    assert_eq!(before.value(&ended("import-image", "succeeded")), 1.0);
    assert_eq!(before.value(&ended("stop-vm", "already")), 0.0);
    let vm = api.create(&image, Start::No).await;
    let request = kvmlet::proto::v1::StopVmRequest {
        vm_id: vm,
        stop_policy: Some(force()),
        ..Default::default()
    };
    let answer = api.vms().stop_vm(request).await;
    api.done(answer).await;
    let after = Page::of(&daemon).await;
    assert_eq!(after.value(&ended("create-vm", "succeeded")), 1.0);
    assert_eq!(after.value(&ended("stop-vm", "already")), 1.0);
    let took = "kvmlet_operation_duration_seconds_count{type=\"create-vm\"}";
    assert_eq!(after.value(took), 1.0);
    let commits = after.value("kvmlet_journal_commits_total");
    let timed = after.value("kvmlet_journal_commit_duration_seconds_count");
    // One may be on its way while the page is written.
    assert!((commits - timed).abs() <= 1.0, "{commits} and {timed}");
    assert_eq!(after.value("kvmlet_operations_at_work"), 0.0);
}

#[tokio::test]
async fn a_scrape_makes_one_call_to_libvirt_however_many_vms_there_are() {
    let daemon = Daemon::start(Setup::default().with("vms", "address_refresh = \"1d\"")).await;
    let (api, image) = (daemon.api(), daemon.image().await);
    for _ in 0..12 {
        api.create(&image, Start::Yes).await;
    }
    // What their starts have brought about has ended.
    let calls = "kvmlet_libvirt_calls_total";
    let mut last = Page::of(&daemon).await;
    assert_eq!(last.count("kvmlet_vm_state"), 12);
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no scrape makes just one call");
        let page = Page::of(&daemon).await;
        let made = page.value(calls) - last.value(calls);
        last = page;
        if made == 1.0 {
            break;
        }
    }
    // All that come at once share it. Now and then the agent looks at every VM by itself,
    // but not always.
    let mut measured = Vec::new();
    for _ in 0..5 {
        let last = Page::of(&daemon).await;
        let (before, mut pages) = (Instant::now(), tokio::task::JoinSet::new());
        for _ in 0..20 {
            let socket = daemon.metrics_socket();
            pages.spawn(async move {
                let (_, text) = get(UnixStream::connect(socket).await.unwrap(), "/metrics").await;
                Page::new(text)
            });
        }
        let pages = pages.join_all().await;
        let most = pages
            .iter()
            .map(|page| page.value(calls))
            .fold(0.0, f64::max);
        // An answer serves those of the next 250 ms; and by itself the agent asks libvirt
        // for something now and then. Of twelve VMs, one call each would be far more.
        let took = before.elapsed().as_secs_f64();
        let shared = 6.0 + took / 0.25 + 10.0 * took;
        let made = most - last.value(calls);
        if made <= shared.ceil() {
            return;
        }
        measured.push((made, took));
    }
    panic!("calls and seconds: {measured:?}");
}

#[tokio::test]
async fn a_libvirt_that_hangs_holds_up_no_scrape_and_is_told() {
    let libvirtd = Libvirtd::start();
    let daemon = Daemon::start(Setup::on(libvirtd.uri())).await;
    let (api, image) = (daemon.api(), daemon.image().await);
    api.create(&image, Start::Yes).await;
    let vms = "kvmlet_vms{state=\"RUNNING\"}";
    assert_eq!(Page::of(&daemon).await.value(vms), 1.0);

    libvirtd.signal(Signal::SIGSTOP);
    let page = until("a scrape without libvirt", PATIENCE, async || {
        let page = Page::of(&daemon).await;
        (page.value("kvmlet_libvirt_stats_up") == 0.0).then_some(page)
    })
    .await;
    // All else is there, from memory; libvirt's silence may not have been noticed yet.
    assert_eq!(page.count("kvmlet_vm_state"), 1);
    assert!(page.value("kvmlet_scrape_duration_seconds") < 10.0);
    let lane = "kvmlet_gate_permits_in_use{lane=\"stats\"}";
    assert_eq!(page.value(lane), 1.0, "the call has not returned");
    assert!(page.value("kvmlet_gate_abandoned_calls") >= 1.0);
    // Those that come at once are answered, too, while libvirt says nothing.
    let ((), (), ()) = tokio::join!(
        async { drop(Page::of(&daemon).await) },
        async { drop(Page::of(&daemon).await) },
        async { drop(Page::of(&daemon).await) },
    );

    libvirtd.signal(Signal::SIGCONT);
    until("libvirt's figures again", PATIENCE, async || {
        let page = Page::of(&daemon).await;
        (page.value("kvmlet_libvirt_stats_up") == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn metrics_are_served_where_configured_and_nothing_else_is() {
    // A port that was free a moment ago; if another takes it, the daemon ends.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let listen = format!("listen = \"{address}\"");
    let mut daemon = Daemon::start(Setup::default().with("metrics", listen)).await;
    let (status, text) = get(TcpStream::connect(address).await.unwrap(), "/metrics").await;
    assert!(status.contains(" 200 "), "{status}");
    assert!(text.starts_with("# HELP "));
    let (status, _) = get(TcpStream::connect(address).await.unwrap(), "/").await;
    assert!(status.contains(" 404 "), "{status}");
    let socket = daemon.metrics_socket();
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    daemon.stop().await;
    assert!(!socket.exists());
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_are_there() {
    let dashboard = shipped("packaging/grafana/kvmlet.json");
    let parsed: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    assert!(!parsed["panels"].as_array().unwrap().is_empty());
    for (file, text) in [
        ("dashboard", dashboard),
        ("rules", shipped("packaging/prometheus/kvmlet.rules.yml")),
    ] {
        let names = names(&text);
        assert!(names.len() >= 10, "the {file} asks for metrics");
        for name in names {
            assert!(metric(name).is_some(), "{file}: there is no {name}");
        }
    }
}

#[test]
fn every_alert_is_valid_and_leads_to_a_place_in_the_runbook() {
    let file = root().join("packaging/prometheus/kvmlet.rules.yml");
    promtool(&["check", "rules", file.to_str().unwrap()], "");
    let (text, runbook) = (shipped("packaging/prometheus/kvmlet.rules.yml"), anchors());
    let alerts: Vec<&str> = text.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 8);
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for key in ["severity: ", "summary: ", "runbook: "] {
            assert_eq!(alert.matches(key).count(), 1, "{name} has one {key}");
        }
        let (_, place) = alert
            .split_once("runbook: docs/operations.md#")
            .expect(name);
        let place = place.lines().next().unwrap();
        assert!(runbook.contains(place), "{name}: no place {place}");
    }
}

/// What the headings of the runbook can be linked by.
fn anchors() -> BTreeSet<String> {
    let text = shipped("docs/operations.md");
    let headings = text.lines().filter(|line| line.starts_with("##"));
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-');
            words
                .chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

#[test]
fn the_document_has_every_metric_with_its_kind_labels_and_meaning() {
    let expected: Vec<String> = catalogue::ALL
        .iter()
        .map(|metric| {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .map(|label| format!("`{label}`"))
                .collect();
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels = labels.join(", ");
            format!(
                "| `{}` | {kind} | {labels} | {} |",
                metric.name, metric.help
            )
        })
        .collect();
    let text = shipped("docs/metrics.md");
    let told: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| `kvmlet_") || line.starts_with("| `process_"))
        .collect();
    let mut should = String::new();
    for line in &expected {
        should.push_str(line);
        should.push('\n');
    }
    assert!(told == expected, "docs/metrics.md should have:\n{should}");
    assert!(Path::new(&root().join("docs/metrics.md")).exists());
}
