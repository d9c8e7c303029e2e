//! The state that a node starts with: its own, or in an empty directory that of a backup
//! (docs/decisions/0006).
//!
//! A restore is one switch of files: before it the directory is as good as empty, after it the
//! node goes on as after any crash. So a command line that names the backup may stay as it is.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    machine::{self, View, store::Store},
    node::Error,
    storage::{
        DataDir,
        backup::{self, BackupError},
    },
};

/// Why a backup is not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup cannot be read.
    #[error("--restore: {0}")]
    Backup(#[from] BackupError),
    /// The directory holds something else than a state out of a backup.
    #[error(
        "--restore: the data directory {} was used before and not restored from a backup: give \
         the node an empty one, or take --restore away to go on with what is there",
        path.display()
    )]
    Used {
        /// The directory.
        path: PathBuf,
    },
    /// The directory was restored from another backup.
    #[error(
        "--restore: the data directory {} was restored from backup {known}, {} is backup {given}: \
         give the node an empty directory, or take --restore away to go on with what is there",
        path.display(), file.display()
    )]
    OtherBackup {
        /// The directory.
        path: PathBuf,
        /// What it was restored from.
        known: String,
        /// The file that was named.
        file: PathBuf,
        /// That file's digest.
        given: String,
    },
}

/// Opens the node's state; in an empty directory it first becomes that of the backup.
pub(crate) fn open_state(data: &DataDir, backup: Option<&Path>) -> Result<Arc<dyn Store>, Error> {
    let Some(file) = backup else { return Ok(data.open_state()?) };
    if data.has_state() || data.identity().log_begun {
        check_restored(data, file)
    } else {
        restore(data, file)
    }
}

/// The directory is in use. Where it is because of this backup, all is well.
fn check_restored(data: &DataDir, file: &Path) -> Result<Arc<dyn Store>, Error> {
    let used = || RestoreError::Used { path: data.path().into() };
    if !data.has_state() {
        return Err(used().into());
    }
    let store = data.open_state()?;
    let known = View::new(store.snapshot()).restored_from()?.ok_or_else(used)?;
    match backup::digest_of(file) {
        Ok(given) if given.to_string() == known => {
            tracing::info!(backup = known, "restored before; this start goes on from there");
        }
        Ok(given) => {
            return Err(Error::Restore(RestoreError::OtherBackup {
                path: data.path().into(),
                known,
                file: file.into(),
                given: given.to_string(),
            }));
        }
        Err(error) if error.is_absent() => {
            tracing::info!(backup = known, "restored before; the file is gone and not needed");
        }
        Err(error) => return Err(RestoreError::Backup(error).into()),
    }
    Ok(store)
}

fn restore(data: &DataDir, file: &Path) -> Result<Arc<dyn Store>, Error> {
    let (store, pending) = data.begin_state()?;
    let loaded = backup::load(file, store.as_ref()).map_err(RestoreError::Backup)?;
    let digest = loaded.digest.to_string();
    let head = machine::restore(store.as_ref(), &digest)?;
    data.switch_state(pending)?;
    tracing::info!(
        file = %file.display(), backup = digest, cluster = loaded.header.cluster_id,
        index = head.index.value(), revision = loaded.header.revision, "restored from a backup"
    );
    Ok(store)
}
