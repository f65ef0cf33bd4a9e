//! The one map from what was decided to the gRPC code that CSI callers branch on.
//!
//! The specification's error tables (CSI 1.12, "Error Scheme" and each RPC's errors) choose the code; the sentence
//! is the domain's own and says what to do next.

use state_machine::{NodeId, OperationStatus, Problem, ProblemKind, Refusal, VolumeId};
use tonic::{Code, Status};

use crate::parse::RequestError;

/// What a refusal of the ledger answers.
pub fn of_refusal(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::VolumeNotFound { .. } | Refusal::NodeNotFound { .. } => Code::NotFound,
        Refusal::VolumeBusy { .. }
        | Refusal::BeingRevoked { .. }
        | Refusal::VmBusy { .. }
        | Refusal::OtherBoot { .. }
        | Refusal::PastMoment { .. }
        | Refusal::StaleOperation { .. } => Code::Aborted,
        Refusal::Restoring => Code::Unavailable,
        Refusal::VolumeDiffers { .. } | Refusal::OtherMode { .. } => Code::AlreadyExists,
        Refusal::LimitExceeded { .. } => Code::OutOfRange,
        Refusal::FilesystemOnManyNodes { .. } => Code::InvalidArgument,
        Refusal::NodeFull { .. } => Code::ResourceExhausted,
        Refusal::StillAttached { .. }
        | Refusal::CutOff { .. }
        | Refusal::NodeSpoke { .. }
        | Refusal::OtherMachine { .. }
        | Refusal::AttachedElsewhere { .. }
        | Refusal::NotMigrating { .. }
        | Refusal::SeveralVms { .. }
        | Refusal::TwoNodesAlready { .. }
        | Refusal::AttachmentGone { .. }
        | Refusal::NothingToReap { .. }
        | Refusal::Unsound { .. }
        | Refusal::VersionTooLow { .. } => Code::FailedPrecondition,
    };
    Status::new(code, refusal.to_string())
}

/// What trouble on the appliance answers.
pub fn of_problem(problem: &Problem) -> Status {
    let code = match problem.kind {
        ProblemKind::Full => Code::ResourceExhausted,
        // Unknown is never NOT_FOUND.
        ProblemKind::Unavailable => Code::Unavailable,
        ProblemKind::Conflict => Code::FailedPrecondition,
        ProblemKind::Rejected => Code::Internal,
        ProblemKind::Superseded => Code::Aborted,
        ProblemKind::Restoring => Code::Unavailable,
    };
    Status::new(code, problem.message.clone())
}

/// How an operation that the caller waited for stands when the wait ends.
///
/// A deletion succeeds with [`OperationStatus::VolumeGone`]; whoever waits for one looks at that first.
pub fn of_operation(volume: &VolumeId, status: &OperationStatus) -> Result<(), Status> {
    match status {
        OperationStatus::Succeeded => Ok(()),
        OperationStatus::Running => {
            Err(Status::aborted(format!("volume {volume}: the operation still runs; try again")))
        }
        // Not a final code, whatever the trouble: the operation may still succeed, and whoever asked for it must not
        // take it for ended.
        OperationStatus::Retrying(problem) => Err(Status::unavailable(problem.message.clone())),
        OperationStatus::Abandoned(problem) => Err(of_problem(problem)),
        OperationStatus::Overtaken => Err(Status::aborted(format!(
            "volume {volume}: a later request took the operation's place; try again"
        ))),
        OperationStatus::VolumeGone => {
            Err(Status::aborted(format!("volume {volume} was deleted meanwhile; try again")))
        }
    }
}

/// An unpublish whose nodes are not proven off yet. The sidecar tries it again.
pub fn of_revoking(volume: &VolumeId, nodes: &[NodeId]) -> Status {
    let nodes = nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
    Status::unavailable(format!(
        "volume {volume} is being revoked from {nodes}, and it is not proven yet that it is disconnected there; \
         tried again until it is"
    ))
}

/// An unpublish from nodes where the volume is used, each with those who use it.
pub fn of_holders(volume: &VolumeId, held: &[(NodeId, Vec<String>)]) -> Status {
    let held: Vec<_> = held.iter().map(|(node, by)| format!("on node {node} by {}", by.join(", "))).collect();
    Status::failed_precondition(format!(
        "volume {volume} is in use {}; it stays there until that has ended",
        held.join(" and ")
    ))
}

/// A deletion of a volume that nodes report as connected.
pub fn of_connected(volume: &VolumeId, nodes: &[NodeId]) -> Status {
    let nodes = nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ");
    Status::failed_precondition(format!(
        "volume {volume} is still connected on {nodes}; it is not deleted until it is disconnected there"
    ))
}

