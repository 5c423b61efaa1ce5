//! Causes and filters.

use super::*;
use crate::journal::tests::sample;
use crate::model::lifecycle::{Observed, OffCause, PauseCause, observe};

fn seen(seen: Seen) -> View {
    let mut vm = sample::vm(OperationId::random());
    vm.life = crate::model::vm::Life::Present;
    vm.seen = seen;
    View {
        vm: Some(vm),
        ..View::default()
    }
}

fn running() -> View {
    seen(Seen {
        resting: Resting::Running,
        reason: StateReason::Operation,
    })
}

fn after(before: &View, observed: Observed) -> View {
    let mut after = before.clone();
    let vm = after.vm.as_mut().expect("made above");
    vm.seen = observe(vm.seen, observed);
    after
}

fn told(before: &View, observed: Observed) -> (Source, Option<Detail>) {
    let cause = cause(before, &after(before, observed));
    assert_eq!(cause.operation, None);
    (cause.source, cause.detail)
}

#[test]
fn what_libvirt_shows_says_who_did_it() {
    use Source::{Guest, Host};
    let up = running();
    for (observed, source, detail) in [
        (Observed::Off(OffCause::Shutdown), Guest, Detail::PowerOff),
        (Observed::Off(OffCause::Crashed), Guest, Detail::Crash),
        (Observed::Off(OffCause::Destroyed), Host, Detail::Destroy),
        (
            Observed::Off(OffCause::StartFailed),
            Host,
            Detail::StartFailed,
        ),
        (Observed::Paused(PauseCause::User), Host, Detail::Pause),
        (Observed::Paused(PauseCause::IoError), Host, Detail::IoError),
        (Observed::Paused(PauseCause::NoSpace), Host, Detail::NoSpace),
        (Observed::Paused(PauseCause::Crashed), Guest, Detail::Crash),
        (Observed::Saved, Host, Detail::Save),
        (Observed::Absent, Host, Detail::Undefine),
    ] {
        assert_eq!(told(&up, observed), (source, Some(detail)), "{observed:?}");
    }
    let paused = after(&up, Observed::Paused(PauseCause::User));
    assert_eq!(
        told(&paused, Observed::Running),
        (Host, Some(Detail::Resume))
    );
    let off = after(&up, Observed::Off(OffCause::Destroyed));
    assert_eq!(told(&off, Observed::Running), (Host, Some(Detail::Start)));
}

#[test]
fn an_operation_that_moves_power_has_done_what_is_seen_while_it_works() {
    let id = OperationId::random();
    let mut stopping = running();
    stopping.current = Some((id, OperationKind::StopVm));
    assert_eq!(cause(&running(), &stopping), Cause::operation(id));
    let off = after(&stopping, Observed::Off(OffCause::Shutdown));
    assert_eq!(cause(&stopping, &off), Cause::operation(id));
    let mut done = off.clone();
    done.current = None;
    assert_eq!(cause(&off, &done), Cause::operation(id));
}

#[test]
fn an_operation_that_moves_no_power_is_not_blamed_for_a_crash() {
    let mut updating = running();
    updating.current = Some((OperationId::random(), OperationKind::UpdateVm));
    let crashed = after(&updating, Observed::Off(OffCause::Crashed));
    let cause = cause(&updating, &crashed);
    assert_eq!(
        (cause.source, cause.detail),
        (Source::Guest, Some(Detail::Crash))
    );
}

#[test]
fn libvirt_that_goes_and_comes_is_told_as_such() {
    let away = View {
        away: true,
        ..running()
    };
    assert_eq!(
        cause(&running(), &away).detail,
        Some(Detail::HypervisorAway)
    );
    assert_eq!(
        cause(&away, &running()).detail,
        Some(Detail::HypervisorBack)
    );
    // What has changed meanwhile says more.
    let off = after(&running(), Observed::Off(OffCause::Shutdown));
    assert_eq!(cause(&away, &off).detail, Some(Detail::PowerOff));
}

#[test]
fn how_much_space_volumes_take_is_no_change() {
    let mut grown = running();
    let volumes = &mut grown.vm.as_mut().expect("made above").volumes;
    assert!(!volumes.is_empty());
    for volume in volumes {
        volume.actual_size = crate::model::bytes::Bytes(12345);
    }
    assert_ne!(grown.without_measures(), grown);
}

#[test]
fn a_filter_takes_what_fits_and_once_more_what_no_longer_does() {
    let view = running();
    let vm = view.vm.clone().expect("made above");
    let labels = |tier: &str| Labels::new(BTreeMap::from([("tier".to_owned(), tier.to_owned())]));
    let change = |now: &str, former: Option<&str>| Change {
        time: Timestamp(1),
        cause: None,
        caller: None,
        what: What::Vm(Arc::new(view.clone())),
        labels: labels(now),
        former_labels: former.map(labels),
    };
    let web = Filter {
        labels: (*labels("web")).clone(),
        ..Filter::default()
    };
    assert!(web.wants(&change("web", None)));
    assert!(!web.wants(&change("db", None)));
    assert!(web.wants(&change("db", Some("web"))));
    let of_vm = |id| Filter {
        vm_ids: BTreeSet::from([id]),
        ..Filter::default()
    };
    assert!(of_vm(vm.id).wants(&change("web", None)));
    assert!(!of_vm(VmId::random()).wants(&change("web", None)));
    let images = Filter {
        kinds: BTreeSet::from([Kind::Image]),
        ..Filter::default()
    };
    assert!(!images.wants(&change("web", None)));
    let gone = Change {
        what: What::ImageDeleted(ImageId::random()),
        ..change("web", None)
    };
    assert!(images.wants(&gone));
    assert!(!of_vm(vm.id).wants(&gone));
}
