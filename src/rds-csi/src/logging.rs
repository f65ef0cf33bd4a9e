//! Where logs go and how they look: to standard error, for people on a terminal, as JSON otherwise.

use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LoggingArguments {
    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t, global = true)]
    pub log_format: LogFormat,
    /// What is logged: a level, or levels by module such as `info,replica=debug` [default: info]
    #[arg(long, value_name = "FILTER", env = "RDS_CSI_LOG", global = true)]
    pub log: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// `human` on a terminal, `json` otherwise.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the whole process, of what was asked for or else `by_default`; the error says what is wrong
/// with the arguments.
pub fn start(arguments: &LoggingArguments, by_default: &str) -> Result<(), String> {
    let wanted = arguments.log.as_deref().unwrap_or(by_default);
    let filter =
        EnvFilter::try_new(wanted).map_err(|error| format!("--log (RDS_CSI_LOG): {wanted:?}: {error}"))?;
    let on_terminal = io::stderr().is_terminal();
    let is_human = match arguments.log_format {
        LogFormat::Auto => on_terminal,
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = if is_human {
        builder.with_ansi(on_terminal).try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    started.map_err(|error| format!("cannot start logging: {error}"))
}
