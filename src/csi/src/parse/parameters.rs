//! A storage class's parameters. Their names are those of the Go driver, so that its classes go on working.

use std::collections::BTreeMap;

use state_machine::{
    AppliancePath, FsType, HostAddress, MAX_MIGRATION_TIMEOUT_SECONDS, MIN_MIGRATION_TIMEOUT_SECONDS,
    MkfsOptions, VolumeParameters,
};

use super::RequestError;
use super::field::{check_key, flag, id, number, quoted};
use crate::mkfs;

/// Keys with this prefix are the sidecars' own: accepted, not read.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

/// Largest `ctrlLossTmo` and `fastIoFailTmo`, in seconds: a day.
const MAX_LOSS_SECONDS: i32 = 86_400;
/// Largest `nrIoQueues`.
const MAX_IO_QUEUES: u32 = 128;
/// Largest `reconnectDelay` and `keepAliveTmo`, in seconds.
const MAX_TIMER_SECONDS: u32 = 3_600;

/// The parameters' names; all but `fsType` are also in the volume context, if they say anything.
pub(crate) mod keys {
    pub(crate) const VOLUME_PATH: &str = "volumePath";
    pub(crate) const NVME_ADDRESS: &str = "nvmeAddress";
    pub(crate) const NVME_PORT: &str = "nvmePort";
    pub(crate) const FS_TYPE: &str = "fsType";
    pub(crate) const MKFS_OPTIONS: &str = "mkfsOptions";
    pub(crate) const CTRL_LOSS_TMO: &str = "ctrlLossTmo";
    pub(crate) const FAST_IO_FAIL_TMO: &str = "fastIoFailTmo";
    pub(crate) const RECONNECT_DELAY: &str = "reconnectDelay";
    pub(crate) const KEEP_ALIVE_TMO: &str = "keepAliveTmo";
    pub(crate) const NR_IO_QUEUES: &str = "nrIoQueues";
    pub(crate) const MIGRATION_TIMEOUT: &str = "migrationTimeoutSeconds";
    pub(crate) const SAME_VM_CHECK: &str = "sameVmCheck";

    pub(super) const ALL: [&str; 12] = [
        VOLUME_PATH,
        NVME_ADDRESS,
        NVME_PORT,
        FS_TYPE,
        MKFS_OPTIONS,
        CTRL_LOSS_TMO,
        FAST_IO_FAIL_TMO,
        RECONNECT_DELAY,
        KEEP_ALIVE_TMO,
        NR_IO_QUEUES,
        MIGRATION_TIMEOUT,
        SAME_VM_CHECK,
    ];
}

/// What the controller's configuration gives to classes that do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassDefaults {
    /// Directory of the backing files on the appliance.
    pub volume_path: AppliancePath,
    /// The appliance's storage address.
    pub nvme_address: HostAddress,
    /// Its NVMe/TCP port.
    pub nvme_port: u16,
}

/// The parameters that were given, checked; the others are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClassParameters {
    /// `volumePath`.
    pub volume_path: Option<AppliancePath>,
    /// `nvmeAddress`.
    pub nvme_address: Option<HostAddress>,
    /// `nvmePort`.
    pub nvme_port: Option<u16>,
    /// `fsType`.
    pub fs_type: Option<FsType>,
    /// `mkfsOptions`, which are only known to be fit for the file system where a request says so.
    pub mkfs_options: Option<MkfsOptions>,
    /// `ctrlLossTmo`, in seconds; -1 is never.
    pub ctrl_loss_tmo_seconds: Option<i32>,
    /// `fastIoFailTmo`, in seconds; -1 is never.
    pub fast_io_fail_tmo_seconds: Option<i32>,
    /// `reconnectDelay`, in seconds.
    pub reconnect_delay_seconds: Option<u32>,
    /// `keepAliveTmo`, in seconds.
    pub keep_alive_tmo_seconds: Option<u32>,
    /// `nrIoQueues`.
    pub nr_io_queues: Option<u32>,
    /// `migrationTimeoutSeconds`.
    pub migration_timeout_seconds: Option<u32>,
    /// `sameVmCheck`.
    pub same_vm_check: Option<bool>,
}

