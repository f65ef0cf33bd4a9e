//! The cases, each a story of volumes that the test tells through CSI and looks at from outside.

mod export;
mod grow;
mod kills;
mod leftovers;
mod life_cycle;
mod outage;
mod refusals;
mod sanity;

use anyhow::Result;
use tests::vm::VmLab;

/// A case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    ExportIsReal,
    FilesystemLifeCycle,
    BlockLifeCycle,
    RwxBlockOnTwoNodes,
    UnstageRefusedWhileHeld,
    HeldWithoutAFile,
    GrowOnline,
    DamagedSuperblockIsNotReformatted,
    TargetRestartWithIoInFlight,
    ReconnectWithAnotherDeviceNumber,
    DeviceNumberGivenAway,
    StaleMountThatIsUsed,
    DetachedWithoutUnstage,
    NodePluginKilledBetweenSteps,
    NodeRebooted,
    CsiSanityMount,
    CsiSanityBlock,
}

impl Case {
    /// All of them, in the order in which they run.
    pub(crate) const ALL: [Self; 17] = [
        Self::ExportIsReal,
        Self::FilesystemLifeCycle,
        Self::BlockLifeCycle,
        Self::RwxBlockOnTwoNodes,
        Self::UnstageRefusedWhileHeld,
        Self::HeldWithoutAFile,
        Self::GrowOnline,
        Self::DamagedSuperblockIsNotReformatted,
        Self::TargetRestartWithIoInFlight,
        Self::ReconnectWithAnotherDeviceNumber,
        Self::DeviceNumberGivenAway,
        Self::StaleMountThatIsUsed,
        Self::DetachedWithoutUnstage,
        Self::NodePluginKilledBetweenSteps,
        Self::NodeRebooted,
        Self::CsiSanityMount,
        Self::CsiSanityBlock,
    ];

    /// What it is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ExportIsReal => "export_is_real",
            Self::FilesystemLifeCycle => "filesystem_life_cycle",
            Self::BlockLifeCycle => "block_life_cycle",
            Self::RwxBlockOnTwoNodes => "rwx_block_on_two_nodes",
            Self::UnstageRefusedWhileHeld => "unstage_refused_while_held",
            Self::HeldWithoutAFile => "held_without_a_file",
            Self::GrowOnline => "grow_online",
            Self::DamagedSuperblockIsNotReformatted => "damaged_superblock_is_not_reformatted",
            Self::TargetRestartWithIoInFlight => "target_restart_with_io_in_flight",
            Self::ReconnectWithAnotherDeviceNumber => "reconnect_with_another_device_number",
            Self::DeviceNumberGivenAway => "device_number_given_away",
            Self::StaleMountThatIsUsed => "stale_mount_that_is_used",
            Self::DetachedWithoutUnstage => "detached_without_unstage",
            Self::NodePluginKilledBetweenSteps => "node_plugin_killed_between_steps",
            Self::NodeRebooted => "node_rebooted",
            Self::CsiSanityMount => "csi_sanity_mount",
            Self::CsiSanityBlock => "csi_sanity_block",
        }
    }

    /// Whether one of `words` is in its name; no words choose all.
    pub(crate) fn is_chosen(self, words: &[String]) -> bool {
        words.is_empty() || words.iter().any(|word| self.name().contains(word.as_str()))
    }

    /// Tells it.
    pub(crate) async fn tell(self, lab: &mut VmLab) -> Result<()> {
        match self {
            Self::ExportIsReal => export::is_real(lab).await,
            Self::FilesystemLifeCycle => life_cycle::filesystem(lab).await,
            Self::BlockLifeCycle => life_cycle::block(lab).await,
            Self::RwxBlockOnTwoNodes => life_cycle::shared_block(lab).await,
            Self::UnstageRefusedWhileHeld => refusals::held(lab).await,
            Self::HeldWithoutAFile => refusals::held_without_a_file(lab).await,
            Self::GrowOnline => grow::online(lab).await,
            Self::DamagedSuperblockIsNotReformatted => refusals::damaged_superblock(lab).await,
            Self::TargetRestartWithIoInFlight => outage::target_restart(lab).await,
            Self::ReconnectWithAnotherDeviceNumber => outage::another_device_number(lab).await,
            Self::DeviceNumberGivenAway => outage::number_given_away(lab).await,
            Self::StaleMountThatIsUsed => leftovers::stale_mount_that_is_used(lab).await,
            Self::DetachedWithoutUnstage => leftovers::detached_without_unstage(lab).await,
            Self::NodePluginKilledBetweenSteps => kills::between_steps(lab).await,
            Self::NodeRebooted => kills::reboot(lab).await,
            Self::CsiSanityMount => sanity::run(lab, "mount").await,
            Self::CsiSanityBlock => sanity::run(lab, "block").await,
        }
    }
}
