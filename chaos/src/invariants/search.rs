//! The search for an order: whether calls that overlap can be put into one sequence that a simple volume would answer
//! so (Wing and Gong's search, one call's end after the other, with everything tried once).
//!
//! A call takes effect at one moment between its beginning and its end. One whose answer nobody got takes effect at
//! any moment after its beginning, or never. What is known after each end is a set of worlds; calls are put in order
//! only where an end demands it. Of two worlds that differ only in which calls without answer were used up, the one
//! that used fewer can do whatever the other can, and the other is dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::history::Micros;

/// Most worlds that are looked at for the end of one call, before the volume is given up: they are kept in memory.
const MOST_WORLDS_AT_ONCE: usize = 10_000;
/// Most worlds that are looked at for one volume.
const MOST_WORLDS: usize = 2_000_000;
/// Sizes are rounded up to so many bytes.
const GRANULE_BYTES: u64 = 4096;

/// A volume, as simple as it can be.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Model {
    /// In bytes; none if there is no volume.
    pub(super) size_bytes: Option<u64>,
    /// Who has it.
    pub(super) nodes: BTreeSet<String>,
}

/// What a call does to the volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deed {
    Create {
        size_bytes: u64,
    },
    Delete,
    Attach {
        node: String,
    },
    /// From all nodes, if none is named.
    Detach {
        node: String,
    },
    Grow {
        size_bytes: u64,
    },
    /// It is as said.
    Look(Model),
}

impl Deed {
    /// The volume afterwards; none if it cannot be done to this one.
    fn on(&self, model: &Model, most_nodes: usize) -> Option<Model> {
        let Model { size_bytes: present, nodes } = model;
        let mut after = model.clone();
        match self {
            Self::Create { size_bytes } => match present {
                Some(present) if present < size_bytes => return None,
                Some(_) => {}
                None => after.size_bytes = Some(*size_bytes),
            },
            Self::Delete if !nodes.is_empty() => return None,
            Self::Delete => after.size_bytes = None,
            Self::Attach { node } => {
                if present.is_none() || !nodes.contains(node) && nodes.len() >= most_nodes {
                    return None;
                }
                after.nodes.insert(node.clone());
            }
            Self::Detach { node } => after.nodes.retain(|held| !node.is_empty() && held != node),
            Self::Grow { size_bytes } => after.size_bytes = Some((*present)?.max(*size_bytes)),
            Self::Look(seen) if seen != model => return None,
            Self::Look(_) => {}
        }
        Some(after)
    }
}

/// A size as the driver rounds it.
pub(super) fn rounded(size_bytes: u64) -> u64 {
    size_bytes.checked_next_multiple_of(GRANULE_BYTES).unwrap_or(size_bytes)
}

/// One call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) deed: Deed,
    pub(super) started: Micros,
    /// None: it may take effect at any later time, or never.
    pub(super) ended: Option<Micros>,
}

/// What the search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is an order.
    Orderly,
    /// There is none in which this call, by its place in the list, can end; with what the volume could be by then.
    Stuck { call: usize, before: BTreeSet<Model> },
    /// Too many possibilities.
    GivenUp,
}

/// One way that things may have gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    model: Model,
    /// Calls that took effect and have not ended.
    done: BTreeSet<usize>,
    used: Used,
}

/// Of each deed without answer, how many calls took effect.
type Used = BTreeMap<Deed, usize>;

/// Puts the calls in order.
pub(super) fn search(calls: &[Call], most_nodes: usize) -> Verdict {
    // Calls without answer are left alone where an end can do without them: that finds an order quickly, if it finds
    // one. Only the thorough search may say that there is none.
    match Search::new(calls, most_nodes, false).run() {
        Verdict::Orderly => Verdict::Orderly,
        Verdict::Stuck { .. } | Verdict::GivenUp => Search::new(calls, most_nodes, true).run(),
    }
}

struct Search<'a> {
    calls: &'a [Call],
    most_nodes: usize,
    thorough: bool,
    /// Calls that began, will end and have not.
    running: BTreeSet<usize>,
    /// Deeds without answer that began, and how many.
    open: BTreeMap<&'a Deed, usize>,
    looked_at: usize,
    given_up: bool,
}

impl<'a> Search<'a> {
    fn new(calls: &'a [Call], most_nodes: usize, thorough: bool) -> Self {
        let (running, open) = (BTreeSet::new(), BTreeMap::new());
        Self { calls, most_nodes, thorough, running, open, looked_at: 0, given_up: false }
    }

