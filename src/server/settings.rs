//! Settings as a person gives them: flags and variables over a TOML file over the defaults.
//!
//! A layer says only what it sets. This file merges layers and never judges a value; that is
//! `Config::validate`'s duty.

use std::{fs, path::Path, path::PathBuf};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    server::{Config, ConfigError, LogFormat},
    services::OverloadControl,
    types::Duration,
};

/// One layer of settings: what a flag, a variable or the file sets, nothing else. The names are
/// those of the TOML file; unknown names in it are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// [`Config::id`].
    pub id: Option<u64>,
    /// [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// [`Config::listen`].
    pub listen: Option<String>,
    /// [`Config::peer_listen`].
    pub peer_listen: Option<String>,
    /// [`Config::admin_listen`].
    pub admin_listen: Option<String>,
    /// [`Config::advertise`].
    pub advertise: Option<String>,
    /// [`Config::peer_advertise`].
    pub peer_advertise: Option<String>,
    /// [`Config::zone`].
    pub zone: Option<String>,
    /// [`Config::weight`].
    pub weight: Option<u32>,
    /// [`Config::bootstrap`].
    pub bootstrap: Option<bool>,
    /// [`Config::initial_cluster`].
    pub initial_cluster: Option<String>,
    /// [`Config::restore`].
    pub restore: Option<PathBuf>,
    /// [`Config::insecure_listen`].
    pub insecure_listen: Option<bool>,
    /// [`Config::tls_cert`].
    pub tls_cert: Option<PathBuf>,
    /// [`Config::tls_key`].
    pub tls_key: Option<PathBuf>,
    /// [`Config::tls_client_ca`].
    pub tls_client_ca: Option<PathBuf>,
    /// [`Config::peer_tls_cert`].
    pub peer_tls_cert: Option<PathBuf>,
    /// [`Config::peer_tls_key`].
    pub peer_tls_key: Option<PathBuf>,
    /// [`Config::peer_tls_ca`].
    pub peer_tls_ca: Option<PathBuf>,
    /// [`Config::peer_tls_name`].
    pub peer_tls_name: Option<String>,
    /// [`Config::log_format`].
    pub log_format: Option<LogFormat>,
    /// [`Config::log_level`].
    pub log_level: Option<String>,
    /// [`Config::stop_on_stdin_close`].
    #[serde(skip)]
    pub stop_on_stdin_close: Option<bool>,
    /// [`Config::heartbeat_interval`], such as `50ms`.
    #[serde(deserialize_with = "duration_text")]
    pub heartbeat_interval: Option<Duration>,
    /// [`Config::election_timeout_min`], such as `300ms`.
    #[serde(deserialize_with = "duration_text")]
    pub election_timeout_min: Option<Duration>,
    /// [`Config::election_timeout_max`], such as `600ms`.
    #[serde(deserialize_with = "duration_text")]
    pub election_timeout_max: Option<Duration>,
    /// [`Config::retained_log_bytes`].
    pub retained_log_bytes: Option<u64>,
    /// [`Config::slow_request`], such as `500ms`; `0` is off.
    #[serde(deserialize_with = "duration_text")]
    pub slow_request: Option<Duration>,
    /// [`Config::otlp_endpoint`].
    pub otlp_endpoint: Option<String>,
    /// [`Config::snapshot_rate`].
    pub snapshot_rate: Option<u64>,
    /// [`Config::min_free_disk`]: a number of bytes, or a text such as `256MiB`.
    #[serde(deserialize_with = "bytes_text")]
    pub min_free_disk: Option<u64>,
    /// [`Config::calls_max`].
    pub calls_max: Option<usize>,
    /// [`Config::overload_control`]: `adaptive` or `fixed`.
    pub overload_control: Option<OverloadControl>,
    /// [`Config::waits_max`].
    pub waits_max: Option<usize>,
    /// [`Config::streams_max`].
    pub streams_max: Option<usize>,
    /// [`Config::connections_max`].
    pub connections_max: Option<usize>,
    /// [`Config::peer_connections_max`].
    pub peer_connections_max: Option<usize>,
    /// [`Config::streams_per_connection_max`].
    pub streams_per_connection_max: Option<u32>,
    /// [`Config::message_bytes_max`].
    pub message_bytes_max: Option<usize>,
    /// [`Config::header_bytes_max`].
    pub header_bytes_max: Option<u32>,
    /// [`Config::handshake_timeout`], such as `5s`.
    #[serde(deserialize_with = "duration_text")]
    pub handshake_timeout: Option<Duration>,
    /// [`Config::keepalive_interval`], such as `20s`.
    #[serde(deserialize_with = "duration_text")]
    pub keepalive_interval: Option<Duration>,
    /// [`Config::keepalive_timeout`], such as `10s`.
    #[serde(deserialize_with = "duration_text")]
    pub keepalive_timeout: Option<Duration>,
    /// [`Config::lab`].
    pub lab: Option<bool>,
}

macro_rules! first {
    ($upper:ident, $lower:ident; $($field:ident),+ $(,)?) => {
        Settings { $($field: $upper.$field.or($lower.$field)),+ }
    };
}

macro_rules! fill {
    ($settings:ident, $defaults:ident; $($field:ident),+ $(,)?) => {
        Config { $($field: $settings.$field.unwrap_or($defaults.$field)),+ }
    };
}

