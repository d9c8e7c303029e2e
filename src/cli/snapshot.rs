//! `quorate cluster snapshot`: save the state to a file, check such a file.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::{
    cli::{
        Error,
        context::Context,
        show::{self, Shown},
        table::Table,
    },
    pb::cluster::v1::{
        SaveSnapshotRequest, SnapshotHeader, SnapshotSummary, save_snapshot_response::Part,
    },
    storage::backup::{self, BackupError, BackupFile},
};

/// About how many bytes pass between two looks at the progress.
const PROGRESS_BYTES: u64 = 4 << 20;

/// `quorate cluster snapshot`.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save the whole state to a file, while the cluster goes on
    #[command(
        after_help = "Examples:\n  quorate cluster snapshot save backup.qrb\n  quorate cluster snapshot save /backups/$(date +%F).qrb --endpoints 10.0.0.2:7401\n\nThe file appears under its name only once it is whole and was read back."
    )]
    Save(SaveArgs),
    /// Check every byte of a saved file and tell what it holds; exit 1 where it is damaged
    #[command(after_help = "Example:\n  quorate cluster snapshot verify backup.qrb")]
    Verify(VerifyArgs),
}

/// Flags of `cluster snapshot save`.
#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Where to save it; a file that exists is left alone
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a file that exists, once the new one is whole
    #[arg(long)]
    force: bool,
    /// Take the state as the node has it, without asking a majority: for a node that is cut off
    #[arg(long)]
    stale: bool,
}

/// Flags of `cluster snapshot verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The saved file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl SnapshotCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let summary = match self {
            Self::Save(args) => {
                // Dropped half way it leaves no file behind.
                let summary = tokio::select! {
                    saved = save(context, &args) => saved?,
                    _ = tokio::signal::ctrl_c() => return Err(Error::failed("interrupted")),
                };
                show::say(&format!("saved to {}", args.file.display()));
                summary
            }
            Self::Verify(args) => {
                let file = args.file.clone();
                let found = blocking(move || backup::verify(&file)).await?;
                show::say(&format!("{} is whole", args.file.display()));
                found
            }
        };
        context.show.answer(&summary, described)
    }
}

async fn save(context: &Context, args: &SaveArgs) -> Result<SnapshotSummary, Error> {
    BackupFile::check(&args.file, args.force).map_err(told)?;
    let request = SaveSnapshotRequest { stale: args.stale };
    let mut parts = context.client.cluster().save_snapshot(request).await?;
    let broken = |what: &str| Error::failed(format!("the snapshot is not whole: {what}"));
    let Some(Part::Header(header)) = parts.next().await?.and_then(|part| part.part) else {
        return Err(broken("it has no header"));
    };
    let mut file = BackupFile::create(&args.file, &header, args.force).map_err(told)?;
    let (mut chunks, mut bytes, mut progress) = (0, 0, Progress::default());
    loop {
        match parts.next().await?.and_then(|part| part.part) {
            Some(Part::Chunk(chunk)) => {
                if crc32c::crc32c(&chunk.data) != chunk.crc32c {
                    return Err(broken("a chunk was damaged on its way"));
                }
                chunks += 1;
                bytes += chunk.data.len() as u64;
                progress.show(bytes);
                file.chunk(&chunk.data).map_err(told)?;
            }
            Some(Part::End(end)) if (end.chunks, end.bytes) == (chunks, bytes) => break,
            Some(Part::End(_)) => return Err(broken("chunks are missing")),
            Some(Part::Header(_)) => return Err(broken("it has two headers")),
            None => return Err(broken("it ended early")),
        }
    }
    progress.clear();
    let _remover = file.remover();
    blocking(move || file.finish()).await
}

/// Reads or writes a file on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::failed(error.to_string()))?.map_err(told)
}

fn told(error: BackupError) -> Error {
    match &error {
        BackupError::Exists { path } if Path::is_file(path) => {
            Error::with_hint(error.to_string(), "name another file, or replace it with --force")
        }
        _ => Error::failed(error.to_string()),
    }
}

/// How much came, on a terminal.
#[derive(Debug, Default)]
struct Progress {
    shown: u64,
}

impl Progress {
    fn show(&mut self, bytes: u64) {
        if bytes >= self.shown + PROGRESS_BYTES && show::is_heard() {
            self.shown = bytes;
            show::say_over(&format!("{} received", size(bytes)));
        }
    }

    fn clear(&self) {
        if self.shown > 0 {
            show::say_over("");
        }
    }
}

fn described(summary: &SnapshotSummary) -> Shown {
    let none = SnapshotHeader::default();
    let header = summary.header.as_ref().unwrap_or(&none);
    let mut table = Table::new(&["SNAPSHOT", "HOLDS"]);
    let cluster = if header.cluster_id.is_empty() { "-" } else { &header.cluster_id };
    table.row(["cluster".into(), cluster.into()]);
    let time = header.time.map(|time| time.to_string());
    table.row(["state of".into(), time.unwrap_or_else(|| "-".to_owned()).into()]);
    table.row([
        "log".into(),
        format!("index {}, term {}", header.applied_index, header.term).into(),
    ]);
    for (name, count) in [
        ("revision", header.revision),
        ("position", header.position),
        ("keys", summary.keys),
        ("sessions", summary.sessions),
        ("locks held", summary.locks),
        ("instances", summary.instances),
        ("streams", summary.streams),
        ("events", summary.events),
    ] {
        table.row([name.into(), count.into()]);
    }
    table.row(["size".into(), size(summary.file_bytes).into()]);
    table.row(["digest".into(), (&summary.digest).into()]);
    table.into()
}

fn size(bytes: u64) -> String {
    if bytes < 10_000 {
        return format!("{bytes} B");
    }
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit / (unit / 10));
    if bytes < 10_000_000 { tenths(1_000) + " kB" } else { tenths(1_000_000) + " MB" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        let sizes = [0, 9_999, 10_000, 123_456, 9_999_999, 12_345_678_901].map(size);
        assert_eq!(sizes, ["0 B", "9999 B", "10.0 kB", "123.4 kB", "9999.9 kB", "12345.6 MB"]);
    }
}
