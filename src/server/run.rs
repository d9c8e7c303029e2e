//! A node as a process: what `quorate node` does from start to exit.

use crate::server::{
    Config, Error, Scope, Server,
    signals::{Signals, Stop},
    telemetry,
};

/// Runs a node until it is told to stop or fails. SIGTERM and SIGINT drain it; a second one ends
/// the process at once, as does a drain that takes too long.
///
/// # Errors
/// Where it cannot start, where its disk fails, and where its cluster refuses it.
pub async fn run(config: Config) -> Result<(), Error> {
    telemetry::init(config.log_format, &config.log_level)?;
    let config = config.validate()?;
    let mut signals = Signals::take(config.stop_on_stdin_close)
        .map_err(|why| Error::Io { what: "signals cannot be taken".to_owned(), why })?;
    let mut server = tokio::select! {
        started = Server::start(config) => started?,
        _ = signals.stop() => return Ok(()),
    };
    let stop = tokio::select! {
        error = server.failed() => {
            tracing::error!(%error, "the node cannot go on");
            return Err(error);
        }
        stop = signals.stop() => stop,
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
