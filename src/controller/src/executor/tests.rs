//! The executor as a story: one volume, one event after the other.

use state_machine::{AppliancePath, ByteSize, HostAddress, NodeId, Problem, ProblemKind, VolumeParameters};

use super::*;

const TERM: u64 = 7;

fn id() -> VolumeId {
    VolumeId::parse("pvc-00000000-0000-4000-8000-000000000001").unwrap()
}

fn step(kind: StepKind, generation: u64) -> Step {
    Step {
        volume: id(),
        generation: Generation(generation),
        parameters: VolumeParameters::with_defaults(
            AppliancePath::parse("/pool/csi").unwrap(),
            HostAddress::parse("127.0.0.1").unwrap(),
            4420,
        ),
        size: ByteSize::at_least(1 << 30).unwrap(),
        problem: None,
        kind,
    }
}

fn with_problem(step: &Step) -> Step {
    let problem = Problem { kind: ProblemKind::Unavailable, message: "down".to_owned() };
    Step { problem: Some(problem), ..step.clone() }
}

fn unavailable() -> Outcome {
    Outcome::Failed(BackendError::Unavailable { reason: "down".to_owned() })
}

/// An executor that leads and whose term is on the appliance.
fn leading() -> Executor {
    let mut executor = Executor::default();
    assert_eq!(executor.step(Event::Leading { term: TERM }), [Effect::BeginTerm { term: TERM }]);
    executor.step(Event::TermBegun { now_ms: 0, term: TERM, result: Ok(()) });
    executor
}

fn planned(executor: &mut Executor, now_ms: u64, step: &Step) -> Vec<Effect> {
    executor.step(Event::Planned { now_ms, steps: vec![step.clone()] })
}

fn performed(executor: &mut Executor, outcome: Outcome) -> Vec<Effect> {
    performed_for(executor, 3, outcome)
}

fn performed_for(executor: &mut Executor, generation: u64, outcome: Outcome) -> Vec<Effect> {
    executor.step(Event::Performed { term: TERM, key: (id(), Generation(generation)), outcome })
}

fn proposed(executor: &mut Executor, now_ms: u64) {
    executor.step(Event::Proposed { now_ms, term: TERM, key: (id(), Generation(3)), committed: true });
}

/// The step is performed with this outcome; what is proposed then.
fn proposal(kind: StepKind, outcome: Outcome) -> Command {
    let (mut executor, step) = (leading(), step(kind, 3));
    planned(&mut executor, 0, &step);
    match performed(&mut executor, outcome).pop() {
        Some(Effect::Propose { term: TERM, command, .. }) => command,
        other => panic!("no proposal: {other:?}"),
    }
}

#[test]
fn every_step_reports_its_success() {
    let (volume, generation) = (id(), Generation(3));
    let node = NodeId::parse("a").unwrap();
    let to = ByteSize::at_least(2 << 30).unwrap();
    let rows = [
        (StepKind::InspectSlot, Command::SlotWasFree { volume: volume.clone(), generation }),
        (StepKind::Create, Command::VolumeCreated { volume: volume.clone(), generation }),
        (StepKind::Expand { to }, Command::VolumeExpanded { volume: volume.clone(), generation }),
        (StepKind::Delete, Command::VolumeDeleted { volume: volume.clone(), generation }),
        (
            StepKind::ConfirmExport { node: node.clone() },
            Command::ExportConfirmed { volume, node, generation },
        ),
    ];
    for (kind, command) in rows {
        assert_eq!(proposal(kind, Outcome::Done), command);
    }
}

fn term_begun(executor: &mut Executor, now_ms: u64, result: Result<(), BackendError>) {
    executor.step(Event::TermBegun { now_ms, term: TERM, result });
}

fn down() -> BackendError {
    BackendError::Unavailable { reason: "down".to_owned() }
}

#[test]
fn nothing_is_done_before_the_term_is_on_the_appliance_and_callers_are_told_why() {
    let (mut executor, step) = (Executor::default(), step(StepKind::Delete, 3));
    assert_eq!(planned(&mut executor, 0, &step), [], "not leading");
    executor.step(Event::Leading { term: TERM });
    assert_eq!(planned(&mut executor, 0, &step), [], "term not written yet");
    term_begun(&mut executor, 0, Err(down()));
    let told = planned(&mut executor, 0, &step);
    assert!(
        matches!(&told[..], [Effect::Propose { command: Command::OperationFailed { .. }, .. }]),
        "{told:?}"
    );
    assert_eq!(planned(&mut executor, 0, &step), [], "told once");
    proposed(&mut executor, 0);
    let mut now_ms = 0;
    for wait_ms in [500, 1000, 2000, 4000] {
        let waiting = with_problem(&step);
        assert_eq!(planned(&mut executor, now_ms + wait_ms - 1, &waiting), []);
        now_ms += wait_ms;
        assert_eq!(planned(&mut executor, now_ms, &waiting), [Effect::BeginTerm { term: TERM }]);
        assert_eq!(planned(&mut executor, now_ms, &waiting), [], "one attempt at a time");
        term_begun(&mut executor, now_ms, Err(down()));
    }
    assert_eq!(planned(&mut executor, now_ms, &step).len(), 1, "somebody asked again, and is told at once");
    proposed(&mut executor, now_ms);
    term_begun(&mut executor, now_ms, Ok(()));
    let effects = planned(&mut executor, now_ms + LONGEST_RETRY_MS, &with_problem(&step));
    assert!(matches!(&effects[..], [Effect::Perform { .. }]), "{effects:?}");
}

