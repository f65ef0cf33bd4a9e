//! Which hold a denial belongs to, and how long a row of holds may be.

use super::*;

const MAX_HOLD_S: u64 = SETTINGS.max_hold.as_secs();
const TOLERANCE_S: u64 = CLOCK_TOLERANCE.as_secs();

fn ago(seconds: u64) -> SystemTime {
    now() - Duration::from_secs(seconds)
}

/// As [`lone`], first denied so many seconds ago; a pod that lists `volumes` and exposes nothing was made so many seconds
/// ago.
fn replaced(denied_s: u64, volumes: &[&str], made_s: u64) -> Facts {
    let mut facts = lone();
    facts.noted = Some(held(denied_s));
    let new = AttachmentPod { exposes: set(&[]), created: Some(ago(made_s)), ..pod("new", volumes) };
    facts.siblings = Answer::Known(vec![new]);
    facts
}

fn decided(facts: &Facts) -> Verdict {
    decide(facts, now(), &SETTINGS)
}

#[test]
fn a_first_denial_begins_a_hold_and_the_next_ones_belong_to_it() {
    let first = decided(&lone());
    assert_eq!((first.held, first.begins), (held(0), true));
    let mut facts = lone();
    facts.noted = Some(held(30));
    let next = decided(&facts);
    assert_eq!((next.held, next.begins), (held(30), false));
    // What another replica wrote wins over this one's own memory, whichever is older.
    for remembered_s in [10, 50] {
        facts.remembered = Some(held(remembered_s));
        assert_eq!(decided(&facts).held, held(30));
    }
    facts.noted = None;
    assert_eq!(decided(&facts).held, held(50));
}

#[test]
fn the_pod_that_is_awaited_was_made_before_the_hold_or_with_it() {
    for made_s in [MAX_HOLD_S + 2_000, 500, 500 - TOLERANCE_S] {
        let facts = replaced(500, &["one", "two", "three"], made_s);
        let verdict = expect(Reason::LastHolder, &facts, &SETTINGS);
        assert_eq!((verdict.held, verdict.begins), (held(500), false), "made {made_s} s ago");
    }
    let expired = replaced(MAX_HOLD_S, &["one", "two", "three"], MAX_HOLD_S - TOLERANCE_S);
    expect(Reason::HoldExpired, &expired, &SETTINGS);
}

#[test]
fn a_younger_pod_means_another_hold() {
    // For other volumes, or for the same ones tried once more.
    for volumes in [&["one", "two", "four"][..], &["one", "two", "three"]] {
        for denied_s in [500, MAX_HOLD_S, MAX_HOLD_S + FORMER_HOLD_AFTER.as_secs() - 1] {
            let facts = replaced(denied_s, volumes, denied_s - TOLERANCE_S - 1);
            let verdict = expect(Reason::LastHolder, &facts, &SETTINGS);
            assert!(verdict.begins);
            assert_eq!(verdict.held, Held { since: now(), first: ago(denied_s) });
            assert_eq!(verdict.event, Some(Severity::Normal), "it is told as the new hold that it is");
        }
    }
}

#[test]
fn only_pods_that_may_replace_it_say_so() {
    let mut elsewhere = replaced(MAX_HOLD_S, &["one", "two"], 10);
    edit_sibling(&mut elsewhere, |pod| pod.node = Some(node("b")));
    expect(Reason::HoldExpired, &elsewhere, &SETTINGS);
    let mut trigger = replaced(MAX_HOLD_S, &["one", "two"], 10);
    edit_sibling(&mut trigger, |pod| pod.is_trigger = true);
    expect(Reason::HoldExpired, &trigger, &SETTINGS);
    let mut undated = replaced(MAX_HOLD_S, &["one", "two"], 10);
    edit_sibling(&mut undated, |pod| pod.created = None);
    expect(Reason::HoldExpired, &undated, &SETTINGS);
}

#[test]
fn a_pod_from_the_future_does_not_make_every_denial_the_first() {
    let mut facts = replaced(MAX_HOLD_S, &["one", "two"], 0);
    edit_sibling(&mut facts, |pod| pod.created = Some(now() + CLOCK_TOLERANCE));
    let renewed = expect(Reason::LastHolder, &facts, &SETTINGS);
    assert!(renewed.begins);
    facts.noted = Some(renewed.held);
    assert!(!decided(&facts).begins, "what was noted counts with the next question");
    facts.noted = Some(held(MAX_HOLD_S));
    edit_sibling(&mut facts, |pod| pod.created = Some(now() + CLOCK_TOLERANCE + Duration::from_secs(1)));
    expect(Reason::HoldExpired, &facts, &SETTINGS);
}

#[test]
fn what_could_not_be_written_is_not_lost_when_a_hold_begins_anew() {
    let mut facts = replaced(MAX_HOLD_S, &["one", "two"], 100);
    let own = Held { since: ago(30), first: ago(MAX_HOLD_S) };
    facts.remembered = Some(own);
    let verdict = expect(Reason::LastHolder, &facts, &SETTINGS);
    assert_eq!((verdict.held, verdict.begins), (own, false));
}

#[test]
fn a_former_hold_does_not_shorten_the_next_one() {
    let over = MAX_HOLD_S + FORMER_HOLD_AFTER.as_secs();
    let mut facts = lone();
    facts.noted = Some(held(over - 1));
    expect(Reason::HoldExpired, &facts, &SETTINGS);
    facts.noted = Some(held(over));
    let verdict = expect(Reason::LastHolder, &facts, &SETTINGS);
    assert_eq!((verdict.held, verdict.begins), (held(0), true), "nothing is left of it");
    facts.remembered = Some(held(10));
    assert_eq!(decided(&facts).held, held(10));
    facts.remembered = Some(held(over));
    assert!(decided(&facts).begins);
}

#[test]
fn the_longest_row_is_over_whatever_comes_next() {
    let row_s = MAX_HOLD_S * u64::from(HOLDS_IN_A_ROW);
    let of = |first_s: u64| {
        let mut facts = replaced(100, &["one", "two"], 0);
        facts.noted = Some(Held { since: ago(100), first: ago(first_s) });
        facts
    };
    expect(Reason::LastHolder, &of(row_s - 1), &SETTINGS);
    let over = expect(Reason::HoldExpired, &of(row_s), &SETTINGS);
    assert!(!over.begins && over.message.contains(&format!("{row_s} s")), "{}", over.message);
}

/// Somebody changes the VM's volumes again and again, and each time KubeVirt makes a new pod that comes to nothing.
#[test]
fn nobody_extends_a_hold_for_ever() {
    let mut facts = lone();
    let begin = now();
    let mut anew = 0;
    let row_s = MAX_HOLD_S * u64::from(HOLDS_IN_A_ROW);
    for second in (0..3 * row_s).step_by(5) {
        let at = begin + Duration::from_secs(second);
        if second % (TOLERANCE_S + 20) == 0 {
            let new = AttachmentPod { exposes: set(&[]), created: Some(at), ..pod("new", &["one"]) };
            facts.siblings = Answer::Known(vec![new]);
        }
        let verdict = decide(&facts, at, &SETTINGS);
        assert_eq!(verdict.allowed, second >= row_s, "after {second} s: {}", verdict.reason);
        if !verdict.allowed {
            anew += u32::from(verdict.begins);
            facts.noted = Some(verdict.held);
        }
        if second >= row_s + 60 {
            break;
        }
    }
    assert!(anew > HOLDS_IN_A_ROW, "begun only {anew} times");
}
