//! A replica's place: forming a cluster, coming back after a lost disk, noticing its removal (DESIGN.md, "Replicas").
//!
//! Every replica looks around now and then, asks all others who they are, and decides what to do; [`decide`] is
//! pure. Three rules keep two clusters from coming out of one:
//!
//! - A cluster is formed only when every configured replica answers, has the same configuration, and has neither
//!   voted nor a log. The one with the lowest name forms it.
//! - Before it does, every one of them has written down the new cluster's id, and a replica never takes another. Two
//!   that would form a cluster at once, under one name, cannot both get everybody.
//! - A replica without data that finds one with data asks to be taken in, under a new id. If that one has no quorum
//!   any more, both wait, and say what is wrong. One that has data, and that nobody knows, was removed or is not
//!   known yet: it never asks to be taken in with what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proto::peer::v1::{AdoptRequest, JoinRequest, join_reply};
use storage::ReplicaNode;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::config::PeerAddress;
use crate::membership::check_size;
use crate::replica::Inner;
use crate::report::{Known, Report, parse_cluster_id};

/// Pause between two looks around, for a replica that has no place yet, and for one that has.
const SEEKING_INTERVAL: Duration = Duration::from_millis(200);
const SETTLED_INTERVAL: Duration = Duration::from_millis(1_000);
/// How often trouble is repeated in the log.
const REMINDER_INTERVAL: Duration = Duration::from_secs(10);
/// How long a peer may take to note its cluster, or to take this replica in.
const PLACE_TIMEOUT: Duration = Duration::from_millis(6_000);

/// What the last look around found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// A leader says that a quorum answers it.
    pub(crate) leader_answers: bool,
    /// Why there is no working cluster, and what to do; for people.
    pub(crate) trouble: Option<String>,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Course {
    /// It is a member; with the trouble if there is no leader.
    Member(Option<String>),
    /// It was removed; says who knows.
    Removed(String),
    /// Somebody knows it as a member, and the log is on its way.
    Expected,
    /// Ask one of these to be taken in; with the trouble if they cannot.
    Join {
        /// By name.
        ask: Vec<String>,
        /// Why they cannot now.
        trouble: Option<String>,
    },
    /// Form a cluster of these.
    Form(BTreeMap<u64, PeerAddress>),
    /// Wait, for this reason.
    Wait(String),
}

/// Decides from what this replica and the others say. `reports` has an entry for every other replica that is
/// configured or a member, by name; `was_member` is whether this process has been one.
pub fn decide(own: &Report, was_member: bool, reports: &BTreeMap<String, Result<Report, String>>) -> Course {
    let answers: Vec<&Report> = reports.values().flatten().collect();
    let with_data: Vec<&Report> = answers.iter().copied().filter(|report| report.initialized).collect();
    if let Some(known) = own.membership.as_ref().filter(|known| known.members.contains_key(&own.replica_id)) {
        let removed_by = with_data.iter().find(|report| {
            let newer = report.membership.as_ref().is_some_and(|theirs| theirs.index > known.index);
            newer && report.cluster_id == own.cluster_id && !report.has_member(own.replica_id)
        });
        return match removed_by {
            Some(report) => Course::Removed(format!("{} has a newer membership without it", report.name)),
            None => Course::Member(no_quorum(own, known, &answers)),
        };
    }
    if was_member {
        return Course::Removed("its own log says so".to_owned());
    }
    if with_data.iter().any(|report| report.cluster_id == own.cluster_id && report.has_member(own.replica_id))
    {
        return Course::Expected;
    }
    if own.initialized {
        return Course::Wait(unknown(&with_data));
    }
    if !with_data.is_empty() {
        return join(own, &with_data, &answers);
    }
    form(own, reports)
}

/// What is wrong with a replica that has data, while none of those `with_data` knows it as a member.
fn unknown(with_data: &[&Report]) -> String {
    let members: Vec<&str> = with_data
        .iter()
        .filter(|report| report.membership.is_some())
        .map(|report| report.name.as_str())
        .collect();
    if members.is_empty() {
        return "the cluster's first membership has not arrived here yet".to_owned();
    }
    format!(
        "this replica has data, and is no member to {}: if it was removed while it was away, empty the directory \
         to let it come back as a new one; it does not join with old data",
        members.join(", ")
    )
}

