//! The reaper as stories: one ledger, one leader after the other, injected time.

use state_machine::{MigrationOutcome, OffProof};

use super::testing::{FakeEvidence, Ledger, REAP_AFTER, TIMEOUT, in_use, node, volume};
use super::*;

mod stale;

/// Where the leader of the day dies, counted in effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Never,
    /// Before the effect is performed.
    Before(usize),
    /// After it, and before the reaper hears of it.
    After(usize),
}

struct Story {
    ledger: Ledger,
    evidence: FakeEvidence,
    reaper: Reaper,
    term: u64,
    reports: Vec<Report>,
    asked: Vec<BTreeSet<NodeId>>,
    accepted: Vec<Command>,
    refused: usize,
    /// The ledger refuses whatever the reaper proposes.
    refuses: bool,
    performed: usize,
    death: Death,
}

impl Story {
    fn new(ledger: Ledger) -> Self {
        let mut story = Self {
            ledger,
            evidence: FakeEvidence::default(),
            reaper: Reaper::new(REAP_AFTER),
            term: 0,
            reports: Vec::new(),
            asked: Vec::new(),
            accepted: Vec::new(),
            refused: 0,
            refuses: false,
            performed: 0,
            death: Death::Never,
        };
        story.next_leader();
        story
    }

    /// Volume 0 migrates from a to b; both are connected.
    fn migrating() -> Self {
        let mut ledger = Ledger::with(1, &["a", "b", "c"]);
        assert!(ledger.attach(0, "a") && ledger.attach(0, "b"));
        Self::new(ledger)
    }

    /// The same, at the deadline.
    fn overdue() -> Self {
        let mut story = Self::migrating();
        story.pass(TIMEOUT.as_secs());
        assert_eq!(story.ledger.phase(0), "Overdue");
        story
    }

    fn next_leader(&mut self) {
        self.term += 1;
        self.reaper = Reaper::new(REAP_AFTER);
        self.evidence.forget_sessions();
        self.tell(Event::TookOffice { term: self.term });
    }

    fn view_step(&mut self, event: Event) -> Vec<Effect> {
        let view = View { state: &self.ledger.state, evidence: &self.evidence };
        self.reaper.step(event, self.ledger.now, view)
    }

    fn tell(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.view_step(event) {
                let here = self.performed;
                self.performed += 1;
                if self.death == Death::Before(here) {
                    return self.next_leader();
                }
                let follows = self.perform(effect);
                if self.death == Death::After(here) {
                    return self.next_leader();
                }
                events.extend(follows);
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::AskSessionsAgain { nodes } => {
                let number = self.evidence.ask_again(&nodes);
                self.asked.push(nodes);
                Some(Event::Asked { number })
            }
            Effect::Propose { term, command } => {
                assert_eq!(term, self.term);
                if self.refuses {
                    self.refused += 1;
                    return Some(Event::Proposed { term, answer: Answer::Refused { why: "so".to_owned() } });
                }
                let answer = Answer::from(self.ledger.commit(command.clone()));
                assert_eq!(answer, Answer::Accepted, "{command:?}");
                self.accepted.push(command);
                Some(Event::Proposed { term, answer })
            }
            Effect::Report(report) => {
                self.reports.push(report);
                None
            }
        }
    }

    /// Time passes, second by second, with a tick of the ledger in each.
    fn pass(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.ledger.now += Duration::from_secs(1);
            self.evidence.now = self.ledger.now;
            self.ledger.commit(Command::Tick);
            self.tell(Event::Changed);
            self.tell(Event::Timer);
        }
    }

    fn look(&mut self, name: &str, sight: Sight) {
        self.evidence.look(0, name, sight);
    }

    /// Both nodes look and say so every second.
    fn pass_seen(&mut self, seconds: u64, source: &Sight, target: &Sight) {
        for _ in 0..seconds {
            self.look("a", source.clone());
            self.look("b", target.clone());
            self.pass(1);
        }
    }

    fn stands(&mut self, name: &str, standing: Standing) {
        self.evidence.standing.insert(node(name), standing);
    }

    /// The nodes that were reaped, in their order.
    fn reaped(&self) -> Vec<&str> {
        let decisions = self.accepted.iter().filter_map(|command| {
            let Command::Reap { decision, .. } = command else { return None };
            Some(decision.stale.as_str())
        });
        decisions.collect()
    }

    fn last_said(&self) -> &Report {
        self.reports.last().unwrap()
    }
}

