//! `quorate up`: a cluster of child processes on this machine.
//!
//! The supervisor starts nodes, waits for a leader, says what dies and stops everything at the end.
//! It never restarts a node and never touches a node's data.

mod error;
mod place;
mod screen;
mod supervise;

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    lab::{certificates::Certificates, process::NodeSpec},
    server::Addresses,
    storage::backup,
};

pub use error::Error;
pub use supervise::run;

/// The most nodes of one cluster: further ones would meet the next kind of port.
const NODES_MAX: u8 = 9;

/// From a base port to the ports of clients, peers and admin pages, less the node's id.
const CLIENT_OFFSET: u16 = 0;
const PEER_OFFSET: u16 = 10;
const ADMIN_OFFSET: u16 = 20;

/// What `up` is asked for.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// How many nodes; 1 to 9.
    pub nodes: u8,
    /// Clients get the ports from this + 1 on, peers from + 11, admin HTTP from + 21.
    pub base_port: u16,
    /// Where everything is kept; ignored when `ephemeral`.
    pub data_dir: PathBuf,
    /// Uses a fresh temporary directory and removes it at the end.
    pub ephemeral: bool,
    /// A backup that a new cluster is founded from.
    pub restore: Option<PathBuf>,
    /// Makes certificates: clients need the CA alone, peers demand them of each other.
    pub tls: bool,
    /// Further flags for each `quorate node`.
    pub node_flags: Vec<String>,
    /// The binary to run as `quorate node`.
    pub program: PathBuf,
    /// How the person typed the binary's path: printed in commands to copy.
    pub typed_as: String,
}

impl UpOptions {
    /// Refuses what cannot be started anywhere.
    fn check(&self) -> Result<(), Error> {
        if !(1..=NODES_MAX).contains(&self.nodes) {
            let what = format!("--nodes {} is not between 1 and {NODES_MAX}", self.nodes);
            return Err(Error::new(what, "three survive the loss of one, five of two"));
        }
        let most = u16::MAX - ADMIN_OFFSET - u16::from(NODES_MAX);
        if self.base_port == 0 || self.base_port > most {
            let what = format!("--base-port {} is not between 1 and {most}", self.base_port);
            return Err(Error::new(what, "the default is 7400"));
        }
        if let Some(file) = &self.restore {
            backup::digest_of(file)
                .map_err(|why| Error::new(why.to_string(), "name a file that was saved"))?;
        }
        Ok(())
    }

    /// The nodes, in the order of their ids.
    fn specs(
        &self,
        dir: &std::path::Path,
        bootstrap: bool,
        tls: Option<&Certificates>,
    ) -> Vec<NodeSpec> {
        let local = |offset: u16, id: u8| {
            SocketAddr::from(([127, 0, 0, 1], self.base_port + offset + u16::from(id)))
        };
        let ids = 1..=self.nodes;
        let members: Vec<_> =
            ids.clone().map(|id| (u64::from(id), local(PEER_OFFSET, id))).collect();
        ids.map(|id| NodeSpec {
            id: u64::from(id),
            dir: dir.join(format!("node-{id}")),
            addresses: Addresses {
                client: local(CLIENT_OFFSET, id),
                peer: local(PEER_OFFSET, id),
                admin: local(ADMIN_OFFSET, id),
            },
            members: members.clone(),
            bootstrap,
            restore: self.restore.clone(),
            tls: tls.map(|tls| tls.of_node(u64::from(id))),
            flags: self.node_flags.clone(),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> UpOptions {
        UpOptions {
            nodes: 3,
            base_port: 7400,
            data_dir: "quorate-data".into(),
            ephemeral: false,
            restore: None,
            tls: false,
            node_flags: Vec::new(),
            program: "quorate".into(),
            typed_as: "quorate".to_owned(),
        }
    }

    #[test]
    fn the_ports_are_those_of_the_contract() {
        let specs = options().specs("d".as_ref(), true, None);
        let ports = |spec: &NodeSpec| {
            let a = spec.addresses;
            (a.client.port(), a.peer.port(), a.admin.port())
        };
        assert_eq!(ports(&specs[0]), (7401, 7411, 7421));
        assert_eq!(ports(&specs[2]), (7403, 7413, 7423));
        assert_eq!(specs[1].dir, PathBuf::from("d/node-2"));
    }

    #[test]
    fn what_cannot_be_started_is_refused_by_name() {
        for (nodes, base_port, named) in [
            (0, 7400, "--nodes 0"),
            (10, 7400, "--nodes 10"),
            (3, 0, "--base-port 0"),
            (3, 65_530, "--base-port 65530"),
        ] {
            let error = UpOptions { nodes, base_port, ..options() }.check().expect_err("refused");
            assert!(error.to_string().starts_with(named), "{error}");
        }
        options().check().expect("the defaults fit");
    }
}
