//! `rds-csi ctl`: questions and orders of the person on call.
//!
//! Life cycle: flags or a file say where the replicas are and who asks (`access`); each question goes to one
//! replica after the other until one answers (`call`); the answer is printed as a table or as JSON (`render`).

mod access;
mod call;
mod detach;
mod hotplug;
mod orphans;
mod recover;
mod render;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use proto::operator::v1::{
    AddReplicaRequest, GetVolumeRequest, ListHotplugHoldsRequest, ListMigrationsReply, ListMigrationsRequest,
    ListOrphansRequest, ListReplicasReply, ListReplicasRequest, ListVolumesRequest, RemoveReplicaRequest,
    ReplaceReplicaRequest, StatusReply, StatusRequest, Volume,
};
use serde::Serialize;

pub use access::{Access, AccessFile};
pub(crate) use call::{code_name, describe};

use crate::failure::Failure;

/// Whom to ask, and what.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  rds-csi ctl --config DIR/ctl.toml status
  rds-csi ctl --config DIR/ctl.toml -o json volumes
  rds-csi ctl --endpoint 10.0.0.1:9810,10.0.0.2:9810 --ca ca.pem --cert me.pem --key me.key migrations
  rds-csi ctl --config DIR/ctl.toml volume pvc-... --history
  rds-csi ctl --config DIR/ctl.toml detach pvc-... NODE --node-is-off
  rds-csi ctl --config DIR/ctl.toml replicas replace 4711
  rds-csi ctl --config DIR/ctl.toml backup ledger.backup
  kubectl get pv,volumeattachments -o json | rds-csi ctl --config DIR/ctl.toml adopt --from-json -")]
pub struct CtlArguments {
    /// A TOML file with `endpoints`, `ca`, `cert` and `key`; `rds-csi dev` writes one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["endpoint", "ca", "cert", "key"])]
    config: Option<PathBuf>,
    /// Replicas, tried in this order
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    endpoint: Vec<String>,
    /// The authority that signed the replicas' certificates (PEM)
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The operator's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// How answers look
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t, global = true)]
    output: OutputFormat,
    /// How long to try, over all replicas, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, global = true,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    deadline: u64,
    #[command(subcommand)]
    question: Question,
}

/// How answers look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs: one JSON document, sizes in bytes, times in milliseconds.
    Json,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Replicas, leader, term, lag, and what is under way
    Status,
    /// All volumes, where they are attached, and what is wrong with them
    Volumes,
    /// One volume: who holds it, and why
    Volume {
        /// Its id, `pvc-...`
        id: String,
        /// Also the last things that happened to it
        #[arg(long)]
        history: bool,
    },
    /// Takes a volume from a node that is off; its proof is your word, and is recorded with your name
    Detach(detach::Detach),
    /// Writes a copy of the ledger into a file
    Backup(recover::Backup),
    /// Takes a backup into a new cluster, whose ledger is empty
    Restore(recover::Restore),
    /// Takes in volumes that the Go driver made. Shows what it would do; --apply does it
    Adopt(recover::TakeIn),
    /// Makes the ledger anew where it was lost on all replicas and there is no backup: from the appliance, from Kubernetes
    /// and from what the nodes report. Shows what it would do; --apply does it
    Rebuild(recover::TakeIn),
    /// Running migrations, then the last that ended: who decided, and on what evidence
    Migrations,
    /// What is on the appliance and nobody's, and what becomes of it
    Orphans,
    /// KubeVirt's attachment pods that may not go yet, as their volumes are in use and nothing else holds them
    Hotplug,
    /// The cluster's members
    Replicas {
        #[command(subcommand)]
        order: Option<ReplicaOrder>,
    },
}

#[derive(Debug, Subcommand)]
enum ReplicaOrder {
    /// Shows them
    List,
    /// Expects a new replica; it joins as a learner and becomes a voter once it has caught up
    Add {
        /// Its name
        name: String,
        /// Where its peers reach it, HOST:PORT
        address: String,
    },
    /// Removes a member for good; its data directory refuses to start afterwards
    Remove {
        /// The member's id, as `replicas list` shows it
        id: u64,
    },
    /// Removes a member that is lost, to make room for its successor
    Replace {
        /// The lost member's id
        id: u64,
    },
}