fn join(own: &Report, with_data: &[&Report], answers: &[&Report]) -> Course {
    let clusters: BTreeSet<Uuid> =
        with_data.iter().filter_map(|report| report.cluster_id).chain(own.cluster_id).collect();
    if clusters.len() > 1 {
        let names: Vec<_> = with_data.iter().map(|report| report.name.as_str()).collect();
        return Course::Wait(format!(
            "the replicas belong to different clusters ({}); empty the directory of the one that is wrong",
            names.join(", ")
        ));
    }
    let newest =
        with_data.iter().filter_map(|report| report.membership.as_ref()).max_by_key(|known| known.index);
    let trouble = newest.and_then(|known| no_quorum(own, known, answers));
    Course::Join { ask: with_data.iter().map(|report| report.name.clone()).collect(), trouble }
}

/// What is wrong if nobody leads and the members that answer with their data are no quorum.
fn no_quorum(own: &Report, known: &Known, answers: &[&Report]) -> Option<String> {
    let all = || answers.iter().copied().chain([own]);
    if all().any(|report| report.leads) {
        return None;
    }
    let voters: BTreeMap<u64, &str> =
        known.members.iter().filter(|(_, m)| m.voter).map(|(id, m)| (*id, m.name.as_str())).collect();
    let here = |id: &u64| all().any(|report| report.replica_id == *id && report.initialized);
    let missing: Vec<String> = voters
        .iter()
        .filter(|(id, _)| !here(id))
        .map(|(id, name)| format!("{name} (replica {id})"))
        .collect();
    let present = voters.len() - missing.len();
    let needed = voters.len() / 2 + 1;
    if present >= needed {
        return None;
    }
    let replaced: Vec<&str> = all()
        .filter(|report| !known.members.contains_key(&report.replica_id))
        .filter(|report| voters.values().any(|name| *name == report.name))
        .map(|report| report.name.as_str())
        .collect();
    let lost = if replaced.is_empty() {
        String::new()
    } else {
        format!(
            "; {} came back without data: bring the old directories back, or recover as the documentation says",
            replaced.join(", ")
        )
    };
    Some(format!(
        "no quorum: {present} of {} members answer with their data, {needed} are needed; missing are {}{lost}; \
         no new cluster is formed while one of the old one is there",
        voters.len(),
        missing.join(", ")
    ))
}

fn form(own: &Report, reports: &BTreeMap<String, Result<Report, String>>) -> Course {
    let mut silent = Vec::new();
    let mut members = BTreeMap::new();
    for place in &own.configured {
        if place.name == own.name {
            members.insert(own.replica_id, place.clone());
            continue;
        }
        match reports.get(&place.name) {
            Some(Ok(report)) if report.configured != own.configured => {
                return Course::Wait(format!(
                    "{} is configured with other replicas or addresses than this one; make them equal",
                    place.name
                ));
            }
            Some(Ok(report)) => {
                members.insert(report.replica_id, place.clone());
            }
            Some(Err(why)) => silent.push(why.clone()),
            None => silent.push(format!("{} was not asked", place.name)),
        }
    }
    if !silent.is_empty() {
        return Course::Wait(format!(
            "a new cluster is formed only when all configured replicas answer: {}",
            silent.join("; ")
        ));
    }
    if members.len() != own.configured.len() {
        return Course::Wait("two replicas have the same id; empty the directory of one of them".to_owned());
    }
    // Ordered by name: the first is the lowest.
    let lowest = own.configured.first().map(|place| place.name.clone()).unwrap_or_default();
    if lowest != own.name {
        return Course::Wait(format!("{lowest} is about to form the cluster"));
    }
    let promised = |report: &&Report| report.cluster_id.is_some() && report.cluster_id != own.cluster_id;
    if let Some(other) = reports.values().flatten().find(promised) {
        return Course::Wait(format!(
            "{} was promised to a cluster that was never formed, by a replica that is gone; empty its directory",
            other.name
        ));
    }
    Course::Form(members)
}

