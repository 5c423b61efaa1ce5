//! `ceph::rootPoolName::<pool>`: where a root volume goes, and every way of
//! getting it wrong.

use crate::lab::*;
use crate::support::api::{Api, Start, id, small};
use crate::support::ceph::Cluster;
use crate::support::daemon::Daemon;
use crate::support::libvirtd::Libvirtd;
use crate::support::refusal::Refusal;
use kvmlet::proto::v1::*;
use tonic::Code;
use virt::connect::Connect;

/// A root volume is where it is said to be: in the cluster, in the domain, in what
/// readers see.
async fn root_is_in(at: (&Cluster, &Connect, &Api), vm_id: &str, ceph_pool: &str) {
    let (cluster, connection, api) = at;
    let vm = api.vm(vm_id).await.unwrap();
    let root = &vm.volumes[0];
    assert_eq!(root.id, vm.root_volume_id);
    assert_eq!(
        (root.pool.as_str(), root.format()),
        ("ceph", VolumeFormat::Raw)
    );
    assert_eq!(root.ceph_pool, ceph_pool);
    assert_eq!(root.install_path, format!("{ceph_pool}/vol-{}", root.id));
    for pool in ["vms", "vms-fast", "vms-new", "data", "images"] {
        if cluster
            .ceph(&["osd", "pool", "ls"])
            .lines()
            .any(|l| l == pool)
        {
            assert_eq!(is_in(cluster, pool, &root.id), pool == ceph_pool, "{pool}");
        }
    }
    let domain = Libvirtd::domain(connection, vm_id).expect("a domain");
    let xml = domain.xml_desc(0).unwrap();
    let source = format!("name='{ceph_pool}/vol-{}'", root.id);
    assert!(
        xml.contains("protocol='rbd'") && xml.contains(&source),
        "{xml}"
    );
    let request = GetVolumeRequest {
        volume_id: root.id.clone(),
    };
    let shown = api.volumes().get_volume(request).await.unwrap();
    assert_eq!(shown.get_ref(), root);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_goes_where_the_tag_says_and_stays_in_its_pool_without_one() {
    let cluster = shared();
    let libvirtd = Libvirtd::start();
    let mut setup = setup(cluster);
    setup.uri = libvirtd.uri();
    let daemon = started(setup).await;
    let connection = libvirtd.connect();
    let api = daemon.api();
    let at = (cluster, &connection, &api);
    let image = image_on_ceph(&daemon).await;

    let untagged = api.made(on_ceph(&image)).await;
    root_is_in(at, &untagged.id, "vms").await;
    // Named by the tag alone: the default pool is not Ceph, another is.
    let by_tag = CreateVmRequest {
        system_tags: tag("vms-fast"),
        ..small(&image)
    };
    let tagged = api.made(by_tag).await;
    root_is_in(at, &tagged.id, "vms-fast").await;
    assert_eq!(tagged.system_tags, tag("vms-fast"));

    let replace = |vm: &Vm, tags| ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        system_tags: tags,
        ..Default::default()
    };
    // Without a tag: where it is, not where roots usually go.
    let stays = api.replaced(replace(&tagged, Vec::new())).await;
    assert_ne!(stays.root_volume_id, tagged.root_volume_id);
    root_is_in(at, &tagged.id, "vms-fast").await;
    assert_eq!(stays.system_tags, tag("vms-fast"));
    let moved = api.replaced(replace(&tagged, tag("vms"))).await;
    root_is_in(at, &tagged.id, "vms").await;
    assert_eq!(moved.system_tags, tag("vms"));
    api.replaced(replace(&untagged, tag("vms-fast"))).await;
    root_is_in(at, &untagged.id, "vms-fast").await;

    // Back, and forth again: the former roots were not touched.
    let revert = || RevertRootVolumeRequest {
        vm_id: untagged.id.clone(),
        ..Default::default()
    };
    for pool in ["vms", "vms-fast", "vms"] {
        api.done(api.vms().revert_root_volume(revert()).await).await;
        root_is_in(at, &untagged.id, pool).await;
    }
    let back = api.vm(&untagged.id).await.unwrap();
    assert_eq!(back.root_volume_id, untagged.root_volume_id);
    assert!(api.start(&untagged.id).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_names_the_ceph_pool_and_makes_nothing() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let operations = api.all_operations().await.len();
    let roots = |operation: Operation| -> Vec<PlanItem> {
        let Some(operation::Result::Plan(plan)) = operation.result else {
            panic!("no plan: {operation:?}");
        };
        let made = plan.items.into_iter();
        made.filter(|item| item.kind == "volume" && item.action() == PlanAction::Make)
            .collect()
    };
    let create = CreateVmRequest {
        system_tags: tag("vms-fast"),
        data_volumes: vec![data(2)],
        validate_only: true,
        ..on_ceph(&image)
    };
    let root = root_of(&create);
    let answer = api.vms().create_vm(create).await.unwrap().into_inner();
    let items = roots(answer);
    let places: Vec<_> = items
        .iter()
        .map(|item| (item.pool.as_str(), item.ceph_pool.as_str()))
        .collect();
    assert_eq!(places, [("ceph", "vms-fast"), ("ceph", "data")]);
    assert!(items[0].description.contains("vms-fast"), "{items:?}");
    let new_root = id();
    let replace = ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        resource_id: new_root.clone(),
        system_tags: tag("vms-fast"),
        validate_only: true,
        ..Default::default()
    };
    let answer = api.vms().replace_root_volume(replace).await.unwrap();
    let items = roots(answer.into_inner());
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!(
        (items[0].id.as_str(), items[0].ceph_pool.as_str()),
        (&*new_root, "vms-fast")
    );
    for volume in [&root, &new_root] {
        assert!(!is_in(cluster, "vms-fast", volume) && !is_in(cluster, "vms", volume));
    }
    assert_eq!(api.all_operations().await.len(), operations);
    assert_eq!(api.all_vms().await, [vm]);
}

