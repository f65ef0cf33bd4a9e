//! What a test asks the agent in a guest.
//!
//! One connection is one request: a line of JSON. The answer is a line of JSON and the end of the connection, except
//! after [`Request::Connect`]: from its answer on the connection is one to that socket.

use serde::{Deserialize, Serialize};

/// The TCP port of the agent in every guest.
pub const AGENT_PORT: u16 = 5000;

/// Where the agent keeps what processes that it started have printed: `NAME.log`.
pub const LOG_DIRECTORY: &str = "/log";

/// What the agent is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Runs a program to its end.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// What it reads.
        stdin: String,
    },
    /// Starts a program that goes on running; what it prints is added to its log.
    Spawn {
        /// What it is called from then on.
        name: String,
        /// The program and its arguments.
        argv: Vec<String>,
    },
    /// Sends a signal to a program that was started.
    Kill {
        /// What it is called.
        name: String,
        /// The signal's number.
        signal: i32,
    },
    /// Asks how a program that was started has ended.
    Ended {
        /// What it is called.
        name: String,
    },
    /// Turns this connection into one to a unix socket.
    Connect {
        /// The socket's path.
        socket: String,
    },
}

/// What the agent answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// A program ran to its end.
    Ran {
        /// Its exit status; none if a signal ended it.
        status: Option<i32>,
        /// What it printed.
        stdout: String,
        /// What it complained about.
        stderr: String,
    },
    /// It is done.
    Done,
    /// How a program has ended, in words; `None` while it runs.
    Ended(Option<String>),
    /// It could not be done, and why.
    Failed(String),
}
