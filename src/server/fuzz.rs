//! Texts that nobody meant, where settings are read: files, flags and the environment.

use crate::{
    fuzz::Target,
    server::{Addresses, Settings, parse_bytes, parse_duration},
};

const SETTINGS: &str = r#"
id = 1
data_dir = "data"
listen = "127.0.0.1:0"
peer_listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
bootstrap = true
initial_cluster = "1=127.0.0.1:1,2=[::1]:2,3=host:3"
advertise = "host:7"
zone = "eu-1"
weight = 2
heartbeat_interval = "50ms"
election_timeout_min = "300ms"
election_timeout_max = "600ms"
retained_log_bytes = 67108864
snapshot_rate = 67108864
min_free_disk = "256MiB"
slow_request = "1.5s"
calls_max = 5
overload_control = "adaptive"
message_bytes_max = 8388608
"#;

#[test]
fn fuzz_settings() {
    let good = Settings::from_toml(SETTINGS).expect("valid");
    good.over_defaults().validate().expect("valid");
    let target = Target::new("settings", 500).allocating(1_024, 1 << 20);
    target.damaged_texts(&[SETTINGS], |text| {
        if let Ok(settings) = Settings::from_toml(text) {
            let _ = settings.over_defaults().validate();
        }
    });
}

#[test]
fn fuzz_spans_and_sizes() {
    let good = ["250ms", "1.5s", "2m", "64KiB", "18446744073709551615", "1e400s", "-1h", "NaNs"];
    Target::new("spans and sizes", 10_000).damaged_texts(&good, |text| {
        let _ = (parse_duration(text), parse_bytes(text));
    });
}

#[test]
fn fuzz_address_files() {
    let good = [r#"{"client":"127.0.0.1:1","peer":"[::1]:2","admin":"127.0.0.1:3"}"#];
    Target::new("address files", 5_000).damaged_texts(&good, |text| {
        let _ = serde_json::from_str::<Addresses>(text);
    });
}
