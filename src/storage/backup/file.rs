//! Backups as files: written beside their place and moved there whole, read back and tried out.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, BufWriter, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use crate::{
    machine::{
        Head, Machine, MachineConfig, SnapshotError, SnapshotLoader, View,
        store::{Store, StoreError},
    },
    pb::cluster::v1::{SnapshotHeader, SnapshotSummary},
    storage::{
        backup::{
            BackupError, Digest,
            format::{BackupReader, BackupWriter, FormatError, TRAILER_BYTES, read_trailer},
        },
        files::sync_directory,
        store::RedbStore,
    },
};

/// How many bytes are read and written at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Who may read what is made here: it holds every key and value.
const MODE: u32 = 0o600;

/// A backup that is being written. It is a file of another name until [`BackupFile::finish`], and
/// is removed where that is not reached.
pub struct BackupFile {
    path: PathBuf,
    partial: Partial,
    force: bool,
    writer: BackupWriter<BufWriter<File>>,
}

impl std::fmt::Debug for BackupFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackupFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl BackupFile {
    /// Refuses a place that is taken, before anything is asked for. With `force` a file there is
    /// replaced at the end.
    ///
    /// # Errors
    /// Where there is a file and no `force`, or something that is not a file.
    pub fn check(path: &Path, force: bool) -> Result<(), BackupError> {
        match fs::metadata(path) {
            Ok(found) if force && found.is_file() => Ok(()),
            Ok(_) => Err(BackupError::Exists { path: path.into() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io("look at", path, error)),
        }
    }

    /// Begins a backup that is to stand at `path`.
    ///
    /// # Errors
    /// As [`BackupFile::check`], and where the disk fails.
    pub fn create(path: &Path, header: &SnapshotHeader, force: bool) -> Result<Self, BackupError> {
        Self::check(path, force)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", Uuid::new_v4()));
        let (file, partial) = Partial::create(path.with_file_name(name))?;
        let writer = BackupWriter::begin(BufWriter::with_capacity(BUFFER_BYTES, file), header)
            .map_err(|error| io("write", &partial.0, error))?;
        Ok(Self { path: path.into(), partial, force, writer })
    }

    /// Removes the unfinished file when it is dropped: for whoever may stop waiting while
    /// [`BackupFile::finish`] goes on in another thread.
    #[must_use]
    pub fn remover(&self) -> Partial {
        Partial(self.partial.0.clone())
    }

    /// Adds the next bytes of the snapshot.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn chunk(&mut self, data: &[u8]) -> Result<(), BackupError> {
        self.writer.chunk(data).map_err(|error| io("write", &self.partial.0, error))
    }

    /// Ends the backup: it is made durable, read back and tried out as [`verify`] does, and only
    /// then moved to its place.
    ///
    /// # Errors
    /// Where the disk fails or what was written does not hold; then nothing is at the place.
    pub fn finish(self) -> Result<SnapshotSummary, BackupError> {
        let Self { path, partial, force, writer } = self;
        let written = writer.finish().and_then(|out| {
            let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.sync_all()
        });
        written.map_err(|error| io("write", &partial.0, error))?;
        let summary = verify(&partial.0)?;
        Self::check(&path, force)?;
        fs::rename(&partial.0, &path)
            .and_then(|()| sync_directory(directory_of(&path)))
            .map_err(|error| io("put in place", &path, error))?;
        Ok(summary)
    }
}

/// A file that is removed when it goes out of use.
#[derive(Debug)]
pub struct Partial(PathBuf);

impl Partial {
    /// Makes a file that is not there, for this user alone.
    fn create(path: PathBuf) -> Result<(File, Self), BackupError> {
        let file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
        let file = file.map_err(|error| io("write", &path, error))?;
        Ok((file, Self(path)))
    }

    /// For rows: beside `path`, or in the temporary directory where nothing can be made there.
    fn scratch(path: &Path) -> Result<Self, BackupError> {
        let name = format!("quorate-verify-{}.redb", Uuid::new_v4());
        let made = Self::create(directory_of(path).join(&name));
        let made = made.or_else(|_| Self::create(std::env::temp_dir().join(name)));
        made.map(|(_, partial)| partial)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // It was moved, or nobody needs it.
        let _gone = fs::remove_file(&self.0);
    }
}

/// What a backup was found to be.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says of itself.
    pub header: SnapshotHeader,
    /// What it is known by.
    pub digest: Digest,
    /// Where the state in it stands.
    pub head: Head,
    /// How many bytes the file has.
    pub file_bytes: u64,
}