/// Asks, and prints the answer on standard output.
pub async fn run(arguments: CtlArguments) -> Result<(), Failure> {
    let access = arguments.access()?;
    let deadline = Duration::from_secs(arguments.deadline);
    let text = answer(&access, deadline, arguments.question, arguments.output).await?;
    print!("{text}");
    Ok(())
}

impl CtlArguments {
    fn access(&self) -> Result<Access, Failure> {
        if let Some(path) = &self.config {
            return AccessFile::read(path).and_then(|file| Access::load(&file)).map_err(Failure::Usage);
        }
        let mut mistakes = Vec::new();
        if self.endpoint.is_empty() {
            mistakes.push("--endpoint is missing: where are the replicas? (or --config FILE)".to_owned());
        }
        let mut file = |flag: &str, given: &Option<PathBuf>| {
            given.clone().unwrap_or_else(|| {
                mistakes.push(format!("{flag} is missing"));
                PathBuf::new()
            })
        };
        let (ca, cert, key) = (file("--ca", &self.ca), file("--cert", &self.cert), file("--key", &self.key));
        if !mistakes.is_empty() {
            return Err(Failure::Usage(mistakes));
        }
        Access::load(&AccessFile { endpoints: self.endpoint.clone(), ca, cert, key }).map_err(Failure::Usage)
    }
}

async fn answer(
    access: &Access,
    deadline: Duration,
    question: Question,
    output: OutputFormat,
) -> Result<String, Failure> {
    match question {
        Question::Status => {
            let ask = async |client: &mut call::Client| client.status(StatusRequest {}).await;
            let by_leader = |reply: &StatusReply| reply.leader_id == Some(reply.responder_id);
            let reply = call::ask_for_best(access, deadline, ask, by_leader).await?;
            print_as(output, &reply, render::status)
        }
        Question::Volumes => {
            let ask = async |client: &mut call::Client| client.list_volumes(ListVolumesRequest {}).await;
            print_as(output, &call::ask(access, deadline, ask).await?, render::volumes)
        }
        Question::Volume { id, history } => {
            let ask = async |client: &mut call::Client| {
                client.get_volume(GetVolumeRequest { id: id.clone(), with_history: history }).await
            };
            let reply = call::ask_for_best(access, deadline, ask, |reply: &Volume| reply.by_leader).await?;
            print_as(output, &reply, render::volume)
        }
        Question::Detach(order) => {
            let request = order.confirmed()?;
            let ask = async |client: &mut call::Client| client.detach_volume(request.clone()).await;
            print_as(output, &call::ask(access, deadline, ask).await?, |reply| order.done(reply))
        }
        Question::Migrations => {
            let ask =
                async |client: &mut call::Client| client.list_migrations(ListMigrationsRequest {}).await;
            let by_leader = |reply: &ListMigrationsReply| reply.by_leader;
            print_as(output, &call::ask_for_best(access, deadline, ask, by_leader).await?, render::migrations)
        }
        Question::Orphans => {
            let ask = async |client: &mut call::Client| client.list_orphans(ListOrphansRequest {}).await;
            print_as(output, &call::ask(access, deadline, ask).await?, orphans::render)
        }
        Question::Hotplug => {
            let ask =
                async |client: &mut call::Client| client.list_hotplug_holds(ListHotplugHoldsRequest {}).await;
            print_as(output, &call::ask(access, deadline, ask).await?, hotplug::holds)
        }
        Question::Backup(order) => order.carry_out(access, deadline).await,
        Question::Restore(order) => {
            print_as(output, &order.carry_out(access, deadline).await?, recover::restored)
        }
        Question::Adopt(order) => {
            print_as(output, &order.carry_out(access, deadline, false).await?, recover::taken_in)
        }
        Question::Rebuild(order) => {
            print_as(output, &order.carry_out(access, deadline, true).await?, recover::taken_in)
        }
        Question::Replicas { order } => {
            carry_out(access, deadline, order.unwrap_or(ReplicaOrder::List), output).await
        }
    }
}

