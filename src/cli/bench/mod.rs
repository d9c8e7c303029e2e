//! `quorate bench`: a closed loop of clients that measures a cluster, and checks it on the way.
//!
//! Each client sends its next operation when the last one was answered; retries happen inside the
//! client, so that a failover shows as a pause and not as errors. Keys, locks and streams of a run
//! carry its name, so that runs do not meet; they are left behind under `bench/`.

mod drive;
mod events;
mod kv;
mod lock;
mod options;
mod put_stream;
mod report;
mod soak;

pub(super) use options::BenchCommand;
