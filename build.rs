//! Compiles the protos with protox, so that no protoc is needed.

use prost::Message;
use std::{env, fs, path::PathBuf};

const PROTOS: [&str; 7] = [
    "kvmlet/v1/vm_service.proto",
    "kvmlet/v1/image_service.proto",
    "kvmlet/v1/volume.proto",
    "kvmlet/v1/console.proto",
    "kvmlet/v1/operation.proto",
    "kvmlet/v1/node.proto",
    "kvmlet/report/v1/report_service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("kvmlet.descriptors"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc", "::tonic_types::pb")
        // It has a password; src/proto.rs shows the rest of it.
        .skip_debug([".kvmlet.v1.VncConsole"])
        .compile_fds(descriptors)?;
    Ok(())
}