async fn carry_out(
    access: &Access,
    deadline: Duration,
    order: ReplicaOrder,
    output: OutputFormat,
) -> Result<String, Failure> {
    match order {
        ReplicaOrder::List => {
            let ask = async |client: &mut call::Client| client.list_replicas(ListReplicasRequest {}).await;
            let by_leader = |reply: &ListReplicasReply| reply.replicas.iter().any(|one| one.lag.is_some());
            let reply = call::ask_for_best(access, deadline, ask, by_leader).await?;
            print_as(output, &reply, render::replicas)
        }
        ReplicaOrder::Add { name, address } => {
            let request = AddReplicaRequest { name, address };
            let ask = async |client: &mut call::Client| client.add_replica(request.clone()).await;
            print_as(output, &call::ask(access, deadline, ask).await?, render::added)
        }
        ReplicaOrder::Remove { id } => {
            let request = RemoveReplicaRequest { replica_id: id };
            let ask = async |client: &mut call::Client| client.remove_replica(request).await;
            print_as(output, &call::ask(access, deadline, ask).await?, |_| format!("{id} is removed\n"))
        }
        ReplicaOrder::Replace { id } => {
            let request = ReplaceReplicaRequest { dead_replica_id: id };
            let ask = async |client: &mut call::Client| client.replace_replica(request).await;
            print_as(output, &call::ask(access, deadline, ask).await?, |_| {
                format!("{id} is removed; its successor may join\n")
            })
        }
    }
}

fn print_as<T: Serialize>(
    output: OutputFormat,
    reply: &T,
    table: impl FnOnce(&T) -> String,
) -> Result<String, Failure> {
    match output {
        OutputFormat::Table => Ok(table(reply)),
        OutputFormat::Json => serde_json::to_string_pretty(reply)
            .map(|text| text + "\n")
            .map_err(|error| anyhow::Error::new(error).context("cannot print the answer").into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Program};

    fn parse(line: &[&str]) -> CtlArguments {
        let line = ["rds-csi", "ctl"].iter().chain(line);
        let program = Arguments::try_parse_from(line).unwrap().program;
        let Program::Ctl(arguments) = program else { panic!("parsed as {program:?}") };
        arguments
    }

    #[test]
    fn all_missing_flags_are_named_at_once() {
        let Err(Failure::Usage(mistakes)) = parse(&["status"]).access() else { panic!("accepted") };
        assert_eq!(mistakes.len(), 4, "{mistakes:?}");
    }

    #[test]
    fn endpoints_and_output_may_stand_anywhere() {
        let arguments = parse(&["--endpoint", "a:1,b:2", "volume", "pvc-1", "-o", "json", "--deadline", "3"]);
        assert_eq!(arguments.endpoint, ["a:1", "b:2"]);
        assert_eq!((arguments.output, arguments.deadline), (OutputFormat::Json, 3));
        assert!(matches!(arguments.question, Question::Volume { id, history: false } if id == "pvc-1"));
    }

    #[test]
    fn a_detach_is_confirmed_by_default_and_only_with_its_flag() {
        let parsed = |line: &[&str]| format!("{:?}", parse(line).question);
        let plain = parsed(&["detach", "pvc-1", "node-a"]);
        assert!(plain.contains("node_is_off: false") && plain.contains("yes: false"), "{plain}");
        let sure = parsed(&["detach", "pvc-1", "node-a", "--node-is-off", "--yes"]);
        assert!(sure.contains("node_is_off: true") && sure.contains("yes: true"), "{sure}");
    }

    #[test]
    fn replicas_alone_lists_them() {
        assert!(matches!(parse(&["replicas"]).question, Question::Replicas { order: None }));
        let arguments = parse(&["replicas", "replace", "7"]);
        assert!(matches!(
            arguments.question,
            Question::Replicas { order: Some(ReplicaOrder::Replace { id: 7 }) }
        ));
    }
}
