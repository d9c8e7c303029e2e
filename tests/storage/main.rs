//! Tests of what a node keeps on its disk, against disks that lose, tear and damage.

mod data_dir;
mod golden;
mod power_loss;
mod store;
mod wal;
mod wal_faults;
