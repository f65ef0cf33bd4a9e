//! What the parsers make of requests, and of those that lack something: CSI 1.12's required fields.

use std::collections::BTreeMap;

use csi::parse::{self, ClassDefaults, RequestError};
use proto::csi::v1;
use proto::csi::v1::volume_capability::access_mode::Mode;
use proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use state_machine::{AppliancePath, FsType, HostAddress, VolumeId};
use tonic::{Code, Status};

fn defaults() -> ClassDefaults {
    ClassDefaults {
        volume_path: AppliancePath::parse("/pool/volumes").expect("is a path"),
        nvme_address: HostAddress::parse("192.0.2.1").expect("is an address"),
        nvme_port: 4420,
    }
}

fn capability(mode: Mode, access_type: AccessType) -> v1::VolumeCapability {
    v1::VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(access_type),
    }
}

fn mount(fs_type: &str) -> v1::VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.to_owned(), ..Default::default() };
    capability(Mode::SingleNodeWriter, AccessType::Mount(mount))
}

fn rwx(access_type: AccessType) -> v1::VolumeCapability {
    capability(Mode::MultiNodeMultiWriter, access_type)
}

fn create() -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        name: "sanity-1".to_owned(),
        volume_capabilities: vec![mount("")],
        ..Default::default()
    }
}

fn field_of<T: std::fmt::Debug>(result: Result<T, RequestError>) -> String {
    let Err(RequestError::Invalid { field, .. }) = result else { panic!("not INVALID_ARGUMENT: {result:?}") };
    field
}

#[test]
fn a_volume_is_created_by_name() {
    let parsed = parse::CreateVolume::parse(&create(), &defaults()).unwrap();
    assert_eq!(parsed.volume, VolumeId::for_name(&parsed.name));
    assert_eq!(parsed.size.required.bytes(), parse::DEFAULT_VOLUME_BYTES);
    assert_eq!(parsed.parameters.volume_path, defaults().volume_path);
}

#[test]
fn a_volume_has_the_one_file_system_that_all_agree_on() {
    let fs_type = |class: &str, capabilities: &[&str]| {
        let mut request = create();
        request.volume_capabilities = capabilities.iter().map(|name| mount(name)).collect();
        request.parameters = BTreeMap::from([("fsType".to_owned(), class.to_owned())]);
        parse::CreateVolume::parse(&request, &defaults()).map(|parsed| parsed.parameters.fs_type)
    };
    assert_eq!(fs_type("", &[""]), Ok(FsType::Ext4));
    assert_eq!(fs_type("xfs", &[""]), Ok(FsType::Xfs));
    assert_eq!(fs_type("", &["", "xfs"]), Ok(FsType::Xfs));
    assert_eq!(fs_type("xfs", &["xfs"]), Ok(FsType::Xfs));
    assert_eq!(field_of(fs_type("xfs", &["ext4"])), "volume_capabilities[0].mount.fs_type");
    assert_eq!(field_of(fs_type("", &["ext4", "xfs"])), "volume_capabilities[1].mount.fs_type");
}

/// Where a request names the options of `mkfs` that do not fit its file system, if they do not.
fn refused<T: std::fmt::Debug>(result: Result<T, RequestError>) -> Option<String> {
    result.is_err().then(|| field_of(result))
}

