//! What the controller tells the nodes, as CSI's string maps: the volume context, fixed at creation, and the
//! publish context, made anew for each attachment. Names as the Go driver has them, plus `generation`.
//!
//! Neither holds a secret. Keys that are not ours are ignored once they are known to be harmless: Kubernetes adds
//! some, and a newer controller may.

use std::collections::BTreeMap;

use state_machine::{FsType, Generation, HostAddress, Nqn, VolumeId, VolumeParameters};

use crate::parse::{
    ClassParameters, RequestError, check_ignored_value, check_key, id, number, parameter_keys as class,
};

mod keys {
    //! The keys that a class's parameters do not have.
    pub(super) const RDS_ADDRESS: &str = "rdsAddress";
    pub(super) const NQN: &str = "nqn";
    pub(super) const NVME_ADDRESS: &str = "nvme_address";
    pub(super) const NVME_PORT: &str = "nvme_port";
    pub(super) const NVME_NQN: &str = "nvme_nqn";
    pub(super) const FS_TYPE: &str = "fs_type";
    pub(super) const GENERATION: &str = "generation";
}

/// Kubernetes' own keys may have any value (a service account's tokens, for one), which is not even looked at.
const KUBERNETES_PREFIXES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// A volume's parameters by their names in a class. Those that the class left to the node are left out.
pub fn class_parameters(parameters: &VolumeParameters) -> BTreeMap<String, String> {
    let always = [
        (class::VOLUME_PATH, parameters.volume_path.to_string()),
        (class::NVME_ADDRESS, parameters.nvme_address.to_string()),
        (class::NVME_PORT, parameters.nvme_port.to_string()),
        (class::FS_TYPE, parameters.fs_type.as_str().to_owned()),
        (class::CTRL_LOSS_TMO, parameters.ctrl_loss_tmo_seconds.to_string()),
        (class::FAST_IO_FAIL_TMO, parameters.fast_io_fail_tmo_seconds.to_string()),
        (class::RECONNECT_DELAY, parameters.reconnect_delay_seconds.to_string()),
        (class::KEEP_ALIVE_TMO, parameters.keep_alive_tmo_seconds.to_string()),
        (class::MIGRATION_TIMEOUT, parameters.migration_timeout_seconds.to_string()),
        (class::SAME_VM_CHECK, parameters.same_vm_check.to_string()),
    ];
    let sometimes = [
        (class::MKFS_OPTIONS, parameters.mkfs_options.as_ref().map(ToString::to_string)),
        (class::NR_IO_QUEUES, parameters.nr_io_queues.map(|queues| queues.to_string())),
    ];
    let given = sometimes.into_iter().filter_map(|(key, value)| Some((key, value?)));
    always.into_iter().chain(given).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The volume context of a new volume; `appliance` is the appliance's management address.
pub fn volume_context(
    parameters: &VolumeParameters,
    nqn: &Nqn,
    appliance: &HostAddress,
) -> BTreeMap<String, String> {
    let mut context = class_parameters(parameters);
    // It goes out with each attachment.
    context.remove(class::FS_TYPE);
    context.insert(keys::RDS_ADDRESS.to_owned(), appliance.to_string());
    context.insert(keys::NQN.to_owned(), nqn.to_string());
    context
}

/// A volume context that came back with a request. All of it may be missing: a persistent volume can be written
/// by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeContext {
    /// The class's parameters in it.
    pub parameters: ClassParameters,
    /// The subsystem's NQN; names the request's volume.
    pub nqn: Option<Nqn>,
    /// The appliance's management address.
    pub rds_address: Option<HostAddress>,
}

impl VolumeContext {
    /// Parses it; errors name entries of `field`.
    pub fn parse(
        field: &str,
        map: &BTreeMap<String, String>,
        volume: &VolumeId,
    ) -> Result<Self, RequestError> {
        let mut context = Self::default();
        for (key, value) in map {
            let value_field = entry(field, key)?;
            match key.as_str() {
                keys::NQN => context.nqn = Some(nqn_of(&value_field, value, volume)?),
                keys::RDS_ADDRESS => context.rds_address = Some(id(&value_field, value, HostAddress::parse)?),
                _ if context.parameters.set(field, key, value)? => {}
                _ => ignore(&value_field, key, value)?,
            }
        }
        Ok(context)
    }
}

