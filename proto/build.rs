//! Turns the `.proto` files into Rust, without `protoc`.

use std::error::Error;

/// Published by others; RPCs that we do not offer answer UNIMPLEMENTED.
const FOREIGN: &[&str] = &["csi.proto"];
/// Ours; each RPC has to be written.
const OURS: &[&str] = &["peer.proto", "node.proto", "operator.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FOREIGN.iter().chain(OURS) {
        println!("cargo::rerun-if-changed={file}");
    }
    compile(FOREIGN, true)?;
    compile(OURS, false)
}

fn compile(files: &[&str], default_stubs: bool) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Ordered maps: equal requests are encoded equally, and parameters keep one order everywhere.
        .btree_map(".")
        // `ctl -o json` prints the operator protocol's messages under their names here.
        .message_attribute(".rdscsi.operator.v1", "#[derive(::serde::Serialize)]")
        .generate_default_stubs(default_stubs)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
