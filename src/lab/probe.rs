//! Asks a node's admin listener how it stands.
//!
//! A plain HTTP/1.1 GET over a socket is all that it takes; every failure reads as "no answer".

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{server::Readiness, types::Duration};

/// How long a node on the same machine may take to answer.
const LIMIT: Duration = Duration::from_secs(1);

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// How a node stands; `None` where it does not answer.
pub(crate) async fn readiness(admin: SocketAddr) -> Option<Readiness> {
    let answer = timeout(LIMIT, get(admin, "/readyz")).await.ok()?.ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    serde_json::from_str(body).ok()
}

/// How several nodes stand, asked at the same time; in the order of the addresses.
pub(crate) async fn all(admins: impl IntoIterator<Item = SocketAddr>) -> Vec<Option<Readiness>> {
    let asked: Vec<_> = admins.into_iter().map(|admin| tokio::spawn(readiness(admin))).collect();
    let mut answers = Vec::with_capacity(asked.len());
    for answer in asked {
        answers.push(answer.await.ok().flatten());
    }
    answers
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn an_answer_is_read_and_silence_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let node = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a caller");
            let mut request = [0; 512];
            let read = stream.read(&mut request).await.expect("a request");
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            let body = serde_json::to_string(&Readiness { node_id: 3, ..Readiness::default() });
            let answer = format!("HTTP/1.1 503 Busy\r\nA: b\r\n\r\n{}\n", body.expect("JSON"));
            stream.write_all(answer.as_bytes()).await.expect("written");
        });
        assert_eq!(readiness(address).await.map(|readiness| readiness.node_id), Some(3));
        node.await.expect("the node did its part");
        assert_eq!(readiness(address).await, None, "nobody listens any more");
    }
}