#[test]
fn options_of_mkfs_are_for_the_file_system_that_is_made() {
    let options = |text: &str| BTreeMap::from([("mkfsOptions".to_owned(), text.to_owned())]);
    let created = |fs_type: &str, text: &str| {
        let mut request = create();
        request.volume_capabilities = vec![mount(fs_type)];
        request.parameters = options(text);
        let capacity = v1::GetCapacityRequest {
            volume_capabilities: request.volume_capabilities.clone(),
            parameters: request.parameters.clone(),
            ..Default::default()
        };
        let created = refused(parse::CreateVolume::parse(&request, &defaults()));
        assert_eq!(refused(parse::GetCapacity::parse(&capacity, &defaults())), created);
        created
    };
    let staged = |fs_type: &str, text: &str| {
        let nqn = "nqn.2000-02.com.mikrotik:pvc-1";
        let publish = [
            ("nvme_address", "192.0.2.1"),
            ("nvme_port", "4420"),
            ("nvme_nqn", nqn),
            ("fs_type", fs_type),
            ("generation", "7"),
        ];
        let mut request = v1::NodeStageVolumeRequest {
            volume_id: "pvc-1".to_owned(),
            staging_target_path: "/staging".to_owned(),
            volume_capability: Some(mount("")),
            publish_context: publish.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            volume_context: options(text),
            ..Default::default()
        };
        let mounted = refused(parse::NodeStage::parse(&request));
        // Nobody makes a file system on a block volume.
        request.volume_capability = Some(rwx(AccessType::Block(BlockVolume {})));
        assert_eq!(refused(parse::NodeStage::parse(&request)), None);
        mounted
    };
    for (fs_type, text, fits) in [
        ("ext4", "-m 0", true),
        ("xfs", "-m reflink=0", true),
        ("ext4", "-m reflink=0", false),
        ("xfs", "-m 0", false),
        ("ext4", "-F", false),
        ("xfs", "-f", false),
        ("xfs", "-l logdev=sdb", false),
    ] {
        let field = |map: &str| (!fits).then(|| format!("{map}[mkfsOptions]"));
        assert_eq!(created(fs_type, text), field("parameters"), "{fs_type} {text}");
        assert_eq!(staged(fs_type, text), field("volume_context"), "{fs_type} {text}");
    }
    assert_eq!(
        created("", "-m reflink=0"),
        Some("parameters[mkfsOptions]".to_owned()),
        "ext4 is the default"
    );
}

#[test]
fn each_thing_that_create_does_not_do_is_refused_by_name() {
    type Change = fn(&mut v1::CreateVolumeRequest);
    let rows: [(&str, Change); 8] = [
        ("name", |request| request.name.clear()),
        ("volume_capabilities", |request| request.volume_capabilities.clear()),
        ("volume_capabilities[1].access_mode", |request| {
            request.volume_capabilities.push(rwx(AccessType::Mount(MountVolume::default())));
        }),
        ("capacity_range.required_bytes", |request| {
            request.capacity_range = Some(v1::CapacityRange { required_bytes: -1, limit_bytes: 0 });
        }),
        ("parameters[compress]", |request| {
            request.parameters.insert("compress".to_owned(), "yes".to_owned());
        }),
        ("volume_content_source", |request| request.volume_content_source = Some(Default::default())),
        ("mutable_parameters", |request| {
            request.mutable_parameters.insert("iops".to_owned(), "100".to_owned());
        }),
        ("parameters[nvmePort]", |request| {
            request.parameters.insert("nvmePort".to_owned(), "x".to_owned());
        }),
    ];
    for (field, change) in rows {
        let mut request = create();
        change(&mut request);
        assert_eq!(field_of(parse::CreateVolume::parse(&request, &defaults())), field);
    }
}

#[test]
fn rwx_block_is_created_and_published() {
    let mut request = create();
    request.volume_capabilities = vec![rwx(AccessType::Block(BlockVolume {}))];
    assert!(parse::CreateVolume::parse(&request, &defaults()).is_ok());

    let mut request = v1::ControllerPublishVolumeRequest {
        volume_id: "pvc-1".to_owned(),
        node_id: "node-a".to_owned(),
        volume_capability: Some(rwx(AccessType::Block(BlockVolume {}))),
        ..Default::default()
    };
    assert!(parse::ControllerPublish::parse(&request).is_ok());
    request.volume_capability = Some(rwx(AccessType::Mount(MountVolume::default())));
    let status = Status::from(parse::ControllerPublish::parse(&request).unwrap_err());
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("`volumeMode: Block`"), "{}", status.message());
}