#[test]
fn an_executor_that_is_overtaken_on_the_appliance_does_nothing_more_and_says_so() {
    let (mut executor, step) = (leading(), step(StepKind::Delete, 3));
    let stale = || BackendError::StaleTerm { highest: TERM + 1 };
    planned(&mut executor, 0, &step);
    assert_eq!(performed(&mut executor, Outcome::Failed(stale())), []);
    let effects = planned(&mut executor, 10, &step);
    assert!(matches!(
        &effects[..],
        [Effect::BeginTerm { .. }, Effect::Propose { command: Command::OperationFailed { .. }, .. }]
    ));
    proposed(&mut executor, 10);
    term_begun(&mut executor, 10, Err(stale()));
    assert_eq!(planned(&mut executor, 10 + LONGEST_RETRY_MS - 1, &with_problem(&step)), [], "no hurry");
    let effects = planned(&mut executor, 10 + LONGEST_RETRY_MS, &with_problem(&step));
    assert_eq!(effects, [Effect::BeginTerm { term: TERM }]);
}

#[test]
fn one_step_a_volume_at_a_time() {
    let (mut executor, step) = (leading(), step(StepKind::Delete, 3));
    assert_eq!(planned(&mut executor, 0, &step).len(), 1);
    assert_eq!(planned(&mut executor, 1, &step), [], "performing");
    assert_eq!(performed(&mut executor, Outcome::Done).len(), 1);
    assert_eq!(planned(&mut executor, 2, &step), [], "reporting");
    proposed(&mut executor, 3);
    assert_eq!(planned(&mut executor, 4, &step).len(), 1, "the state still asks for it");
}

#[test]
fn trouble_is_reported_and_tried_again_later_and_later() {
    let (mut executor, step) = (leading(), step(StepKind::Delete, 3));
    let mut now_ms = 0;
    for wait_ms in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
        assert_eq!(planned(&mut executor, now_ms, &with_problem(&step)).len(), 1);
        let effects = performed(&mut executor, unavailable());
        assert!(matches!(&effects[..], [Effect::Propose { command: Command::OperationFailed { .. }, .. }]));
        proposed(&mut executor, now_ms);
        assert_eq!(executor.wake_at_ms(), Some(now_ms + wait_ms));
        assert_eq!(planned(&mut executor, now_ms + wait_ms - 1, &with_problem(&step)), []);
        now_ms += wait_ms;
    }
    assert_eq!(planned(&mut executor, now_ms - 1, &step).len(), 1, "somebody asked again: at once");
}

