//! Compiles Quorate's own proto files, the part of etcd's API that is used, and the echo.

const OURS: &str = "../../proto";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed={OURS}");
    let files = [
        "quorate/cluster/v1/cluster.proto",
        "quorate/kv/v1/kv.proto",
        "quorate/lock/v1/lock.proto",
        "quorate/session/v1/session.proto",
        "etcdserverpb.proto",
        "v3lockpb.proto",
        "echo.proto",
    ];
    let descriptors = protox::compile(files, [OURS, "proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
