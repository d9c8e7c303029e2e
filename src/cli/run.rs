//! From the arguments to the exit code.

use std::{cell::OnceCell, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{
    ArgMatches, CommandFactory as _, FromArgMatches as _, error::ErrorKind, parser::ValueSource,
};

use crate::{
    cli::{Cli, Command, Error, context::Context},
    server::{ConfigError, LogFormat, telemetry},
};

/// What is logged by commands other than `node`, unless `QUORATE_LOG_LEVEL` says otherwise: what
/// goes wrong is told by the command itself.
const LOG_LEVEL_DEFAULT: &str = "error";

/// Reads the command line. Help and version are printed, errors told in one line.
///
/// # Errors
/// The exit code to end with.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    read(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            for line in told(&error.to_string()) {
                eprintln!("{line}");
            }
            ExitCode::from(2)
        }
    })
}

fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut matches = Cli::command().try_get_matches_from(arguments)?;
    refuse_client_tls(&matches)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut Cli::command()))
}

/// Carries out a command and returns its exit code, errors having been told.
pub async fn run(cli: Cli) -> ExitCode {
    let code = dispatch(cli).await.unwrap_or_else(|error| {
        error.report();
        error.exit_code()
    });
    ExitCode::from(code)
}

impl Cli {
    /// Sets up log lines on standard error: `node` as configured, the others for errors only.
    ///
    /// # Errors
    /// Where the level cannot be read; a wrong `--config` file is left to [`run`] to tell.
    pub fn init_telemetry(&self) -> Result<(), Error> {
        let (format, level) = match &self.command {
            Command::Node(args) => match args.clone().config(self.globals.config.as_deref()) {
                Ok(config) => (config.log_format, config.log_level),
                Err(_) => return Ok(()),
            },
            _ => {
                let level = std::env::var("QUORATE_LOG_LEVEL");
                (LogFormat::Text, level.unwrap_or_else(|_| LOG_LEVEL_DEFAULT.to_owned()))
            }
        };
        telemetry::init(format, &level)
            .map_err(|error: ConfigError| Error::Usage(error.to_string()))
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Error> {
    let found_ca = OnceCell::new();
    let ended = carry_out(cli, &found_ca).await;
    ended.map_err(|error| match found_ca.into_inner() {
        Some(ca) => error.of_found_ca(ca),
        None => error,
    })
}

async fn carry_out(cli: Cli, found_ca: &OnceCell<PathBuf>) -> Result<u8, Error> {
    let Cli { globals, command } = cli;
    let context = || {
        let context = Context::new(&globals)?;
        if let Some(ca) = &context.found_ca {
            found_ca.get_or_init(|| ca.clone());
        }
        Ok::<_, Error>(context)
    };
    match command {
        Command::Up(args) => args.run(globals.config.as_deref()).await?,
        Command::Node(args) => args.run(globals.config.as_deref()).await?,
        Command::Status(args) => args.run(&context()?).await?,
        Command::Kv(command) => command.run(&context()?).await?,
        Command::Lock(command) => return command.run(&context()?).await,
        Command::Service(command) => return command.run(&context()?).await,
        Command::Events(command) => command.run(&context()?).await?,
        Command::Cluster(command) => command.run(&context()?).await?,
        Command::Bench(command) => command.run(&context()?).await?,
        Command::Lab(command) => command.run(&context()?).await?,
        Command::Check(args) => return args.run(&globals),
        Command::Sim(args) => return args.run(),
        Command::Completions(args) => args.run()?,
    }
    Ok(0)
}

/// A node that were given a client's flag would not demand what the person thinks it does. A
/// variable may be meant for other commands.
fn refuse_client_tls(matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some(("node", node)) = matches.subcommand() else { return Ok(()) };
    for (id, flag, instead) in [
        ("tls_ca", "--tls-ca", "--tls-client-ca and --peer-tls-ca"),
        ("tls_client_cert", "--tls-client-cert", "--tls-cert and --peer-tls-cert"),
        ("tls_client_key", "--tls-client-key", "--tls-key and --peer-tls-key"),
    ] {
        if node.value_source(id) == Some(ValueSource::CommandLine) {
            let what = format!("{flag} is for commands that talk to nodes; a node takes {instead}");
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, what));
        }
    }
    Ok(())
}

/// What is wrong with a command line in one line, and a second one where there is a way out.
fn told(rendered: &str) -> Vec<String> {
    let mut what = Vec::new();
    let mut hint = None;
    for line in rendered.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            hint.get_or_insert_with(|| format!("hint: {tip}"));
        } else if line.starts_with("Usage:") || line.starts_with("For more information") {
            hint.get_or_insert_with(|| format!("hint: {line}"));
        } else {
            what.push(line);
        }
    }
    std::iter::once(what.join(" ")).chain(hint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Vec<String> {
        let error = read(line.split(' ').map(OsString::from)).expect_err(line);
        told(&error.to_string())
    }

    #[test]
    fn a_node_takes_no_flag_of_a_client() {
        for (line, instead) in [
            ("quorate node --tls-ca a.pem", "--tls-client-ca"),
            ("quorate --tls-ca a.pem node", "--tls-client-ca"),
            ("quorate node --tls-client-cert a.pem", "--tls-cert"),
            ("quorate --tls-client-key a.pem node", "--tls-key"),
        ] {
            let lines = refused(line);
            assert!(lines.len() == 1 && lines[0].starts_with("error: --tls-"), "{lines:?}");
            assert!(lines[0].contains(instead), "{lines:?}");
        }
        for line in ["quorate --tls-ca a.pem status", "quorate node --tls-cert a.pem"] {
            read(line.split(' ').map(OsString::from)).expect(line);
        }
    }

    #[test]
    fn a_wrong_value_is_one_line_that_names_it() {
        let lines = refused("quorate lock acquire demo --ttl 5parsecs");
        assert!(lines[0].starts_with("error: invalid value '5parsecs' for '--ttl"), "{lines:?}");
        assert!(lines.len() <= 2, "{lines:?}");
    }

    #[test]
    fn what_is_missing_is_named_in_one_line() {
        let lines = refused("quorate kv put a");
        assert!(lines[0].contains("<VALUE>"), "{lines:?}");
        assert!(lines[1].starts_with("hint: Usage: quorate kv put"), "{lines:?}");
        let lines = refused("quorate kv gett a");
        assert!(lines[0].contains("gett") && lines[1].contains("'get'"), "{lines:?}");
    }
}
