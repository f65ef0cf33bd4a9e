//! How a volume is to be used: CSI 1.12, "VolumeCapability", and DESIGN's access modes.

use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessType as ProtoAccess, MountVolume};
use state_machine::{AccessMode, AccessType, AttachmentMode, FsType};

use super::field::check_ignored_value;
use super::{MAX_MOUNT_FLAGS, MountFlag, RequestError};

/// What a user of RWX with a file system should write instead.
const RWX_NEEDS_BLOCK: &str = "MULTI_NODE_MULTI_WRITER (ReadWriteMany) is for block volumes only: a file system \
     that two nodes mount is destroyed; write `volumeMode: Block` with `ReadWriteMany`, or `ReadWriteOnce` for a \
     file system";

/// Device or directory, with what a directory needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// A raw block device.
    Block,
    /// A mounted file system.
    Mount {
        /// Which one; `None` leaves it to the volume's class.
        fs_type: Option<FsType>,
        /// Options of the mount.
        flags: Vec<MountFlag>,
    },
}

/// A capability that the driver supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// How many nodes and writers.
    pub access_mode: AccessMode,
    /// Device or directory.
    pub access: Access,
}

/// Why a capability is none of ours: the two differ for `ValidateVolumeCapabilities` only.
#[derive(Debug)]
pub(super) enum CapabilityError {
    /// It cannot be understood.
    Malformed(RequestError),
    /// It is understood, and the driver does not do it.
    Unsupported(RequestError),
}

impl From<CapabilityError> for RequestError {
    fn from(error: CapabilityError) -> Self {
        match error {
            CapabilityError::Malformed(error) | CapabilityError::Unsupported(error) => error,
        }
    }
}

impl Capability {
    /// The capability's access type on a volume whose class has the file system `class_fs_type`.
    pub fn access_type(&self, class_fs_type: FsType) -> AccessType {
        match &self.access {
            Access::Block => AccessType::Block,
            Access::Mount { fs_type, .. } => AccessType::Mount { fs_type: fs_type.unwrap_or(class_fs_type) },
        }
    }

    /// What an attachment with this capability is, on such a volume.
    pub fn attachment_mode(&self, class_fs_type: FsType, read_only: bool) -> AttachmentMode {
        AttachmentMode {
            access_mode: self.access_mode,
            access_type: self.access_type(class_fs_type),
            read_only,
        }
    }

    pub(super) fn parse(field: &str, capability: &VolumeCapability) -> Result<Self, CapabilityError> {
        let mode_field = format!("{field}.access_mode");
        let mode = capability.access_mode.as_ref().ok_or_else(|| malformed(&mode_field, "is required"))?;
        let mode = Mode::try_from(mode.mode)
            .map_err(|_| malformed(&format!("{mode_field}.mode"), format!("{} is not a mode", mode.mode)))?;
        let access = match &capability.access_type {
            None => return Err(malformed(field, "has neither `block` nor `mount`")),
            Some(ProtoAccess::Block(_)) => Access::Block,
            Some(ProtoAccess::Mount(mount)) => mount_access(&format!("{field}.mount"), mount)?,
        };
        let access_mode = access_mode(&format!("{mode_field}.mode"), mode)?;
        match (access_mode, &access) {
            (AccessMode::MultiNodeMultiWriter, Access::Mount { .. }) => {
                Err(unsupported(&mode_field, RWX_NEEDS_BLOCK))
            }
            (
                AccessMode::SingleNodeWriter
                | AccessMode::SingleNodeSingleWriter
                | AccessMode::SingleNodeMultiWriter
                | AccessMode::SingleNodeReaderOnly
                | AccessMode::MultiNodeMultiWriter,
                Access::Block | Access::Mount { .. },
            ) => Ok(Self { access_mode, access }),
        }
    }

