//! The generated messages and stubs, one module an area, as `proto/` lays them out.
//!
//! Messages are used on every floor; the tonic stubs on the floors of clients and services only.

#![allow(missing_docs, unreachable_pub, clippy::all)]

macro_rules! area {
    ($area:ident) => {
        pub mod $area {
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/quorate.", stringify!($area), ".v1.rs"));
            }
        }
    };
}

area!(cluster);
area!(command);
area!(discovery);
area!(event);
area!(kv);
area!(lab);
area!(lock);
area!(raft);
area!(session);

/// All descriptors, encoded: for reflection and for the canonical JSON form.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
