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
    /// What is logged: a level, or levels by module such as `info,replica=debug`
    #[arg(long, value_name = "FILTER", env = "RDS_CSI_LOG", default_value = "info", global = true)]
    pub log: String,
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

/// Starts logging for the whole process; the error says what is wrong with the arguments.
pub fn start(arguments: &LoggingArguments) -> Result<(), String> {
    let filter = EnvFilter::try_new(&arguments.log)
        .map_err(|error| format!("--log (RDS_CSI_LOG): {:?}: {error}", arguments.log))?;
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
