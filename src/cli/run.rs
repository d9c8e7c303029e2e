//! From the arguments to the exit code.

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser as _, error::ErrorKind};

use crate::{
    cli::{Cli, Command, Error, Globals, context::Context},
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
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
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
    let Cli { globals, command } = cli;
    let context = || Context::new(&globals);
    match command {
        Command::Up(args) => args.run(globals.config.as_deref()).await?,
        Command::Node(args) => {
            refuse_client_tls(&globals)?;
            args.run(globals.config.as_deref()).await?;
        }
        Command::Status(args) => args.run(&context()?).await?,
        Command::Kv(command) => command.run(&context()?).await?,
        Command::Lock(command) => return command.run(&context()?).await,
        Command::Service(command) => return command.run(&context()?).await,
        Command::Events(command) => command.run(&context()?).await?,
        Command::Cluster(command) => command.run(&context()?).await?,
        Command::Bench(command) => command.run(&context()?).await?,
        Command::Completions(args) => args.run()?,
    }
    Ok(0)
}

/// A node that were given a client's flag would not demand what the person thinks it does. A
/// variable may be meant for other commands.
fn refuse_client_tls(globals: &Globals) -> Result<(), Error> {
    if globals.tls_ca.is_some() && std::env::var_os("QUORATE_TLS_CA").is_none() {
        let what = "--tls-ca is for commands that talk to nodes; a node takes --tls-client-ca and \
                    --peer-tls-ca";
        return Err(Error::Usage(what.to_owned()));
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
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
        told(&error.to_string())
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