impl ClassParameters {
    /// Parses a request's `parameters`. An unknown key is refused: it is likelier a typing error than a wish that
    /// may be ignored.
    pub(super) fn parse(field: &str, map: &BTreeMap<String, String>) -> Result<Self, RequestError> {
        let mut parameters = Self::default();
        for (key, value) in map {
            check_key(field, key)?;
            if key.starts_with(SIDECAR_PREFIX) || parameters.set(field, key, value)? {
                continue;
            }
            let problem = format!("is not known; known are {}", keys::ALL.join(", "));
            return Err(RequestError::invalid(format!("{field}[{key}]"), problem));
        }
        Ok(parameters)
    }

    /// Takes one parameter in; `false` if its key is none of ours.
    pub(crate) fn set(&mut self, field: &str, key: &str, value: &str) -> Result<bool, RequestError> {
        let field = format!("{field}[{key}]");
        let timer = |least| number(&field, value, least, MAX_TIMER_SECONDS);
        let loss = || number(&field, value, -1, MAX_LOSS_SECONDS);
        match key {
            keys::VOLUME_PATH => self.volume_path = Some(id(&field, value, AppliancePath::parse)?),
            keys::NVME_ADDRESS => self.nvme_address = Some(id(&field, value, HostAddress::parse)?),
            keys::NVME_PORT => self.nvme_port = Some(number(&field, value, 1, u16::MAX)?),
            keys::FS_TYPE if value.is_empty() => {}
            keys::FS_TYPE => {
                let refused = || {
                    let problem = format!("{} is not supported; supported are ext4 and xfs", quoted(value));
                    RequestError::invalid(field.as_str(), problem)
                };
                self.fs_type = Some(FsType::parse(value).ok_or_else(refused)?);
            }
            keys::MKFS_OPTIONS if value.is_empty() => {}
            keys::MKFS_OPTIONS => self.mkfs_options = Some(id(&field, value, MkfsOptions::parse)?),
            keys::CTRL_LOSS_TMO => self.ctrl_loss_tmo_seconds = Some(loss()?),
            keys::FAST_IO_FAIL_TMO => self.fast_io_fail_tmo_seconds = Some(loss()?),
            keys::RECONNECT_DELAY => self.reconnect_delay_seconds = Some(timer(1)?),
            // The Go driver writes 0 where its class does not say.
            keys::KEEP_ALIVE_TMO => {
                self.keep_alive_tmo_seconds = Some(timer(0)?).filter(|seconds| *seconds > 0)
            }
            keys::NR_IO_QUEUES => self.nr_io_queues = Some(number(&field, value, 1, MAX_IO_QUEUES)?),
            keys::MIGRATION_TIMEOUT => {
                let (least, most) = (MIN_MIGRATION_TIMEOUT_SECONDS, MAX_MIGRATION_TIMEOUT_SECONDS);
                self.migration_timeout_seconds = Some(number(&field, value, least, most)?);
            }
            keys::SAME_VM_CHECK => self.same_vm_check = Some(flag(&field, value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the `mkfsOptions` are fit for the file system that will be made.
    pub(crate) fn check_mkfs_options(&self, field: &str, fs_type: FsType) -> Result<(), RequestError> {
        let Some(options) = &self.mkfs_options else { return Ok(()) };
        mkfs::check(options, fs_type).map_err(|refused| {
            RequestError::invalid(format!("{field}[{}]", keys::MKFS_OPTIONS), refused.to_string())
        })
    }

    /// A new volume's parameters: what was given, else what is configured, else the driver's own.
    pub fn or_defaults(self, defaults: &ClassDefaults) -> VolumeParameters {
        let ClassDefaults { volume_path, nvme_address, nvme_port } = defaults.clone();
        let own = VolumeParameters::with_defaults(volume_path, nvme_address, nvme_port);
        VolumeParameters {
            volume_path: self.volume_path.unwrap_or(own.volume_path),
            nvme_address: self.nvme_address.unwrap_or(own.nvme_address),
            nvme_port: self.nvme_port.unwrap_or(own.nvme_port),
            fs_type: self.fs_type.unwrap_or(own.fs_type),
            mkfs_options: self.mkfs_options.or(own.mkfs_options),
            ctrl_loss_tmo_seconds: self.ctrl_loss_tmo_seconds.unwrap_or(own.ctrl_loss_tmo_seconds),
            fast_io_fail_tmo_seconds: self.fast_io_fail_tmo_seconds.unwrap_or(own.fast_io_fail_tmo_seconds),
            reconnect_delay_seconds: self.reconnect_delay_seconds.unwrap_or(own.reconnect_delay_seconds),
            keep_alive_tmo_seconds: self.keep_alive_tmo_seconds.unwrap_or(own.keep_alive_tmo_seconds),
            nr_io_queues: self.nr_io_queues.or(own.nr_io_queues),
            migration_timeout_seconds: self
                .migration_timeout_seconds
                .unwrap_or(own.migration_timeout_seconds),
            same_vm_check: self.same_vm_check.unwrap_or(own.same_vm_check),
        }
    }

    /// The first parameter that was given and that `volume` has otherwise.
    pub fn first_difference(&self, volume: &VolumeParameters) -> Option<&'static str> {
        fn differs<T: PartialEq>(given: &Option<T>, has: &T) -> bool {
            given.as_ref().is_some_and(|given| given != has)
        }
        fn differs_or_lacks<T: PartialEq>(given: &Option<T>, has: &Option<T>) -> bool {
            given.is_some() && given != has
        }
        let rows = [
            (keys::VOLUME_PATH, differs(&self.volume_path, &volume.volume_path)),
            (keys::NVME_ADDRESS, differs(&self.nvme_address, &volume.nvme_address)),
            (keys::NVME_PORT, differs(&self.nvme_port, &volume.nvme_port)),
            (keys::FS_TYPE, differs(&self.fs_type, &volume.fs_type)),
            (keys::MKFS_OPTIONS, differs_or_lacks(&self.mkfs_options, &volume.mkfs_options)),
            (keys::CTRL_LOSS_TMO, differs(&self.ctrl_loss_tmo_seconds, &volume.ctrl_loss_tmo_seconds)),
            (
                keys::FAST_IO_FAIL_TMO,
                differs(&self.fast_io_fail_tmo_seconds, &volume.fast_io_fail_tmo_seconds),
            ),
            (keys::RECONNECT_DELAY, differs(&self.reconnect_delay_seconds, &volume.reconnect_delay_seconds)),
            (keys::KEEP_ALIVE_TMO, differs(&self.keep_alive_tmo_seconds, &volume.keep_alive_tmo_seconds)),
            (keys::NR_IO_QUEUES, differs_or_lacks(&self.nr_io_queues, &volume.nr_io_queues)),
            (
                keys::MIGRATION_TIMEOUT,
                differs(&self.migration_timeout_seconds, &volume.migration_timeout_seconds),
            ),
            (keys::SAME_VM_CHECK, differs(&self.same_vm_check, &volume.same_vm_check)),
        ];
        rows.into_iter().find_map(|(key, differs)| differs.then_some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> ClassDefaults {
        ClassDefaults {
            volume_path: AppliancePath::parse("/storage-pool/volumes").unwrap(),
            nvme_address: HostAddress::parse("192.0.2.1").unwrap(),
            nvme_port: 4420,
        }
    }

    fn parse(pairs: &[(&str, &str)]) -> Result<ClassParameters, RequestError> {
        let map = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        ClassParameters::parse("parameters", &map)
    }

    #[test]
    fn a_class_may_say_nothing_or_everything() {
        let volume = parse(&[]).unwrap().or_defaults(&defaults());
        assert_eq!(volume.volume_path, defaults().volume_path);
        assert_eq!((volume.nvme_port, volume.fs_type), (4420, FsType::Ext4));
        assert_eq!((volume.ctrl_loss_tmo_seconds, volume.fast_io_fail_tmo_seconds), (-1, -1));
        assert_eq!((volume.nr_io_queues, volume.mkfs_options), (None, None));
        assert_eq!((volume.migration_timeout_seconds, volume.same_vm_check), (300, true));

        let given = parse(&[
            ("volumePath", "/pool/x"),
            ("nvmeAddress", "2001:db8::1"),
            ("nvmePort", "4421"),
            ("fsType", "xfs"),
            ("mkfsOptions", "-m reflink=0"),
            ("ctrlLossTmo", "600"),
            ("fastIoFailTmo", "30"),
            ("reconnectDelay", "2"),
            ("keepAliveTmo", "10"),
            ("nrIoQueues", "128"),
            ("migrationTimeoutSeconds", "86400"),
            ("sameVmCheck", "false"),
            ("csi.storage.k8s.io/pvc/name", "anything at all"),
        ])
        .unwrap();
        let volume = given.clone().or_defaults(&defaults());
        assert_eq!(volume.volume_path.as_str(), "/pool/x");
        assert_eq!((volume.nvme_port, volume.fs_type), (4421, FsType::Xfs));
        assert_eq!((volume.ctrl_loss_tmo_seconds, volume.reconnect_delay_seconds), (600, 2));
        assert_eq!((volume.keep_alive_tmo_seconds, volume.migration_timeout_seconds), (10, 86_400));
        assert_eq!((volume.fast_io_fail_tmo_seconds, volume.nr_io_queues), (30, Some(128)));
        assert!(!volume.same_vm_check);
        assert_eq!(volume.mkfs_options.as_ref().map(MkfsOptions::as_str), Some("-m reflink=0"));
        assert_eq!(given.first_difference(&volume), None);
    }

    #[test]
    fn each_bad_value_names_its_parameter() {
        for (key, value) in [
            ("volumePath", "relative"),
            ("volumePath", "/a/../b"),
            ("nvmeAddress", ""),
            ("nvmeAddress", "a b"),
            ("nvmePort", "0"),
            ("nvmePort", "65536"),
            ("fsType", "btrfs"),
            ("mkfsOptions", "4096"),
            ("mkfsOptions", "-d /etc"),
            ("ctrlLossTmo", "-2"),
            ("fastIoFailTmo", "-2"),
            ("fastIoFailTmo", "86401"),
            ("fastIoFailTmo", ""),
            ("nrIoQueues", "0"),
            ("nrIoQueues", "129"),
            ("nrIoQueues", ""),
            ("reconnectDelay", "0"),
            ("keepAliveTmo", "3601"),
            ("migrationTimeoutSeconds", "29"),
            ("migrationTimeoutSeconds", "86401"),
            ("sameVmCheck", ""),
            ("sameVmCheck", "True"),
            ("sameVmCheck", "1"),
            ("nvmeport", "4420"),
        ] {
            match parse(&[(key, value)]) {
                Err(RequestError::Invalid { field, .. }) => assert_eq!(field, format!("parameters[{key}]")),
                other => panic!("{key}={value}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_difference_names_its_parameter() {
        let volume = parse(&[]).unwrap().or_defaults(&defaults());
        for (key, value) in [
            ("volumePath", "/x"),
            ("nvmeAddress", "192.0.2.9"),
            ("nvmePort", "1"),
            ("fsType", "xfs"),
            ("mkfsOptions", "-m 0"),
            ("ctrlLossTmo", "1"),
            ("fastIoFailTmo", "1"),
            ("reconnectDelay", "1"),
            ("keepAliveTmo", "1"),
            ("nrIoQueues", "1"),
            ("migrationTimeoutSeconds", "31"),
            ("sameVmCheck", "false"),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap().first_difference(&volume), Some(key));
        }
    }
    #[test]
    fn empty_options_of_mkfs_are_none() {
        assert_eq!(parse(&[("mkfsOptions", "")]).unwrap(), ClassParameters::default());
    }
    /// The names in the first column of the guide's table of parameters.
    fn documented() -> Vec<String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/storage-class.md");
        let guide = std::fs::read_to_string(path).unwrap();
        let section = guide.split("\n## ").find(|section| section.starts_with("Parameters\n")).unwrap();
        let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        cells.map(|(name, _)| name.to_owned()).collect()
    }

    #[test]
    fn the_guide_has_every_parameter_and_no_other() {
        assert_eq!(documented(), keys::ALL);
    }
}
