//! Floor 7: clusters for anyone's tests.
//!
//! [`Cluster::start`] runs the nodes inside the test's process, over real TCP and real disks;
//! [`Cluster::processes`] runs a built binary, which a test can also pause and really kill. Both
//! take addresses of their own and clean up after themselves, also when the test fails; then
//! directories and logs stay, and where they are is printed.
//!
//! What goes wrong here panics, because in a test a panic is the report.
//!
//! ```no_run
//! # async fn example() {
//! use quorate::testing::Cluster;
//!
//! let mut cluster = Cluster::start(3).await;
//! let client = cluster.client();
//! client.kv().set("greeting", "hello").await.expect("a majority is there");
//!
//! let leader = cluster.wait_for_leader().await;
//! cluster.kill(leader).await;
//! assert_ne!(cluster.wait_for_leader().await, leader);
//! # }
//! ```

pub(crate) mod addresses;
mod builder;
mod cluster;
mod in_process;
#[cfg(test)]
mod simulated;

pub use builder::ClusterBuilder;
pub use cluster::Cluster;