/// All that a node needs to connect to a volume, and under which generation it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishContext {
    /// The appliance's storage address.
    pub nvme_address: HostAddress,
    /// Its NVMe/TCP port.
    pub nvme_port: u16,
    /// The subsystem's NQN; names the request's volume.
    pub nvme_nqn: Nqn,
    /// The file system of a filesystem volume.
    pub fs_type: FsType,
    /// The attachment's generation.
    pub generation: Generation,
}

impl PublishContext {
    /// The context as it goes out in `ControllerPublishVolumeResponse`.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        [
            (keys::NVME_ADDRESS, self.nvme_address.to_string()),
            (keys::NVME_PORT, self.nvme_port.to_string()),
            (keys::NVME_NQN, self.nvme_nqn.to_string()),
            (keys::FS_TYPE, self.fs_type.as_str().to_owned()),
            (keys::GENERATION, self.generation.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    pub(crate) fn parse(
        field: &str,
        map: &BTreeMap<String, String>,
        volume: &VolumeId,
    ) -> Result<Self, RequestError> {
        let (mut address, mut port, mut nqn, mut fs_type, mut generation) = (None, None, None, None, None);
        for (key, value) in map {
            let value_field = entry(field, key)?;
            match key.as_str() {
                keys::NVME_ADDRESS => address = Some(id(&value_field, value, HostAddress::parse)?),
                keys::NVME_PORT => port = Some(number(&value_field, value, 1, u16::MAX)?),
                keys::NVME_NQN => nqn = Some(nqn_of(&value_field, value, volume)?),
                keys::FS_TYPE => {
                    let refused = || RequestError::invalid(value_field.as_str(), "is neither ext4 nor xfs");
                    fs_type = Some(FsType::parse(value).ok_or_else(refused)?);
                }
                keys::GENERATION => generation = Some(Generation(number(&value_field, value, 1, u64::MAX)?)),
                _ => ignore(&value_field, key, value)?,
            }
        }
        let missing = |key: &str| RequestError::required(format!("{field}[{key}]"));
        Ok(Self {
            nvme_address: address.ok_or_else(|| missing(keys::NVME_ADDRESS))?,
            nvme_port: port.ok_or_else(|| missing(keys::NVME_PORT))?,
            nvme_nqn: nqn.ok_or_else(|| missing(keys::NVME_NQN))?,
            fs_type: fs_type.ok_or_else(|| missing(keys::FS_TYPE))?,
            generation: generation.ok_or_else(|| missing(keys::GENERATION))?,
        })
    }
}

/// The name of a map's entry in errors, once its key is fit to be shown.
fn entry(field: &str, key: &str) -> Result<String, RequestError> {
    check_key(field, key)?;
    Ok(format!("{field}[{key}]"))
}

fn ignore(field: &str, key: &str, value: &str) -> Result<(), RequestError> {
    if KUBERNETES_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        return Ok(());
    }
    check_ignored_value(field, value)
}

