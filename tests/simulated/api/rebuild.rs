//! The journal is lost: what the host has of kvmlet's is known again, and no
//! guest notices.

use crate::api::host::Host;
use crate::support::api::{Api, Start, force, small};
use crate::support::daemon::{Daemon, Setup};
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::refused;
use crate::support::{PATIENCE, until};
use kvmlet::model::lifecycle::Resting;
use kvmlet::proto::v1::*;
use std::collections::HashMap;
use std::fs;
use tonic::Code;
use virt::connect::Connect;

/// What must be the same of a VM before and after: all but what is measured and
/// what no one can know any more.
fn lasting(mut vm: Vm) -> Vm {
    for nic in &mut vm.nics {
        // The guest is asked for them now and then.
        nic.guest_ip_addresses.clear();
    }
    Vm {
        state_reason: 0,
        update_time: None,
        last_host_id: String::new(),
        ..vm
    }
}

fn condition(node: &Node, kind: &str) -> Condition {
    let found = node.conditions.iter().find(|c| c.r#type == kind);
    found.expect("the condition is told").clone()
}

/// Every domain with its definition and its process's id, if it has one.
fn domains(connection: &Connect) -> HashMap<String, (String, Option<u32>)> {
    let all = connection.list_all_domains(0).unwrap();
    all.iter()
        .map(|domain| {
            let xml = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE).unwrap();
            (domain.uuid_string().unwrap(), (xml, domain.id()))
        })
        .collect()
}

async fn image(api: &Api, id: &str) -> Image {
    let image_id = id.to_owned();
    let answer = api.images().get_image(GetImageRequest { image_id }).await;
    answer.unwrap().into_inner()
}

/// Removes a VM for good.
async fn expunge(api: &Api, vm_id: &str) {
    if api.vm(vm_id).await.unwrap().state() != VmState::Deleted {
        let request = DeleteVmRequest {
            vm_id: vm_id.to_owned(),
            stop_policy: Some(force()),
            ..Default::default()
        };
        api.done(api.vms().delete_vm(request).await).await;
        if api.vm(vm_id).await.is_err() {
            return;
        }
    }
    let request = ExpungeVmRequest {
        vm_id: vm_id.to_owned(),
        ..Default::default()
    };
    api.done(api.vms().expunge_vm(request).await).await;
}

