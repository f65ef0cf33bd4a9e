//! A ledger to talk to in tests: short names in, responses out, every invariant checked after every command.

use crate::*;

pub(crate) const V: &str = "pvc-00000000-0000-4000-8000-000000000001";

pub(crate) const BLOCK_RWX: AttachmentMode = AttachmentMode {
    access_mode: AccessMode::MultiNodeMultiWriter,
    access_type: AccessType::Block,
    read_only: false,
};
pub(crate) const EXT4_RWO: AttachmentMode = AttachmentMode {
    access_mode: AccessMode::SingleNodeWriter,
    access_type: AccessType::Mount { fs_type: FsType::Ext4 },
    read_only: false,
};

pub(crate) fn volume(text: &str) -> VolumeId {
    VolumeId::parse(text).unwrap()
}

pub(crate) fn node(text: &str) -> NodeId {
    NodeId::parse(text).unwrap()
}

pub(crate) fn size(gibibytes: u64) -> ByteSize {
    ByteSize::at_least(gibibytes << 30).unwrap()
}

pub(crate) fn parameters() -> VolumeParameters {
    VolumeParameters::with_defaults(
        AppliancePath::parse("/storage-pool/metal-csi").unwrap(),
        HostAddress::parse("127.0.0.1").unwrap(),
        4420,
    )
}

pub(crate) fn problem(kind: ProblemKind) -> Problem {
    Problem { kind, message: "told by a test".to_owned() }
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) state: State,
    now: LedgerTime,
    since_boot_ns: u64,
}

impl Ledger {
    /// Nodes a to d registered, and the volume `V` of 1 GiB ready.
    pub(crate) fn with_volume() -> Self {
        let mut ledger = Self::default();
        for name in ["a", "b", "c", "d"] {
            assert_eq!(ledger.register(name, "boot-1", 0), Response::Done);
        }
        let generation = ledger.create(V, 1).generation();
        ledger.created(V, generation);
        ledger
    }

    pub(crate) fn apply(&mut self, command: Command) -> Response {
        let response = self.state.apply(Entry { at: self.now, command });
        assert_eq!(self.state.violations(), Vec::<String>::new());
        response
    }

    pub(crate) fn pass_seconds(&mut self, seconds: u32) {
        self.now = self.now.plus_seconds(seconds);
        assert_eq!(self.apply(Command::Tick), Response::Done);
    }

    pub(crate) fn register(&mut self, name: &str, boot: &str, max_volumes: u32) -> Response {
        self.register_as(name, boot, None, max_volumes)
    }

    pub(crate) fn reboot(&mut self, name: &str, replaces: &str, boot: &str) -> Response {
        self.register_as(name, boot, Some(replaces), 0)
    }

    fn register_as(&mut self, name: &str, boot: &str, replaces: Option<&str>, max_volumes: u32) -> Response {
        self.apply(Command::RegisterNode {
            node: node(name),
            boot: BootId::parse(boot).unwrap(),
            replaces: replaces.map(|boot| BootId::parse(boot).unwrap()),
            host_nqn: Nqn::parse(&format!("nqn.2014-08.org.nvmexpress:{name}")).unwrap(),
            max_volumes,
        })
    }

    pub(crate) fn create(&mut self, id: &str, gibibytes: u64) -> Response {
        self.apply(Command::CreateVolume {
            id: volume(id),
            name: VolumeName::parse(id).unwrap(),
            required: size(gibibytes),
            limit_bytes: None,
            parameters: parameters(),
        })
    }

    pub(crate) fn created(&mut self, id: &str, generation: Generation) {
        assert_eq!(self.apply(Command::SlotWasFree { volume: volume(id), generation }), Response::Done);
        assert_eq!(self.apply(Command::VolumeCreated { volume: volume(id), generation }), Response::Done);
    }

    pub(crate) fn publish_as(&mut self, name: &str, mode: AttachmentMode, observed: Observed) -> Response {
        self.apply(Command::Publish { volume: volume(V), node: node(name), mode, observed })
    }

    pub(crate) fn publish(&mut self, name: &str, mode: AttachmentMode) -> Response {
        self.publish_as(name, mode, Observed::default())
    }

    /// Publishes and confirms the export.
    pub(crate) fn grant(&mut self, name: &str, mode: AttachmentMode) -> Generation {
        let generation = self.publish(name, mode).generation();
        let confirmed = Command::ExportConfirmed { volume: volume(V), node: node(name), generation };
        assert_eq!(self.apply(confirmed), Response::Done);
        generation
    }

    pub(crate) fn unpublish(&mut self, name: &str) -> Response {
        self.apply(Command::Unpublish { volume: volume(V), node: Some(node(name)), require_proof: true })
    }

    /// The next moment on any node, in boot `boot`.
    pub(crate) fn moment(&mut self, boot: &str) -> NodeMoment {
        self.since_boot_ns += 1;
        NodeMoment { boot: BootId::parse(boot).unwrap(), since_boot_ns: self.since_boot_ns }
    }

    pub(crate) fn permit(&mut self, name: &str, generation: Generation, moment: NodeMoment) -> Response {
        self.apply(Command::PermitConnect { volume: volume(V), node: node(name), generation, moment })
    }

    pub(crate) fn report_off(&mut self, name: &str, moment: NodeMoment) -> Response {
        self.apply(Command::ReportDisconnected { volume: volume(V), node: node(name), moment })
    }

    /// Grants, and lets the node ask to connect.
    pub(crate) fn connect(&mut self, name: &str, mode: AttachmentMode) -> Generation {
        let generation = self.grant(name, mode);
        let moment = self.moment("boot-1");
        assert_eq!(self.permit(name, generation, moment), Response::Done);
        generation
    }

    pub(crate) fn volume(&self) -> &Volume {
        self.state.volume(&volume(V)).unwrap()
    }

    pub(crate) fn holders(&self) -> Vec<&str> {
        self.volume().attachments.keys().map(NodeId::as_str).collect()
    }
}

impl Response {
    pub(crate) fn generation(self) -> Generation {
        if let Response::Pending { generation } | Response::Attached { generation } = self {
            return generation;
        }
        panic!("no generation in {self:?}")
    }

    pub(crate) fn refusal(self) -> Refusal {
        let Response::Refused(refusal) = self else { panic!("not refused: {self:?}") };
        refusal
    }
}