/// An NQN of another volume would make a node connect to the wrong disk.
fn nqn_of(field: &str, value: &str, volume: &VolumeId) -> Result<Nqn, RequestError> {
    let nqn = id(field, value, Nqn::parse)?;
    match nqn.as_str().rsplit_once(':') {
        Some((_, suffix)) if suffix == volume.as_str() => Ok(nqn),
        Some(_) | None => {
            Err(RequestError::invalid(field, format!("{nqn} is not the NQN of volume {volume}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use state_machine::{AppliancePath, MkfsOptions};

    fn volume() -> VolumeId {
        VolumeId::parse("pvc-0b4fb0c0-5f5a-4a53-a6d8-2f6f4b1ff001").unwrap()
    }

    fn nqn() -> Nqn {
        Nqn::of_volume(&Nqn::parse("nqn.2000-02.com.mikrotik").unwrap(), &volume()).unwrap()
    }

    fn address(text: &str) -> HostAddress {
        HostAddress::parse(text).unwrap()
    }

    fn published(generation: u64, nvme_port: u16, fs_type: FsType) -> PublishContext {
        let generation = Generation(generation);
        PublishContext { nvme_address: address("192.0.2.1"), nvme_port, nvme_nqn: nqn(), fs_type, generation }
    }

    #[test]
    fn the_volume_context_comes_back_as_it_went_out() {
        let path = AppliancePath::parse("/pool/volumes").unwrap();
        let parameters = VolumeParameters {
            fs_type: FsType::Xfs,
            mkfs_options: Some(MkfsOptions::parse("-m reflink=0 -K").unwrap()),
            fast_io_fail_tmo_seconds: 30,
            keep_alive_tmo_seconds: 7,
            nr_io_queues: Some(4),
            ..VolumeParameters::with_defaults(path, address("192.0.2.1"), 4420)
        };
        let mut map = volume_context(&parameters, &nqn(), &address("198.51.100.1"));
        let keys: Vec<_> = map.keys().map(String::as_str).collect();
        let expected = [
            "ctrlLossTmo",
            "fastIoFailTmo",
            "keepAliveTmo",
            "migrationTimeoutSeconds",
            "mkfsOptions",
            "nqn",
            "nrIoQueues",
            "nvmeAddress",
            "nvmePort",
            "rdsAddress",
            "reconnectDelay",
            "sameVmCheck",
            "volumePath",
        ];
        assert_eq!(keys, expected);

        map.insert(
            "storage.kubernetes.io/csiProvisionerIdentity".to_owned(),
            "1-2-rds.csi.srvlab.io".to_owned(),
        );
        map.insert("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), "{\"a\": \"b\"}".to_owned());
        map.insert("ofANewerVersion".to_owned(), "something".to_owned());
        let context = VolumeContext::parse("volume_context", &map, &volume()).unwrap();
        assert_eq!(context.parameters.first_difference(&parameters), None);
        assert_eq!(context.parameters.keep_alive_tmo_seconds, Some(7));
        assert_eq!(context.parameters.fast_io_fail_tmo_seconds, Some(30));
        assert_eq!(context.parameters.nr_io_queues, Some(4));
        assert_eq!(context.parameters.mkfs_options, parameters.mkfs_options);
        assert_eq!((context.nqn, context.rds_address), (Some(nqn()), Some(address("198.51.100.1"))));
    }

    #[test]
    fn what_is_left_to_the_node_is_not_in_the_volume_context() {
        let path = AppliancePath::parse("/pool/volumes").unwrap();
        let parameters = VolumeParameters::with_defaults(path, address("192.0.2.1"), 4420);
        let map = volume_context(&parameters, &nqn(), &address("198.51.100.1"));
        assert!(!map.contains_key("mkfsOptions") && !map.contains_key("nrIoQueues"), "{map:?}");
        let context = VolumeContext::parse("volume_context", &map, &volume()).unwrap();
        assert_eq!((context.parameters.nr_io_queues, context.parameters.mkfs_options), (None, None));
        assert_eq!(context.parameters.fast_io_fail_tmo_seconds, Some(-1));
    }

    #[test]
    fn a_volume_context_may_be_empty() {
        let context = VolumeContext::parse("volume_context", &BTreeMap::new(), &volume()).unwrap();
        assert_eq!(context, VolumeContext::default());
    }

    #[test]
    fn each_missing_or_wrong_entry_of_a_publish_context_is_named() {
        let parse = |map: &BTreeMap<String, String>| PublishContext::parse("publish_context", map, &volume());
        let good = published(7, 4420, FsType::Ext4).to_map();
        for key in ["nvme_address", "nvme_port", "nvme_nqn", "fs_type", "generation"] {
            let field = format!("publish_context[{key}]");
            let mut map = good.clone();
            map.remove(key);
            assert_eq!(parse(&map), Err(RequestError::required(field.as_str())));
            for bad in [" ", "a;b", "-1", "\0"] {
                map.insert(key.to_owned(), bad.to_owned());
                assert!(
                    matches!(parse(&map), Err(RequestError::Invalid { field: found, .. }) if found == field)
                );
            }
        }
    }

    #[test]
    fn another_volumes_nqn_is_refused() {
        let other = VolumeId::parse("pvc-2").unwrap();
        let map = published(7, 4420, FsType::Ext4).to_map();
        assert!(PublishContext::parse("publish_context", &map, &other).is_err());
        let map = BTreeMap::from([("nqn".to_owned(), nqn().to_string())]);
        assert!(VolumeContext::parse("volume_context", &map, &other).is_err());
        // The id has to be the whole suffix.
        let longer = VolumeId::parse(&format!("x{}", volume())).unwrap();
        assert!(VolumeContext::parse("volume_context", &map, &longer).is_err());
    }

    proptest! {
        #[test]
        fn a_publish_context_comes_back_as_it_went_out(
            generation in 1..=u64::MAX, port in 1..=u16::MAX, xfs in any::<bool>(),
        ) {
            let context = published(generation, port, if xfs { FsType::Xfs } else { FsType::Ext4 });
            prop_assert_eq!(PublishContext::parse("p", &context.to_map(), &volume()), Ok(context));
        }
    }
}