/// Loads a backup into an empty store, all of it checked. Where this fails the store must be
/// thrown away. It is not persisted.
///
/// # Errors
/// Where the file cannot be read, is damaged in any byte, is of an unknown format, or the store
/// fails.
pub fn load(path: &Path, store: &dyn Store) -> Result<Loaded, BackupError> {
    let file = File::open(path).map_err(|error| io("read", path, error))?;
    let of_format = |error: FormatError| named(path, error);
    let (mut reader, header) =
        BackupReader::open(BufReader::with_capacity(BUFFER_BYTES, file)).map_err(of_format)?;
    let of_snapshot = |error: SnapshotError, offset: u64| match error {
        SnapshotError::Store(error) => BackupError::Store(error),
        error => BackupError::Damaged { path: path.into(), offset, what: error.to_string() },
    };
    let mut loader = SnapshotLoader::new(store);
    while let Some(chunk) = reader.chunk().map_err(of_format)? {
        loader.feed(&chunk).map_err(|error| of_snapshot(error, reader.offset()))?;
    }
    let head = loader.finish().map_err(|error| of_snapshot(error, reader.offset()))?;
    let told = (header.applied_index, header.term, header.revision, header.position);
    let held =
        (head.index.value(), head.term.value(), head.revision.value(), head.position.value());
    if told != held {
        let what = "the header is not that of the state behind it".to_owned();
        return Err(BackupError::Damaged { path: path.into(), offset: 0, what });
    }
    let digest = reader.digest().expect("the trailer was read");
    Ok(Loaded { header, digest, head, file_bytes: reader.offset() })
}

/// Proves that a cluster can be founded from a backup: reads all of it, loads it into a store in a
/// file beside it (or in the temporary directory where none can be made there), and makes that a new
/// cluster's state. Tells what it holds.
///
/// # Errors
/// As [`load`], and where the state in it cannot begin a cluster.
pub fn verify(path: &Path) -> Result<SnapshotSummary, BackupError> {
    let rows = Partial::scratch(path)?;
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(&rows.0)?);
    // The store has it open: without a name it is gone even where this process is killed.
    drop(rows);
    let loaded = load(path, store.as_ref())?;
    let census = View::new(store.snapshot()).census()?;
    let unfit = |error: StoreError| BackupError::Damaged {
        path: path.into(),
        offset: 0,
        what: format!("no cluster can begin with the state in it: {error}"),
    };
    crate::machine::restore(store.as_ref(), &loaded.digest.to_string()).map_err(unfit)?;
    Machine::open(store, MachineConfig::default()).map_err(unfit)?;
    Ok(SnapshotSummary {
        header: Some(loaded.header),
        digest: loaded.digest.to_string(),
        file_bytes: loaded.file_bytes,
        keys: census.keys,
        sessions: census.sessions,
        locks: census.locks,
        instances: census.instances,
        streams: census.streams,
        events: census.events,
    })
}

/// The digest that stands at a backup's end. Reads nothing else, so it proves nothing of the rest.
///
/// # Errors
/// Where the file cannot be read or does not end as a backup does.
pub fn digest_of(path: &Path) -> Result<Digest, BackupError> {
    let mut file = File::open(path).map_err(|error| io("read", path, error))?;
    let mut trailer = [0; TRAILER_BYTES];
    let size = file.seek(SeekFrom::End(0)).map_err(|error| io("read", path, error))?;
    let at = size.checked_sub(TRAILER_BYTES as u64);
    let digest = match at {
        None => None,
        Some(at) => {
            let read = file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut trailer));
            read.map_err(|error| io("read", path, error))?;
            read_trailer(&trailer)
        }
    };
    digest.ok_or_else(|| BackupError::Damaged {
        path: path.into(),
        offset: at.unwrap_or_default(),
        what: "it does not end like a backup of quorate".to_owned(),
    })
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn named(path: &Path, error: FormatError) -> BackupError {
    let path = path.to_owned();
    match error {
        FormatError::Io(source) => BackupError::Io { doing: "read", path, source },
        FormatError::Damaged { offset, what } => BackupError::Damaged { path, offset, what },
        FormatError::Version(version) => BackupError::Version { path, version },
    }
}

fn io(doing: &'static str, path: &Path, source: std::io::Error) -> BackupError {
    BackupError::Io { doing, path: path.into(), source }
}
