//! What the system tells a node: stop, and stop now.
//!
//! SIGTERM and SIGINT ask for a drain, a second one ends it. SIGHUP asks to reload. A closed standard input counts as one SIGTERM where that was asked for.

use std::io::{self, Read as _};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Why the node is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// This node alone: others go on.
    Signal,
    /// Whoever started the node is gone, and the other nodes stop as well.
    StdinClosed,
}

/// What the node is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// To stop; a second time, to stop now.
    Stop(Stop),
    /// To read again what may have changed.
    Reload,
}

/// The signals of this process.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    stdin: Option<oneshot::Receiver<()>>,
}

impl Signals {
    /// Takes the signals over from the system's defaults.
    pub(crate) fn take(watch_stdin: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            stdin: watch_stdin.then(stdin_closed),
        })
    }

    /// Waits until the node is told something.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop(Stop::Signal),
            _ = self.interrupt.recv() => Told::Stop(Stop::Signal),
            _ = self.hangup.recv() => Told::Reload,
            () = closed(&mut self.stdin) => {
                self.stdin = None;
                Told::Stop(Stop::StdinClosed)
            }
        }
    }

    /// Waits until the node is told to stop. Each call waits for one more.
    pub(crate) async fn stop(&mut self) -> Stop {
        loop {
            if let Told::Stop(stop) = self.next().await {
                return stop;
            }
        }
    }
}

async fn closed(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        Some(stdin) => drop(stdin.await),
        None => std::future::pending().await,
    }
}

/// Reads standard input to its end on a thread of its own, because a read there cannot be given up.
fn stdin_closed() -> oneshot::Receiver<()> {
    let (tell, told) = oneshot::channel();
    let watch = move || {
        let mut buffer = [0_u8; 64];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        drop(tell);
    };
    // Without the thread the node would outlive its parent: better to stop at once, which the
    // dropped sender does.
    drop(std::thread::Builder::new().name("stdin".to_owned()).spawn(watch));
    told
}