#[test]
fn validation_tells_unsupported_from_malformed() {
    let validate = |capability: v1::VolumeCapability| {
        parse::ValidateCapabilities::parse(&v1::ValidateVolumeCapabilitiesRequest {
            volume_id: "pvc-1".to_owned(),
            volume_capabilities: vec![capability],
            ..Default::default()
        })
    };
    assert!(validate(mount("xfs")).unwrap().capabilities.is_ok());
    let unsupported = [
        rwx(AccessType::Mount(MountVolume::default())),
        capability(Mode::MultiNodeReaderOnly, AccessType::Block(BlockVolume {})),
        mount("btrfs"),
    ];
    for capability in unsupported {
        assert!(validate(capability.clone()).unwrap().capabilities.is_err(), "{capability:?}");
    }
    assert_eq!(field_of(validate(v1::VolumeCapability::default())), "volume_capabilities[0].access_mode");
    assert_eq!(field_of(validate(mount("ext4; rm"))), "volume_capabilities[0].mount.fs_type");
}

#[test]
fn an_empty_node_id_unpublishes_everywhere_and_publishes_nowhere() {
    let volume_id = "pvc-1".to_owned();
    let unpublish =
        v1::ControllerUnpublishVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
    assert_eq!(parse::ControllerUnpublish::parse(&unpublish).unwrap().node, None);
    let publish = v1::ControllerPublishVolumeRequest { volume_id, ..Default::default() };
    assert_eq!(field_of(parse::ControllerPublish::parse(&publish)), "node_id");
}

#[test]
fn pages_go_on_where_they_ended() {
    let list = |max_entries, token: &str| {
        parse::ListVolumes::parse(&v1::ListVolumesRequest { max_entries, starting_token: token.to_owned() })
    };
    let last = VolumeId::parse("pvc-1").unwrap();
    let page = list(2, &parse::list_token(&last)).unwrap();
    assert_eq!((page.max_entries, page.after), (Some(2), Some(last)));
    assert_eq!(list(0, "").unwrap(), parse::ListVolumes { max_entries: None, after: None });
    assert_eq!(field_of(list(-1, "")), "max_entries");
    for token in ["invalid-token", "pvc-1", "after:", "after:-x"] {
        assert_eq!(Status::from(list(0, token).unwrap_err()).code(), Code::Aborted, "{token}");
    }
}

#[test]
fn nodes_need_paths_and_contexts() {
    let mut stage = v1::NodeStageVolumeRequest {
        volume_id: "pvc-1".to_owned(),
        staging_target_path: "/staging".to_owned(),
        volume_capability: Some(mount("")),
        ..Default::default()
    };
    assert_eq!(field_of(parse::NodeStage::parse(&stage)), "publish_context[nvme_address]");
    stage.volume_capability = None;
    assert_eq!(field_of(parse::NodeStage::parse(&stage)), "volume_capability");
    stage.staging_target_path.clear();
    assert_eq!(field_of(parse::NodeStage::parse(&stage)), "staging_target_path");

    let mut publish = v1::NodePublishVolumeRequest { volume_id: "pvc-1".to_owned(), ..Default::default() };
    assert_eq!(field_of(parse::NodePublish::parse(&publish)), "target_path");
    publish.target_path = "/target".to_owned();
    assert_eq!(field_of(parse::NodePublish::parse(&publish)), "volume_capability");
}

#[test]
fn no_volume_is_at_a_relative_path() {
    let (volume_id, volume_path) = ("pvc-1".to_owned(), "some/path".to_owned());
    let stats = v1::NodeGetVolumeStatsRequest {
        volume_id: volume_id.clone(),
        volume_path: volume_path.clone(),
        ..Default::default()
    };
    assert_eq!(Status::from(parse::NodeStats::parse(&stats).unwrap_err()).code(), Code::NotFound);
    let expand = v1::NodeExpandVolumeRequest { volume_id, volume_path, ..Default::default() };
    assert_eq!(Status::from(parse::NodeExpand::parse(&expand).unwrap_err()).code(), Code::NotFound);
}