/// Looks around and acts, as long as the replica lives.
pub(crate) async fn keep_place(inner: Arc<Inner>) {
    let mut reminded: Option<Instant> = None;
    loop {
        // Read before the report: a membership that arrives in between must not look like a removal.
        let was_member = inner.was_member.load(Ordering::Relaxed);
        let Some(own) = inner.report().await else { return };
        let reports = look_around(&inner).await;
        let course = decide(&own, was_member, &reports);
        let settled = matches!(course, Course::Member(_) | Course::Expected);
        let trouble = follow(&inner, course).await;
        let leader_answers = own.leads
            || reports.values().flatten().any(|report| report.leads && report.cluster_id == own.cluster_id);
        let now = Surroundings { leader_answers, trouble };
        let is_news = inner.surroundings.borrow().trouble != now.trouble;
        if let Some(trouble) = &now.trouble
            && (is_news || reminded.is_none_or(|when| when.elapsed() >= REMINDER_INTERVAL))
        {
            tracing::warn!(replica = inner.id, name = inner.config.name, "{trouble}");
            reminded = Some(Instant::now());
        }
        inner.surroundings.send_replace(now);
        let pause = if settled { SETTLED_INTERVAL } else { SEEKING_INTERVAL };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = inner.stopping.cancelled() => return,
        }
    }
}

/// Asks everyone else, configured or member, at once.
async fn look_around(inner: &Arc<Inner>) -> BTreeMap<String, Result<Report, String>> {
    let mut places: BTreeMap<String, String> =
        inner.config.peers.iter().map(|peer| (peer.name.clone(), peer.address.clone())).collect();
    for (_, node) in inner.metrics().membership_config.nodes() {
        places.entry(node.name.clone()).or_insert_with(|| node.address.clone());
    }
    places.remove(&inner.config.name);
    let mut asked = JoinSet::new();
    for (name, address) in places {
        let inner = inner.clone();
        asked.spawn(async move {
            let report = inner.identify(&PeerAddress { name: name.clone(), address }).await;
            (name, report)
        });
    }
    asked.join_all().await.into_iter().collect()
}

/// Does it; says what is wrong, if something is.
async fn follow(inner: &Inner, course: Course) -> Option<String> {
    match course {
        Course::Member(trouble) => trouble,
        Course::Expected => None,
        Course::Wait(why) => Some(why),
        Course::Removed(why) => {
            inner.leave(why.clone()).await;
            Some(why)
        }
        Course::Join { ask, trouble } => {
            let refusal = ask_to_join(inner, &ask).await.err();
            trouble.or(refusal)
        }
        Course::Form(members) => form_cluster(inner, members).await.err(),
    }
}

async fn ask_to_join(inner: &Inner, ask: &[String]) -> Result<(), String> {
    let own = inner.config.own_address()?.clone();
    let request = JoinRequest { replica_id: inner.id, name: own.name, address: own.address };
    let mut problems = Vec::new();
    for name in ask {
        let mut client = inner.peers.client(name, "")?;
        match tokio::time::timeout(PLACE_TIMEOUT, client.join(request.clone())).await {
            Ok(Ok(reply)) => match reply.into_inner().outcome {
                Some(join_reply::Outcome::ClusterId(id)) => {
                    let id = parse_cluster_id(&id)?
                        .ok_or_else(|| format!("{name} took it in without a cluster"))?;
                    inner.adopt(id).await.map_err(|error| error.to_string())?;
                    tracing::info!(replica = inner.id, cluster = %id, by = name, "taken in as a learner");
                    return Ok(());
                }
                Some(join_reply::Outcome::Refused(why)) => return Err(why),
                Some(join_reply::Outcome::NotLeader(not_leader)) => {
                    problems.push(format!("{name}: {}", not_leader.reason));
                }
                None => problems.push(format!("{name}: its answer cannot be understood")),
            },
            Ok(Err(status)) => problems.push(format!("{name}: {}", status.message())),
            Err(_) => problems.push(format!("{name}: no answer")),
        }
    }
    Err(format!("nobody takes this replica in: {}", problems.join("; ")))
}

