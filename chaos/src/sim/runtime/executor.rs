//! The simulated machine room: tasks, time, and who is stopped or dead; one thread, no clock but its own.
//!
//! Tasks belong to groups: a process each. A group can be frozen (its tasks are not polled, whatever wakes them, and its
//! time goes on) and killed (its tasks are dropped where they wait), which makes every await of everything that runs in
//! it, openraft included, a place to stop at. Each group has a clock of its own rate and a wall clock of its own.
//!
//! Nothing here depends on addresses, hashes or the machine's time, so a seed decides everything.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::sim::rng::SimRng;

/// Parts of a million: a clock of this rate runs like true time.
pub(crate) const TRUE_RATE_PPM: u64 = 1_000_000;
/// In this share of all choices, in a thousand, the next task is any of those that are ready instead of the oldest.
const SHUFFLED_PER_MILLE: u64 = 250;

/// So many polls without time passing mean that it never will.
const MAX_POLLS_AT_ONCE: u64 = 1_000_000;

type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A simulated process, or the world around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupId(u32);

/// The world: clients, appliance, faults.
pub(crate) const WORLD: GroupId = GroupId(0);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TaskId {
    place: usize,
    number: u64,
}

struct Task {
    number: u64,
    group: GroupId,
    waker: Arc<TaskWaker>,
    /// None while it is polled.
    future: Option<TaskFuture>,
}

#[derive(Default)]
struct Ready {
    queue: Mutex<VecDeque<TaskId>>,
}

struct TaskWaker {
    id: TaskId,
    is_queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            self.ready.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.id);
        }
    }
}

/// A clock that began somewhere and has a rate.
#[derive(Debug, Clone, Copy)]
struct Rate {
    true_ns: u64,
    local_ns: u64,
    ppm: u64,
}

impl Rate {
    fn local(&self, true_ns: u64) -> u64 {
        let passed = u128::from(true_ns.saturating_sub(self.true_ns)) * u128::from(self.ppm);
        self.local_ns + u64::try_from(passed / u128::from(TRUE_RATE_PPM)).unwrap_or(u64::MAX)
    }

    /// The first true time at which the clock shows `local_ns`.
    fn true_at(&self, local_ns: u64) -> u64 {
        let wanted = u128::from(local_ns.saturating_sub(self.local_ns)) * u128::from(TRUE_RATE_PPM);
        self.true_ns + u64::try_from(wanted.div_ceil(u128::from(self.ppm))).unwrap_or(u64::MAX)
    }
}

struct Group {
    is_dead: bool,
    is_frozen: bool,
    parked: Vec<TaskId>,
    clock: Rate,
    wall_offset_ns: i128,
    /// Polls until it is killed, if it is to be.
    polls_left: Option<u64>,
}

struct Inner {
    now_ns: u64,
    tasks: Vec<Option<Task>>,
    free: Vec<usize>,
    last_number: u64,
    timers: BTreeMap<(u64, u64), Waker>,
    last_timer: u64,
    groups: Vec<Group>,
    current: Option<(TaskId, GroupId)>,
    rng: SimRng,
    polls: u64,
    is_shuffled: bool,
}

/// Everything that runs in one simulated world.
pub(super) struct Executor {
    inner: RefCell<Inner>,
    ready: Arc<Ready>,
}

thread_local! {
    static EXECUTOR: RefCell<Option<Rc<Executor>>> = const { RefCell::new(None) };
}

/// The executor of this thread's world.
///
/// # Panics
/// Outside of a simulated world.
pub(super) fn here() -> Rc<Executor> {
    EXECUTOR.with(|here| here.borrow().clone()).expect("this runs in a simulated world only")
}

pub(super) fn is_here() -> bool {
    EXECUTOR.with(|here| here.borrow().is_some())
}

