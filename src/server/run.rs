//! A node as a process: what `quorate node` does from start to exit.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::server::{
    Config, Error, Scope, Server, ValidConfig,
    signals::{Signals, Stop, Told},
    telemetry,
};

/// Files that a node may need beside its connections.
const FILES_BESIDE: u64 = 256;

/// Runs a node until it is told to stop or fails. SIGTERM and SIGINT drain it; a second one ends
/// the process at once, as does a drain that takes too long. SIGHUP reads the certificates again.
///
/// # Errors
/// Where it cannot start, where its disk fails, and where its cluster refuses it.
pub async fn run(config: Config) -> Result<(), Error> {
    telemetry::init(config.log_format, &config.log_level)?;
    let config = config.validate()?;
    raise_open_files(&config);
    let mut signals = Signals::take(config.stop_on_stdin_close)
        .map_err(|why| Error::Io { what: "signals cannot be taken".to_owned(), why })?;
    let mut server = tokio::select! {
        started = Server::start(config) => started?,
        _ = signals.stop() => return Ok(()),
    };
    let stop = loop {
        tokio::select! {
            error = server.failed() => {
                tracing::error!(%error, "the node cannot go on");
                return Err(error);
            }
            told = signals.next() => match told {
                Told::Stop(stop) => break stop,
                Told::Reload => server.reload(),
            },
        }
    };
    let scope = match stop {
        Stop::Signal => Scope::Node,
        Stop::StdinClosed => Scope::Cluster,
    };
    let whole = tokio::select! {
        whole = server.stop(scope) => whole,
        _ = signals.stop() => false,
    };
    if !whole {
        tracing::warn!("stopped before the drain was done");
        // Threads that still wait for a disk would keep the process.
        std::process::exit(1);
    }
    Ok(())
}

/// Each connection is an open file, of which many systems allow 1,024 unless asked for more. Without
/// one left the log could not be written either.
fn raise_open_files(config: &ValidConfig) {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Where that is refused, what there is has to do, and the warning below says so.
        let _kept =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let connections = config.connections;
    let most = connections.connections_max.saturating_add(connections.peer_connections_max);
    let wanted = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(FILES_BESIDE);
    if let Some(allowed) = getrlimit(Resource::Nofile).current.filter(|files| *files < wanted) {
        tracing::warn!(
            allowed,
            wanted,
            "too few open files are allowed: raise the limit, or lower --connections-max"
        );
    }
}
