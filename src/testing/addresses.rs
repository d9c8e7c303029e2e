//! Addresses that no other test uses: a loopback address of the cluster's own, with fixed ports.
//!
//! Ports that are drawn, noted and bound later race with everything else on the machine. All of
//! 127.0.0.0/8 is loopback on Linux, so each cluster takes an address from it instead. Where the
//! system knows only 127.0.0.1, free ports are drawn after all.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::server::Addresses;

/// Grows with each cluster of this process.
static CLUSTERS: AtomicU32 = AtomicU32::new(0);

/// How many clusters one process starts before it comes near another's addresses.
const STRIDE: u32 = 251;

/// How far a node moves: past the ports of all nodes' listeners.
const MOVE: u16 = 30;

/// How many addresses are tried.
const ATTEMPTS: u32 = 64;

/// One node's addresses for each id from 1 to `nodes`.
pub(crate) fn reserve(nodes: u8) -> Vec<Addresses> {
    for _ in 0..ATTEMPTS {
        let own = own_address(std::process::id(), CLUSTERS.fetch_add(1, Ordering::Relaxed));
        let wanted: Vec<_> = (1..=nodes).map(|id| at(IpAddr::V4(own), u16::from(id))).collect();
        match wanted.iter().try_for_each(are_free) {
            Ok(()) => return wanted,
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => return drawn(nodes),
            Err(_) => {}
        }
    }
    panic!("no loopback address is free for a test's cluster");
}

/// Another address of the same host that is free, for clients of a node that moves. What
/// [`reserve`] gave to the cluster's other nodes is passed over, in use or not.
pub(crate) fn elsewhere(client: SocketAddr, taken: &[Addresses]) -> SocketAddr {
    let known = |address: SocketAddr| {
        taken.iter().any(|node| [node.client, node.peer, node.admin].contains(&address))
    };
    let steps = (1..=ATTEMPTS).map(|step| u16::try_from(step).expect("few") * MOVE);
    steps
        .map(|step| SocketAddr::new(client.ip(), client.port().wrapping_add(step).max(1_024)))
        .find(|address| !known(*address) && TcpListener::bind(address).is_ok())
        .expect("a port is free for a node that moves")
}

/// An address in 127.0.0.0/8, but not 127.0.x.x, with no byte at 0 or 255.
fn own_address(process: u32, cluster: u32) -> Ipv4Addr {
    let number = process.wrapping_mul(STRIDE).wrapping_add(cluster);
    let byte = |number: u32| u8::try_from(number % 254 + 1).expect("from 1 to 254");
    Ipv4Addr::new(127, byte(number / (254 * 254)), byte(number / 254), byte(number))
}

fn at(ip: IpAddr, id: u16) -> Addresses {
    let at = |base| SocketAddr::new(ip, base + id);
    Addresses { client: at(7400), peer: at(7410), admin: at(7420) }
}

fn are_free(addresses: &Addresses) -> io::Result<()> {
    for address in [addresses.client, addresses.peer, addresses.admin] {
        TcpListener::bind(address)?;
    }
    Ok(())
}

/// Free ports of 127.0.0.1, held until all are drawn so that they differ.
fn drawn(nodes: u8) -> Vec<Addresses> {
    let mut held = Vec::new();
    let mut draw = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        held.push(listener);
        address
    };
    (1..=nodes).map(|_| Addresses { client: draw(), peer: draw(), admin: draw() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_of_one_process_and_of_neighbours_do_not_meet() {
        let mut seen = std::collections::BTreeSet::new();
        for process in 4_000..4_020 {
            for cluster in 0..STRIDE {
                let address = own_address(process, cluster);
                assert!(address.is_loopback() && address.octets()[1] > 0);
                assert!(seen.insert(address), "{address} was given twice");
            }
        }
    }

    #[test]
    fn drawn_addresses_all_differ() {
        let addresses = drawn(3);
        let mut ports: Vec<u16> =
            addresses.iter().flat_map(|a| [a.client, a.peer, a.admin].map(|a| a.port())).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 9);
    }

    #[test]
    fn a_node_moves_to_a_port_that_nobody_has() {
        let nodes = reserve(3);
        let first = elsewhere(nodes[0].client, &nodes);
        assert_eq!(first.ip(), nodes[0].client.ip());
        assert!(nodes.iter().all(|node| ![node.client, node.peer, node.admin].contains(&first)));
        let _taken = TcpListener::bind(first).expect("free");
        assert_ne!(elsewhere(nodes[0].client, &nodes), first);
    }

    #[test]
    fn a_taken_address_is_passed_over() {
        let first = reserve(1);
        let _taken = TcpListener::bind(first[0].peer).expect("free");
        CLUSTERS.fetch_sub(1, Ordering::Relaxed);
        assert_ne!(reserve(1), first);
    }
}