impl Settings {
    /// Reads a layer from TOML.
    ///
    /// # Errors
    /// Where it is not TOML, names something unknown or holds a value of another kind.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Syntax(error.to_string()))
    }

    /// Reads a layer from a TOML file.
    ///
    /// # Errors
    /// Where the file cannot be read, and as [`Settings::from_toml`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigError::File { path: path.to_owned(), why: error.to_string() })?;
        Self::from_toml(&text)
            .map_err(|error| ConfigError::File { path: path.to_owned(), why: error.to_string() })
    }

    /// This layer on top of `lower`.
    #[must_use]
    pub fn over(self, lower: Self) -> Self {
        let upper = self;
        first!(upper, lower; id, data_dir, listen, peer_listen, admin_listen, advertise,
            peer_advertise, zone, weight, bootstrap, initial_cluster, restore, insecure_listen, log_format,
            log_level, stop_on_stdin_close, heartbeat_interval, election_timeout_min,
            election_timeout_max, retained_log_bytes, min_free_disk, snapshot_rate, slow_request,
            otlp_endpoint, calls_max, overload_control, waits_max, streams_max, tls_cert, tls_key, tls_client_ca,
            peer_tls_cert, peer_tls_key, peer_tls_ca, peer_tls_name, connections_max,
            peer_connections_max, streams_per_connection_max, message_bytes_max, header_bytes_max,
            handshake_timeout, keepalive_interval, keepalive_timeout, lab)
    }

    /// This layer on top of the defaults.
    #[must_use]
    pub fn over_defaults(self) -> Config {
        let (settings, defaults) = (self, Config::default());
        fill!(settings, defaults; id, data_dir, listen, peer_listen, admin_listen, advertise,
            peer_advertise, zone, weight, bootstrap, initial_cluster, restore, insecure_listen, log_format,
            log_level, stop_on_stdin_close, heartbeat_interval, election_timeout_min,
            election_timeout_max, retained_log_bytes, min_free_disk, snapshot_rate, slow_request,
            otlp_endpoint, calls_max, overload_control, waits_max, streams_max, tls_cert, tls_key, tls_client_ca,
            peer_tls_cert, peer_tls_key, peer_tls_ca, peer_tls_name, connections_max,
            peer_connections_max, streams_per_connection_max, message_bytes_max, header_bytes_max,
            handshake_timeout, keepalive_interval, keepalive_timeout, lab)
    }
}

/// Reads a span such as `250ms`, `5s`, `1.5s`, `2m` or `1h`. `0` needs no unit.
///
/// # Errors
/// A sentence that names the text and the units.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("`{text}` is not a duration such as 250ms, 5s, 2m or 1h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(refuse)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| refuse())?;
    let seconds = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(refuse()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| refuse())
}

/// Reads a number of bytes such as `65536`, `64KiB`, `512MiB`, `10GiB` or `2TiB`.
///
/// # Errors
/// A sentence that names the text and the units.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let refuse = || format!("`{text}` is not a number of bytes such as 65536, 64KiB or 10GiB");
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(refuse()),
    };
    number.checked_mul(unit).ok_or_else(refuse)
}

fn bytes_text<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bytes {
        Number(u64),
        Text(String),
    }
    match Bytes::deserialize(input)? {
        Bytes::Number(bytes) => Ok(Some(bytes)),
        Bytes::Text(text) => parse_bytes(&text).map(Some).map_err(D::Error::custom),
    }
}

fn duration_text<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(input)?;
    parse_duration(&text).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = Settings::from_toml("id = 7\nlisten = \"127.0.0.1:1\"\n").expect("valid");
        let flags = Settings { listen: Some("127.0.0.1:2".into()), ..Settings::default() };
        let config = flags.over(file).over_defaults();
        assert_eq!(config.id, 7);
        assert_eq!(config.listen, "127.0.0.1:2");
        assert_eq!(config.peer_listen, Config::default().peer_listen);
    }

    #[test]
    fn the_file_takes_durations_as_text() {
        let file = Settings::from_toml("heartbeat_interval = \"75ms\"").expect("valid");
        assert_eq!(file.heartbeat_interval, Some(Duration::from_millis(75)));
        for text in ["min_free_disk = 1048576", "min_free_disk = \"1MiB\""] {
            let file = Settings::from_toml(text).expect("valid");
            assert_eq!(file.min_free_disk, Some(1 << 20), "{text}");
        }
        for text in ["min_free_disk = -1", "min_free_disk = \"1MB\""] {
            assert!(Settings::from_toml(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_that_is_not_a_setting_is_refused() {
        let error = Settings::from_toml("lissen = \"x\"").expect_err("a misspelt name");
        assert!(error.to_string().contains("lissen"), "{error}");
    }

    #[test]
    fn bytes_may_have_units() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("65536"), Ok(65_536));
        assert_eq!(parse_bytes("64KiB"), Ok(65_536));
        assert_eq!(parse_bytes("3GiB"), Ok(3 << 30));
        for wrong in ["", "-1", "MiB", "5 MiB", "5MB", "1.5GiB", "99999999999TiB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong} was taken");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1ns"), Ok(Duration::from_nanos(1)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "5 parsecs", "-5s", "1e40h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong} was taken");
        }
    }
}