/// A VM with something in every field that could get lost, on its second root.
async fn elaborate(host: &Host) -> (String, CreateVmRequest) {
    let api = host.api();
    let request = CreateVmRequest {
        name: "a <name> & more".to_owned(),
        description: "two\nlines".to_owned(),
        labels: HashMap::from([("tier".to_owned(), "web".to_owned())]),
        annotations: HashMap::from([("zone".to_owned(), "ü".to_owned())]),
        package: "small".to_owned(),
        platform: "Linux".to_owned(),
        os: "debian".to_owned(),
        data_volumes: vec![NewVolume {
            size_bytes: 1 << 20,
            pool: "other".to_owned(),
            ..Default::default()
        }],
        nics: vec![
            NewNic {
                network_id: "lan".to_owned(),
                ip_addresses: vec!["10.0.0.7".to_owned()],
                ..Default::default()
            },
            NewNic {
                network_id: "default".to_owned(),
                ..Default::default()
            },
        ],
        user_tags: vec!["a".to_owned()],
        start: true,
        ..small(&host.image)
    };
    api.done(api.vms().create_vm(request.clone()).await).await;
    let replace = ReplaceRootVolumeRequest {
        vm_id: request.vm_id.clone(),
        image_id: host.another_image().await,
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().replace_root_volume(replace).await).await;
    (request.vm_id.clone(), request)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_journal_is_made_anew_from_the_host_and_no_guest_notices() {
    let mut host = Host::start().await;
    let api = host.api();
    let mut vms = vec![elaborate(&host).await];
    for state in [
        Resting::Stopped,
        Resting::Running,
        Resting::Paused,
        Resting::Saved,
        Resting::Crashed,
        Resting::Deleted,
    ] {
        vms.push(host.vm_in(state).await);
    }
    let failed = host.vm_in(Resting::Failed).await.0;
    let mut before = api.all_vms().await;
    before.retain(|vm| vm.id != failed);
    assert_eq!(before.len(), vms.len());
    assert!(condition(&api.node().await, "JournalComplete").status);
    let (as_defined, files) = (domains(&host.connection), host.daemon.pool_files());

    host.daemon.stop().await;
    host.daemon.lose_journal();
    host.daemon.restart().await;

    let api = host.api();
    assert_eq!(domains(&host.connection), as_defined, "nothing was touched");
    assert_eq!(host.daemon.pool_files(), files);
    let after = api.all_vms().await;
    for vm in &after {
        let reason = match vm.state() {
            VmState::Deleted => StateReason::Deleted,
            VmState::Crashed => StateReason::Crashed,
            _ => StateReason::JournalLost,
        };
        assert_eq!(vm.state_reason(), reason, "{vm:?}");
    }
    let after: Vec<Vm> = after.into_iter().map(lasting).collect();
    assert_eq!(after, before.into_iter().map(lasting).collect::<Vec<_>>());
    let lost = refused(api.vms().get_vm(GetVmRequest { vm_id: failed }).await);
    assert_eq!(lost.code, Code::NotFound, "it had no domain");
    let complete = condition(&api.node().await, "JournalComplete");
    assert_eq!(
        (complete.status, complete.reason.as_str()),
        (false, "Rebuilt")
    );

    // The images are there, under their ids.
    let found = image(&api, &host.image).await;
    assert_eq!(
        (found.state(), found.name.clone()),
        (ImageState::Ready, host.image.clone())
    );
    assert_eq!((&*found.source, &*found.source_sha256), ("", ""));
    assert_eq!(found.source_format(), ImageFormat::Unspecified);
    assert_eq!(found.virtual_size_bytes, 1 << 20);
    assert!(found.description.contains("journal was lost"));

    // A creation asked for again is known; an import can't be compared.
    for (vm, request) in &vms {
        let again = api.vms().create_vm(request.clone()).await.unwrap();
        let again = again.into_inner();
        assert_eq!(
            (&again.vm_id, again.state()),
            (vm, OperationState::Succeeded)
        );
        assert_eq!(again.caller, "kvmlet: rebuilt");
    }
    let import = ImportImageRequest {
        image_id: host.image.clone(),
        source: host.daemon.blank("again", 1).display().to_string(),
        ..Default::default()
    };
    let refusal = refused(api.images().import_image(import).await);
    assert_eq!(refusal.reason, "IMAGE_EXISTS");

    // It stays so over another restart, and is not done again.
    host.daemon.stop().await;
    host.daemon.restart().await;
    let api = host.api();
    let again: Vec<Vm> = api.all_vms().await.into_iter().map(lasting).collect();
    assert_eq!(again, after);
    assert!(!condition(&api.node().await, "JournalComplete").status);

    // Everything can be asked of them.
    let (first, _) = &vms[0];
    let revert = RevertRootVolumeRequest {
        vm_id: first.clone(),
        stop_policy: Some(force()),
        start_after: true,
        ..Default::default()
    };
    api.done(api.vms().revert_root_volume(revert).await).await;
    let stop = StopVmRequest {
        vm_id: vms[2].0.clone(),
        stop_policy: Some(force()),
        ..Default::default()
    };
    api.done(api.vms().stop_vm(stop).await).await;
    let recover = RecoverVmRequest {
        vm_id: vms[6].0.clone(),
        ..Default::default()
    };
    api.done(api.vms().recover_vm(recover).await).await;
    api.create(&host.image, Start::Yes).await;
    for vm in api.all_vms().await {
        expunge(&api, &vm.id).await;
    }
    for listed in api
        .images()
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images
    {
        let request = DeleteImageRequest {
            image_id: listed.id,
            ..Default::default()
        };
        api.done(api.images().delete_image(request).await).await;
    }
    let ours = |(_, (xml, _)): (&String, &(String, Option<u32>))| xml.contains("<name>kvmlet-");
    assert!(!domains(&host.connection).iter().any(ours));
    let left: Vec<String> = host.daemon.pool_files();
    assert!(left.iter().all(|file| file.ends_with(".lock")), "{left:?}");
}

/// Defines a changed copy of a VM's domain.
fn change_definition(connection: &Connect, vm_id: &str, change: impl FnOnce(String) -> String) {
    let domain = Libvirtd::domain(connection, vm_id).expect("a domain");
    let xml = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE).unwrap();
    let changed = change(xml.clone());
    assert_ne!(changed, xml);
    connection.define_domain_xml(&changed).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_certainly_a_record_is_told_and_left_alone() {
    let mut host = Host::start().await;
    let api = host.api();
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(host.vm_in(Resting::Stopped).await.0);
    }
    let [good, damaged, newer, bare, copied, sharing] =
        [0, 1, 2, 3, 4, 5].map(|at: usize| ids[at].clone());
    let roots: Vec<String> = {
        let vms = [
            api.vm(&copied).await.unwrap(),
            api.vm(&sharing).await.unwrap(),
        ];
        vms.map(|vm| vm.root_volume_id).to_vec()
    };
    host.daemon.stop().await;

    let connection = &host.connection;
    change_definition(connection, &damaged, |xml| {
        xml.replace("\"generation\":", "\"generatio\":")
            .replace("&quot;generation&quot;:", "&quot;generatio&quot;:")
    });
    change_definition(connection, &newer, |xml| {
        xml.replace(
            "\"generation\":",
            "\"of_a_later_version\":1,\"generation\":",
        )
    });
    change_definition(connection, &bare, |xml| {
        let (begin, end) = (
            xml.find("<metadata>").unwrap(),
            xml.find("</metadata>").unwrap(),
        );
        format!("{}{}", &xml[..begin], &xml[end + "</metadata>".len()..])
    });
    // As `virt-clone` does it: another name and UUID, and our metadata as it was.
    let clone = crate::support::api::id();
    let xml = host.domain(&copied).xml_desc(0).unwrap();
    let xml = xml
        .replace(
            &format!("<name>kvmlet-{copied}</name>"),
            "<name>clone</name>",
        )
        .replace(
            &format!("<uuid>{copied}</uuid>"),
            &format!("<uuid>{clone}</uuid>"),
        );
    connection.define_domain_xml(&xml).unwrap();
    // Whoever wrote this made two VMs of one disk.
    change_definition(connection, &sharing, |xml| {
        xml.replace(&roots[1], &roots[0])
    });
    let foreign = crate::support::api::id();
    let xml = format!(
        "<domain type='test'><name>theirs</name><uuid>{foreign}</uuid>\
         <memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
    );
    connection.define_domain_xml(&xml).unwrap();
    let (as_defined, files) = (domains(connection), host.daemon.pool_files());

    host.daemon.lose_journal();
    host.daemon.restart().await;
    let api = host.api();
    let known: Vec<String> = api.all_vms().await.into_iter().map(|vm| vm.id).collect();
    assert_eq!(known, [good]);
    assert_eq!(domains(&host.connection), as_defined, "nothing was touched");
    assert_eq!(host.daemon.pool_files(), files);
    let log = host.daemon.log();
    for (id, problem) in [
        (&damaged, "can't be understood"),
        (&newer, "newer"),
        (&bare, "no metadata that can be read"),
        (&clone, "it is a copy"),
        (&copied, "names the same volume"),
        (&sharing, "names the same volume"),
    ] {
        let told = log.lines().any(|line| {
            line.contains("left alone") && line.contains(id.as_str()) && line.contains(problem)
        });
        assert!(told, "{id} {problem}");
    }
    // A base of theirs is not taken from under them.
    let request = DeleteImageRequest {
        image_id: host.image.clone(),
        ..Default::default()
    };
    expunge(&api, &known[0]).await;
    let answer = api.images().delete_image(request).await;
    api.outcome(answer).await.unwrap_err();
    assert_eq!(image(&api, &host.image).await.volume_count, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_only_lacks_a_vm_is_not_added_to() {
    let mut host = Host::start().await;
    let (known, _) = host.vm_in(Resting::Stopped).await;
    host.daemon.stop().await;
    let journal = host.daemon.home().join("journal.db");
    let backup = fs::read(&journal).unwrap();
    host.daemon.restart().await;
    let (later, _) = host.vm_in(Resting::Running).await;
    host.daemon.stop().await;
    fs::write(&journal, backup).unwrap();
    let as_defined = domains(&host.connection);
    host.daemon.restart().await;
    let api = host.api();
    let listed: Vec<String> = api.all_vms().await.into_iter().map(|vm| vm.id).collect();
    assert_eq!(listed, [known]);
    assert!(condition(&api.node().await, "JournalComplete").status);
    assert_eq!(domains(&host.connection), as_defined);
    assert!(host.domain(&later).is_active().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_before_it_saw_the_host_rebuilds_at_its_next_start() {
    let mut host = Host::start().await;
    let (vm, _) = host.vm_in(Resting::Running).await;
    let log = host.daemon.log();
    assert!(!log.contains("internal fault"), "{log}");
    host.daemon.stop().await;
    host.daemon.lose_journal();
    // It makes a new journal, and libvirt is away.
    let uri = host.libvirtd.uri();
    host.daemon.setup_mut().uri = uri.replace("libvirt-sock", "no-sock");
    host.daemon.restart_away().await;
    let api = host.api();
    let node = api.node().await;
    let name = nix::unistd::gethostname().unwrap();
    assert_eq!(node.hostname, name.to_string_lossy());
    let waiting = condition(&node, "JournalComplete");
    assert_eq!((waiting.status, waiting.reason.as_str()), (false, "New"));
    assert!(api.all_vms().await.is_empty());
    let refusal = refused(api.vms().create_vm(small(&host.image)).await);
    assert_eq!(refusal.code, Code::Unavailable);
    host.daemon.kill9();

    host.daemon.setup_mut().uri = uri;
    host.daemon.restart().await;
    let api = host.api();
    assert_eq!(api.state(&vm).await, VmState::Running);
    assert_eq!(image(&api, &host.image).await.state(), ImageState::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_pool_that_is_not_mounted_is_neither_missing_nor_made_anew() {
    let mut host = Host::start().await;
    let api = host.api();
    let source = host.daemon.blank("elsewhere", 1);
    let import = ImportImageRequest {
        source: source.display().to_string(),
        format: ImageFormat::Qcow2.into(),
        pool: "other".to_owned(),
        ..Default::default()
    };
    let elsewhere = api
        .done(api.images().import_image(import).await)
        .await
        .image_id;
    let request = CreateVmRequest {
        root_volume: Some(NewVolume {
            pool: "other".to_owned(),
            ..Default::default()
        }),
        ..small(&elsewhere)
    };
    let vm = api.done(api.vms().create_vm(request).await).await.vm_id;
    let before = lasting(api.vm(&vm).await.unwrap());

    host.daemon.stop().await;
    host.daemon.lose_journal();
    let (pool, away) = (
        host.daemon.home().join("other"),
        host.daemon.home().join("away"),
    );
    fs::rename(&pool, &away).unwrap();
    fs::create_dir(&pool).unwrap();
    host.daemon.restart().await;
    let api = host.api();
    let known = lasting(api.vm(&vm).await.unwrap());
    assert_eq!(known.state(), VmState::Stopped);
    assert_eq!(known.volumes[0].id, before.volumes[0].id);
    assert_eq!(
        fs::read_dir(&pool).unwrap().count(),
        0,
        "nothing was made in it"
    );
    let node = api.node().await;
    assert!(!condition(&node, "PoolReady/other").status);
    let waiting = condition(&node, "JournalComplete");
    assert_eq!(
        (waiting.status, waiting.reason.as_str()),
        (false, "PoolsUnread")
    );
    assert!(waiting.message.contains("other"));
    assert_eq!(image(&api, &host.image).await.state(), ImageState::Ready);

    host.daemon.stop().await;
    fs::remove_dir(&pool).unwrap();
    fs::rename(&away, &pool).unwrap();
    host.daemon.restart().await;
    let api = host.api();
    until("the pool to be read", PATIENCE, async || {
        let image_id = elsewhere.clone();
        let found = api.images().get_image(GetImageRequest { image_id }).await;
        found.is_ok().then_some(())
    })
    .await;
    let found = image(&api, &elsewhere).await;
    assert_eq!(
        (found.state(), found.pool.as_str()),
        (ImageState::Ready, "other")
    );
    assert_eq!(found.volume_count, 1);
    let node = api.node().await;
    assert_eq!(condition(&node, "JournalComplete").reason, "Rebuilt");
    let start = StartVmRequest {
        vm_id: vm.clone(),
        ..Default::default()
    };
    api.done(api.vms().start_vm(start).await).await;
    assert_eq!(
        lasting(api.vm(&vm).await.unwrap()).volumes[0].id,
        before.volumes[0].id
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_start_on_a_host_has_nothing_to_rebuild() {
    let daemon = Daemon::start(Setup::default()).await;
    let node = daemon.api().node().await;
    for kind in ["JournalComplete", "PoolReady/default", "PoolReady/other"] {
        let told = condition(&node, kind);
        assert!(told.status, "{told:?}");
    }
    assert!(!daemon.log().contains("can't be used"), "no false alarm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_cut_off_is_failed_and_can_be_asked_for_again() {
    let mut host = Host::start().await;
    let (off, request) = host.vm_in(Resting::Stopped).await;
    let (on, _) = host.vm_in(Resting::Running).await;
    host.daemon.stop().await;
    for vm in [&off, &on] {
        change_definition(&host.connection, vm, |xml| {
            xml.replace("\"life\":\"present\"", "\"life\":\"making\"")
        });
    }
    host.daemon.lose_journal();
    host.daemon.restart().await;
    let api = host.api();
    // What has power was whole.
    assert_eq!(api.state(&on).await, VmState::Running);
    let vm = api.vm(&off).await.unwrap();
    assert_eq!(
        (vm.state(), vm.state_reason()),
        (VmState::Failed, StateReason::CreateFailed)
    );
    let filter = ListOperationsRequest {
        vm_id: off.clone(),
        ..Default::default()
    };
    let answer = api.operations().list_operations(filter).await.unwrap();
    let operation = &answer.get_ref().operations[0];
    assert_eq!(operation.state(), OperationState::Failed);
    let error = crate::support::refusal::Refusal::from(operation.error.as_ref().unwrap());
    assert_eq!(error.reason, "OUTCOME_UNKNOWN");
    api.done(api.vms().create_vm(request).await).await;
    assert_eq!(api.state(&off).await, VmState::Stopped);
}

/// The files of the disks that a domain's definition names.
fn disks(xml: &str) -> Vec<String> {
    let sources = xml.split("<source file='").skip(1);
    let paths = sources.filter_map(|rest| rest.split('\'').next());
    let names = paths.filter_map(|path| path.rsplit('/').next()?.strip_suffix(".qcow2"));
    names.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_at_work_whose_journal_is_lost_shows_each_vm_as_its_domain_is() {
    let mut host = Host::start().await;
    let other = host.another_image().await;
    let (bystander, _) = host.vm_in(Resting::Running).await;
    let process = host.domain(&bystander).id();
    let (vm, _) = host.vm_in(Resting::Running).await;
    let mut roots = Vec::new();
    for round in 0..10 {
        let api = host.api();
        let before = api.vm(&vm).await.unwrap().root_volume_id;
        let replace = ReplaceRootVolumeRequest {
            vm_id: vm.clone(),
            image_id: [&other, &host.image][round % 2].clone(),
            stop_policy: Some(force()),
            start_after: true,
            ..Default::default()
        };
        let answer = api.vms().replace_root_volume(replace).await.unwrap();
        let operation_id = answer.into_inner().id;
        // After so many of its steps, or all of them.
        until("the operation to get on", PATIENCE, async || {
            let request = GetOperationRequest {
                operation_id: operation_id.clone(),
            };
            let answer = api.operations().get_operation(request).await.unwrap();
            let steps = &answer.get_ref().steps;
            let ended = steps.iter().filter(|step| step.end_time.is_some()).count();
            let over = answer.get_ref().state() >= OperationState::Succeeded;
            (over || ended >= round / 2).then_some(())
        })
        .await;
        host.daemon.kill9();
        host.daemon.lose_journal();
        host.daemon.restart().await;

        let api = host.api();
        let known = api.vm(&vm).await.unwrap();
        let on = host.domain(&vm).is_active().unwrap();
        let state = if on {
            VmState::Running
        } else {
            VmState::Stopped
        };
        assert_eq!(known.state(), state, "round {round}");
        let xml = host.domain(&vm).xml_desc(0).unwrap();
        assert!(disks(&xml).contains(&known.root_volume_id), "{xml}");
        let files = host.daemon.pool_files();
        for volume in &known.volumes {
            assert!(files.contains(&format!("pool/volumes/{}.qcow2", volume.id)));
        }
        assert!(
            known.volumes.iter().any(|volume| volume.id == before),
            "it is kept"
        );
        assert_eq!(host.domain(&bystander).id(), process);
        roots.push(known.root_volume_id != before);
        if !on {
            let start = StartVmRequest {
                vm_id: vm.clone(),
                ..Default::default()
            };
            api.done(api.vms().start_vm(start).await).await;
        }
    }
    assert!(roots.contains(&true), "some had switched: {roots:?}");
}
