//! How long a side has to be stale before it is taken, and when that begins anew.

use super::*;

#[test]
fn an_overdue_migration_that_ends_as_it_should_has_succeeded() {
    for says in [None, Some(KubeVirt::Ended { lost: Side::Source, how: "succeeded".to_owned() })] {
        let mut story = Story::overdue();
        story.pass_seen(TIMEOUT.as_secs(), &in_use(), &in_use());
        // The VM is on its new node: kubelet unmounts, the attacher is slow.
        story.evidence.kubevirt.extend(says.map(|says| (volume(0), says)));
        story.pass_seen(REAP_AFTER.as_secs() - 1, &Sight::Idle, &in_use());
        story.ledger.unpublish(0, "a");
        story.pass_seen(60, &Sight::Idle, &in_use());
        story.ledger.report_off(0, "a");
        assert_eq!(story.accepted, []);
        assert_eq!(story.ledger.state.ended_migrations()[0].outcome, MigrationOutcome::Success);
    }
}

#[test]
fn a_side_is_stale_for_as_long_as_somebody_saw_it_so_without_a_break() {
    let almost = REAP_AFTER.as_secs() - 1;
    let mut story = Story::overdue();
    for _ in 0..10 {
        story.pass_seen(almost, &in_use(), &Sight::Idle);
        story.pass_seen(1, &in_use(), &in_use());
        story.pass_seen(almost, &Sight::Idle, &in_use());
    }
    assert_eq!(story.accepted, [], "in use in between, and once the one, once the other");
    // The leader sleeps, and so it does not know what was meanwhile.
    story.pass_seen(almost, &in_use(), &Sight::Idle);
    story.ledger.now += Duration::from_secs(60);
    story.pass_seen(almost, &in_use(), &Sight::Idle);
    assert_eq!(story.accepted, []);
    // Another one has not seen it yet.
    story.next_leader();
    story.pass_seen(almost, &in_use(), &Sight::Idle);
    assert_eq!(story.accepted, []);
    story.pass_seen(3, &in_use(), &Sight::Idle);
    assert_eq!(story.reaped(), ["b"]);
}