/// No leader was found, or no quorum answered, in the caller's time.
pub fn no_quorum(detail: &str) -> Status {
    Status::unavailable(format!("the controllers cannot decide now ({detail}); try again"))
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let code = match error {
            RequestError::Invalid { .. } => Code::InvalidArgument,
            RequestError::OutOfRange { .. } => Code::OutOfRange,
            RequestError::NothingThere { .. } => Code::NotFound,
            RequestError::OutOfReach { .. } => Code::ResourceExhausted,
            RequestError::ForeignToken { .. } => Code::Aborted,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use state_machine::{BootId, ByteSize, Generation, Nqn};

    fn volume() -> VolumeId {
        VolumeId::parse("pvc-1").unwrap()
    }

    fn node() -> NodeId {
        NodeId::parse("node-a").unwrap()
    }

    /// DESIGN's publish table and the specification's error tables, as codes.
    #[test]
    fn each_refusal_has_its_code() {
        let text = || "x".to_owned();
        let generation = Generation(7);
        let size = ByteSize::exactly(4096).unwrap();
        let rows = [
            (Refusal::VolumeNotFound { volume: volume() }, Code::NotFound),
            (Refusal::NodeNotFound { node: node() }, Code::NotFound),
            (Refusal::VolumeBusy { volume: volume(), phase: text() }, Code::Aborted),
            (Refusal::VolumeDiffers { volume: volume(), difference: text() }, Code::AlreadyExists),
            (Refusal::LimitExceeded { volume: volume(), size, limit_bytes: 1 }, Code::OutOfRange),
            (Refusal::StillAttached { volume: volume(), nodes: vec![node()] }, Code::FailedPrecondition),
            (Refusal::FilesystemOnManyNodes { volume: volume() }, Code::InvalidArgument),
            (Refusal::BeingRevoked { volume: volume(), node: node() }, Code::Aborted),
            (
                Refusal::OtherMode { volume: volume(), node: node(), existing: text(), requested: text() },
                Code::AlreadyExists,
            ),
            (Refusal::CutOff { volume: volume(), node: node() }, Code::FailedPrecondition),
            (Refusal::NodeFull { node: node(), max_volumes: 1 }, Code::ResourceExhausted),
            (
                Refusal::AttachedElsewhere { volume: volume(), node: node(), mode: text() },
                Code::FailedPrecondition,
            ),
            (Refusal::NotMigrating { volume: volume(), node: node() }, Code::FailedPrecondition),
            (Refusal::SeveralVms { volume: volume(), node: node(), users: text() }, Code::FailedPrecondition),
            (Refusal::VmBusy { volume: volume(), vm: text(), other: volume() }, Code::Aborted),
            (
                Refusal::TwoNodesAlready { volume: volume(), holders: text(), migration_age_ms: 5 },
                Code::FailedPrecondition,
            ),
            (
                Refusal::AttachmentGone { volume: volume(), node: node(), generation, reason: text() },
                Code::FailedPrecondition,
            ),
            (Refusal::PastMoment { node: node() }, Code::Aborted),
            (Refusal::NodeSpoke { node: node() }, Code::FailedPrecondition),
            (Refusal::OtherBoot { node: node(), present: BootId::parse("b").unwrap() }, Code::Aborted),
            (
                Refusal::OtherMachine { node: node(), host_nqn: Nqn::parse("nqn.x").unwrap() },
                Code::FailedPrecondition,
            ),
            (Refusal::NothingToReap { volume: volume(), reason: text() }, Code::FailedPrecondition),
            (Refusal::StaleOperation { volume: volume(), generation }, Code::Aborted),
            (Refusal::VersionTooLow { needed: 2, current: 1 }, Code::FailedPrecondition),
            (Refusal::Restoring, Code::Unavailable),
            (Refusal::Unsound { reason: String::new() }, Code::FailedPrecondition),
        ];
        for (refusal, code) in rows {
            let status = of_refusal(&refusal);
            assert_eq!(status.code(), code, "{refusal}");
            assert_eq!(status.message(), refusal.to_string());
        }
    }

    #[test]
    fn each_problem_has_its_code() {
        let rows = [
            (ProblemKind::Full, Code::ResourceExhausted),
            (ProblemKind::Unavailable, Code::Unavailable),
            (ProblemKind::Conflict, Code::FailedPrecondition),
            (ProblemKind::Rejected, Code::Internal),
            (ProblemKind::Superseded, Code::Aborted),
            (ProblemKind::Restoring, Code::Unavailable),
        ];
        for (kind, code) in rows {
            let problem = Problem { kind, message: "the pool is full".to_owned() };
            let retrying = OperationStatus::Retrying(problem.clone());
            for (status, code) in [(retrying, Code::Unavailable), (OperationStatus::Abandoned(problem), code)]
            {
                let status = of_operation(&volume(), &status).unwrap_err();
                assert_eq!((status.code(), status.message()), (code, "the pool is full"));
            }
        }
        assert!(of_operation(&volume(), &OperationStatus::Succeeded).is_ok());
        for status in [OperationStatus::Running, OperationStatus::Overtaken, OperationStatus::VolumeGone] {
            assert_eq!(of_operation(&volume(), &status).unwrap_err().code(), Code::Aborted);
        }
    }

    #[test]
    fn an_unfinished_unpublish_names_its_nodes() {
        let status = of_revoking(&volume(), &[node(), NodeId::parse("node-b").unwrap()]);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("node-a, node-b"), "{}", status.message());
        assert_eq!(no_quorum("no leader").code(), Code::Unavailable);
    }

    #[test]
    fn who_uses_a_volume_is_named() {
        let held = [(node(), vec!["process 7 (qemu-kvm)".to_owned(), "dm-3".to_owned()])];
        let status = of_holders(&volume(), &held);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("on node node-a by process 7 (qemu-kvm), dm-3;"), "{status:?}");
        let status = of_connected(&volume(), &[node()]);
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("connected on node-a;"), "{status:?}");
    }
}
