//! The settings that keep strangers out: certificates, and the bounds of connections.
//!
//! What is judged here is only what the settings say; the files behind them are read at the start.

use std::path::Path;

use rustls::pki_types::ServerName;

use crate::{
    net::TlsFiles,
    server::{Config, ConfigError, config::refuse},
    types::Duration,
};

/// The certificates between peers.
#[derive(Clone, Debug)]
pub(crate) struct PeerTls {
    pub(crate) files: TlsFiles,
    /// A name that every peer's certificate must be valid for.
    pub(crate) name: Option<ServerName<'static>>,
}

/// What one connection may take, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) connections_max: usize,
    pub(crate) peer_connections_max: usize,
    pub(crate) streams_per_connection_max: u32,
    pub(crate) header_bytes_max: u32,
    pub(crate) handshake_timeout: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
}

impl Config {
    pub(super) fn tls(&self) -> Result<Option<TlsFiles>, ConfigError> {
        let ca = &self.tls_client_ca;
        match (is_set(&self.tls_cert), is_set(&self.tls_key)) {
            (true, true) => Ok(Some(TlsFiles {
                cert: self.tls_cert.clone(),
                key: self.tls_key.clone(),
                ca: is_set(ca).then(|| ca.clone()),
            })),
            (true, false) => refuse("--tls-key", "name the key of --tls-cert"),
            (false, true) => refuse("--tls-cert", "name the certificate of --tls-key"),
            (false, false) if is_set(ca) => {
                refuse("--tls-client-ca", "it demands TLS: name --tls-cert and --tls-key as well")
            }
            (false, false) => Ok(None),
        }
    }

    pub(super) fn peer_tls(&self) -> Result<Option<PeerTls>, ConfigError> {
        let files = [
            ("--peer-tls-cert", &self.peer_tls_cert),
            ("--peer-tls-key", &self.peer_tls_key),
            ("--peer-tls-ca", &self.peer_tls_ca),
        ];
        if files.iter().all(|(_, file)| !is_set(file)) {
            if !self.peer_tls_name.is_empty() {
                return refuse("--peer-tls-name", "it demands TLS: name --peer-tls-cert as well");
            }
            return Ok(None);
        }
        if let Some((setting, _)) = files.iter().find(|(_, file)| !is_set(file)) {
            return refuse(setting, "peers need --peer-tls-cert, --peer-tls-key and --peer-tls-ca");
        }
        let name = match self.peer_tls_name.as_str() {
            "" => None,
            name => match ServerName::try_from(name.to_owned()) {
                Ok(name) => Some(name),
                Err(_) => return refuse("--peer-tls-name", format!("`{name}` is not a name")),
            },
        };
        let files = TlsFiles {
            cert: self.peer_tls_cert.clone(),
            key: self.peer_tls_key.clone(),
            ca: Some(self.peer_tls_ca.clone()),
        };
        Ok(Some(PeerTls { files, name }))
    }

    pub(super) fn connection_limits(&self) -> Result<ConnectionLimits, ConfigError> {
        if self.connections_max == 0 {
            return refuse("--connections-max", "must be at least 1");
        }
        if self.peer_connections_max == 0 {
            return refuse("--peer-connections-max", "must be at least 1");
        }
        if self.streams_per_connection_max == 0 {
            return refuse("--streams-per-connection-max", "must be at least 1");
        }
        if !(4 << 10..=1 << 20).contains(&self.header_bytes_max) {
            return refuse(
                "--header-bytes-max",
                "must lie between 4 KiB (4096) and 1 MiB (1048576)",
            );
        }
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(60));
        if !(shortest..=longest).contains(&self.handshake_timeout) {
            return refuse("--handshake-timeout", "must lie between 100ms and 1m");
        }
        let keepalives = [
            ("--keepalive-interval", self.keepalive_interval),
            ("--keepalive-timeout", self.keepalive_timeout),
        ];
        let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(3_600));
        for (setting, span) in keepalives {
            if !(shortest..=longest).contains(&span) {
                return refuse(setting, "must lie between 1s and 1h");
            }
        }
        Ok(ConnectionLimits {
            connections_max: self.connections_max,
            peer_connections_max: self.peer_connections_max,
            streams_per_connection_max: self.streams_per_connection_max,
            header_bytes_max: self.header_bytes_max,
            handshake_timeout: self.handshake_timeout,
            keepalive_interval: self.keepalive_interval,
            keepalive_timeout: self.keepalive_timeout,
        })
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { id: 1, data_dir: "data".into(), ..Config::default() }
    }

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let mut config = config();
        change(&mut config);
        config.validate().expect_err("must be refused").to_string()
    }

    #[test]
    fn half_of_the_certificates_is_refused_by_name() {
        assert!(refusal(|c| c.tls_cert = "a".into()).starts_with("--tls-key"));
        assert!(refusal(|c| c.tls_key = "a".into()).starts_with("--tls-cert"));
        assert!(refusal(|c| c.tls_client_ca = "a".into()).starts_with("--tls-client-ca"));
        assert!(refusal(|c| c.peer_tls_cert = "a".into()).starts_with("--peer-tls-key"));
        assert!(refusal(|c| c.peer_tls_ca = "a".into()).starts_with("--peer-tls-cert"));
        assert!(refusal(|c| c.peer_tls_name = "a".into()).starts_with("--peer-tls-name"));
    }

    #[test]
    fn tls_opens_its_own_listener_beyond_loopback_and_no_other() {
        let open = |c: &mut Config| {
            c.listen = "0.0.0.0:7401".into();
            c.tls_cert = "cert".into();
            c.tls_key = "key".into();
        };
        let mut client = config();
        open(&mut client);
        client.validate().expect("it has TLS");
        let peer = refusal(|c| {
            open(c);
            c.peer_listen = "0.0.0.0:7411".into();
        });
        assert!(peer.starts_with("--peer-listen") && peer.contains("--peer-tls-cert"), "{peer}");
        let admin = refusal(|c| {
            open(c);
            c.admin_listen = "0.0.0.0:7421".into();
        });
        assert!(admin.starts_with("--admin-listen"), "{admin}");
        assert!(admin.contains("plain HTTP") && admin.contains("--insecure-listen"), "{admin}");
    }

    #[test]
    fn bounds_have_bounds() {
        let ms = Duration::from_millis;
        assert!(refusal(|c| c.connections_max = 0).starts_with("--connections-max"));
        assert!(refusal(|c| c.peer_connections_max = 0).starts_with("--peer-connections-max"));
        let none = refusal(|c| c.streams_per_connection_max = 0);
        assert!(none.starts_with("--streams-per-connection-max"));
        assert!(refusal(|c| c.header_bytes_max = 10).starts_with("--header-bytes-max"));
        assert!(refusal(|c| c.handshake_timeout = ms(1)).starts_with("--handshake-timeout"));
        assert!(refusal(|c| c.keepalive_interval = ms(1)).starts_with("--keepalive-interval"));
        assert!(refusal(|c| c.keepalive_timeout = ms(1)).starts_with("--keepalive-timeout"));
    }
}
