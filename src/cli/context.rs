//! What a command works with: the settings in their order of precedence, the client, the output.
//!
//! Flags and `QUORATE_*` variables come first (clap joins those two), then the `--config` file,
//! then the endpoints that `up` wrote down, with the CA beside them, then the defaults.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::{
    cli::{Error, Globals, OutputFormat, show::Show},
    client::{self, Client, Tls},
    net,
    server::parse_duration,
    types::Duration,
};

/// Where `up` writes its endpoints down, below its default directory.
const ENDPOINTS_FILE: &str = "quorate-data/endpoints";

/// The CA of the nodes, beside the endpoints; there only while they speak TLS.
const CA_FILE: &str = "ca.pem";

/// Where `up` listens unless told otherwise.
const ENDPOINTS_DEFAULT: [&str; 3] = ["127.0.0.1:7401", "127.0.0.1:7402", "127.0.0.1:7403"];

const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// What a client command works with.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) show: Show,
    pub(crate) endpoints: Vec<String>,
    /// The CA that is trusted because it lies beside the endpoints, not because it was named.
    pub(crate) found_ca: Option<PathBuf>,
    tls: Option<Tls>,
}

/// The settings of client commands in the `--config` file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    endpoints: Option<Vec<String>>,
    #[serde(deserialize_with = "duration")]
    timeout: Option<Duration>,
    output: Option<OutputFormat>,
    tls_ca: Option<PathBuf>,
    tls_client_cert: Option<PathBuf>,
    tls_client_key: Option<PathBuf>,
}

impl Context {
    pub(crate) fn new(globals: &Globals) -> Result<Self, Error> {
        Self::from_layers(globals, Path::new(ENDPOINTS_FILE))
    }

    fn from_layers(globals: &Globals, written: &Path) -> Result<Self, Error> {
        let file = globals.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        let given = globals.endpoints.as_ref().or(file.endpoints.as_ref());
        let (endpoints, beside) = match given {
            Some(endpoints) => (listed(endpoints.iter().map(String::as_str)), None),
            None => (written_down(written)?, ca_beside(written)),
        };
        let named = globals.tls_ca.is_some() || file.tls_ca.is_some();
        let found_ca = beside.filter(|_| !named);
        let tls = tls(globals, &file, found_ca.as_ref())?;
        let timeout = globals.timeout.or(file.timeout).unwrap_or(TIMEOUT_DEFAULT);
        let client = dial(&endpoints, timeout, tls.as_ref());
        let client = client.map_err(|error| Error::Usage(error.to_string()))?;
        let show = Show::new(globals.output.or(file.output).unwrap_or_default());
        Ok(Self { client, show, endpoints, found_ca, tls })
    }

    /// A client of other endpoints, or in another order, with the same certificates and time limit.
    pub(crate) fn client_of(&self, endpoints: &[String]) -> Result<Client, Error> {
        Ok(dial(endpoints, self.client.timeout(), self.tls.as_ref())?)
    }
}

fn dial(
    endpoints: &[String],
    timeout: Duration,
    tls: Option<&Tls>,
) -> Result<Client, client::Error> {
    // The endpoints are the user's word: what is registered need not be reached from here.
    let builder = Client::builder().endpoints(endpoints).timeout(timeout).discover(false);
    match tls {
        Some(tls) => builder.tls(tls.clone()).build(),
        None => builder.build(),
    }
}

impl File {
    fn read(path: &Path) -> Result<Self, Error> {
        let told = |error: &dyn std::fmt::Display| {
            let first = error.to_string();
            Error::failed(format!("{}: {}", path.display(), first.trim().replace('\n', "; ")))
        };
        let text = fs::read_to_string(path).map_err(|error| told(&error))?;
        toml::from_str(&text).map_err(|error| told(&error.message()))
    }
}

