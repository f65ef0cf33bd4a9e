//! Turns the `.proto` files into Rust, without `protoc`.

use std::error::Error;

/// Published by others; RPCs that we do not offer answer UNIMPLEMENTED.
const FOREIGN: &[&str] = &["csi.proto"];
/// Ours; each RPC has to be written.
const OURS: &[&str] = &["peer.proto", "leader.proto", "operator.proto"];
/// Ours, of which a controller has thousands of streams open.
const OURS_OF_MANY: &[&str] = &["node.proto"];

const USUAL_CODEC: &str = "tonic_prost::ProstCodec";
const CODEC_OF_MANY: &str = "crate::codec::SmallBuffers";

fn main() -> Result<(), Box<dyn Error>> {
    for file in FOREIGN.iter().chain(OURS).chain(OURS_OF_MANY) {
        println!("cargo::rerun-if-changed={file}");
    }
    compile(FOREIGN, true, USUAL_CODEC)?;
    compile(OURS, false, USUAL_CODEC)?;
    compile(OURS_OF_MANY, false, CODEC_OF_MANY)
}

fn compile(files: &[&str], default_stubs: bool, codec: &str) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        // Ordered maps: equal requests are encoded equally, and parameters keep one order everywhere.
        .btree_map(".")
        // `ctl -o json` prints the operator protocol's messages under their names here.
        .message_attribute(".rdscsi.operator.v1", "#[derive(::serde::Serialize)]")
        .generate_default_stubs(default_stubs)
        .codec_path(codec)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
