//! What can be said on the command line. Its help is where people learn the program.

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArguments;
use crate::cluster_certificates::CertificatesArguments;
use crate::ctl::CtlArguments;
use crate::dev::DevArguments;
use crate::logging::LoggingArguments;

/// The version. A program with planted bugs and failpoints says so.
const VERSION: &str =
    if cfg!(planted) { concat!(env!("CARGO_PKG_VERSION"), " planted") } else { env!("CARGO_PKG_VERSION") };

/// A Kubernetes CSI driver whose controller cannot be lost.
///
/// In a cluster it runs as `rds-csi controller` (three replicas, one ledger) and `rds-csi node` (on each node).
/// On a laptop `rds-csi dev` runs all of it, against a simulated appliance, without root.
///
/// Exit status: 0 done, 1 failed or refused, 2 wrong flags or settings, 3 nobody answered or no quorum.
#[derive(Debug, Parser)]
#[command(
    name = "rds-csi",
    version = VERSION,
    after_long_help = "Examples:
  rds-csi dev                                 a whole cluster here; Ctrl-C ends it
  rds-csi dev --scenario migration-failover   a live migration whose controller is killed in the middle
  rds-csi ctl --config DIR/ctl.toml status    who leads, who lags
  rds-csi controller --config controller.toml"
)]
pub struct Arguments {
    /// How to log.
    #[command(flatten)]
    pub logging: LoggingArguments,
    /// What to be.
    #[command(subcommand)]
    pub program: Program,
}

/// What to be.
#[derive(Debug, Subcommand)]
pub enum Program {
    /// A controller replica: the CSI Controller service, the replicated ledger, the appliance's only writer
    ///
    /// Three of them form a cluster. SIGTERM hands leadership over and ends it cleanly; a second signal ends it
    /// at once.
    Controller(ControllerArguments),
    /// The node plugin: the CSI Node service
    ///
    /// It connects and mounts what the ledger has granted, and asks a controller before each new connection.
    Node(NodeArguments),
    /// A simulated MikroTik ROSE Data Server: RouterOS over SSH, for tests and laptops
    ///
    /// Nothing about it is hardware. With a state file, a host key file and a backing directory it comes back as
    /// the same appliance after a restart.
    Simulator(ServiceArguments),
    /// A whole cluster on this machine: simulated appliance, controllers, nodes
    ///
    /// Real processes, real sockets, mutual TLS, a ledger on disk. The appliance is simulated, and so are connections
    /// and mounts unless `--fabric loop` is said (root). Nothing is left running afterwards.
    Dev(DevArguments),
    /// Questions and orders of the person on call, through any replica
    ///
    /// Who asks is proven by an operator's certificate. `status` and `replicas` work without a quorum, and tell what
    /// one replica knows, the leader if it can be found; the rest is read linearizably, or not answered at all.
    ///
    /// Exit status: 0 done, 1 refused or failed, 2 wrong flags, 3 nobody answered or no quorum.
    Ctl(CtlArguments),
    /// Measurements of a cluster on this machine, as a table
    Bench(BenchArguments),
    /// Has the controller beside this process give its leadership away: for a preStop hook
    ///
    /// It asks on the controller's own port, with the controller's own certificate. Done when another replica leads, or
    /// if this one did not lead; exit status 1 and a sentence if that takes longer than 10 s.
    HandOver(ReplicaArguments),
    /// Makes the certificates of a cluster, as Secrets, where nobody else does
    ///
    /// An authority, one certificate for the controllers, one for an operator. What is there and good is kept; what is
    /// missing, for other names, or in the last third of its life is made anew, so it can run as often as one likes.
    /// Controllers and nodes take new ones without a restart. An authority that is renewed keeps its key: what it
    /// signed before stays good.
    Certificates(CertificatesArguments),
}

/// Which controller is meant.
#[derive(Debug, Args)]
pub struct ReplicaArguments {
    /// Its settings, a TOML file; all mistakes in it are reported together
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Its name among the peers, its pod's; without it, `name` in the file
    #[arg(long, value_name = "NAME", env = "POD_NAME", value_parser = NonEmptyStringValueParser::new())]
    pub name: Option<String>,
}

/// What a controller is told.
#[derive(Debug, Args)]
pub struct ControllerArguments {
    /// Which one it is.
    #[command(flatten)]
    pub replica: ReplicaArguments,
    /// End as soon as standard input does: whoever started this process is gone then.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

/// What a node plugin is told.
#[derive(Debug, Args)]
pub struct NodeArguments {
    /// What every service is told.
    #[command(flatten)]
    pub service: ServiceArguments,
    /// The Kubernetes node's name; without it, `node_id` in the file
    #[arg(long, value_name = "ID", env = "NODE_NAME", value_parser = NonEmptyStringValueParser::new())]
    pub node_id: Option<String>,
}

/// What each long-running program is told.
#[derive(Debug, Args)]
pub struct ServiceArguments {
    /// Its settings, a TOML file; all mistakes in it are reported together
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// End as soon as standard input does: whoever started this process is gone then.
    #[arg(long, hide = true)]
    pub exit_with_parent: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_flags_end_with_status_2() {
        for line in
            [&["rds-csi", "controller"][..], &["rds-csi", "nonsense"], &["rds-csi", "ctl", "-o", "xml"]]
        {
            let error = Arguments::try_parse_from(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn help_has_examples() {
        let help = Arguments::command().render_long_help().to_string();
        assert!(help.contains("--scenario migration-failover"), "{help}");
    }
}
