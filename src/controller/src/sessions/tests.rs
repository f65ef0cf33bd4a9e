//! The core with a real ledger and an injected clock.

use std::time::Duration;

use proto::node::v1::{NodeReport, VolumeReport};
use state_machine::{
    AccessMode, AccessType, AppliancePath, AttachmentMode, BootId, ByteSize, Command, Entry as LedgerEntry,
    Generation, HostAddress, LedgerTime, NodeId, NodeMoment, Nqn, Observed, OffProof, Response, State,
    VolumeId, VolumeName, VolumeParameters,
};

use super::core::{Effect, Event, NOT_ATTACHED, Note, Refused, SILENCE, SessionId, Sessions};
use super::report::Report;
use super::sight::{Sight, Usage};

const TERM: u64 = 7;
const BOOT: &str = "boot-1";

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn volume() -> VolumeId {
    VolumeId::parse("pvc-00000000-0000-4000-8000-000000000001").unwrap()
}

fn boot(name: &str) -> BootId {
    BootId::parse(name).unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A leader with a ledger, and what its nodes say.
struct Desk {
    state: State,
    core: Sessions,
    now: Duration,
    /// The nodes' boot-time clock.
    since_boot_ns: u64,
}

impl Desk {
    /// In office, with two nodes and one volume.
    fn new() -> Self {
        let mut desk = Self::not_in_office();
        assert_eq!(desk.step(Event::TookOffice { term: TERM }), []);
        desk
    }

    fn not_in_office() -> Self {
        let mut desk =
            Self { state: State::default(), core: Sessions::default(), now: seconds(100), since_boot_ns: 0 };
        for name in ["a", "b"] {
            desk.register(name, BOOT, None);
        }
        let parameters = VolumeParameters::with_defaults(
            AppliancePath::parse("/pool/csi").unwrap(),
            HostAddress::parse("192.0.2.1").unwrap(),
            4420,
        );
        let create = Command::CreateVolume {
            id: volume(),
            name: VolumeName::parse(volume().as_str()).unwrap(),
            required: ByteSize::at_least(1 << 30).unwrap(),
            limit_bytes: None,
            parameters,
        };
        let Response::Pending { generation } = desk.apply(create) else { panic!("not created") };
        desk.apply(Command::SlotWasFree { volume: volume(), generation });
        desk.apply(Command::VolumeCreated { volume: volume(), generation });
        desk
    }

    fn nodes_with(&self) -> Vec<NodeId> {
        self.core.nodes_with(&volume(), &self.state, self.now).into_iter().collect()
    }

    fn apply(&mut self, command: Command) -> Response {
        self.state.apply(LedgerEntry { at: LedgerTime(0), command })
    }

    fn register(&mut self, name: &str, id: &str, replaces: Option<&str>) {
        let register = Command::RegisterNode {
            node: node(name),
            boot: boot(id),
            replaces: replaces.map(boot),
            host_nqn: Nqn::parse(&format!("nqn.2014-08.{name}")).unwrap(),
            max_volumes: 0,
        };
        assert_eq!(self.apply(register), Response::Done);
    }

    fn moment(&mut self) -> NodeMoment {
        self.since_boot_ns += 1;
        NodeMoment { boot: boot(BOOT), since_boot_ns: self.since_boot_ns }
    }

    /// Publishes the volume to the node and lets it connect.
    fn attach(&mut self, name: &str) -> Generation {
        let mode = AttachmentMode {
            access_mode: AccessMode::MultiNodeMultiWriter,
            access_type: AccessType::Block,
            read_only: false,
        };
        let (volume, node) = (volume(), node(name));
        let publish = Command::Publish {
            volume: volume.clone(),
            node: node.clone(),
            mode,
            observed: Observed::default(),
        };
        let Response::Attached { generation } = self.apply(publish) else { panic!("not published") };
        self.apply(Command::ExportConfirmed { volume: volume.clone(), node: node.clone(), generation });
        let moment = self.moment();
        let permit = Command::PermitConnect { volume, node, generation, moment };
        assert_eq!(self.apply(permit), Response::Done);
        generation
    }

    fn unpublish(&mut self, name: &str, require_proof: bool) -> Vec<Effect> {
        self.apply(Command::Unpublish { volume: volume(), node: Some(node(name)), require_proof });
        self.step(Event::LedgerChanged)
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.core.step(event, &self.state, self.now)
    }

    /// A report that is made now.
    fn report(&mut self, name: &str, echo: u64, seen: &[VolumeReport]) -> NodeReport {
        NodeReport {
            node_id: name.to_owned(),
            boot_id: BOOT.to_owned(),
            host_nqn: format!("nqn.2014-08.{name}"),
            since_boot_ns: self.moment().since_boot_ns,
            echo,
            unchanged: false,
            incomplete: String::new(),
            volumes: seen.to_vec(),
        }
    }

    fn hear(&mut self, session: u64, report: NodeReport) -> Vec<Effect> {
        let node = node(&report.node_id);
        self.step(Event::Heard { session: SessionId(session), node, report: Report::parse(report).unwrap() })
    }

    /// Session `session` of the node says this now.
    fn says(&mut self, session: u64, name: &str, echo: u64, seen: &[VolumeReport]) -> Vec<Effect> {
        let report = self.report(name, echo, seen);
        self.hear(session, report)
    }

    fn sight(&self, name: &str) -> Sight {
        self.core.sight(&volume(), &node(name), &self.state, self.now)
    }

    #[track_caller]
    fn unknown(&self, name: &str, because: &str) {
        match self.sight(name) {
            Sight::Unknown { why } => assert!(why.contains(because), "{because:?} is not in {why:?}"),
            known @ (Sight::Absent { .. } | Sight::Connected { .. }) => panic!("{known:?}"),
        }
    }
}

fn seen(connected: bool, held_by: &[&str]) -> VolumeReport {
    VolumeReport {
        volume_id: volume().to_string(),
        connected,
        held_by: held_by.iter().map(|who| (*who).to_owned()).collect(),
        ..VolumeReport::default()
    }
}

fn idle() -> VolumeReport {
    seen(true, &[])
}

fn held() -> VolumeReport {
    seen(true, &["process 7 (qemu-kvm)"])
}

fn busy() -> VolumeReport {
    VolumeReport { busy: true, ..seen(false, &[]) }
}

fn order(session: u64, number: u64, cuts: &[Generation]) -> Effect {
    let cuts = cuts.iter().map(|generation| (volume(), *generation)).collect();
    Effect::Order { session: SessionId(session), number, cuts }
}

fn close(session: u64, why: Refused) -> Vec<Effect> {
    vec![Effect::Close { session: SessionId(session), why }]
}

#[test]
fn a_volume_is_known_absent_or_unknown() {
    let mut desk = Desk::new();
    desk.unknown("a", "no session");
    assert_eq!(desk.says(1, "a", 0, &[]), []);
    let Sight::Absent { look } = desk.sight("a") else { panic!("{:?}", desk.sight("a")) };
    assert_eq!((look.heard_at, look.moment.boot.as_str()), (desk.now, BOOT));
    desk.unknown("b", "no session");

    for (report, expected) in [
        (idle(), Usage::Idle),
        (held(), Usage::InUse { by: vec!["process 7 (qemu-kvm)".to_owned()] }),
        (busy(), Usage::Busy),
        (VolumeReport { unseen: "why".to_owned(), ..idle() }, Usage::Unseen { why: "why".to_owned() }),
    ] {
        desk.attach("a");
        desk.says(1, "a", 0, &[report]);
        let Sight::Connected { used, .. } = desk.sight("a") else { panic!("{:?}", desk.sight("a")) };
        assert_eq!(used, expected);
        assert_eq!(desk.nodes_with(), [node("a")]);
    }
    desk.says(1, "a", 0, &[VolumeReport { unseen: "no sysfs".to_owned(), ..seen(false, &[]) }]);
    desk.unknown("a", "no sysfs");
    let incomplete = NodeReport { incomplete: "no fabric".to_owned(), ..desk.report("a", 0, &[]) };
    desk.hear(1, incomplete);
    desk.unknown("a", "no fabric");
    assert_eq!(desk.nodes_with(), [], "nobody says that it is connected");

    desk.says(1, "a", 0, &[]);
    desk.step(Event::Ended { session: SessionId(1), node: node("a") });
    desk.unknown("a", "no session");
}

#[test]
fn who_may_have_a_volume_connected_is_not_forgotten_with_the_session() {
    let mut desk = Desk::new();
    desk.says(1, "a", 0, &[held()]);
    desk.step(Event::Ended { session: SessionId(1), node: node("a") });
    assert_eq!(desk.nodes_with(), [node("a")]);
    desk.says(3, "a", 0, &[]);
    assert_eq!(desk.nodes_with(), []);

    // A new leader has heard nobody; of whom somebody said that it is off, it waits to hear.
    let up_to = desk.attach("a");
    desk.attach("b");
    let words = desk.state.nodes()[&node("a")].words;
    let proof = OffProof::Operator { name: "dev".to_owned() };
    desk.apply(Command::NodeIsOff { node: node("a"), volume: None, up_to, words, proof });
    desk.step(Event::LeftOffice);
    desk.step(Event::TookOffice { term: TERM + 1 });
    assert_eq!(desk.nodes_with(), [node("a")]);
    desk.now += SILENCE;
    assert_eq!(desk.nodes_with(), [], "who is silent for so long is not waited for");
}

#[test]
fn after_thirty_seconds_of_silence_nothing_is_known() {
    let mut desk = Desk::new();
    desk.attach("a");
    desk.says(1, "a", 0, &[held()]);
    desk.now += SILENCE - Duration::from_millis(1);
    assert!(matches!(desk.sight("a"), Sight::Connected { .. }));
    desk.now += Duration::from_millis(1);
    desk.unknown("a", "nothing was heard of node a for 30 s");
    // Not even a revocation makes anything of what was known.
    assert_eq!(desk.unpublish("a", true), []);
    let again = NodeReport { unchanged: true, ..desk.report("a", 0, &[]) };
    desk.hear(1, again);
    assert!(
        matches!(desk.sight("a"), Sight::Connected { used: Usage::InUse { .. }, .. }),
        "the same as before"
    );
}

#[test]
fn a_new_office_begins_with_nothing() {
    let mut desk = Desk::new();
    desk.says(1, "a", 0, &[]);
    assert_eq!(desk.core.last_heard(&node("a")), Some(desk.now));
    assert_eq!(desk.step(Event::LeftOffice), close(1, Refused::NotInOffice));
    desk.unknown("a", "does not lead");
    assert_eq!(desk.says(2, "a", 0, &[]), close(2, Refused::NotInOffice));
    desk.now += seconds(5);
    assert_eq!(desk.step(Event::TookOffice { term: TERM + 1 }), []);
    desk.unknown("a", "no session");
    assert_eq!(desk.core.last_heard(&node("a")), None);
    assert_eq!(desk.core.in_office_since(), Some(desk.now));
    // A term that follows at once is another office all the same.
    desk.says(3, "a", 0, &[]);
    assert_eq!(desk.step(Event::TookOffice { term: TERM + 2 }), close(3, Refused::NotInOffice));
    desk.unknown("a", "no session");
}

#[test]
fn when_a_node_was_heard_outlives_its_session_for_a_while() {
    let mut desk = Desk::new();
    let heard = desk.now;
    desk.says(1, "a", 0, &[]);
    desk.now += seconds(60);
    desk.step(Event::Ended { session: SessionId(1), node: node("a") });
    assert_eq!(desk.core.last_heard(&node("a")), Some(heard));
    desk.now += seconds(600);
    desk.says(2, "b", 0, &[]);
    desk.step(Event::Ended { session: SessionId(2), node: node("b") });
    assert_eq!(desk.core.last_heard(&node("a")), None);
    assert_eq!(desk.core.last_heard(&node("b")), Some(desk.now));
}

#[test]
fn an_answer_is_told_by_its_echo() {
    let mut desk = Desk::new();
    assert_eq!(desk.core.ask([&node("a")]), (1, vec![]), "nobody to ask");
    // A number that the node cannot have from this session is none.
    desk.says(1, "a", 99, &[]);
    assert!(!desk.sight("a").is_settled(1));
    let (number, effects) = desk.core.ask([&node("a")]);
    assert_eq!((number, effects), (2, vec![order(1, 2, &[])]));
    desk.says(1, "a", 1, &[]);
    assert!(!desk.sight("a").is_settled(number), "a look that began before the question");
    desk.says(1, "a", 2, &[]);
    assert!(desk.sight("a").is_settled(number));
    desk.says(2, "b", 0, &[]);
    let both = [node("a"), node("b")];
    let (number, effects) = desk.core.ask(&both);
    assert_eq!((number, effects), (3, vec![order(1, 3, &[]), order(2, 3, &[])]));
    desk.says(1, "a", 3, &[]);
    assert!(desk.sight("a").is_settled(3) && !desk.sight("b").is_settled(3));
    // Numbers go on over offices, so that an old echo is never a new one.
    desk.step(Event::LeftOffice);
    desk.step(Event::TookOffice { term: TERM + 1 });
    assert_eq!(desk.core.ask(&both).0, 4);
}

#[test]
fn a_session_that_begins_after_the_question_is_asked_it_too() {
    let mut desk = Desk::new();
    assert_eq!(desk.says(1, "b", 0, &[]), [], "nobody asked");
    let (number, _) = desk.core.ask([&node("a")]);
    assert_eq!(desk.says(2, "a", 0, &[]), [order(2, number, &[])]);
    assert!(!desk.sight("a").is_settled(number), "the first look is older than that");
    assert_eq!(desk.says(2, "a", number, &[]), []);
    assert!(desk.sight("a").is_settled(number));
    // The next office has asked nobody yet.
    desk.step(Event::TookOffice { term: TERM + 1 });
    assert_eq!(desk.says(3, "a", 0, &[]), []);
}

#[test]
fn who_may_begin_a_session() {
    let mut desk = Desk::new();
    assert_eq!(desk.says(1, "z", 0, &[]), close(1, Refused::NotRegistered(node("z"))));
    let other_boot = NodeReport { boot_id: "boot-0".to_owned(), ..desk.report("a", 0, &[]) };
    assert_eq!(desk.hear(2, other_boot), close(2, Refused::OtherBoot(node("a"))));
    let other_host = NodeReport { host_nqn: "nqn.2014-08.b".to_owned(), ..desk.report("a", 0, &[]) };
    assert_eq!(desk.hear(3, other_host), close(3, Refused::OtherHost(node("a"))));
    let nobody = NodeReport { host_nqn: String::new(), ..desk.report("a", 0, &[]) };
    assert_eq!(desk.hear(4, nobody), close(4, Refused::NoBeginning));
    let nothing = NodeReport { unchanged: true, ..desk.report("a", 0, &[]) };
    assert_eq!(desk.hear(5, nothing), close(5, Refused::NoBeginning));
    assert_eq!(desk.core.count(), 0);
    assert_eq!(desk.core.last_heard(&node("a")), None, "who was refused was not heard");
}

#[test]
fn the_later_session_of_a_node_counts() {
    let mut desk = Desk::new();
    desk.says(1, "a", 0, &[]);
    desk.attach("a");
    let superseded = || Refused::Superseded(node("a"));
    assert_eq!(desk.says(2, "a", 0, &[idle()]), close(1, superseded()));
    assert_eq!(desk.says(1, "a", 0, &[]), close(1, superseded()));
    assert!(matches!(desk.sight("a"), Sight::Connected { .. }), "the later one stands");
    desk.step(Event::Ended { session: SessionId(1), node: node("a") });
    assert!(matches!(desk.sight("a"), Sight::Connected { .. }), "the earlier one's end is not its end");
    let old = NodeReport { since_boot_ns: 1, ..desk.report("a", 0, &[]) };
    assert_eq!(desk.hear(2, old), close(2, Refused::PastMoment(node("a"))));
    desk.unknown("a", "no session");
}

#[test]
fn what_another_boot_said_is_nothing() {
    let mut desk = Desk::new();
    desk.attach("a");
    desk.says(1, "a", 0, &[held()]);
    desk.register("a", "boot-2", Some(BOOT));
    desk.unknown("a", "another boot");
    assert_eq!(desk.unpublish("a", true), []);
    assert_eq!(desk.says(1, "a", 0, &[]), close(1, Refused::OtherBoot(node("a"))));
}

#[test]
fn a_revoked_volume_is_cut_once_it_is_idle_and_its_absence_is_the_proof() {
    let mut desk = Desk::new();
    let generation = desk.attach("a");
    assert_eq!(desk.says(1, "a", 0, &[held()]), [], "it stands");
    let note = Effect::Note(Note::Held {
        volume: volume(),
        node: node("a"),
        by: vec!["process 7 (qemu-kvm)".to_owned()],
    });
    assert_eq!(desk.unpublish("a", true), [note]);
    assert_eq!(desk.says(1, "a", 0, &[held()]), [], "it is said once");
    assert_eq!(desk.says(1, "a", 0, &[busy()]), [], "somebody is at it");
    assert_eq!(desk.says(1, "a", 0, &[VolumeReport { unseen: "why".to_owned(), ..idle() }]), []);
    assert_eq!(desk.says(1, "a", 0, &[VolumeReport { unseen: "why".to_owned(), ..seen(false, &[]) }]), []);
    assert_eq!(desk.says(1, "a", 0, &[idle()]), [order(1, 1, &[generation])]);
    assert_eq!(desk.says(1, "a", 1, &[idle()]), [], "it has just been told");
    desk.now += seconds(3);
    assert_eq!(desk.says(1, "a", 1, &[idle()]), [order(1, 2, &[generation])]);

    let gone = desk.report("a", 2, &[]);
    let moment = NodeMoment { boot: boot(BOOT), since_boot_ns: gone.since_boot_ns };
    let command = Command::ReportDisconnected { volume: volume(), node: node("a"), moment };
    assert_eq!(desk.hear(1, gone), [Effect::Propose { term: TERM, command: command.clone() }]);
    assert_eq!(desk.step(Event::LedgerChanged), [], "it is proposed once");
    assert!(matches!(desk.says(1, "a", 2, &[]).as_slice(), [Effect::Propose { .. }]), "and of a later look");
    assert_eq!(desk.apply(command), Response::Done);
    assert!(desk.state.volume(&volume()).unwrap().attachments.is_empty());
    assert_eq!(desk.step(Event::LedgerChanged), []);
    assert_eq!(desk.says(1, "a", 2, &[]), []);
}

#[test]
fn an_absence_before_the_last_permission_is_no_proof() {
    let mut desk = Desk::new();
    let early = desk.report("a", 0, &[]);
    desk.attach("a");
    desk.hear(1, early);
    assert!(matches!(desk.sight("a"), Sight::Absent { .. }));
    assert_eq!(desk.unpublish("a", true), []);
    assert!(matches!(desk.says(1, "a", 0, &[]).as_slice(), [Effect::Propose { .. }]));
}

#[test]
fn a_report_before_the_revocation_proves_it_at_once() {
    let mut desk = Desk::new();
    desk.attach("a");
    assert_eq!(desk.says(1, "a", 0, &[]), [], "it stands: kubelet may be about to stage it");
    assert!(matches!(desk.unpublish("a", true).as_slice(), [Effect::Propose { .. }]));
}

#[test]
fn a_leader_that_takes_office_goes_on_with_what_is_to_be_cut() {
    let mut desk = Desk::not_in_office();
    let generation = desk.attach("a");
    assert_eq!(desk.unpublish("a", true), []);
    assert_eq!(desk.step(Event::TookOffice { term: TERM }), []);
    assert_eq!(desk.says(1, "a", 0, &[idle()]), [order(1, 1, &[generation])]);
}

#[test]
fn a_connection_without_attachment_is_cut_after_a_second_look() {
    let mut desk = Desk::new();
    desk.attach("a");
    desk.says(1, "a", 0, &[idle()]);
    // Somebody's word was taken, and it was wrong.
    assert_eq!(desk.unpublish("a", false), []);
    assert_eq!(desk.says(1, "a", 0, &[busy()]), [], "whoever stages it is refused");
    assert_eq!(desk.says(1, "a", 0, &[idle()]), [order(1, 1, &[])], "the look may be older than the end");
    assert_eq!(desk.says(1, "a", 0, &[idle()]), []);
    let note = Effect::Note(Note::Stray { volume: volume(), node: node("a") });
    assert_eq!(desk.says(1, "a", 1, &[held()]), [note], "held: said, and left");
    assert_eq!(desk.says(1, "a", 1, &[idle()]), [order(1, 2, &[NOT_ATTACHED])]);
    desk.now += seconds(3);
    let generation = desk.attach("a");
    assert_eq!(desk.says(1, "a", 2, &[idle()]), [], "it is attached again");
    assert_eq!(desk.unpublish("a", true), [order(1, 3, &[generation])]);

    // What the ledger does not know is not ours.
    let foreign = VolumeReport { volume_id: "pvc-elsewhere".to_owned(), ..idle() };
    assert_eq!(desk.says(2, "b", 0, std::slice::from_ref(&foreign)), []);
    assert_eq!(desk.says(2, "b", 9, &[foreign]), []);
}
