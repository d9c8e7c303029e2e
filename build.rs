//! Compiles `proto/` without a system protoc and keeps the descriptors for reflection and JSON.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use prost::Message as _;

const AREAS: [&str; 9] =
    ["cluster", "command", "discovery", "event", "kv", "lab", "lock", "raft", "session"];

/// The service of an example: made beside the library's, and no part of it.
const GREETER: &str = "examples/greeter/greeter.proto";

/// Grows with each commit, so that the version names the commit that was built.
const GIT_LOG: &str = ".git/logs/HEAD";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed={GREETER}");
    if Path::new(GIT_LOG).exists() {
        println!("cargo:rerun-if-changed={GIT_LOG}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let files = AREAS.map(|area| format!("proto/quorate/{area}/v1/{area}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".quorate")
        .btree_map(".quorate")
        .compile_fds(descriptors)?;
    let greeter = Path::new(GREETER);
    let folder = greeter.parent().ok_or("a file is in a folder")?;
    tonic_prost_build::configure().compile_fds(protox::compile([greeter], [folder])?)?;

    let version = env!("CARGO_PKG_VERSION");
    let version = commit()
        .map_or_else(|| version.to_owned(), |commit| format!("{version} (commit {commit})"));
    println!("cargo:rustc-env=QUORATE_VERSION={version}");
    Ok(())
}

/// The commit that is built, where this folder is a checkout and git is there.
fn commit() -> Option<String> {
    if !Path::new(".git").exists() {
        return None; // An enclosing checkout is another project's.
    }
    let answer = std::process::Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}
