//! openraft's runtime in the simulator, and what everything else that is simulated waits and spawns with.
//!
//! Not tokio: its paused clock is deterministic, but its watch channels and its scheduler choose by chance, and none of
//! openraft's own tasks could be frozen or killed in the middle. Channels that leave nothing to chance are tokio's.

mod executor;
mod watch;

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use openraft::{AsyncRuntime, OptionalSend};

use crate::sim::rng::SimRng;
use executor::Executor;
pub(crate) use executor::{GroupId, Stuck, TRUE_RATE_PPM, WORLD};

#[allow(deprecated, reason = "the only name by which openraft gives its channels away")]
type Tokio = openraft::impls::TokioRuntime;

/// A simulated world's tasks and time.
pub(crate) struct Room {
    executor: Rc<Executor>,
}

impl Room {
    /// An empty one, on this thread.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        let executor = Executor::new(seed);
        Executor::enter(Some(executor.clone()));
        Self { executor }
    }

    /// Runs `main` as the world's first task until it ends.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        main: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Stuck> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        self.executor.spawn(
            Some(WORLD),
            Box::pin(async move {
                let value = main.await;
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            }),
        );
        let lock = || result.lock().unwrap_or_else(PoisonError::into_inner);
        self.executor.run(|| lock().is_some())?;
        let value = lock().take();
        value.ok_or(Stuck)
    }

    /// How often a task was polled.
    #[must_use]
    pub(crate) fn polls(&self) -> u64 {
        self.executor.polls()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.executor.clear();
        }
        Executor::enter(None);
    }
}

/// True time since the world began, in nanoseconds.
#[must_use]
pub(crate) fn now_ns() -> u64 {
    executor::here().now_ns()
}

/// True time since the world began, in microseconds.
#[must_use]
pub(crate) fn now_micros() -> u64 {
    now_ns() / 1_000
}

/// What the wall clock of the current process shows, in milliseconds.
#[must_use]
pub(crate) fn wall_now_ms() -> u64 {
    executor::here().wall_now_ns() / 1_000_000
}

/// Makes a choice that the seed decides.
pub(crate) fn random<T>(choose: impl FnOnce(&mut SimRng) -> T) -> T {
    executor::here().random(choose)
}

/// A new process, whose monotonic clock began so long ago.
#[must_use]
pub(crate) fn new_group(clock_began_ns: u64) -> GroupId {
    executor::here().new_group(clock_began_ns)
}

/// What `look` sees by the clocks of another process: a moment that one of its clocks showed means nothing by others.
pub(crate) fn by_clock_of<T>(group: GroupId, look: impl FnOnce() -> T) -> T {
    executor::here().by_clock_of(group, look)
}

/// The process that is running now.
#[must_use]
pub(crate) fn current_group() -> GroupId {
    executor::here().current_group()
}

/// Runs `task` in a process.
pub(crate) fn spawn_in(group: GroupId, task: impl Future<Output = ()> + Send + 'static) {
    executor::here().spawn(Some(group), Box::pin(task));
}

/// Runs `task` in the current process.
pub(crate) fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    executor::here().spawn(None, Box::pin(task));
}

/// Stops a process where it is, or lets it go on.
pub(crate) fn freeze(group: GroupId, is_frozen: bool) {
    executor::here().freeze(group, is_frozen);
}

/// Ends a process at once.
pub(crate) fn kill(group: GroupId) {
    executor::here().kill(group);
}

/// Ends a process after it ran so many times more.
pub(crate) fn kill_after(group: GroupId, polls: u64) {
    executor::here().kill_after(group, polls);
}

/// Takes [`kill_after`] back; false if it has done its work already.
pub(crate) fn spare(group: GroupId) -> bool {
    executor::here().spare(group)
}

/// Ends the current process here; never returns.
pub(crate) async fn die() {
    kill_after(current_group(), 0);
    std::future::pending::<()>().await;
}

/// Whether a process has ended.
#[must_use]
pub(crate) fn is_dead(group: GroupId) -> bool {
    executor::here().is_dead(group)
}

/// Lets a process's monotonic clock run at this rate from now on.
pub(crate) fn set_rate(group: GroupId, ppm: u64) {
    executor::here().set_rate(group, ppm);
}

/// Moves a process's wall clock.
pub(crate) fn move_wall(group: GroupId, by_ns: i128) {
    executor::here().move_wall(group, by_ns);
}

/// Waits so long by the current process's clock.
pub(crate) fn sleep(duration: Duration) -> Sleep {
    SimRuntime::sleep(duration)
}

