//! The bytes of a backup.
//!
//! ```text
//! magic   8 bytes "QRBACKUP", then the format's version, 4 bytes
//! element tag, 1 byte; length of the body, 4 bytes; body; CRC32C of tag, length and body, 4 bytes
//! ```
//!
//! Elements are one header (an encoded `SnapshotHeader`), chunks (the snapshot as
//! `machine::SnapshotWriter` cuts it) and one trailer: how many chunks, how many bytes in them, and
//! the XXH3-128 of everything before the trailer, which is the file's digest. Numbers are big
//! endian. Nothing may follow. This file knows no paths and no stores.

use std::{
    fmt,
    io::{self, Read, Write},
};

use prost::Message as _;
use xxhash_rust::xxh3::Xxh3;

use crate::pb::cluster::v1::SnapshotHeader;

const MAGIC: &[u8; 8] = b"QRBACKUP";

/// The format's version.
pub(super) const VERSION: u32 = 1;

const HEADER: u8 = b'H';
const CHUNK: u8 = b'C';
const TRAILER: u8 = b'T';

/// The largest bodies, in bytes: above what is written, far below what a broken length asks for.
const HEADER_BYTES_MAX: u32 = 64 << 10;
const CHUNK_BYTES_MAX: u32 = 16 << 20;

/// How many bytes of a body are read at once.
const PIECE_BYTES: usize = 64 << 10;

const TRAILER_BODY_BYTES: u32 = 8 + 8 + 16;

/// How many bytes the trailer has with its tag, length and checksum.
pub(super) const TRAILER_BYTES: usize = 1 + 4 + TRAILER_BODY_BYTES as usize + 4;

/// What a backup is known by: the XXH3-128 of all that precedes its trailer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What is wrong with bytes that should be a backup.
#[derive(Debug)]
pub(super) enum FormatError {
    Io(io::Error),
    Damaged { offset: u64, what: String },
    Version(u32),
}

/// Writes a backup, front to end.
pub(super) struct BackupWriter<W> {
    out: W,
    hash: Xxh3,
    chunks: u64,
    bytes: u64,
}

impl<W: Write> BackupWriter<W> {
    pub(super) fn begin(out: W, header: &SnapshotHeader) -> io::Result<Self> {
        let mut this = Self { out, hash: Xxh3::new(), chunks: 0, bytes: 0 };
        this.write(MAGIC)?;
        this.write(&VERSION.to_be_bytes())?;
        this.element(HEADER, &header.encode_to_vec())?;
        Ok(this)
    }

    pub(super) fn chunk(&mut self, data: &[u8]) -> io::Result<()> {
        self.chunks += 1;
        self.bytes += data.len() as u64;
        self.element(CHUNK, data)
    }

