//! Evidence by phase: every combination has its expected decision, and what no decision may ever be.

use std::collections::BTreeMap;

use state_machine::{LedgerTime, Migration, MigrationId, MigrationPhase, NodeId, ReapDecision};

use super::decide::{Facts, KubeVirt, Proof, Side, SideFacts, Sight, Verdict, decide};

/// Each column as one letter, so that a row of the table is a pattern; `.` is any, `[..]` one of these.
///
/// - phase: A ctive, O verdue, R eaping
/// - who is leaving: `-` nobody, s ource, t arget, b oth
/// - KubeVirt: ? nothing to say, w not read yet, M igrating, s ource lost, t arget lost, n o VM
/// - sight of the source, sight of the target: ? unknown, a bsent, i dle, U sed
/// - proof about the source, about the target: `-` none, o ut of service, d eleted
const PHASES: &str = "AOR";
const LEAVING: &str = "-stb";
const KUBEVIRT: &str = "?wMstn";
const SIGHTS: &str = "?aiU";
const PROOFS: &str = "-od";

/// The first row that matches says what is expected.
#[rustfmt::skip]
const ROWS: [(&str, Expected); 30] = [
    // Not overdue, or decided already, or leaving by itself.
    ("[AR].. .. ..",          Expected::Wait),
    ("O[stb]. .. ..",         Expected::Wait),
    // 1. KubeVirt.
    ("O-M .. ..",             Expected::Wait),
    ("O-w .. ..",             Expected::Wait),
    ("O-s U. ..",             Expected::LeaveAlone),
    ("O-s .. ..",             Expected::Source),
    ("O-t .U ..",             Expected::LeaveAlone),
    ("O-t .. ..",             Expected::Target),
    // 2. Sessions.
    ("O-. Ua ..",             Expected::Target),
    ("O-. Ui ..",             Expected::Target),
    ("O-. aU ..",             Expected::Source),
    ("O-. iU ..",             Expected::Source),
    ("O-. aa ..",             Expected::Target),
    ("O-. ia ..",             Expected::Target),
    ("O-. ii ..",             Expected::Target),
    ("O-. ai ..",             Expected::Source),
    // 3. Proof, and never against what is seen. From here on one side is unknown, or both are used.
    ("O-. UU --",             Expected::LeaveAlone),
    ("O-. UU ..",             Expected::LeaveAlone),
    ("O-. .. --",             Expected::Wait),
    ("O-. U? .-",             Expected::LeaveAlone),
    ("O-. U? .[od]",          Expected::Target),
    ("O-. ?U -.",             Expected::LeaveAlone),
    ("O-. ?U [od].",          Expected::Source),
    ("O-. .. [od]-",          Expected::Source),
    ("O-. .. -[od]",          Expected::Target),
    // Both are proven off, none is used: the one that is connected stays, else the source.
    ("O-. ?i [od][od]",       Expected::Source),
    ("O-. ?[?a] [od][od]",    Expected::Target),
    ("O-. a? [od][od]",       Expected::Target),
    ("O-. i? [od][od]",       Expected::Target),
    // 5. Nothing is left for it: every combination has a row above.
    (".. .. .. ..",           Expected::Unreachable),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Wait,
    LeaveAlone,
    Source,
    Target,
    Unreachable,
}

/// Whether `letters` fits the row's pattern, in which spaces only separate.
fn fits(pattern: &str, letters: &str) -> bool {
    let mut pattern = pattern.chars().filter(|c| *c != ' ');
    letters.chars().all(|letter| match pattern.next() {
        Some('.') => true,
        Some('[') => pattern.by_ref().take_while(|c| *c != ']').filter(|c| *c == letter).count() > 0,
        Some(exact) => exact == letter,
        None => false,
    })
}

fn combinations() -> Vec<String> {
    let columns = [PHASES, LEAVING, KUBEVIRT, SIGHTS, SIGHTS, PROOFS, PROOFS];
    columns.iter().fold(vec![String::new()], |rows, column| {
        rows.iter().flat_map(|row| column.chars().map(move |letter| format!("{row}{letter}"))).collect()
    })
}