#[test]
fn within_its_time_a_migration_is_nobodys_business() {
    let mut story = Story::migrating();
    story.pass_seen(TIMEOUT.as_secs() - 1, &in_use(), &Sight::Idle);
    assert!(!story.reaper.listens());
    assert_eq!((story.reports, story.asked, story.accepted), (vec![], vec![], vec![]));
}

#[test]
fn at_the_deadline_both_sides_are_asked_and_only_their_answers_count() {
    let mut story = Story::migrating();
    story.pass_seen(TIMEOUT.as_secs(), &in_use(), &Sight::Idle);
    assert_eq!(story.ledger.phase(0), "Overdue");
    assert!(story.reaper.listens(), "what the nodes say counts at once");
    assert_eq!(story.asked, [BTreeSet::from([node("a"), node("b")])]);
    story.pass(3);
    assert_eq!(story.reaped(), Vec::<&str>::new(), "both looked before the deadline only");
    assert!(story.last_said().what.contains("not looked since the deadline"), "{:?}", story.reports);
    story.look("b", Sight::Idle);
    story.pass(1);
    assert_eq!(story.reaped(), Vec::<&str>::new(), "one did");
    story.look("a", in_use());
    story.pass(REAP_AFTER.as_secs());
    assert_eq!(story.reaped(), Vec::<&str>::new(), "it may be about to be unpublished");
    assert!(story.last_said().what.contains("in 10 s, unless it is unpublished"), "{:?}", story.reports);
    story.pass(1);
    assert_eq!(story.reaped(), ["b"]);
    assert_eq!(story.ledger.phase(0), "Reaping");
    story.ledger.report_off(0, "b");
    let ended = &story.ledger.state.ended_migrations()[0];
    assert_eq!(ended.outcome, MigrationOutcome::Timeout);
    assert_eq!(ended.decided_by, "the reaper of term 1, by what the sessions say");
    assert!(ended.evidence.contains("source a: in use by qemu"), "{}", ended.evidence);
    story.pass(60);
    assert_eq!(story.accepted.len(), 1);
}

#[test]
fn a_healthy_migration_that_is_slow_is_reported_once_and_never_reaped() {
    let mut story = Story::migrating();
    story.pass_seen(4 * TIMEOUT.as_secs(), &in_use(), &in_use());
    assert_eq!(story.accepted, []);
    let loud: Vec<_> = story.reports.iter().filter(|report| report.loud).collect();
    assert!(matches!(&loud[..], [report] if report.what.contains("both sides are in use")), "{loud:?}");
    assert!(story.reports.len() <= 4, "{:?}", story.reports);
    story.pass_seen(30, &Sight::Absent, &in_use());
    assert_eq!(story.reaped(), ["a"]);
}

#[test]
fn kubevirts_word_keeps_a_migration_and_ends_it() {
    let mut story = Story::overdue();
    let running = KubeVirt::Unfinished { phase: "Running".to_owned() };
    story.evidence.kubevirt.insert(volume(0), running);
    story.pass_seen(120, &in_use(), &Sight::Idle);
    assert_eq!(story.accepted, []);
    let failed = KubeVirt::Ended { lost: Side::Target, how: "failed".to_owned() };
    story.evidence.kubevirt.insert(volume(0), failed);
    story.pass_seen(5, &in_use(), &in_use());
    assert_eq!(story.accepted, [], "the side that lost is in use");
    assert!(story.last_said().loud, "{:?}", story.last_said());
    story.pass_seen(REAP_AFTER.as_secs(), &in_use(), &Sight::Idle);
    assert_eq!(story.accepted, [], "it may be about to be unpublished");
    story.pass_seen(2, &in_use(), &Sight::Idle);
    assert_eq!(story.reaped(), ["b"]);
}

#[test]
fn a_node_that_can_speak_is_heard_before_it_loses_anything() {
    let failed = KubeVirt::Ended { lost: Side::Target, how: "failed".to_owned() };
    // It spoke before the deadline, of use, and is still heard.
    let mut story = Story::migrating();
    story.evidence.kubevirt.insert(volume(0), failed.clone());
    story.pass_seen(TIMEOUT.as_secs(), &in_use(), &in_use());
    story.pass(20);
    assert_eq!(story.accepted, []);
    // It cannot tell: it is there, and that is all.
    for _ in 0..100 {
        story.look("b", Sight::Unknown { why: "it could not look".to_owned() });
        story.pass(1);
    }
    assert_eq!(story.accepted, [], "it speaks, and does not know");
    story.pass(28);
    assert_eq!(story.accepted, [], "29 s");
    story.pass(2);
    assert_eq!(story.reaped(), ["b"], "silent for 30 s: KubeVirt's word is enough");

    // A leader new in office has heard nobody yet.
    let mut story = Story::overdue();
    story.evidence.kubevirt.insert(volume(0), failed);
    story.next_leader();
    story.pass(29);
    assert_eq!(story.accepted, []);
    story.pass(2);
    assert_eq!(story.reaped(), ["b"]);
}

