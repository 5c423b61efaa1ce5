//! `kvmlet vm update`.
//!
//! Labels, annotations and tags are replaced as a whole by the API: they are
//! read, changed here and written back, with the generation they were read at,
//! so that a change by somebody else meanwhile is refused and not lost.

use crate::cli::connect::Session;
use crate::cli::fault::Fault;
use crate::cli::parse;
use crate::cli::resolve::{self, Gone};
use crate::cli::vm::VmChange;
use crate::cli::vm_create::HardwareArgs;
use crate::cli::wait;
use crate::proto::v1::{GetVmRequest, UpdateVmRequest, Vm};
use clap::Args;
use std::collections::HashMap;

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    change: VmChange,
    /// A new name
    #[arg(long)]
    name: Option<String>,
    /// A new description
    #[arg(long)]
    description: Option<String>,
    /// A new package
    #[arg(long)]
    package: Option<String>,
    /// Set a label (may be repeated)
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = parse::pair)]
    labels: Vec<(String, String)>,
    /// Remove a label (may be repeated)
    #[arg(long, value_name = "KEY")]
    remove_label: Vec<String>,
    /// Set an annotation (may be repeated)
    #[arg(long = "annotation", value_name = "KEY=VALUE", value_parser = parse::pair)]
    annotations: Vec<(String, String)>,
    /// Remove an annotation (may be repeated)
    #[arg(long, value_name = "KEY")]
    remove_annotation: Vec<String>,
    /// Add a tag that is carried (may be repeated)
    #[arg(long = "user-tag", value_name = "TAG")]
    user_tags: Vec<String>,
    /// Remove a tag that is carried (may be repeated)
    #[arg(long, value_name = "TAG")]
    remove_user_tag: Vec<String>,
    #[command(flatten)]
    hardware: HardwareArgs,
}

/// UpdateVm.
pub(crate) async fn run(session: &Session, args: UpdateArgs) -> Result<(), Fault> {
    let vm_id = resolve::vm(session, &args.change.vm, Gone::Yields).await?;
    let request = GetVmRequest { vm_id };
    let before = session.vms().get_vm(request).await?.into_inner();
    let expected_generation = args.change.if_generation.or(Some(before.generation));
    let (vm, paths) = changed(before, &args)?;
    if paths.is_empty() {
        return Err(Fault::usage("nothing to change: say what"));
    }
    wait::carry_out(session, &args.change.wait, |request_id| {
        let mut client = session.vms();
        let request = UpdateVmRequest {
            request_id,
            expected_generation,
            vm: Some(vm.clone()),
            update_mask: Some(prost_types::FieldMask {
                paths: paths.clone(),
            }),
        };
        async move { client.update_vm(request).await }
    })
    .await
}

/// The VM as it shall be, with the names of the fields that are to be taken.
fn changed(before: Vm, args: &UpdateArgs) -> Result<(Vm, Vec<String>), Fault> {
    let mut vm = Vm {
        id: before.id,
        ..Vm::default()
    };
    let mut paths = Vec::new();
    if let Some(name) = &args.name {
        vm.name.clone_from(name);
        paths.push("name");
    }
    if let Some(description) = &args.description {
        vm.description.clone_from(description);
        paths.push("description");
    }
    if let Some(package) = &args.package {
        vm.package.clone_from(package);
        paths.push("package");
    }
    if !(args.labels.is_empty() && args.remove_label.is_empty()) {
        vm.labels = merged(before.labels, &args.labels, &args.remove_label);
        paths.push("labels");
    }
    if !(args.annotations.is_empty() && args.remove_annotation.is_empty()) {
        vm.annotations = merged(
            before.annotations,
            &args.annotations,
            &args.remove_annotation,
        );
        paths.push("annotations");
    }
    if !(args.user_tags.is_empty() && args.remove_user_tag.is_empty()) {
        vm.user_tags = before.user_tags;
        for tag in &args.user_tags {
            if !vm.user_tags.contains(tag) {
                vm.user_tags.push(tag.clone());
            }
        }
        vm.user_tags
            .retain(|tag| !args.remove_user_tag.contains(tag));
        paths.push("user_tags");
    }
    if let Some(profile) = &args.hardware.profile {
        vm.hardware_profile_id.clone_from(profile);
        paths.push("hardware_profile_id");
    }
    // With a profile only what is said here overrides it; without one the
    // present hardware is changed.
    let base = if args.hardware.profile.is_some() {
        None
    } else {
        before.hardware
    };
    if let Some(hardware) = args.hardware.over(base)? {
        vm.hardware = Some(hardware);
        paths.push("hardware");
    }
    Ok((vm, paths.into_iter().map(str::to_owned).collect()))
}

fn merged(
    mut values: HashMap<String, String>,
    set: &[(String, String)],
    remove: &[String],
) -> HashMap<String, String> {
    values.extend(set.iter().cloned());
    values.retain(|key, _| !remove.contains(key));
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1::{CpuMode, Hardware};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn update(line: &str) -> (Vm, Vec<String>) {
        let before = Vm {
            id: "v".into(),
            name: "web".into(),
            labels: [("a", "1"), ("b", "2")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            user_tags: vec!["x".into()],
            hardware: Some(Hardware {
                vcpus: 2,
                memory_bytes: 1 << 30,
                cpu_mode: CpuMode::Custom.into(),
                cpu_model: "qemu64".into(),
                ..Hardware::default()
            }),
            ..Vm::default()
        };
        let words = ["update", "web"].into_iter().chain(line.split_whitespace());
        changed(before, &Line::try_parse_from(words).expect("parses").args).expect("is sound")
    }

    #[test]
    fn only_what_is_said_is_in_the_mask() {
        let (vm, paths) = update("--name db");
        assert_eq!(paths, ["name"]);
        assert_eq!((vm.id.as_str(), vm.name.as_str()), ("v", "db"));
        assert!(update("").1.is_empty());
    }

    #[test]
    fn labels_and_tags_that_are_not_named_stay() {
        let (vm, paths) = update("--label b=3 --label c=4 --remove-label a --user-tag y");
        assert_eq!(paths, ["labels", "user_tags"]);
        assert_eq!(crate::cli::output::pairs(&vm.labels, " "), "b=3 c=4");
        assert_eq!(vm.user_tags, ["x", "y"]);
    }

    #[test]
    fn hardware_that_is_not_named_stays_unless_a_profile_is_given() {
        let (vm, paths) = update("--vcpus 4");
        assert_eq!(paths, ["hardware"]);
        let hardware = vm.hardware.expect("it is in the mask");
        assert_eq!((hardware.vcpus, hardware.memory_bytes), (4, 1 << 30));
        assert_eq!(hardware.cpu_model, "qemu64");

        let (vm, paths) = update("--profile large --vcpus 4");
        assert_eq!(paths, ["hardware_profile_id", "hardware"]);
        assert_eq!(vm.hardware.map(|hardware| hardware.memory_bytes), Some(0));
    }

    #[test]
    fn another_cpu_mode_drops_the_model() {
        let (vm, _) = update("--cpu-mode maximum");
        assert_eq!(
            vm.hardware.map(|hardware| hardware.cpu_model),
            Some(String::new())
        );
    }
}
