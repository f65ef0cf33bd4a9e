//! The kinds of faults, and what they are called.

use super::world::Point;

/// What can happen to messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Messages {
    Loss,
    Delay,
    Twice,
}

/// How a replica can be cut from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Partition {
    Both,
    OneWay,
    Bridge,
}

/// What can happen to a replica's process and machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Crash,
    CrashAtAwait,
    CrashAll,
    PowerCut,
    PowerCutAll,
    Wiped,
    Pause,
    WallJump,
    ClockDrift,
}

/// What can happen to a replica's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    IoError,
    Full,
    Slow,
}

/// What can happen to the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appliance {
    Hang,
    HalfDone,
    AnswerLost,
    Restart,
    Twice,
    Late,
    CutOff,
}

/// What can happen to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machine {
    Reboot,
    PluginRestart,
    CutOff,
    Off,
    DeviceHeld,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Messages.
    Messages(Messages),
    /// Replicas from each other.
    Partition(Partition),
    /// A replica's process.
    Process(Process),
    /// A replica's process, where it comes to this.
    CrashAt(Point),
    /// A replica's disk.
    Disk(Disk),
    /// The appliance.
    Appliance(Appliance),
    /// A node.
    Node(Machine),
}

const SIMPLE: &[Kind] = &[
    Kind::Messages(Messages::Loss),
    Kind::Messages(Messages::Delay),
    Kind::Messages(Messages::Twice),
    Kind::Partition(Partition::Both),
    Kind::Partition(Partition::OneWay),
    Kind::Partition(Partition::Bridge),
    Kind::Process(Process::Crash),
    Kind::Process(Process::CrashAtAwait),
    Kind::Process(Process::CrashAll),
    Kind::Process(Process::PowerCut),
    Kind::Process(Process::PowerCutAll),
    Kind::Process(Process::Wiped),
    Kind::Process(Process::Pause),
    Kind::Process(Process::WallJump),
    Kind::Process(Process::ClockDrift),
    Kind::Disk(Disk::IoError),
    Kind::Disk(Disk::Full),
    Kind::Disk(Disk::Slow),
    Kind::Appliance(Appliance::Hang),
    Kind::Appliance(Appliance::HalfDone),
    Kind::Appliance(Appliance::AnswerLost),
    Kind::Appliance(Appliance::Restart),
    Kind::Appliance(Appliance::Twice),
    Kind::Appliance(Appliance::Late),
    Kind::Appliance(Appliance::CutOff),
    Kind::Node(Machine::Reboot),
    Kind::Node(Machine::PluginRestart),
    Kind::Node(Machine::CutOff),
    Kind::Node(Machine::Off),
    Kind::Node(Machine::DeviceHeld),
];

impl Kind {
    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        SIMPLE.iter().copied().chain(Point::ALL.map(Self::CrashAt)).collect()
    }

    /// As the table of faults names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Messages(Messages::Loss) => "message-loss",
            Self::Messages(Messages::Delay) => "message-delay",
            Self::Messages(Messages::Twice) => "message-twice",
            Self::Partition(Partition::Both) => "partition-both-ways",
            Self::Partition(Partition::OneWay) => "partition-one-way",
            Self::Partition(Partition::Bridge) => "partition-bridge",
            Self::Process(Process::Crash) => "crash",
            Self::Process(Process::CrashAtAwait) => "crash-at-await",
            Self::Process(Process::CrashAll) => "crash-all",
            Self::Process(Process::PowerCut) => "power-cut",
            Self::Process(Process::PowerCutAll) => "power-cut-all",
            Self::Process(Process::Wiped) => "replica-wiped",
            Self::Process(Process::Pause) => "pause",
            Self::Process(Process::WallJump) => "wall-clock-jump",
            Self::Process(Process::ClockDrift) => "clock-drift",
            Self::CrashAt(point) => point.fault(),
            Self::Disk(Disk::IoError) => "disk-io-error",
            Self::Disk(Disk::Full) => "disk-full",
            Self::Disk(Disk::Slow) => "disk-slow",
            Self::Appliance(Appliance::Hang) => "appliance-hangs",
            Self::Appliance(Appliance::HalfDone) => "appliance-half-done",
            Self::Appliance(Appliance::AnswerLost) => "appliance-answer-lost",
            Self::Appliance(Appliance::Restart) => "appliance-restart",
            Self::Appliance(Appliance::Twice) => "appliance-twice",
            Self::Appliance(Appliance::Late) => "appliance-late",
            Self::Appliance(Appliance::CutOff) => "appliance-cut-off",
            Self::Node(Machine::Reboot) => "node-reboot",
            Self::Node(Machine::PluginRestart) => "node-plugin-restart",
            Self::Node(Machine::CutOff) => "node-cut-off",
            Self::Node(Machine::Off) => "node-off",
            Self::Node(Machine::DeviceHeld) => "device-held",
        }
    }
}
