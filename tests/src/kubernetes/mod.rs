//! Kubernetes as the controllers see it, simulated: an API server over HTTP, and the objects that it has.
//!
//! [`SimulatedApiServer`] lists, watches with bookmarks, takes events and reviews tokens; it can be made to fail.
//! [`objects`] writes nodes, claims, pods and virtual machines in the form of the API.

mod named;
pub mod objects;
mod server;

pub use server::SimulatedApiServer;

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result};

use crate::Lab;

/// Has all controllers watch the simulated API server, with more lines in their section `[kubernetes]`: stops them all
/// and starts them with the settings.
pub async fn watch_simulated(lab: &mut Lab, server: &SimulatedApiServer, more: &str) -> Result<()> {
    let names = lab.controllers();
    for name in &names {
        lab.terminate(name).await?;
        let settings = OpenOptions::new().append(true).open(lab.config_path(name));
        let mut settings = settings.with_context(|| format!("open the settings of {name}"))?;
        let url = server.url();
        writeln!(settings, "\n[kubernetes]\nenabled = true\nsimulated_api_server = {url:?}\n{more}")?;
    }
    for name in &names {
        lab.start(name)?;
    }
    for name in &names {
        lab.wait_until_ready(name).await?;
    }
    Ok(())
}