fn node(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

fn sight(letter: char) -> Sight {
    match letter {
        '?' => Sight::Unknown { why: "no session".to_owned() },
        'a' => Sight::Absent,
        'i' => Sight::Idle,
        'U' => Sight::InUse { by: "qemu".to_owned() },
        other => panic!("no sight {other}"),
    }
}

fn proof(letter: char) -> Proof {
    match letter {
        '-' => Proof::None,
        'o' => Proof::OutOfService,
        'd' => Proof::NodeDeleted,
        other => panic!("no proof {other}"),
    }
}

fn facts(letters: &str) -> Facts {
    let letters: Vec<char> = letters.chars().collect();
    let [phase, leaving, kubevirt, source, target, source_proof, target_proof] = letters[..] else {
        panic!("seven columns")
    };
    let phase = match phase {
        'A' => MigrationPhase::Active,
        'O' => MigrationPhase::Overdue,
        _ => MigrationPhase::Reaping(ReapDecision {
            stale: node("b"),
            decided_by: "a test".to_owned(),
            evidence: "it says so".to_owned(),
        }),
    };
    let ended = |lost| KubeVirt::Ended { lost, how: "the test says so".to_owned() };
    Facts {
        migration: Migration {
            id: MigrationId(1),
            source: node("a"),
            target: node("b"),
            started_at: LedgerTime(0),
            deadline: LedgerTime(300_000),
            phase,
        },
        kubevirt: match kubevirt {
            '?' => KubeVirt::Unknown { why: "no Kubernetes".to_owned() },
            'w' => KubeVirt::Awaited { why: "not listed yet".to_owned() },
            'M' => KubeVirt::Unfinished { phase: "Running".to_owned() },
            's' => ended(Side::Source),
            't' => ended(Side::Target),
            _ => KubeVirt::NoVm,
        },
        source: SideFacts {
            sight: sight(source),
            proof: proof(source_proof),
            leaving: matches!(leaving, 's' | 'b'),
        },
        target: SideFacts {
            sight: sight(target),
            proof: proof(target_proof),
            leaving: matches!(leaving, 't' | 'b'),
        },
    }
}

fn outcome(verdict: &Verdict) -> Expected {
    match verdict {
        Verdict::Wait { .. } => Expected::Wait,
        Verdict::LeaveAlone { .. } => Expected::LeaveAlone,
        Verdict::Reap { decision, .. } if decision.stale == node("a") => Expected::Source,
        Verdict::Reap { decision, .. } if decision.stale == node("b") => Expected::Target,
        Verdict::Reap { decision, .. } => panic!("{decision:?} is no side"),
    }
}

#[test]
fn every_combination_of_evidence_and_phase_has_its_decision() {
    let mut used = BTreeMap::new();
    for letters in combinations() {
        let (number, (pattern, expected)) =
            ROWS.iter().enumerate().find(|(_, (pattern, _))| fits(pattern, &letters)).unwrap();
        *used.entry(number).or_insert(0) += 1;
        let verdict = decide(&facts(&letters), 7);
        assert_eq!(outcome(&verdict), *expected, "{letters} by row {pattern:?}: {verdict:?}");
    }
    assert_eq!(used.values().sum::<i32>(), 3 * 4 * 6 * 4 * 4 * 3 * 3);
    let unused: Vec<_> = (0..ROWS.len() - 1).filter(|number| !used.contains_key(number)).collect();
    assert!(unused.is_empty(), "rows {unused:?} decide nothing");
}

#[test]
fn no_decision_is_ever_one_of_these() {
    for letters in combinations() {
        let facts = facts(&letters);
        let Verdict::Reap { decision, ground } = decide(&facts, 7) else { continue };
        let (side, other) = if decision.stale == facts.migration.source {
            (&facts.source, &facts.target)
        } else {
            (&facts.target, &facts.source)
        };
        assert!(!matches!(side.sight, Sight::InUse { .. }), "{letters}: takes a side that is in use");
        assert_eq!(facts.migration.phase, MigrationPhase::Overdue, "{letters}: not overdue");
        assert!(!side.leaving && !other.leaving, "{letters}: takes the last one, or one that leaves anyway");
        let unknown = |side: &SideFacts| matches!(side.sight, Sight::Unknown { .. });
        let told = matches!(facts.kubevirt, KubeVirt::Ended { .. }) || side.proof != Proof::None;
        assert!(!matches!(facts.kubevirt, KubeVirt::Awaited { .. }), "{letters}: does not wait for KubeVirt");
        assert!(told || !(unknown(side) || unknown(other)), "{letters}: decides on what is not known");
        let connected_alone = side.sight == Sight::Idle && other.sight == Sight::Absent;
        let source = decision.stale == facts.migration.source;
        assert!(told || source || !connected_alone, "{letters}: takes the only connection");
        assert!(ground.may_pass() || side.proof != Proof::None, "{letters}: takes it at once, without proof");
    }
}

#[test]
fn a_verdict_says_who_and_on_what_evidence() {
    let Verdict::Reap { decision, .. } = decide(&facts("O-naU--"), 7) else { panic!("no reap") };
    assert_eq!(decision.decided_by, "the reaper of term 7, by what the sessions say");
    assert_eq!(
        decision.evidence,
        "the source is stale: only the target is in use \
         (KubeVirt: no VM uses the volume; source a: not connected; target b: in use by qemu)"
    );
    let mut long = facts("O-sa?--");
    long.kubevirt = KubeVirt::Ended { lost: Side::Source, how: "ä".repeat(10_000) };
    let Verdict::Reap { decision, .. } = decide(&long, 7) else { panic!("no reap") };
    assert!(decision.evidence.len() <= 500, "{} bytes go into the ledger", decision.evidence.len());
}
