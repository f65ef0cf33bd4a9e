//! Which faults there are.

use crate::processes::lab::Abilities;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::processes) enum Kind {
    LeaderKill,
    FollowerKill,
    AllKilled,
    LeaderPaused,
    RollingRestart,
    /// A controller dies at a failpoint.
    Point(Point),
    /// The appliance is in trouble.
    Appliance(Trouble),
    PluginKilled,
    PluginStopped,
    NodeRebooted,
    ReplicaWiped,
    /// The network is cut around the leader.
    Network(Cut),
    DiskFull,
    SyncFails,
    SyncSlow,
    /// On so many controllers at once.
    PowerCut(usize),
    ClockJumps,
}

/// Where a controller dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::processes) enum Point {
    AppendBefore,
    AppendAfter,
    VoteBefore,
    VoteAfter,
    ApplyBefore,
    ApplyAfter,
    StepBefore,
    StepAfter,
}

/// What the appliance does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::processes) enum Trouble {
    Restarts,
    Hangs,
    LosesAnswers,
    /// Commands are carried out later, or once more later.
    IsLate,
    /// A disk is made, and not exported.
    StopsHalfWay,
}

/// How the network is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::processes) enum Cut {
    BothWays,
    OneWay,
    /// The leader and one follower hear the other follower, and not each other.
    Bridge,
    Loss,
    HalfOpen,
    /// Nodes, clients and the appliance are not heard.
    Outside,
}

impl Point {
    /// Its name in the program.
    pub(super) fn armed_as(self) -> &'static str {
        match self {
            Self::AppendBefore => "append-before",
            Self::AppendAfter => "append-after",
            Self::VoteBefore => "vote-before",
            Self::VoteAfter => "vote-after",
            Self::ApplyBefore => "apply-before",
            Self::ApplyAfter => "apply-after",
            Self::StepBefore => "step-before",
            Self::StepAfter => "step-after",
        }
    }

    /// Only a candidate's and a voter's way leads past it.
    pub(super) fn is_of_votes(self) -> bool {
        matches!(self, Self::VoteBefore | Self::VoteAfter)
    }
}

/// All of them.
pub(in crate::processes) const ALL: &[Kind] = &[
    Kind::LeaderKill,
    Kind::FollowerKill,
    Kind::AllKilled,
    Kind::LeaderPaused,
    Kind::RollingRestart,
    Kind::Point(Point::AppendBefore),
    Kind::Point(Point::AppendAfter),
    Kind::Point(Point::VoteBefore),
    Kind::Point(Point::VoteAfter),
    Kind::Point(Point::ApplyBefore),
    Kind::Point(Point::ApplyAfter),
    Kind::Point(Point::StepBefore),
    Kind::Point(Point::StepAfter),
    Kind::Appliance(Trouble::Restarts),
    Kind::Appliance(Trouble::Hangs),
    Kind::Appliance(Trouble::LosesAnswers),
    Kind::Appliance(Trouble::IsLate),
    Kind::Appliance(Trouble::StopsHalfWay),
    Kind::PluginKilled,
    Kind::PluginStopped,
    Kind::NodeRebooted,
    Kind::ReplicaWiped,
    Kind::Network(Cut::BothWays),
    Kind::Network(Cut::OneWay),
    Kind::Network(Cut::Bridge),
    Kind::Network(Cut::Loss),
    Kind::Network(Cut::HalfOpen),
    Kind::Network(Cut::Outside),
    Kind::DiskFull,
    Kind::SyncFails,
    Kind::SyncSlow,
    Kind::PowerCut(1),
    Kind::PowerCut(2),
    Kind::PowerCut(3),
    Kind::ClockJumps,
];

impl Kind {
    /// The one of this name.
    pub(in crate::processes) fn named(name: &str) -> Option<Self> {
        ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Its name in tables.
    pub(in crate::processes) fn name(self) -> &'static str {
        match self {
            Self::LeaderKill => "leader killed",
            Self::FollowerKill => "follower killed",
            Self::AllKilled => "all controllers killed",
            Self::LeaderPaused => "leader stopped past its lease",
            Self::RollingRestart => "rolling restart",
            Self::Point(Point::AppendBefore) => "killed before append",
            Self::Point(Point::AppendAfter) => "killed after append",
            Self::Point(Point::VoteBefore) => "killed before vote",
            Self::Point(Point::VoteAfter) => "killed after vote",
            Self::Point(Point::ApplyBefore) => "killed before apply",
            Self::Point(Point::ApplyAfter) => "killed after apply",
            Self::Point(Point::StepBefore) => "killed before appliance step",
            Self::Point(Point::StepAfter) => "killed after appliance step",
            Self::Appliance(Trouble::Restarts) => "appliance restart",
            Self::Appliance(Trouble::Hangs) => "appliance hangs",
            Self::Appliance(Trouble::LosesAnswers) => "appliance answers lost",
            Self::Appliance(Trouble::IsLate) => "appliance commands late and twice",
            Self::Appliance(Trouble::StopsHalfWay) => "appliance command half done",
            Self::PluginKilled => "node plugin killed",
            Self::PluginStopped => "node plugin stopped",
            Self::NodeRebooted => "node rebooted",
            Self::ReplicaWiped => "replica wiped",
            Self::Network(Cut::BothWays) => "partition both ways",
            Self::Network(Cut::OneWay) => "partition one way",
            Self::Network(Cut::Bridge) => "partition with a bridge",
            Self::Network(Cut::Loss) => "packet loss",
            Self::Network(Cut::HalfOpen) => "half-open connections",
            Self::Network(Cut::Outside) => "cut from nodes and appliance",
            Self::DiskFull => "disk full",
            Self::SyncFails => "fsync fails",
            Self::SyncSlow => "fsync slow",
            Self::PowerCut(1) => "power cut on one",
            Self::PowerCut(2) => "power cut on two",
            Self::PowerCut(_) => "power cut on three",
            Self::ClockJumps => "wall clock jumps",
        }
    }

    /// Whether it ends a controller's process at once.
    pub(super) fn kills(self) -> bool {
        matches!(self, Self::LeaderKill | Self::AllKilled | Self::Point(_) | Self::PowerCut(_))
    }

    /// Whether a controller ends by itself through it.
    pub(super) fn may_end_a_controller(self) -> bool {
        matches!(self, Self::DiskFull | Self::SyncFails | Self::PowerCut(_) | Self::Point(_))
    }

    /// Why it cannot be here.
    pub(in crate::processes) fn needs(self, abilities: &Abilities) -> Result<(), &'static str> {
        match self {
            Self::Point(_) | Self::SyncFails | Self::SyncSlow => abilities.failpoints,
            Self::Network(_) => abilities.network,
            Self::DiskFull | Self::PowerCut(_) => abilities.disks,
            Self::ClockJumps => abilities.clocks,
            Self::LeaderKill
            | Self::FollowerKill
            | Self::AllKilled
            | Self::LeaderPaused
            | Self::RollingRestart
            | Self::Appliance(_)
            | Self::PluginKilled
            | Self::PluginStopped
            | Self::NodeRebooted
            | Self::ReplicaWiped => Ok(()),
        }
    }
}