#[test]
fn a_full_appliance_ends_a_creation_and_leaves_nothing_behind() {
    let (mut executor, step) = (leading(), step(StepKind::Create, 3));
    planned(&mut executor, 0, &step);
    let effects = performed(&mut executor, Outcome::Failed(BackendError::Full));
    assert!(
        matches!(&effects[..], [Effect::Perform { action: Action::UndoCreate { .. }, .. }]),
        "{effects:?}"
    );
    let effects = performed(&mut executor, Outcome::Done);
    match &effects[..] {
        [Effect::Propose { command: Command::OperationAbandoned { problem, .. }, .. }] => {
            assert_eq!(problem.kind, ProblemKind::Full);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_creation_is_not_given_up_while_its_remains_may_be_there() {
    let (mut executor, step) = (leading(), step(StepKind::Create, 3));
    planned(&mut executor, 0, &step);
    performed(&mut executor, Outcome::Failed(BackendError::Full));
    let effects = performed(&mut executor, unavailable());
    assert!(
        matches!(&effects[..], [Effect::Propose { command: Command::OperationFailed { .. }, .. }]),
        "{effects:?}"
    );
}

#[test]
fn what_is_final_and_what_is_not() {
    let rejected = || Outcome::Failed(BackendError::Rejected { words: "invalid parameter".to_owned() });
    let conflict = || Outcome::Failed(BackendError::Conflict { reason: "another file".to_owned() });
    let to = ByteSize::at_least(2 << 30).unwrap();
    let node = NodeId::parse("a").unwrap();
    let abandoned = |command| matches!(command, Command::OperationAbandoned { .. });
    let retried = |command| matches!(command, Command::OperationFailed { .. } | Command::GrantFailed { .. });
    assert!(abandoned(proposal(StepKind::InspectSlot, Outcome::SlotTaken("a disk".to_owned()))));
    assert!(abandoned(proposal(StepKind::Expand { to }, Outcome::Failed(BackendError::Full))));
    assert!(abandoned(proposal(StepKind::Expand { to }, rejected())));
    assert!(retried(proposal(StepKind::Expand { to }, conflict())));
    assert!(retried(proposal(StepKind::Create, conflict())));
    assert!(retried(proposal(StepKind::Delete, rejected())));
    assert!(retried(proposal(StepKind::InspectSlot, unavailable())));
    assert!(retried(proposal(StepKind::ConfirmExport { node }, conflict())));
}

#[test]
fn what_an_earlier_term_left_is_not_heard() {
    let (mut executor, step) = (leading(), step(StepKind::Delete, 3));
    planned(&mut executor, 0, &step);
    executor.step(Event::Leading { term: TERM + 1 });
    assert_eq!(performed(&mut executor, Outcome::Done), []);
    executor.step(Event::TermBegun { now_ms: 0, term: TERM, result: Ok(()) });
    assert_eq!(planned(&mut executor, 0, &step), [], "the later term is not on the appliance");
    executor.step(Event::Deposed);
    assert_eq!(executor.wake_at_ms(), None);
}

#[test]
fn a_new_intent_does_not_wait_for_the_old_ones_back_off() {
    let (mut executor, old) = (leading(), step(StepKind::Create, 3));
    planned(&mut executor, 0, &old);
    performed(&mut executor, unavailable());
    proposed(&mut executor, 0);
    assert_eq!(planned(&mut executor, 1, &with_problem(&step(StepKind::Delete, 4))).len(), 1);
}

#[test]
fn two_attachments_of_a_volume_take_turns_and_wait_each_for_itself() {
    let mut executor = leading();
    let confirm = |name, generation| {
        with_problem(&step(StepKind::ConfirmExport { node: NodeId::parse(name).unwrap() }, generation))
    };
    let steps = || vec![confirm("a", 3), confirm("b", 4)];
    assert_eq!(executor.step(Event::Planned { now_ms: 0, steps: steps() }).len(), 1, "one at a time");
    performed_for(&mut executor, 3, unavailable());
    proposed(&mut executor, 0);
    assert_eq!(executor.step(Event::Planned { now_ms: 1, steps: steps() }).len(), 1, "the other one's turn");
    performed_for(&mut executor, 4, unavailable());
    executor.step(Event::Proposed { now_ms: 1, term: TERM, key: (id(), Generation(4)), committed: true });
    assert_eq!(executor.step(Event::Planned { now_ms: 2, steps: steps() }), [], "both wait");
}

#[test]
fn an_outcome_that_cannot_be_recorded_is_not_asked_for_again_at_once() {
    let (mut executor, step) = (leading(), step(StepKind::Delete, 3));
    planned(&mut executor, 0, &step);
    performed(&mut executor, Outcome::Done);
    executor.step(Event::Proposed { now_ms: 0, term: TERM, key: (id(), Generation(3)), committed: false });
    assert_eq!(
        planned(&mut executor, FIRST_RETRY_MS - 1, &step),
        [],
        "the state does not know of any trouble"
    );
    assert_eq!(planned(&mut executor, FIRST_RETRY_MS, &step).len(), 1);
}

#[test]
fn nobody_is_woken_for_what_waits_behind_the_term() {
    let (mut executor, step) = (Executor::default(), step(StepKind::Delete, 3));
    executor.step(Event::Leading { term: TERM });
    term_begun(&mut executor, 0, Err(down()));
    planned(&mut executor, 0, &step);
    proposed(&mut executor, 0);
    let retry_at_ms = executor.wake_at_ms().expect("the term is tried again");
    let again = planned(&mut executor, retry_at_ms, &with_problem(&step));
    assert_eq!(again, [Effect::BeginTerm { term: TERM }]);
    assert_eq!(executor.wake_at_ms(), None, "the try tells its end");
    term_begun(&mut executor, 60_000, Err(down()));
    assert!(executor.wake_at_ms() > Some(60_000), "not at once, for the step whose wait is over");
}

#[test]
fn nobody_is_woken_for_what_waits_behind_another_step_of_its_volume() {
    let mut executor = leading();
    let grant = |name: &str, generation| {
        step(StepKind::ConfirmExport { node: NodeId::parse(name).unwrap() }, generation)
    };
    let (first, second) = (grant("a", 3), grant("b", 4));
    planned(&mut executor, 0, &first);
    performed(&mut executor, unavailable());
    proposed(&mut executor, 0);
    let both = vec![with_problem(&first), second.clone()];
    let effects = executor.step(Event::Planned { now_ms: 1, steps: both.clone() });
    assert_eq!(effects.len(), 1, "the second is tried while the first waits: {effects:?}");
    assert_eq!(executor.wake_at_ms(), None);
    executor.step(Event::Planned { now_ms: 60_000, steps: both });
    assert_eq!(executor.wake_at_ms(), None, "the end of the second tells it");
    performed_for(&mut executor, 4, Outcome::Done);
    let key = (id(), Generation(4));
    executor.step(Event::Proposed { now_ms: 60_000, term: TERM, key, committed: true });
    let effects = planned(&mut executor, 60_000, &with_problem(&first));
    assert_eq!(effects.len(), 1, "its turn: {effects:?}");
}