/// The certificates to dial with; none is plaintext.
fn tls(globals: &Globals, file: &File, found: Option<&PathBuf>) -> Result<Option<Tls>, Error> {
    let first = |flag: &Option<PathBuf>, file: &Option<PathBuf>| flag.clone().or(file.clone());
    let cert = first(&globals.tls_client_cert, &file.tls_client_cert);
    let key = first(&globals.tls_client_key, &file.tls_client_key);
    let usage = |what: &str| Err(Error::Usage(what.to_owned()));
    let Some(ca) = first(&globals.tls_ca, &file.tls_ca).or(found.cloned()) else {
        if cert.is_some() || key.is_some() {
            return usage("--tls-client-cert: name the CA to trust with --tls-ca as well");
        }
        return Ok(None);
    };
    let own = match (&cert, &key) {
        (Some(cert), Some(key)) => Some((cert.as_path(), key.as_path())),
        (None, None) => None,
        (Some(_), None) => return usage("--tls-client-key: name the key of --tls-client-cert"),
        (None, Some(_)) => {
            return usage("--tls-client-cert: name the certificate of --tls-client-key");
        }
    };
    let read = net::read_client_files(&ca, own);
    let (ca, own) = read.map_err(|error| Error::failed(error.to_string()))?;
    let trusting = Tls::trusting(ca);
    Ok(Some(match own {
        Some((cert, key)) => trusting.identity(cert, key),
        None => trusting,
    }))
}

/// The CA that `up` left beside the endpoints.
fn ca_beside(endpoints: &Path) -> Option<PathBuf> {
    let ca = endpoints.with_file_name(CA_FILE);
    (endpoints.exists() && ca.exists()).then_some(ca)
}

/// The endpoints that `up` wrote down, or the defaults.
fn written_down(path: &Path) -> Result<Vec<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => {
            let endpoints = listed(text.split([',', '\n', ' ']));
            if endpoints.is_empty() {
                let what = format!("{} names no endpoints", path.display());
                return Err(Error::with_hint(what, "remove it, or name them with --endpoints"));
            }
            Ok(endpoints)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Ok(ENDPOINTS_DEFAULT.map(str::to_owned).into())
        }
        Err(error) => Err(Error::failed(format!("{}: {error}", path.display()))),
    }
}

fn listed<'a>(endpoints: impl Iterator<Item = &'a str>) -> Vec<String> {
    endpoints.map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    parse_duration(&String::deserialize(input)?).map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn endpoints(globals: &Globals, written: &Path) -> Vec<String> {
        Context::from_layers(globals, written).expect("valid").endpoints
    }

    fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        fs::write(&path, text).expect("a temporary directory takes files");
        path
    }

    #[test]
    fn endpoints_come_from_the_flag_then_the_file_then_up_then_the_defaults() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let nowhere = directory.path().join("nowhere");
        let mut globals = Globals::default();
        assert_eq!(endpoints(&globals, &nowhere), ENDPOINTS_DEFAULT);

        let written = write(directory.path(), "endpoints", "127.0.0.1:1,127.0.0.1:2\n");
        assert_eq!(endpoints(&globals, &written), ["127.0.0.1:1", "127.0.0.1:2"]);

        let config = write(directory.path(), "c.toml", "endpoints = [\"c:3\"]\ntimeout = \"9s\"\n");
        globals.config = Some(config);
        assert_eq!(endpoints(&globals, &written), ["c:3"]);
        let context = Context::from_layers(&globals, &written).expect("valid");
        assert_eq!(context.client.timeout(), Duration::from_secs(9));

        globals.endpoints = Some(vec!["d:4".to_owned()]);
        assert_eq!(endpoints(&globals, &written), ["d:4"]);
    }

    #[test]
    fn what_is_wrong_in_a_file_or_flag_is_named() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let nowhere = directory.path().join("nowhere");
        let config = Some(write(directory.path(), "c.toml", "endpoint = 1\n"));
        let globals = Globals { config, ..Default::default() };
        let error = Context::from_layers(&globals, &nowhere).expect_err("a misspelt name");
        assert!(error.to_string().contains("endpoint"), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");

        let globals = Globals { endpoints: Some(vec!["x".into()]), ..Default::default() };
        let error = Context::from_layers(&globals, &nowhere).expect_err("no port");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_torn_certificate_is_named_whether_it_was_asked_for_or_found() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let written = write(directory.path(), "endpoints", "127.0.0.1:1\n");
        let ca = write(directory.path(), CA_FILE, "-----BEGIN CERTIFICATE-----\nMIIB");
        let told = |globals: &Globals| {
            let error = Context::from_layers(globals, &written).expect_err("it is torn");
            assert_eq!(error.exit_code(), 1, "{error}");
            error.to_string()
        };
        let found = told(&Globals::default());
        assert!(found.starts_with(&ca.display().to_string()), "{found}");
        let other = write(directory.path(), "other.pem", "nothing");
        let named = told(&Globals { tls_ca: Some(other.clone()), ..Default::default() });
        assert!(named.starts_with(&other.display().to_string()), "{named}");
    }
}