/// Waits so many milliseconds.
pub(crate) fn sleep_ms(ms: u64) -> Sleep {
    sleep(Duration::from_millis(ms))
}

/// Waits for `future`, but not longer than that.
pub(crate) async fn timeout<T, F: Future<Output = T> + Send>(limit: Duration, future: F) -> Option<T> {
    SimRuntime::timeout(limit, future).await.ok()
}

/// The monotonic clock of the process that looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SimInstant(u64);

impl SimInstant {
    /// Nanoseconds since the clock began.
    #[must_use]
    pub(crate) const fn as_nanos(self) -> u64 {
        self.0
    }

    /// What is left until then, from now.
    #[must_use]
    pub(crate) fn remaining(self) -> Duration {
        self - Self::now()
    }

    /// Now, by the current process's clock.
    #[must_use]
    pub(crate) fn now() -> Self {
        Self(executor::here().local_now_ns())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl openraft::Instant for SimInstant {
    fn now() -> Self {
        Self::now()
    }
}

impl Add<Duration> for SimInstant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl Sub<Duration> for SimInstant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl Sub for SimInstant {
    type Output = Duration;
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

/// A wait for a time.
#[derive(Debug)]
pub(crate) struct Sleep {
    until: SimInstant,
    timer: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(timer) = self.timer.take() {
            executor::here().remove_timer(timer);
        }
        if SimInstant::now() >= self.until {
            return Poll::Ready(());
        }
        self.timer = Some(executor::here().add_timer(self.until.0, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take()
            && executor::is_here()
        {
            executor::here().remove_timer(timer);
        }
    }
}

/// The time was over first.
#[derive(Debug)]
pub(crate) struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time is over")
    }
}

/// A wait for a future, with an end.
pub(crate) struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<R, F: Future<Output = R>> Future for Timeout<F> {
    type Output = Result<R, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep).poll(context).map(|()| Err(Elapsed))
    }
}

/// A task's process ended before the task did.
#[derive(Debug)]
pub(crate) struct JoinError;

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its process ended")
    }
}

enum Joined<T> {
    Running(Option<Waker>),
    Ended(Option<Result<T, JoinError>>),
}

/// A wait for a task.
pub(crate) struct JoinHandle<T>(Arc<Mutex<Joined<T>>>);

/// Tells that its task is gone, whether it ended or was dropped.
struct Leave<T>(Arc<Mutex<Joined<T>>>);

impl<T> Leave<T> {
    fn with(&self, result: Result<T, JoinError>) {
        let mut joined = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Joined::Running(waker) = &mut *joined {
            let waker = waker.take();
            *joined = Joined::Ended(Some(result));
            drop(joined);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Leave<T> {
    fn drop(&mut self) {
        self.with(Err(JoinError));
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut joined = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *joined {
            Joined::Running(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Joined::Ended(result) => Poll::Ready(result.take().unwrap_or(Err(JoinError))),
        }
    }
}

/// openraft's view of the room.
#[derive(Debug)]
pub(crate) struct SimRuntime;

impl AsyncRuntime for SimRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = SimInstant;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SimRng;
    type Mpsc = <Tokio as AsyncRuntime>::Mpsc;
    type Watch = watch::SimWatch;
    type Oneshot = <Tokio as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <Tokio as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let joined = Arc::new(Mutex::new(Joined::Running(None)));
        let leave = Leave(joined.clone());
        spawn(async move {
            let result = future.await;
            leave.with(Ok(result));
        });
        JoinHandle(joined)
    }

    fn sleep(duration: Duration) -> Sleep {
        Self::sleep_until(SimInstant::now() + duration)
    }

    fn sleep_until(until: SimInstant) -> Sleep {
        Sleep { until, timer: None }
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep(duration) }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(until: SimInstant, future: F) -> Timeout<F> {
        Timeout { future: Box::pin(future), sleep: Self::sleep_until(until) }
    }

    fn is_panic(_: &JoinError) -> bool {
        false
    }

    fn thread_rng() -> SimRng {
        random(SimRng::fork)
    }

    fn new(_: usize) -> Self {
        Self
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        futures::executor::block_on(future)
    }

    async fn spawn_blocking<F, T>(work: F) -> Result<T, io::Error>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        Ok(work())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_another_process_can_be_looked_at() {
        let seen = Room::new(1).run(async {
            let other = new_group(7_000_000_000);
            [SimInstant::now(), by_clock_of(other, SimInstant::now), SimInstant::now()]
                .map(SimInstant::as_nanos)
        });
        assert_eq!(seen.ok(), Some([0, 7_000_000_000, 0]));
    }
}
