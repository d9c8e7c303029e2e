//! `rivals`: the same closed loop against Quorate and against etcd, three members each, on one
//! machine in one run. Prints a table of medians and of the ratios of each round.
//!
//! Only one cluster runs at a time: with few cores an idle one would still take some. Whatever was
//! started is killed and its data removed when this ends, however it ends.

mod cells;
mod cluster;
mod connection;
mod echo;
mod failover;
mod load;
mod machine;
mod options;
mod plan;
mod process;
mod put_stream;
mod report;

/// The generated messages and stubs, more of them than are used.
#[allow(dead_code)]
mod pb {
    pub mod cluster {
        tonic::include_proto!("quorate.cluster.v1");
    }
    pub mod kv {
        tonic::include_proto!("quorate.kv.v1");
    }
    pub mod lock {
        tonic::include_proto!("quorate.lock.v1");
    }
    pub mod session {
        tonic::include_proto!("quorate.session.v1");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
    pub mod v3lockpb {
        tonic::include_proto!("v3lockpb");
    }
    pub mod echo {
        tonic::include_proto!("echo");
    }
}

use std::process::ExitCode;

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};

use options::{Command, Options};

/// What went wrong, for people.
type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new().expect("the system gives threads");
    // On the main thread: children are told to die with the thread that started them.
    let ended = runtime.block_on(async {
        if let Some(Command::EchoServer { listen }) = options.command {
            return echo::serve(listen).await;
        }
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = plan::run(&options) => ended,
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
            _ = terminated.recv() => Err("terminated".into()),
        }
    });
    // Tasks that wait for a cluster that is gone are not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rivals: {error}");
            ExitCode::FAILURE
        }
    }
}
