//! Peers: nobody without a certificate of the peer CA is listened to, and certificates may change.

use std::{fs, net::SocketAddr, process::Stdio};

use hyper_util::rt::TokioIo;
use quorate::{
    net::client_config,
    pb::raft::v1::{
        Identity, RequestVoteRequest, RequestVoteResponse, raft_service_client::RaftServiceClient,
    },
    testing::Cluster,
};
use rcgen::{CertificateParams, SanType};
use tokio::{net::TcpStream, process::Command};
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Endpoint, Uri},
};

use super::{
    counted, logged,
    pki::{Authority, Pair, Pki, expired},
};
use crate::{PROGRAM, eventually};

/// What every peer's certificate is valid for here.
const NAME: &str = "peer.quorate";

fn named(params: &mut CertificateParams) {
    let name = NAME.to_owned().try_into().expect("a name");
    params.subject_alt_names = vec![SanType::DnsName(name)];
}

/// Three nodes that share a certificate of `peers`.
async fn three(peers: &Authority) -> (Cluster, Pair) {
    let pair = peers.sign_with("peer", named);
    let text = format!(
        "peer_tls_cert = {:?}\npeer_tls_key = {:?}\npeer_tls_ca = {:?}\npeer_tls_name = {NAME:?}\n",
        pair.cert(),
        pair.key(),
        peers.ca()
    );
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(text).start().await;
    cluster.wait_for_leader().await;
    (cluster, pair)
}

/// Asks a node for its vote, showing `own`.
async fn ask(
    node: SocketAddr,
    ca: &str,
    own: Option<&Pair>,
    vote: RequestVoteRequest,
) -> Result<RequestVoteResponse, Status> {
    let read = |file: &std::path::Path| fs::read(file).expect("it is there");
    let own = own.map(|pair| (read(&pair.cert), read(&pair.key)));
    let own = own.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice()));
    let config = client_config(&read(ca.as_ref()), own).expect("it fits");
    let dial = tower::service_fn(move |_: Uri| {
        let connector = TlsConnector::from(config.clone());
        async move {
            let tcp = TcpStream::connect(node).await?;
            let name = NAME.try_into().expect("a name");
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    });
    let endpoint = Endpoint::from_shared(format!("http://{node}")).expect("an address");
    let channel = endpoint.connect_with_connector_lazy(dial);
    Ok(RaftServiceClient::new(channel).request_vote(vote).await?.into_inner())
}

/// A vote that `voter` would have to grant, as `candidate` itself would ask for it.
async fn vote(cluster: &Cluster, candidate: u64, voter: u64, term: u64) -> RequestVoteRequest {
    let identity = fs::read_to_string(cluster.data_dir(candidate).join("identity"));
    let identity = identity.expect("every node has one");
    let field = |name: &str| {
        let line = identity.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
        line.expect("the field is there").trim_matches('"').to_owned()
    };
    RequestVoteRequest {
        identity: Some(Identity {
            cluster_id: field("cluster_id"),
            from_node: candidate,
            to_node: voter,
            incarnation: field("incarnation"),
            ..Default::default()
        }),
        group_id: 1,
        term,
        candidate_id: candidate,
        last_log_index: 1_000_000,
        last_log_term: term,
        ..Default::default()
    }
}

async fn term(cluster: &Cluster, node: u64) -> u64 {
    let request = quorate::pb::cluster::v1::StatusRequest { local: true };
    cluster.client_at(node).cluster().status(request).await.expect("a status").nodes[0].term
}

#[tokio::test]
async fn a_stranger_cannot_ask_for_votes() {
    let pki = Pki::new();
    let (peers, other) = (pki.authority("peers"), pki.authority("other"));
    let (cluster, member) = three(&peers).await;
    let (candidate, voter) = (1, 2);
    let before = term(&cluster, voter).await;
    let address = cluster.peer_address(voter);
    let forged = vote(&cluster, candidate, voter, before + 100).await;

    let unnamed = peers.sign("unnamed");
    let late = peers.sign_with("late", |params| {
        named(params);
        expired(params);
    });
    let stranger = other.sign_with("stranger", named);
    for (reason, shown) in [
        ("no_certificate", None),
        ("unknown_ca", Some(&stranger)),
        ("expired", Some(&late)),
        ("wrong_name", Some(&unnamed)),
    ] {
        let answer = ask(address, &peers.ca(), shown, forged.clone()).await;
        assert!(answer.is_err(), "{reason}: {answer:?}");
        let line = logged(&cluster, voter, "peer", reason).await;
        assert!(line.contains("from=127."), "{line}");
        let metric = "quorate_tls_handshake_failures_total{listener=\"peer\",reason=";
        counted(&cluster, voter, &format!("{metric}\"{reason}\"}}")).await;
    }
    assert_eq!(term(&cluster, voter).await, before, "no stranger moved it");

    let stale = vote(&cluster, candidate, voter, 0).await;
    let answer = ask(address, &peers.ca(), Some(&member), stale).await;
    assert!(!answer.expect("a member is listened to").vote_granted);
}

#[tokio::test]
async fn a_node_in_plaintext_is_not_let_back_in() {
    let pki = Pki::new();
    let peers = pki.authority("peers");
    let (mut cluster, _) = three(&peers).await;
    let leader = cluster.wait_for_leader().await;
    let out = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    cluster.kill(out).await;
    let members: Vec<_> =
        cluster.ids().iter().map(|id| format!("{id}={}", cluster.peer_address(*id))).collect();
    let mut plain = Command::new(PROGRAM)
        .args(["node", "--id", &out.to_string()])
        .args(["--data-dir", cluster.data_dir(out).to_str().expect("text")])
        .args(["--listen", &cluster.endpoint(out)])
        .args(["--peer-listen", &cluster.peer_address(out).to_string()])
        .args(["--admin-listen", &cluster.admin_address(out).to_string()])
        .args(["--initial-cluster", &members.join(",")])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    logged(&cluster, leader, "peer", "plaintext").await;
    let ready = readiness(cluster.admin_address(out)).await;
    assert!(ready.contains("503"), "it knows no leader: {ready}");
    cluster.client_at(leader).kv().set("a", "1").await.expect("the others go on");
    plain.kill().await.expect("it ran");
}

async fn readiness(admin: SocketAddr) -> String {
    eventually("the node to answer", async || {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = TcpStream::connect(admin).await.ok()?;
        let request = b"GET /readyz HTTP/1.1\r\nHost: quorate\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    })
    .await
}

#[tokio::test]
async fn the_peer_ca_is_changed_while_the_cluster_runs() {
    let pki = Pki::new();
    let (old, new) = (pki.authority("old"), pki.authority("new"));
    let (mut cluster, files) = three(&old).await;
    let reloaded = async |times: usize| {
        for id in cluster.ids() {
            eventually(&format!("node {id} to reload"), async || {
                let reloads = cluster.log(id).matches("certificates reloaded").count();
                (reloads >= times).then_some(())
            })
            .await;
        }
    };
    let read = |file: &str| fs::read_to_string(file).expect("it is there");
    fs::write(old.ca(), read(&old.ca()) + &read(&new.ca())).expect("both are trusted");
    reloaded(1).await;
    new.sign_with("peer", named).replace(&files);
    reloaded(2).await;
    fs::write(old.ca(), read(&new.ca())).expect("the old one no more");
    reloaded(3).await;
    for id in cluster.ids() {
        cluster.kill(id).await;
        cluster.restart(id).await;
        cluster.wait_until_ready().await;
    }
    cluster.client().kv().set("a", "1").await.expect("they found each other again");
}