async fn form_cluster(inner: &Inner, members: BTreeMap<u64, PeerAddress>) -> Result<(), String> {
    let node = |(id, place): (&u64, &PeerAddress)| {
        (*id, ReplicaNode { name: place.name.clone(), address: place.address.clone() })
    };
    let nodes: BTreeMap<u64, ReplicaNode> = members.iter().map(node).collect();
    check_size(nodes.clone())?;
    let cluster_id = inner.cluster_id.get().copied().unwrap_or_else(Uuid::new_v4);
    inner.adopt(cluster_id).await.map_err(|error| error.to_string())?;
    for (id, place) in members.iter().filter(|(id, _)| **id != inner.id) {
        let mut client = inner.peers.client(&place.name, &place.address)?;
        let request = AdoptRequest { cluster_id: cluster_id.as_bytes().to_vec(), to: *id };
        match tokio::time::timeout(PLACE_TIMEOUT, client.adopt(request)).await {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => return Err(format!("{} does not go along: {}", place.name, status.message())),
            Err(_) => return Err(format!("{} does not answer", place.name)),
        }
    }
    tracing::info!(replica = inner.id, cluster = %cluster_id, members = ?nodes.keys(), "forming a cluster");
    let formed = inner.consensus.ask(|raft| async move { raft.initialize(nodes).await });
    formed.await.map_err(|error| format!("the cluster was not formed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::KnownMember;

    const CLUSTER: Uuid = Uuid::from_u128(1);

    fn place(name: &str) -> PeerAddress {
        PeerAddress { name: name.to_owned(), address: format!("{name}:1") }
    }

    /// A replica without data.
    fn empty(replica_id: u64, name: &str) -> Report {
        Report {
            replica_id,
            name: name.to_owned(),
            initialized: false,
            cluster_id: None,
            configured: ["a", "b", "c"].map(place).into(),
            membership: None,
            leads: false,
            newest_cluster_version: 1,
        }
    }

    /// One that knows `members`, all voters, as of `index`.
    fn member(replica_id: u64, name: &str, index: u64, members: &[(u64, &str)]) -> Report {
        let known = |(id, name): &(u64, &str)| (*id, KnownMember { name: (*name).to_owned(), voter: true });
        Report {
            initialized: true,
            cluster_id: Some(CLUSTER),
            membership: Some(Known { index, members: members.iter().map(known).collect() }),
            ..empty(replica_id, name)
        }
    }

    fn decided(own: &Report, others: &[Report], silent: &[&str]) -> Course {
        let answered = others.iter().map(|report| (report.name.clone(), Ok(report.clone())));
        let silent = silent.iter().map(|name| ((*name).to_owned(), Err(format!("{name} does not answer"))));
        decide(own, false, &answered.chain(silent).collect())
    }

    fn waits_because(course: Course, part: &str) {
        let Course::Wait(why) = course else { panic!("{course:?}") };
        assert!(why.contains(part), "{why}");
    }

    #[test]
    fn a_cluster_is_formed_by_the_lowest_of_all_if_all_are_empty() {
        let (a, b, c) = (empty(10, "a"), empty(20, "b"), empty(30, "c"));
        let all = BTreeMap::from([(10, place("a")), (20, place("b")), (30, place("c"))]);
        assert_eq!(decided(&a, &[b.clone(), c.clone()], &[]), Course::Form(all.clone()));
        waits_because(decided(&b, &[a.clone(), c.clone()], &[]), "a is about to form");
        waits_because(decided(&a, std::slice::from_ref(&b), &["c"]), "c does not answer");
        waits_because(decided(&a, &[], &["b", "c"]), "all configured replicas");

        let mut other = c.clone();
        other.configured.insert(place("d"));
        waits_because(decided(&a, &[b.clone(), other], &[]), "c is configured with other replicas");
        let twin = empty(20, "c");
        waits_because(decided(&a, &[b.clone(), twin], &[]), "the same id");

        // Begun and interrupted: the same one may end it, another one may not.
        let promised = Report { cluster_id: Some(CLUSTER), ..b };
        waits_because(decided(&a, &[promised.clone(), c.clone()], &[]), "b was promised");
        let began = Report { cluster_id: Some(CLUSTER), ..a };
        assert_eq!(decided(&began, &[promised, c], &[]), Course::Form(all));
    }

    #[test]
    fn who_has_voted_forms_nothing() {
        let voted = Report { initialized: true, cluster_id: Some(CLUSTER), ..empty(10, "a") };
        waits_because(decided(&voted, &[empty(20, "b"), empty(30, "c")], &[]), "has not arrived");
    }

    #[test]
    fn an_empty_replica_never_forms_a_cluster_beside_data() {
        let members = [(1, "a"), (2, "b"), (3, "c")];
        let (a, b) = (empty(10, "a"), empty(20, "b"));
        let c = member(3, "c", 5, &members);
        let Course::Join { ask, trouble } = decided(&a, &[b.clone(), c.clone()], &[]) else { panic!() };
        assert_eq!(ask, ["c"]);
        let trouble = trouble.unwrap();
        for part in ["1 of 3", "2 are needed", "a (replica 1), b (replica 2)", "came back", "no new cluster"]
        {
            assert!(trouble.contains(part), "{part}: {trouble}");
        }
        // Those that vote but know no membership count as data too.
        let voted = Report { initialized: true, cluster_id: Some(CLUSTER), ..empty(2, "b") };
        assert!(matches!(decided(&a, &[voted], &["c"]), Course::Join { .. }));

        // With a quorum of the old ones there is no trouble.
        let b = member(2, "b", 5, &members);
        let joins = Course::Join { ask: vec!["b".to_owned(), "c".to_owned()], trouble: None };
        assert_eq!(decided(&a, &[b.clone(), c.clone()], &[]), joins);

        let foreign = Report { cluster_id: Some(Uuid::from_u128(2)), ..c };
        waits_because(decided(&a, &[b, foreign], &[]), "different clusters");
    }

    #[test]
    fn the_last_one_with_data_says_that_it_is_the_last() {
        let members = [(1, "a"), (2, "b"), (3, "c")];
        let c = member(3, "c", 5, &members);
        let Course::Member(Some(trouble)) = decided(&c, &[empty(10, "a"), empty(20, "b")], &[]) else {
            panic!()
        };
        assert!(trouble.contains("1 of 3") && trouble.contains("a, b came back without data"), "{trouble}");
        let Course::Member(trouble) = decided(&c, &[member(1, "a", 5, &members)], &["b"]) else { panic!() };
        assert_eq!(trouble, None);
        let leader = Report { leads: true, ..c };
        assert_eq!(decided(&leader, &[], &["a", "b"]), Course::Member(None));
    }

    #[test]
    fn a_removal_is_believed_only_if_it_is_newer_and_of_the_same_cluster() {
        let own = member(1, "a", 5, &[(1, "a"), (2, "b"), (3, "c")]);
        let without = [(2, "b"), (3, "c")];
        assert!(matches!(decided(&own, &[member(2, "b", 6, &without)], &["c"]), Course::Removed(_)));
        assert!(matches!(decided(&own, &[member(2, "b", 4, &without)], &["c"]), Course::Member(_)));
        assert!(matches!(
            decided(&own, &[member(2, "b", 6, &[(1, "a"), (2, "b")])], &["c"]),
            Course::Member(_)
        ));
        let foreign = Report { cluster_id: Some(Uuid::from_u128(2)), ..member(2, "b", 6, &without) };
        assert!(matches!(decided(&own, &[foreign], &["c"]), Course::Member(_)));
        // One that was a member and whose own log has it no more.
        let gone = member(1, "a", 6, &without);
        assert!(matches!(decide(&gone, true, &BTreeMap::new()), Course::Removed(_)));
    }

    #[test]
    fn a_learner_waits_for_its_log() {
        let own = Report { cluster_id: Some(CLUSTER), ..empty(10, "a") };
        let leader = member(2, "b", 7, &[(1, "a"), (2, "b"), (3, "c"), (10, "a")]);
        assert_eq!(decided(&own, std::slice::from_ref(&leader), &["c"]), Course::Expected);
        // So does one that has the log up to before it was taken in.
        let behind = Report { replica_id: 10, ..member(1, "a", 5, &[(1, "a"), (2, "b"), (3, "c")]) };
        assert_eq!(decided(&behind, &[leader], &["c"]), Course::Expected);
    }

    #[test]
    fn one_that_was_removed_never_joins_with_its_old_data() {
        let without = [(2, "b"), (3, "c")];
        // It was killed after the removal arrived and before it wrote down that it was removed.
        let own = member(1, "a", 6, &without);
        waits_because(decided(&own, &[member(2, "b", 6, &without)], &["c"]), "empty the directory");
        // The same with nothing but a vote and entries that are not known to be committed.
        let own = Report { membership: None, ..own };
        waits_because(decided(&own, &[member(2, "b", 6, &without)], &["c"]), "no member to b");
        // Where nobody knows a membership, the cluster's first one is on its way.
        let voted = Report { membership: None, ..member(2, "b", 6, &without) };
        waits_because(decided(&own, &[voted], &["c"]), "has not arrived");
    }
}