/// A way of getting the tag wrong.
struct Wrong {
    tags: Vec<String>,
    code: Code,
    reason: &'static str,
    field: &'static str,
}

fn wrong(tags: &[&str], code: Code, reason: &'static str, field: &'static str) -> Wrong {
    Wrong {
        tags: tags.iter().map(ToString::to_string).collect(),
        code,
        reason,
        field,
    }
}

/// What there is, before and after a refusal.
async fn all_there_is(
    cluster: &Cluster,
    daemon: &Daemon,
) -> (Vec<String>, Vec<String>, Vec<Vm>, usize, usize) {
    let api = daemon.api();
    let mut service = api.volumes();
    let volumes = service.list_volumes(ListVolumesRequest::default());
    (
        everything(cluster),
        daemon.pool_files(),
        api.all_vms().await,
        volumes.await.unwrap().into_inner().volumes.len(),
        api.all_operations().await.len(),
    )
}

/// Asks both ways, for a plan and for the thing, and returns the refusals of the
/// thing.
async fn refused_both_ways(
    api: &Api,
    create: &CreateVmRequest,
    replace: &ReplaceRootVolumeRequest,
) -> [Refusal; 2] {
    let ask = async |validate_only| {
        let create = CreateVmRequest {
            validate_only,
            ..create.clone()
        };
        let replace = ReplaceRootVolumeRequest {
            validate_only,
            ..replace.clone()
        };
        // At once, and not by an operation.
        let create = api.vms().create_vm(create).await;
        let replace = api.vms().replace_root_volume(replace).await;
        [
            crate::support::refusal::refused(create),
            crate::support::refusal::refused(replace),
        ]
    };
    let plan = ask(true).await;
    let thing = ask(false).await;
    assert_eq!(
        plan.each_ref().map(Refusal::brief),
        thing.each_ref().map(Refusal::brief)
    );
    thing
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_tag_is_refused_with_its_reason_before_anything_is_made() {
    let cluster = &*breakable().await;
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let on_files = api.create(&image, Start::No).await;
    let create = |tags: Vec<String>| CreateVmRequest {
        system_tags: tags,
        ..on_ceph(&image)
    };
    let replace = |vm_id: &str, tags| ReplaceRootVolumeRequest {
        vm_id: vm_id.to_owned(),
        image_id: image.clone(),
        resource_id: id(),
        system_tags: tags,
        ..Default::default()
    };
    let before = all_there_is(cluster, &daemon).await;
    let bad = Code::InvalidArgument;
    let cases = [
        wrong(
            &["ceph::rootPoolName::"],
            bad,
            "TAG_MALFORMED",
            "system_tags[0]",
        ),
        wrong(
            &["ceph::rootPoolName"],
            bad,
            "TAG_MALFORMED",
            "system_tags[0]",
        ),
        wrong(
            &["ceph::rootPoolName::a::b"],
            bad,
            "TAG_MALFORMED",
            "system_tags[0]",
        ),
        wrong(
            &["ceph::rootPoolName::--conf"],
            bad,
            "TAG_MALFORMED",
            "system_tags[0]",
        ),
        wrong(&["vms-fast"], bad, "TAG_MALFORMED", "system_tags[0]"),
        wrong(
            &["ceph::rootPoolName::vms-fast", "ephemeral::a::b"],
            bad,
            "TAG_UNKNOWN",
            "system_tags[1]",
        ),
        wrong(
            &["ceph::dataPoolName::vms-fast"],
            bad,
            "TAG_UNKNOWN",
            "system_tags[0]",
        ),
        wrong(
            &[
                "ceph::rootPoolName::vms-fast",
                "ceph::rootPoolName::vms-fast",
            ],
            bad,
            "TAG_DUPLICATE",
            "system_tags[1]",
        ),
        wrong(
            &["ceph::rootPoolName::vms-none"],
            Code::NotFound,
            "CEPH_POOL_NOT_FOUND",
            "system_tags",
        ),
        wrong(
            &["ceph::rootPoolName::data"],
            bad,
            "CEPH_POOL_NOT_ALLOWED",
            "system_tags",
        ),
        // Whether there is such a pool is not told to who may not use it.
        wrong(
            &["ceph::rootPoolName::secret"],
            bad,
            "CEPH_POOL_NOT_ALLOWED",
            "system_tags",
        ),
    ];
    for case in cases {
        let tags = case.tags;
        let refusals =
            refused_both_ways(&api, &create(tags.clone()), &replace(&vm.id, tags.clone())).await;
        for refusal in refusals {
            let expected = (case.code, case.reason, vec![case.field]);
            assert_eq!(refusal.brief(), expected, "{tags:?}: {refusal:?}");
        }
    }
    // The pool that is named, or that the VM's root is in, is not Ceph.
    let mut named = create(tag("vms-fast"));
    named.root_volume.as_mut().unwrap().pool = "other".to_owned();
    for refusal in refused_both_ways(&api, &named, &replace(&on_files, tag("vms-fast"))).await {
        let expected = (
            Code::FailedPrecondition,
            "POOL_NOT_CEPH",
            vec!["system_tags"],
        );
        assert_eq!(refusal.brief(), expected, "{refusal:?}");
        assert_eq!(refusal.metadata["ceph_pool"], "vms-fast");
    }
    assert_eq!(all_there_is(cluster, &daemon).await, before);

    let full = |refusals: [Refusal; 2], problem: &str| {
        for refusal in refusals {
            let expected = (Code::ResourceExhausted, "POOL_FULL", vec![]);
            assert_eq!(refusal.brief(), expected, "{refusal:?}");
            assert_eq!(refusal.metadata["problem"], problem, "{refusal:?}");
            assert_eq!(refusal.metadata["pool"], "ceph");
            assert_eq!(refusal.metadata["ceph_pool"], "vms-fast");
        }
    };
    let mut huge = create(tag("vms-fast"));
    huge.root_volume.as_mut().unwrap().size_bytes = 1 << 40;
    let huge_root = ReplaceRootVolumeRequest {
        size_policy: SizePolicy::Exact as i32,
        size_bytes: 1 << 40,
        ..replace(&vm.id, tag("vms-fast"))
    };
    full(
        refused_both_ways(&api, &huge, &huge_root).await,
        "too_little",
    );
    let both = || (create(tag("vms-fast")), replace(&vm.id, tag("vms-fast")));
    cluster.make_full("vms-fast");
    wait_for_state(&api, "vms-fast", CephPoolState::Full).await;
    let (create_full, replace_full) = both();
    full(
        refused_both_ways(&api, &create_full, &replace_full).await,
        "full",
    );
    cluster.quota("vms-fast", 0);
    wait_for_state(&api, "vms-fast", CephPoolState::Ready).await;
    cluster.fill("data", 40 << 20);
    cluster.ceph(&["osd", "set-nearfull-ratio", "0.001"]);
    wait_for_state(&api, "vms-fast", CephPoolState::NearFull).await;
    let (create_near, replace_near) = both();
    full(
        refused_both_ways(&api, &create_near, &replace_near).await,
        "near_full",
    );
    cluster.ceph(&["osd", "set-nearfull-ratio", "0.85"]);
    wait_for_state(&api, "vms-fast", CephPoolState::Ready).await;
    assert_eq!(all_there_is(cluster, &daemon).await, before);

    // And with room, it is made.
    let (create, replace) = both();
    api.made(create).await;
    api.replaced(replace).await;
}

/// Waits until ListPools shows the state of a Ceph pool. What it shows is as old as
/// the last look; a plan has the pool looked at.
async fn wait_for_state(api: &Api, ceph_pool: &str, state: CephPoolState) {
    let what = format!("{ceph_pool} to be {state:?}");
    crate::support::until(&what, crate::support::PATIENCE, async || {
        let probe = CreateVmRequest {
            system_tags: tag(ceph_pool),
            validate_only: true,
            ..on_ceph(&id())
        };
        let _ = api.vms().create_vm(probe).await;
        let pools = api.volumes().list_pools(ListPoolsRequest {}).await.unwrap();
        let mut pools = pools.into_inner().pools.into_iter();
        let pool = pools.find(|pool| pool.name == "ceph").unwrap();
        let mut known = pool.ceph_pools.iter();
        let found = known.find(|known| known.name == ceph_pool)?;
        (found.state() == state).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_is_made_while_the_daemon_runs_can_be_used_at_once() {
    let cluster = shared();
    let daemon = host(cluster).await;
    let api = daemon.api();
    let image = image_on_ceph(&daemon).await;
    let vm = api.made(on_ceph(&image)).await;
    let replace = || ReplaceRootVolumeRequest {
        vm_id: vm.id.clone(),
        image_id: image.clone(),
        system_tags: tag("vms-new"),
        ..Default::default()
    };
    let refusal = api.not_replaced(replace()).await;
    assert_eq!(refusal.reason, "CEPH_POOL_NOT_FOUND");
    cluster.make_pool("vms-new");
    let moved = api.replaced(replace()).await;
    assert!(is_in(cluster, "vms-new", &moved.root_volume_id));
    let create = CreateVmRequest {
        system_tags: tag("vms-new"),
        ..on_ceph(&image)
    };
    let made = api.made(create).await;
    assert!(is_in(cluster, "vms-new", &made.root_volume_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_ceph_says_so() {
    let daemon = Daemon::simulated().await;
    let api = daemon.api();
    let image = daemon.image().await;
    let vm_id = api.create(&image, Start::No).await;
    let create = CreateVmRequest {
        system_tags: tag("vms"),
        ..small(&image)
    };
    let replace = ReplaceRootVolumeRequest {
        vm_id,
        image_id: image.clone(),
        system_tags: tag("vms"),
        ..Default::default()
    };
    for refusal in refused_both_ways(&api, &create, &replace).await {
        let expected = (
            Code::FailedPrecondition,
            "POOL_NOT_CEPH",
            vec!["system_tags"],
        );
        assert_eq!(refusal.brief(), expected, "{refusal:?}");
    }
}