#[test]
fn a_leader_that_dies_at_any_moment_is_followed_by_one_that_goes_on() {
    let run = |death| {
        let mut story = Story::migrating();
        story.death = death;
        for _ in 0..TIMEOUT.as_secs() + 3 * REAP_AFTER.as_secs() {
            story.look("a", in_use());
            story.look("b", Sight::Idle);
            story.pass(1);
        }
        assert_eq!(story.reaped(), ["b"], "{death:?}: reaped once");
        assert_eq!(story.ledger.phase(0), "Reaping", "{death:?}");
        story.ledger.report_off(0, "b");
        assert_eq!(story.ledger.holders(0), ["a"]);
        (story.term, story.performed)
    };
    let (_, effects) = run(Death::Never);
    assert!(effects >= 4, "asked, waited, reaped, said so: {effects}");
    for effect in 0..effects {
        for death in [Death::Before(effect), Death::After(effect)] {
            assert_eq!(run(death).0, 2, "{death:?}: somebody died");
        }
    }
}

#[test]
fn a_side_that_leaves_by_itself_is_not_reaped_and_neither_is_the_other() {
    let mut story = Story::overdue();
    story.ledger.unpublish(0, "b");
    story.pass_seen(30, &in_use(), &Sight::Idle);
    assert_eq!(story.accepted, []);
    story.ledger.report_off(0, "b");
    assert_eq!(story.ledger.state.ended_migrations()[0].outcome, MigrationOutcome::Failed);
}

#[test]
fn a_deleted_node_loses_everything_after_a_minute_of_silence() {
    let mut ledger = Ledger::with(3, &["a", "b"]);
    assert!(ledger.attach(0, "a") && ledger.attach(0, "b") && ledger.attach(1, "b") && ledger.attach(2, "a"));
    let newest = ledger.state.volume(&volume(1)).unwrap().attachments[&node("b")].generation;
    let mut story = Story::new(ledger);
    story.pass(10);
    story.evidence.look(1, "b", Sight::Idle);
    story.stands("b", Standing::Missing);
    story.pass(59);
    assert_eq!(story.accepted, []);
    assert_eq!(
        story.reports.len(),
        1 + 1,
        "the node, and the migration that became overdue: {:?}",
        story.reports
    );
    story.pass(1);
    let words = story.ledger.state.nodes()[&node("b")].words;
    let proof = OffProof::NodeDeleted;
    let is_off = Command::NodeIsOff { node: node("b"), volume: None, up_to: newest, words, proof };
    assert_eq!((story.reaped(), story.accepted.last()), (vec!["b"], Some(&is_off)));
    let holders = [story.ledger.holders(0), story.ledger.holders(1), story.ledger.holders(2)];
    assert_eq!(holders, [vec!["a"], vec![], vec!["a"]]);
    story.pass(60);
    assert_eq!(story.accepted.len(), 2);
}