    fn run(mut self) -> Verdict {
        // What begins at the moment when another ends overlaps it.
        let begins = self.calls.iter().enumerate().map(|(call, seen)| (seen.started, false, call));
        let ends = self.calls.iter().enumerate().filter_map(|(call, seen)| Some((seen.ended?, true, call)));
        let mut events: Vec<_> = begins.chain(ends).collect();
        events.sort_unstable();
        let mut worlds = vec![World::default()];
        for (_, is_end, call) in events {
            if !is_end {
                self.begin(call);
                continue;
            }
            let before = worlds.clone();
            worlds = self.end(worlds, call);
            if self.given_up {
                return Verdict::GivenUp;
            }
            if worlds.is_empty() {
                return Verdict::Stuck {
                    call,
                    before: before.into_iter().map(|world| world.model).collect(),
                };
            }
            self.running.remove(&call);
        }
        Verdict::Orderly
    }

    fn begin(&mut self, call: usize) {
        let Some(seen) = self.calls.get(call) else { return };
        if seen.ended.is_some() {
            self.running.insert(call);
        } else {
            *self.open.entry(&seen.deed).or_default() += 1;
        }
    }

    /// The worlds after the end of `call`.
    fn end(&mut self, worlds: Vec<World>, call: usize) -> Vec<World> {
        let after = self.explore(&worlds, call, self.thorough);
        if after.is_empty() && !self.thorough && !self.given_up {
            return self.explore(&worlds, call, true);
        }
        after
    }

    /// Every world that is reached from these by doing what may be done, with `call` the last.
    fn explore(&mut self, worlds: &[World], call: usize, use_open: bool) -> Vec<World> {
        let (mut reached, mut known) = (Worlds::default(), Worlds::default());
        let mut left: VecDeque<World> = worlds.iter().cloned().collect();
        let most = MOST_WORLDS.min(self.looked_at + MOST_WORLDS_AT_ONCE);
        while let Some(mut world) = left.pop_front() {
            self.take_looks(&mut world);
            if !known.admit(&world) {
                continue;
            }
            self.looked_at += 1;
            if self.looked_at > most {
                self.given_up = true;
                return Vec::new();
            }
            if world.done.remove(&call) {
                reached.admit(&world);
                continue;
            }
            left.extend(self.running.iter().filter_map(|next| self.doing(&world, *next)));
            if use_open {
                left.extend(self.open.iter().filter_map(|(deed, began)| self.using(&world, deed, *began)));
            }
        }
        reached.into_vec()
    }

    /// A look that is right takes nothing from anybody, so it is right now.
    fn take_looks(&self, world: &mut World) {
        let right = self
            .running
            .iter()
            .copied()
            .filter(|call| matches!(&self.calls[*call].deed, Deed::Look(seen) if *seen == world.model));
        world.done.extend(right);
    }

    fn doing(&self, world: &World, call: usize) -> Option<World> {
        if world.done.contains(&call) {
            return None;
        }
        let model = self.calls[call].deed.on(&world.model, self.most_nodes)?;
        let mut next = World { model, ..world.clone() };
        next.done.insert(call);
        Some(next)
    }

    /// The world after a call without answer took effect; none if it would change nothing.
    fn using(&self, world: &World, deed: &Deed, began: usize) -> Option<World> {
        if world.used.get(deed).is_some_and(|used| *used >= began) {
            return None;
        }
        let model = deed.on(&world.model, self.most_nodes).filter(|model| *model != world.model)?;
        let mut next = World { model, ..world.clone() };
        *next.used.entry(deed.clone()).or_default() += 1;
        Some(next)
    }
}

/// Worlds, none of which can do less than another of them.
#[derive(Default)]
struct Worlds(BTreeMap<(Model, BTreeSet<usize>), Vec<Used>>);

impl Worlds {
    /// Takes the world in, unless one is there already that can do as much.
    fn admit(&mut self, world: &World) -> bool {
        let alike = self.0.entry((world.model.clone(), world.done.clone())).or_default();
        if alike.iter().any(|used| is_within(used, &world.used)) {
            return false;
        }
        alike.retain(|used| !is_within(&world.used, used));
        alike.push(world.used.clone());
        true
    }

    fn into_vec(self) -> Vec<World> {
        let worlds = self.0.into_iter().flat_map(|((model, done), alike)| {
            alike.into_iter().map(move |used| World { model: model.clone(), done: done.clone(), used })
        });
        worlds.collect()
    }
}