    /// A capability that has to be there.
    pub(super) fn parse_required(
        field: &str,
        capability: Option<&VolumeCapability>,
    ) -> Result<Self, RequestError> {
        let capability = capability.ok_or_else(|| RequestError::required(field))?;
        Ok(Self::parse(field, capability)?)
    }

    /// A capability that may be left out.
    pub(super) fn parse_optional(
        field: &str,
        capability: Option<&VolumeCapability>,
    ) -> Result<Option<Self>, RequestError> {
        capability.map(|capability| Self::parse(field, capability)).transpose().map_err(RequestError::from)
    }

    /// All of a list, which may be empty.
    pub(super) fn parse_all(
        field: &str,
        capabilities: &[VolumeCapability],
    ) -> Result<Vec<Self>, CapabilityError> {
        let parse = |(index, capability)| Self::parse(&format!("{field}[{index}]"), capability);
        capabilities.iter().enumerate().map(parse).collect()
    }
}

fn malformed(field: &str, problem: impl Into<String>) -> CapabilityError {
    CapabilityError::Malformed(RequestError::invalid(field, problem))
}

fn unsupported(field: &str, problem: impl Into<String>) -> CapabilityError {
    CapabilityError::Unsupported(RequestError::invalid(field, problem))
}

fn access_mode(field: &str, mode: Mode) -> Result<AccessMode, CapabilityError> {
    match mode {
        Mode::Unknown => Err(malformed(field, "is required")),
        Mode::SingleNodeWriter => Ok(AccessMode::SingleNodeWriter),
        Mode::SingleNodeReaderOnly => Ok(AccessMode::SingleNodeReaderOnly),
        Mode::SingleNodeSingleWriter => Ok(AccessMode::SingleNodeSingleWriter),
        Mode::SingleNodeMultiWriter => Ok(AccessMode::SingleNodeMultiWriter),
        Mode::MultiNodeMultiWriter => Ok(AccessMode::MultiNodeMultiWriter),
        Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter => Err(unsupported(
            field,
            format!(
                "{} is not supported; use a SINGLE_NODE mode (ReadWriteOnce, ReadWriteOncePod), \
                 or MULTI_NODE_MULTI_WRITER (ReadWriteMany) with `volumeMode: Block`",
                mode.as_str_name()
            ),
        )),
    }
}

fn mount_access(field: &str, mount: &MountVolume) -> Result<Access, CapabilityError> {
    let fs_type_field = format!("{field}.fs_type");
    check_text(&fs_type_field, &mount.fs_type)?;
    let fs_type = match mount.fs_type.as_str() {
        "" => None,
        name => Some(FsType::parse(name).ok_or_else(|| {
            unsupported(&fs_type_field, format!("{name} is not supported; supported are ext4 and xfs"))
        })?),
    };
    let flags_field = format!("{field}.mount_flags");
    if mount.mount_flags.len() > MAX_MOUNT_FLAGS {
        return Err(malformed(&flags_field, format!("has more than {MAX_MOUNT_FLAGS} flags")));
    }
    let mut flags = Vec::with_capacity(mount.mount_flags.len());
    for (index, flag) in mount.mount_flags.iter().enumerate() {
        let flag_field = format!("{flags_field}[{index}]");
        check_text(&flag_field, flag)?;
        flags.push(MountFlag::parse(&flag_field, flag).map_err(CapabilityError::Unsupported)?);
    }
    let group_field = format!("{field}.volume_mount_group");
    check_text(&group_field, &mount.volume_mount_group)?;
    if !mount.volume_mount_group.is_empty() {
        let problem = "is not supported; kubelet applies `fsGroup` instead";
        return Err(unsupported(&group_field, problem));
    }
    Ok(Access::Mount { fs_type, flags })
}