#[test]
fn a_deleted_node_that_speaks_within_the_minute_keeps_what_it_has() {
    let mut ledger = Ledger::with(1, &["a"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    story.stands("a", Standing::Missing);
    for _ in 0..5 {
        story.pass(59);
        story.look("a", Sight::Idle);
    }
    assert_eq!(story.accepted, []);
    story.stands("a", Standing::Present);
    story.pass(120);
    assert_eq!(story.accepted, [], "it is back");
    story.stands("a", Standing::Unknown);
    story.pass(120);
    assert_eq!(story.accepted, [], "unknown is not deleted");
}

#[test]
fn silence_is_counted_by_each_leader_anew_and_not_while_it_sleeps() {
    let mut ledger = Ledger::with(1, &["a"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    story.stands("a", Standing::Missing);
    story.pass(59);
    story.next_leader();
    story.pass(59);
    assert_eq!(story.accepted, [], "the second leader has listened for 59 s");
    // The process is stopped for an hour.
    story.ledger.now += Duration::from_secs(3600);
    story.pass(59);
    assert_eq!(story.accepted, [], "it heard nobody in that hour");
    story.pass(2);
    assert_eq!(story.accepted.len(), 1);
}

#[test]
fn a_tainted_node_is_off_once_its_session_is_lost_and_not_while_it_speaks() {
    let mut ledger = Ledger::with(2, &["a"]);
    assert!(ledger.attach(0, "a") && ledger.attach(1, "a"));
    let mut story = Story::new(ledger);
    story.stands("a", Standing::OutOfService);
    for _ in 0..10 {
        story.look("a", in_use());
        story.pass(10);
    }
    assert_eq!(story.accepted, []);
    let loud: Vec<_> = story.reports.iter().filter(|report| report.loud).collect();
    assert!(matches!(&loud[..], [report] if report.what.contains("it is not off")), "{:?}", story.reports);
    story.pass(20);
    assert!(
        matches!(&story.accepted[..], [Command::NodeIsOff { proof: OffProof::OutOfService, .. }]),
        "{:?}",
        story.accepted
    );
    assert!(story.ledger.holders(0).is_empty() && story.ledger.holders(1).is_empty());
}

#[test]
fn sessions_that_begin_anew_under_the_same_leader_are_waited_for() {
    let mut ledger = Ledger::with(1, &["a"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    story.stands("a", Standing::OutOfService);
    for _ in 0..10 {
        story.look("a", in_use());
        story.pass(10);
    }
    // It had no quorum for a moment, and sent the nodes away.
    story.evidence.forget_sessions();
    story.pass(29);
    assert_eq!(story.accepted, [], "nobody was heard since, but for 29 s only");
    story.pass(1);
    assert_eq!(story.accepted.len(), 1);
}

#[test]
fn a_node_that_the_ledger_hears_is_not_off_whatever_its_session_does() {
    let mut ledger = Ledger::with(2, &["a"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    story.stands("a", Standing::Missing);
    // It reaches another replica, not this one.
    for _ in 0..10 {
        story.pass(59);
        story.ledger.report_off(1, "a");
    }
    assert_eq!(story.accepted, []);
    story.pass(61);
    assert_eq!(story.accepted.len(), 1);
}

#[test]
fn nodes_that_were_replaced_long_ago_do_not_stand_in_the_way() {
    let mut ledger = Ledger::with(1, &["a", "b", "c", "d", "e"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    for name in ["a", "b", "c", "d", "bystander-a", "bystander-b", "bystander-c"] {
        story.stands(name, Standing::Missing);
    }
    for _ in 0..7 {
        story.look("e", Sight::Absent);
        story.pass(10);
    }
    assert_eq!(story.accepted.len(), 1, "{:?}", story.reports);
}

#[test]
fn a_side_that_is_reaped_and_proven_off_was_reaped() {
    let mut story = Story::overdue();
    story.stands("a", Standing::OutOfService);
    story.pass(31);
    assert_eq!(story.reaped(), ["a"]);
    assert!(matches!(&story.accepted[..], [Command::Reap { .. }, Command::NodeIsOff { .. }]));
    assert_eq!(story.ledger.state.ended_migrations()[0].outcome, MigrationOutcome::Timeout);
    assert_eq!(story.ledger.holders(0), ["b"]);
}

#[test]
fn nothing_known_is_said_once_and_looked_at_again_ever_more_rarely() {
    let mut story = Story::overdue();
    story.asked.clear();
    story.pass(3600);
    assert_eq!(story.accepted, []);
    // 5, 10, 20, 40, then every 60 s.
    assert!((59..=64).contains(&story.asked.len()), "{}", story.asked.len());
    assert!(story.reports.len() <= 2, "{:?}", story.reports);
    assert!(story.reports.iter().all(|report| !report.loud));
}

#[test]
fn only_so_many_migrations_are_looked_at_at_once_and_each_has_its_turn() {
    let many = 3 * MIGRATIONS_ASKED_AT_ONCE;
    let mut ledger = Ledger::with(many, &["a", "b"]);
    for number in 0..many {
        assert!(ledger.attach(number, "a") && ledger.attach(number, "b"));
    }
    let mut story = Story::new(ledger);
    story.pass(TIMEOUT.as_secs());
    for number in 0..many {
        story.evidence.look(number, "a", in_use());
        story.evidence.look(number, "b", Sight::Idle);
    }
    // In one second one is judged after the other, those that were asked.
    story.pass(REAP_AFTER.as_secs() + 1);
    assert_eq!(
        story.accepted.len(),
        MIGRATIONS_ASKED_AT_ONCE,
        "the others were not asked before they looked"
    );
    for _ in 0..3 {
        for number in 0..many {
            story.evidence.look(number, "a", in_use());
            story.evidence.look(number, "b", Sight::Idle);
        }
        story.pass(REAP_AFTER.as_secs() + 1);
    }
    assert_eq!(story.accepted.len(), many);
}

#[test]
fn a_refusal_is_said_and_not_tried_again_at_once() {
    let mut story = Story::overdue();
    story.refuses = true;
    story.pass_seen(REAP_AFTER.as_secs() + 31, &in_use(), &Sight::Idle);
    assert!((3..=4).contains(&story.refused), "{}", story.refused);
    let refusals = story.reports.iter().filter(|report| report.what.contains("refused")).count();
    assert_eq!(refusals, 1, "{:?}", story.reports);
    story.refuses = false;
    story.pass_seen(11, &in_use(), &Sight::Idle);
    assert_eq!(story.reaped(), ["b"]);
}

#[test]
fn what_was_answered_to_an_earlier_leader_is_not_heard() {
    let mut story = Story::overdue();
    story.tell(Event::LeftOffice);
    assert_eq!(story.reaper.wake_at(), None);
    story.pass_seen(60, &in_use(), &Sight::Idle);
    assert_eq!(story.accepted, [], "nobody is in office");
    story.next_leader();
    story.tell(Event::Proposed { term: 1, answer: Answer::Refused { why: "late".to_owned() } });
    story.pass_seen(5 + REAP_AFTER.as_secs(), &in_use(), &Sight::Idle);
    assert_eq!(story.reaped(), ["b"]);
}

#[test]
fn one_proposal_at_a_time_and_only_its_own_answer_ends_the_wait() {
    let mut ledger = Ledger::with(2, &["a", "b"]);
    for number in 0..2 {
        assert!(ledger.attach(number, "a") && ledger.attach(number, "b"));
    }
    let mut story = Story::new(ledger);
    story.next_leader();
    story.pass(TIMEOUT.as_secs());
    for number in 0..2 {
        story.evidence.look(number, "a", in_use());
        story.evidence.look(number, "b", Sight::Idle);
    }
    let later = |story: &mut Story, event| {
        story.ledger.now += JUDGE_INTERVAL;
        let effects = story.view_step(event);
        effects.iter().filter(|effect| matches!(effect, Effect::Propose { .. })).count()
    };
    for _ in 0..REAP_AFTER.as_secs() {
        assert_eq!(later(&mut story, Event::Timer), 0);
    }
    assert_eq!(later(&mut story, Event::Timer), 1);
    assert_eq!(later(&mut story, Event::Timer), 0, "the other one waits for the answer");
    let of_the_first_term = Event::Proposed { term: 1, answer: Answer::NotDecided };
    assert_eq!(later(&mut story, of_the_first_term), 0, "somebody else's answer");
    assert_eq!(later(&mut story, Event::Timer), 0, "somebody else's answer");
    let own = Event::Proposed { term: 2, answer: Answer::NotDecided };
    assert_eq!(later(&mut story, own), 1, "now it is the other's turn");
}

#[test]
fn nobody_is_off_where_kubernetes_has_hardly_any_of_the_nodes() {
    let mut ledger = Ledger::with(1, &["a"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    story.stands("a", Standing::Missing);
    story.stands("bystander-a", Standing::Missing);
    let end = story.ledger.now + 2 * off::SILENCE_OF_A_DELETED_NODE;
    while story.ledger.now < end {
        let wake_at = story.reaper.wake_at().unwrap();
        (story.ledger.now, story.evidence.now) = (wake_at, wake_at);
        story.tell(Event::Timer);
    }
    assert_eq!(story.accepted, []);
}

#[test]
fn time_alone_is_an_event() {
    let mut ledger = Ledger::with(1, &["a"]);
    ledger.attach(0, "a");
    let mut story = Story::new(ledger);
    story.stands("a", Standing::Missing);
    let minute = story.ledger.now + off::SILENCE_OF_A_DELETED_NODE;
    while story.accepted.is_empty() {
        let wake_at = story.reaper.wake_at().unwrap();
        assert!(wake_at <= minute + JUDGE_INTERVAL, "nobody comes back to it");
        (story.ledger.now, story.evidence.now) = (wake_at, wake_at);
        story.tell(Event::Timer);
    }
    assert!(story.ledger.now >= minute);
}