/// Whether `less` uses nothing that `more` does not.
fn is_within(less: &Used, more: &Used) -> bool {
    less.iter().all(|(deed, used)| more.get(deed).is_some_and(|other| other >= used))
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const SIZE: u64 = 4096;

    fn call(started: Micros, ended: impl Into<Option<Micros>>, deed: Deed) -> Call {
        Call { deed, started, ended: ended.into() }
    }

    fn attach(node: &str) -> Deed {
        Deed::Attach { node: node.to_owned() }
    }

    fn detach(node: &str) -> Deed {
        Deed::Detach { node: node.to_owned() }
    }

    fn look(nodes: &[&str]) -> Deed {
        let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
        Deed::Look(Model { size_bytes: Some(SIZE), nodes })
    }

    /// The volume is there, and then this.
    fn after_creation(calls: &[Call]) -> Verdict {
        let mut all = vec![call(0, 1, Deed::Create { size_bytes: SIZE })];
        all.extend(calls.iter().cloned());
        search(&all, 2)
    }

    fn is_orderly(calls: &[Call]) -> bool {
        after_creation(calls) == Verdict::Orderly
    }

    #[test]
    fn what_does_not_overlap_has_one_order() {
        assert!(is_orderly(&[call(2, 3, attach("a")), call(4, 5, look(&["a"]))]));
        assert!(!is_orderly(&[call(2, 3, attach("a")), call(4, 5, look(&[]))]));
        assert!(!is_orderly(&[call(2, 3, look(&["a"])), call(4, 5, attach("a"))]));
    }

    #[test]
    fn what_overlaps_may_go_either_way_but_only_one() {
        for nodes in [&[][..], &["a"]] {
            assert!(is_orderly(&[call(2, 9, attach("a")), call(4, 5, look(nodes))]));
        }
        let back = [call(2, 9, attach("a")), call(3, 4, look(&["a"])), call(5, 6, look(&[]))];
        assert!(!is_orderly(&back), "a later read does not see less");
        let there = [call(2, 9, attach("a")), call(3, 4, look(&[])), call(5, 6, look(&["a"]))];
        assert!(is_orderly(&there));
    }

    #[test]
    fn something_that_changed_nothing_may_have_come_first() {
        let calls = [
            call(2, 3, attach("a")),
            call(4, 9, attach("a")),
            call(5, 6, detach("a")),
            call(10, 11, look(&[])),
        ];
        assert!(is_orderly(&calls));
    }

    #[test]
    fn a_call_without_answer_takes_effect_late_or_never_but_once() {
        let open = call(2, None, attach("a"));
        for nodes in [&[][..], &["a"]] {
            assert!(is_orderly(&[open.clone(), call(100, 101, look(nodes))]));
        }
        let twice =
            [open.clone(), call(10, 11, look(&["a"])), call(12, 13, detach("a")), call(14, 15, look(&["a"]))];
        assert!(!is_orderly(&twice));
        let second = [&twice[..3], &[call(3, None, attach("a"))], &twice[3..]].concat();
        assert!(is_orderly(&second));
        assert!(
            !is_orderly(&[call(10, 11, look(&["a"])), call(12, None, attach("a"))]),
            "not before it began"
        );
    }

    #[test]
    fn what_the_volume_forbids_is_no_order() {
        assert!(!is_orderly(&[call(2, 3, attach("a")), call(4, 5, attach("b")), call(6, 7, attach("c"))]));
        assert!(!is_orderly(&[call(2, 3, attach("a")), call(4, 5, Deed::Delete)]));
        assert!(!is_orderly(&[call(2, 3, Deed::Delete), call(4, 5, attach("a"))]));
        assert!(!is_orderly(&[call(2, 3, Deed::Create { size_bytes: 2 * SIZE })]));
        assert!(is_orderly(&[call(2, 3, attach("a")), call(4, 5, detach("")), call(6, 7, Deed::Delete)]));
    }

    #[test]
    fn a_deed_without_answer_that_must_come_first_is_found_by_the_thorough_search() {
        // The deletion was needed before the creation, though that could end without it.
        let calls = [
            call(2, None, Deed::Delete),
            call(3, 4, Deed::Create { size_bytes: SIZE }),
            call(5, 6, Deed::Grow { size_bytes: 2 * SIZE }),
            call(7, 8, Deed::Create { size_bytes: SIZE }),
            call(9, 10, look(&[])),
        ];
        assert!(is_orderly(&calls));
    }

    #[test]
    fn it_says_where_it_is_stuck() {
        let verdict = after_creation(&[call(2, 3, attach("a")), call(4, 5, look(&[]))]);
        let Verdict::Stuck { call: 2, before } = verdict else { panic!("{verdict:?}") };
        assert_eq!(before.len(), 1);
    }

    #[test]
    fn a_wrong_read_is_seen_among_many_calls_without_answer() {
        let mut calls = Vec::new();
        for round in 0..40 {
            for node in ["a", "b"] {
                calls.push(call(10 * round + 2, None, attach(node)));
                calls.push(call(10 * round + 3, None, detach(node)));
            }
        }
        assert!(is_orderly(&[calls.clone(), vec![call(1_000, 1_001, look(&["a", "b"]))]].concat()));
        calls.push(call(1_000, 1_001, look(&["c"])));
        assert!(matches!(after_creation(&calls), Verdict::Stuck { .. }));
    }

    #[test]
    fn too_many_possibilities_are_given_up_and_not_passed() {
        let mut calls = vec![call(0, 1, Deed::Create { size_bytes: SIZE })];
        // Each may have come at any time, and no order explains the last.
        for n in 0..14 {
            calls.push(call(2, 90, Deed::Grow { size_bytes: SIZE * (2 + n) }));
        }
        calls.push(call(100, 101, look(&["a"])));
        assert_eq!(search(&calls, 2), Verdict::GivenUp);
    }

    #[test]
    fn many_calls_without_answer_are_no_trouble() {
        let mut calls = Vec::new();
        for round in 0..200 {
            let at = 10 * round + 2;
            let node = ["a", "b", "c"][round as usize % 3];
            calls.push(call(at, None, attach(node)));
            calls.push(call(at, None, detach(node)));
            calls.push(call(at + 1, at + 5, attach(node)));
            calls.push(call(at + 2, at + 6, look(&[node])));
            calls.push(call(at + 7, at + 8, detach("")));
        }
        assert!(is_orderly(&calls));
    }

    /// A small run, made from a real order of deeds by chance; wrong ones have one look that is made up.
    fn made_up(rng: &mut StdRng, wrong: bool) -> Vec<Call> {
        let nodes = ["a", "b", "c"].map(str::to_owned);
        let (mut model, mut calls) = (Model::default(), Vec::new());
        for n in 0..rng.random_range(3..8) {
            let at = 10 * n + 20;
            let node = nodes[rng.random_range(0..nodes.len())].clone();
            let deed = match rng.random_range(0..8) {
                0 | 1 => Deed::Create { size_bytes: SIZE },
                2 => Deed::Delete,
                3 | 4 => Deed::Attach { node },
                5 => Deed::Detach { node },
                _ => Deed::Look(model.clone()),
            };
            let after = deed.on(&model, 2);
            let is_open = rng.random_bool(0.3) && !matches!(deed, Deed::Look(_));
            let (before, later) = (rng.random_range(0..20), rng.random_range(1..20));
            if after.is_some() && !(is_open && rng.random_bool(0.5)) {
                model = after.unwrap_or_default();
            } else if !is_open {
                continue;
            }
            calls.push(call(at - before, (!is_open).then_some(at + later), deed));
        }
        if wrong {
            let made_up = Model {
                size_bytes: Some(SIZE),
                nodes: nodes[..rng.random_range(0..3)].iter().cloned().collect(),
            };
            calls.push(call(15, rng.random_range(16..120), Deed::Look(made_up)));
        }
        calls
    }

    /// Whether there is an order: all of them are tried.
    fn has_order(calls: &[Call], taken: u32, model: &Model) -> bool {
        let left = || calls.iter().enumerate().filter(|(n, _)| taken & (1 << n) == 0);
        let Some(first_end) = left().filter_map(|(_, call)| call.ended).min() else { return true };
        // What begins after another's end cannot come before it.
        left().filter(|(_, call)| call.started <= first_end).any(|(n, call)| {
            call.deed.on(model, 2).is_some_and(|after| has_order(calls, taken | 1 << n, &after))
        })
    }

    #[test]
    fn it_says_what_trying_all_orders_says() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut orderly = 0;
        for n in 0..4_000 {
            let calls = made_up(&mut rng, n % 2 == 1);
            let expected = has_order(&calls, 0, &Model::default());
            let verdict = search(&calls, 2);
            assert_eq!(verdict == Verdict::Orderly, expected, "{calls:#?}: {verdict:?}");
            assert!(expected || n % 2 == 1, "{calls:#?} were made in order");
            orderly += usize::from(expected);
        }
        assert!((2_000..3_900).contains(&orderly), "{orderly} of 4000 are orderly");
    }
}