impl Executor {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        let mut rng = SimRng::new(seed);
        let is_shuffled = rng.per_mille(500);
        let inner = Inner {
            now_ns: 0,
            tasks: Vec::new(),
            free: Vec::new(),
            last_number: 0,
            timers: BTreeMap::new(),
            last_timer: 0,
            groups: Vec::new(),
            current: None,
            rng,
            polls: 0,
            is_shuffled,
        };
        let executor = Rc::new(Self { inner: RefCell::new(inner), ready: Arc::default() });
        executor.new_group(0);
        executor
    }

    /// Makes it this thread's world, or makes room for another.
    pub(super) fn enter(executor: Option<Rc<Self>>) {
        EXECUTOR.with(|here| *here.borrow_mut() = executor);
    }

    pub(super) fn new_group(&self, clock_began_ns: u64) -> GroupId {
        let mut inner = self.inner.borrow_mut();
        let clock = Rate { true_ns: inner.now_ns, local_ns: clock_began_ns, ppm: TRUE_RATE_PPM };
        let group = Group {
            is_dead: false,
            is_frozen: false,
            parked: Vec::new(),
            clock,
            wall_offset_ns: 0,
            polls_left: None,
        };
        inner.groups.push(group);
        GroupId(u32::try_from(inner.groups.len() - 1).expect("fewer processes than that"))
    }

    pub(super) fn spawn(&self, group: Option<GroupId>, future: TaskFuture) {
        let mut inner = self.inner.borrow_mut();
        let group = group.unwrap_or_else(|| inner.current_group());
        if inner.group(group).is_dead {
            drop(inner);
            drop(future);
            return;
        }
        inner.last_number += 1;
        let number = inner.last_number;
        let place = inner.free.pop().unwrap_or_else(|| {
            inner.tasks.push(None);
            inner.tasks.len() - 1
        });
        let id = TaskId { place, number };
        let waker = Arc::new(TaskWaker { id, is_queued: AtomicBool::new(false), ready: self.ready.clone() });
        waker.wake_by_ref();
        inner.tasks[place] = Some(Task { number, group, waker, future: Some(future) });
    }

    pub(super) fn now_ns(&self) -> u64 {
        self.inner.borrow().now_ns
    }

    pub(super) fn local_now_ns(&self) -> u64 {
        let inner = self.inner.borrow();
        inner.group(inner.current_group()).clock.local(inner.now_ns)
    }

    pub(super) fn wall_now_ns(&self) -> u64 {
        let inner = self.inner.borrow();
        let offset = inner.group(inner.current_group()).wall_offset_ns;
        u64::try_from((i128::from(inner.now_ns) + offset).max(0)).unwrap_or(u64::MAX)
    }

    pub(super) fn current_group(&self) -> GroupId {
        self.inner.borrow().current_group()
    }

    pub(super) fn by_clock_of<T>(&self, group: GroupId, look: impl FnOnce() -> T) -> T {
        let own = self.inner.borrow().current;
        if let Some((_, current)) = &mut self.inner.borrow_mut().current {
            *current = group;
        }
        let seen = look();
        self.inner.borrow_mut().current = own;
        seen
    }

    pub(super) fn random<T>(&self, choose: impl FnOnce(&mut SimRng) -> T) -> T {
        choose(&mut self.inner.borrow_mut().rng)
    }

    pub(super) fn polls(&self) -> u64 {
        self.inner.borrow().polls
    }

    /// Wakes when the current group's clock shows `local_ns`.
    pub(super) fn add_timer(&self, local_ns: u64, waker: Waker) -> (u64, u64) {
        let mut inner = self.inner.borrow_mut();
        let at = inner.group(inner.current_group()).clock.true_at(local_ns).max(inner.now_ns);
        inner.last_timer += 1;
        let key = (at, inner.last_timer);
        inner.timers.insert(key, waker);
        key
    }

    pub(super) fn remove_timer(&self, key: (u64, u64)) {
        let waker = self.inner.borrow_mut().timers.remove(&key);
        drop(waker);
    }

    pub(super) fn freeze(&self, group: GroupId, is_frozen: bool) {
        let mut inner = self.inner.borrow_mut();
        let frozen = inner.group_mut(group);
        frozen.is_frozen = is_frozen;
        if !is_frozen {
            let parked = std::mem::take(&mut frozen.parked);
            self.ready.queue.lock().unwrap_or_else(PoisonError::into_inner).extend(parked);
        }
    }

    pub(super) fn set_rate(&self, group: GroupId, ppm: u64) {
        let mut inner = self.inner.borrow_mut();
        let now_ns = inner.now_ns;
        let clock = &mut inner.group_mut(group).clock;
        *clock = Rate { true_ns: now_ns, local_ns: clock.local(now_ns), ppm };
    }

    pub(super) fn move_wall(&self, group: GroupId, by_ns: i128) {
        self.inner.borrow_mut().group_mut(group).wall_offset_ns += by_ns;
    }

    pub(super) fn kill_after(&self, group: GroupId, polls: u64) {
        self.inner.borrow_mut().group_mut(group).polls_left = Some(polls);
    }

    pub(super) fn spare(&self, group: GroupId) -> bool {
        self.inner.borrow_mut().group_mut(group).polls_left.take().is_some()
    }

    pub(super) fn is_dead(&self, group: GroupId) -> bool {
        self.inner.borrow().group(group).is_dead
    }

    /// Drops every task of the group where it waits.
    pub(super) fn kill(&self, group: GroupId) {
        let mut dropped = Vec::new();
        {
            let mut inner = self.inner.borrow_mut();
            let dead = inner.group_mut(group);
            if std::mem::replace(&mut dead.is_dead, true) {
                return;
            }
            dead.parked.clear();
            for place in 0..inner.tasks.len() {
                let task = inner.tasks[place].take_if(|task| task.group == group);
                if let Some(task) = task {
                    // One that is being polled frees its place when that ends.
                    if task.future.is_some() {
                        inner.free.push(place);
                    }
                    dropped.push(task);
                }
            }
        }
        drop(dropped);
    }

    /// Runs until `is_done`, or until nothing can happen any more.
    pub(super) fn run(&self, is_done: impl Fn() -> bool) -> Result<(), Stuck> {
        let mut polls = 0;
        while !is_done() {
            if self.poll_one() {
                polls += 1;
                assert!(polls < MAX_POLLS_AT_ONCE, "time stands still: the tasks wake each other for ever");
                continue;
            }
            polls = 0;
            let mut inner = self.inner.borrow_mut();
            let Some((at, _)) = inner.timers.first_key_value().map(|(key, _)| *key) else {
                return Err(Stuck);
            };
            inner.now_ns = inner.now_ns.max(at);
            while let Some(entry) = inner.timers.first_entry() {
                if entry.key().0 > at {
                    break;
                }
                entry.remove().wake();
            }
        }
        Ok(())
    }

    /// Polls a ready task; false if there is none.
    fn poll_one(&self) -> bool {
        let Some(id) = self.next_ready() else { return false };
        let (mut future, waker, group) = {
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            let task = inner.tasks.get_mut(id.place).and_then(Option::as_mut);
            let Some(task) = task.filter(|task| task.number == id.number) else { return true };
            let group = task.group;
            let owner = &mut inner.groups[group.0 as usize];
            if owner.is_frozen {
                owner.parked.push(id);
                return true;
            }
            task.waker.is_queued.store(false, Ordering::Relaxed);
            let Some(future) = task.future.take() else { return true };
            inner.current = Some((id, group));
            inner.polls += 1;
            (future, Waker::from(task.waker.clone()), group)
        };
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        self.put_back(id, future, polled);
        self.count_down(group);
        true
    }

    fn put_back(&self, id: TaskId, future: TaskFuture, polled: Poll<()>) {
        let mut inner = self.inner.borrow_mut();
        let task = inner.tasks.get_mut(id.place).and_then(Option::as_mut);
        let lives = task.filter(|task| task.number == id.number);
        let ended = match (lives, polled) {
            (Some(task), Poll::Pending) => {
                task.future = Some(future);
                None
            }
            (Some(_), Poll::Ready(())) => {
                let task = inner.tasks[id.place].take();
                inner.free.push(id.place);
                Some((Some(future), task))
            }
            (None, _) => {
                inner.free.push(id.place);
                Some((Some(future), None))
            }
        };
        drop(inner);
        // What ends may still ask whose it was.
        drop(ended);
        self.inner.borrow_mut().current = None;
    }

    fn count_down(&self, group: GroupId) {
        let mut inner = self.inner.borrow_mut();
        let owner = inner.group_mut(group);
        let is_over = match &mut owner.polls_left {
            None => false,
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                *left == 0
            }
        };
        if is_over {
            owner.polls_left = None;
            drop(inner);
            self.kill(group);
        }
    }

    fn next_ready(&self) -> Option<TaskId> {
        let mut queue = self.ready.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() > 1 {
            let mut inner = self.inner.borrow_mut();
            if inner.is_shuffled && inner.rng.per_mille(SHUFFLED_PER_MILLE) {
                let place = inner.rng.below(queue.len() as u64);
                return queue.remove(usize::try_from(place).unwrap_or(0));
            }
        }
        queue.pop_front()
    }

    /// Drops everything that is left.
    pub(super) fn clear(&self) {
        let groups = self.inner.borrow().groups.len();
        for group in 0..groups {
            self.kill(GroupId(u32::try_from(group).unwrap_or(0)));
        }
        let timers = std::mem::take(&mut self.inner.borrow_mut().timers);
        drop(timers);
    }
}

impl Inner {
    fn current_group(&self) -> GroupId {
        self.current.map_or(WORLD, |(_, group)| group)
    }

    fn group(&self, group: GroupId) -> &Group {
        &self.groups[group.0 as usize]
    }

    fn group_mut(&mut self, group: GroupId) -> &mut Group {
        &mut self.groups[group.0 as usize]
    }
}

/// Nothing is ready and nobody waits for a time.
#[derive(Debug)]
pub(crate) struct Stuck;