    /// Ends the backup and gives the output back, flushed.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let digest = self.hash.digest128();
        let mut body = Vec::with_capacity(TRAILER_BODY_BYTES as usize);
        body.extend_from_slice(&self.chunks.to_be_bytes());
        body.extend_from_slice(&self.bytes.to_be_bytes());
        body.extend_from_slice(&digest.to_be_bytes());
        self.element(TRAILER, &body)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn element(&mut self, tag: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let start = start_of(tag, length);
        self.write(&start)?;
        self.write(body)?;
        self.write(&checksum(&start, body).to_be_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Reads a backup, front to end, and believes nothing before its checksum.
pub(super) struct BackupReader<R> {
    input: R,
    hash: Xxh3,
    offset: u64,
    chunks: u64,
    bytes: u64,
    digest: Option<Digest>,
}

impl<R: Read> BackupReader<R> {
    /// Reads up to the chunks.
    pub(super) fn open(input: R) -> Result<(Self, SnapshotHeader), FormatError> {
        let (hash, digest) = (Xxh3::new(), None);
        let mut this = Self { input, hash, offset: 0, chunks: 0, bytes: 0, digest };
        let mut magic = [0; 8];
        this.read(&mut magic)?;
        if magic != *MAGIC {
            return Err(FormatError::Damaged {
                offset: 0,
                what: "it does not start like a backup of quorate".to_owned(),
            });
        }
        this.hash.update(&magic);
        let mut version = [0; 4];
        this.read(&mut version)?;
        let known = u32::from_be_bytes(version);
        if known != VERSION {
            return Err(FormatError::Version(known));
        }
        this.hash.update(&version);
        let start = this.offset;
        let (tag, body) = this.element()?;
        if tag != HEADER {
            return Err(damaged(start, "the header is missing"));
        }
        let header = SnapshotHeader::decode(body.as_slice());
        Ok((this, header.map_err(|error| damaged(start, format!("the header: {error}")))?))
    }

    /// The next chunk; `None` once the trailer was read, fits, and nothing follows it.
    pub(super) fn chunk(&mut self) -> Result<Option<Vec<u8>>, FormatError> {
        let (start, before) = (self.offset, self.hash.digest128());
        let (tag, body) = self.element()?;
        match tag {
            CHUNK => {
                self.chunks += 1;
                self.bytes += body.len() as u64;
                Ok(Some(body))
            }
            TRAILER => self.end(start, before, &body).map(|()| None),
            _ => Err(damaged(start, "a second header")),
        }
    }

    /// The digest, once the end was reached.
    pub(super) const fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// How many bytes were read.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    fn end(&mut self, start: u64, digest: u128, body: &[u8]) -> Result<(), FormatError> {
        let counted = [self.chunks.to_be_bytes(), self.bytes.to_be_bytes()].concat();
        if body[..16] != counted {
            return Err(damaged(start, "the number of chunks or bytes does not fit"));
        }
        if body[16..] != digest.to_be_bytes() {
            return Err(damaged(start, "the digest does not fit"));
        }
        let mut more = [0];
        match self.input.read(&mut more) {
            Ok(0) => {}
            Ok(_) => return Err(damaged(self.offset, "bytes follow the end")),
            Err(error) => return Err(FormatError::Io(error)),
        }
        self.digest = Some(Digest(digest));
        Ok(())
    }

    fn element(&mut self) -> Result<(u8, Vec<u8>), FormatError> {
        let at = self.offset;
        let mut start = [0; 5];
        self.read(&mut start)?;
        let (tag, length) = (start[0], number(&start[1..]));
        let fits = match tag {
            HEADER => length <= HEADER_BYTES_MAX,
            CHUNK => length <= CHUNK_BYTES_MAX,
            TRAILER => length == TRAILER_BODY_BYTES,
            _ => return Err(damaged(at, format!("an unknown element {tag:#04x}"))),
        };
        if !fits {
            return Err(damaged(at, format!("an element claims {length} bytes")));
        }
        let body = self.body(length as usize)?;
        let mut stored = [0; 4];
        self.read(&mut stored)?;
        if stored != checksum(&start, &body).to_be_bytes() {
            return Err(damaged(at, "the checksum does not fit"));
        }
        for part in [&start[..], &body, &stored] {
            self.hash.update(part);
        }
        Ok((tag, body))
    }

    /// Reads so many bytes, and asks for no more memory than arrives of them.
    fn body(&mut self, length: usize) -> Result<Vec<u8>, FormatError> {
        let mut body = Vec::new();
        while body.len() < length {
            let filled = body.len();
            body.resize(length.min(filled + PIECE_BYTES), 0);
            self.read(&mut body[filled..])?;
        }
        Ok(body)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), FormatError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) => return Err(damaged(self.offset + filled as u64, "it ends early")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FormatError::Io(error)),
            }
        }
        self.offset += filled as u64;
        Ok(())
    }
}

/// The digest in the bytes at a backup's end; `None` where they are not a trailer.
pub(super) fn read_trailer(bytes: &[u8; TRAILER_BYTES]) -> Option<Digest> {
    let (start, rest) = bytes.split_at(5);
    let (body, stored) = rest.split_at(TRAILER_BODY_BYTES as usize);
    let whole = start == start_of(TRAILER, TRAILER_BODY_BYTES)
        && stored == checksum(start, body).to_be_bytes();
    let digest: [u8; 16] = body[16..].try_into().expect("a body has 32 bytes");
    whole.then(|| Digest(u128::from_be_bytes(digest)))
}

fn start_of(tag: u8, length: u32) -> [u8; 5] {
    let [a, b, c, d] = length.to_be_bytes();
    [tag, a, b, c, d]
}

fn checksum(start: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(start), body)
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("four bytes were taken"))
}

fn damaged(offset: u64, what: impl Into<String>) -> FormatError {
    FormatError::Damaged { offset, what: what.into() }
}