/// A string that cannot be the name of anything is malformed, not merely unsupported.
fn check_text(field: &str, text: &str) -> Result<(), CapabilityError> {
    check_ignored_value(field, text).map_err(CapabilityError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::csi::v1::volume_capability::{AccessMode as ProtoMode, BlockVolume};

    fn capability(mode: Mode, access: Option<ProtoAccess>) -> VolumeCapability {
        VolumeCapability { access_mode: Some(ProtoMode { mode: mode.into() }), access_type: access }
    }

    fn block() -> Option<ProtoAccess> {
        Some(ProtoAccess::Block(BlockVolume {}))
    }

    fn mount(fs_type: &str) -> Option<ProtoAccess> {
        Some(ProtoAccess::Mount(MountVolume { fs_type: fs_type.to_owned(), ..Default::default() }))
    }

    #[test]
    fn designs_access_modes() {
        // Mode; for a file system; for a block device.
        let rows = [
            (Mode::SingleNodeWriter, true, true),
            (Mode::SingleNodeSingleWriter, true, true),
            (Mode::SingleNodeMultiWriter, true, true),
            (Mode::SingleNodeReaderOnly, true, true),
            (Mode::MultiNodeMultiWriter, false, true),
            (Mode::MultiNodeReaderOnly, false, false),
            (Mode::MultiNodeSingleWriter, false, false),
        ];
        for (mode, filesystem, device) in rows {
            for (access, supported) in [(mount(""), filesystem), (block(), device)] {
                match Capability::parse("c", &capability(mode, access.clone())) {
                    Ok(_) => assert!(supported, "{mode:?} {access:?}"),
                    Err(CapabilityError::Unsupported(_)) => assert!(!supported, "{mode:?} {access:?}"),
                    Err(CapabilityError::Malformed(error)) => panic!("{mode:?} {access:?}: {error}"),
                }
            }
        }
    }

    #[test]
    fn rwx_with_a_file_system_says_what_to_write_instead() {
        let error =
            Capability::parse("c", &capability(Mode::MultiNodeMultiWriter, mount("ext4"))).unwrap_err();
        let text = RequestError::from(error).to_string();
        assert!(text.starts_with("c.access_mode: ") && text.contains("`volumeMode: Block`"), "{text}");
    }

    #[test]
    fn what_is_missing_is_malformed() {
        let mut nameless = capability(Mode::SingleNodeWriter, block());
        nameless.access_mode = Some(ProtoMode { mode: 99 });
        let rows = [
            (capability(Mode::Unknown, block()), "c.access_mode.mode"),
            (capability(Mode::SingleNodeWriter, None), "c"),
            (VolumeCapability { access_mode: None, access_type: block() }, "c.access_mode"),
            (nameless, "c.access_mode.mode"),
        ];
        for (capability, expected) in rows {
            match Capability::parse("c", &capability) {
                Err(CapabilityError::Malformed(RequestError::Invalid { field, .. })) => {
                    assert_eq!(field, expected)
                }
                other => panic!("{capability:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_mount_without_a_file_system_takes_its_classs() {
        let parse = |access| Capability::parse("c", &capability(Mode::SingleNodeWriter, access)).unwrap();
        let mode = |access, class| parse(access).attachment_mode(class, false).access_type;
        assert_eq!(mode(mount(""), FsType::Xfs), AccessType::Mount { fs_type: FsType::Xfs });
        assert_eq!(mode(mount("ext4"), FsType::Xfs), AccessType::Mount { fs_type: FsType::Ext4 });
        assert_eq!(mode(block(), FsType::Xfs), AccessType::Block);
    }

    #[test]
    fn a_capability_has_a_bounded_number_of_flags() {
        let with = |count: usize| {
            let mount_flags = vec!["noatime".to_owned(); count];
            let access = ProtoAccess::Mount(MountVolume { mount_flags, ..Default::default() });
            Capability::parse("c", &capability(Mode::SingleNodeWriter, Some(access)))
        };
        assert!(with(MAX_MOUNT_FLAGS).is_ok());
        assert!(with(MAX_MOUNT_FLAGS + 1).is_err());
    }
}
