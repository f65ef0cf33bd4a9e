//! Watches: one task a kind, which lists, follows, and feeds the index.
//!
//! A watch that fails marks its kind as broken at once, keeps the facts, and begins again with a complete listing
//! after a growing pause: only a listing shows what was missed. A watch that the API server ends in time goes on from
//! where it was. A kind that the API server does not have (KubeVirt's) is looked for again and again.

use std::ops::Deref;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::index::{
    AttachmentFact, Change, ClaimFact, Index, Kind, NamespaceFact, NodeFact, PodFact, SettingsFact, VmiFact,
    VmimFact, VolumeFact,
};
use crate::objects::Watched;

/// Objects that are asked for at once, and held in memory as they came.
pub const LIST_PAGE: u32 = 500;

/// How long one page of a listing may take.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one watch request lasts, in seconds. A connection that died silently is noticed 5 s later.
pub const WATCH_TIMEOUT_SECONDS: u32 = 60;

/// How the cluster is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The driver's name, by which its PersistentVolumes and VolumeAttachments are known.
    pub driver: String,
    /// The pause after the first failure of a watch, and the least time between two listings.
    pub first_pause: Duration,
    /// The longest pause between attempts.
    pub longest_pause: Duration,
}

impl Settings {
    /// The usual settings for the driver of this name.
    pub fn of_driver(driver: &str) -> Self {
        Self {
            driver: driver.to_owned(),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// What all tasks and all clones share.
#[derive(Debug)]
struct Shared {
    index: RwLock<Index>,
    /// Counts the changes of the index.
    changes: watch::Sender<u64>,
    /// Counts the calls of `refresh`.
    refreshes: watch::Sender<u64>,
}

impl Shared {
    fn new(index: Index) -> Arc<Self> {
        Arc::new(Self {
            index: RwLock::new(index),
            changes: watch::Sender::new(0),
            refreshes: watch::Sender::new(0),
        })
    }

    /// Changes the index, and says so to those who wait if an answer may be another now.
    fn change(&self, change: impl FnOnce(&mut Index) -> bool) {
        let may_matter = {
            // Each change leaves the index whole, also one that panicked.
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut index)
        };
        if may_matter {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// Sees the cluster through the API server. Clones see the same.
#[derive(Debug, Clone)]
pub struct Observer {
    shared: Arc<Shared>,
}

impl Observer {
    /// Starts watching, until `stop`. Must be called inside an async runtime.
    pub fn start(client: &Client, settings: &Settings, stop: &CancellationToken) -> Self {
        let shared = Shared::new(Index::new());
        spawn::<NodeFact>(client, settings, &shared, stop);
        spawn::<VolumeFact>(client, settings, &shared, stop);
        spawn::<ClaimFact>(client, settings, &shared, stop);
        spawn::<AttachmentFact>(client, settings, &shared, stop);
        spawn::<PodFact>(client, settings, &shared, stop);
        spawn::<VmiFact>(client, settings, &shared, stop);
        spawn::<VmimFact>(client, settings, &shared, stop);
        spawn::<SettingsFact>(client, settings, &shared, stop);
        spawn::<NamespaceFact>(client, settings, &shared, stop);
        Self { shared }
    }

    /// Without Kubernetes: everything is unknown, for good.
    pub fn none() -> Self {
        Self { shared: Shared::new(Index::without_kubernetes()) }
    }

    /// A simulated cluster, for tests and `dev`: it shows `index` until something else is shown.
    pub fn simulated(index: Index) -> (Self, SimulatedKubernetes) {
        let shared = Shared::new(index);
        (Self { shared: Arc::clone(&shared) }, SimulatedKubernetes { shared })
    }

    /// What is known now. Not to be held while waiting for anything: the watches wait for it.
    pub fn index(&self) -> impl Deref<Target = Index> + '_ {
        self.shared.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the changes of [`Observer::index`], so that one can wait for the next.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Has VMIs and their migrations listed anew, for [`Index::migration`] with `newer_than` from before this call.
    /// It does not wait. Calls in quick succession become one.
    pub fn refresh(&self) {
        self.shared.refreshes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The other side of a simulated cluster.
#[derive(Debug)]
pub struct SimulatedKubernetes {
    shared: Arc<Shared>,
}

impl SimulatedKubernetes {
    /// Shows this from now on.
    pub fn show(&self, index: Index) {
        self.shared.change(|shown| {
            *shown = index;
            true
        });
    }
}

fn spawn<W: Watched>(client: &Client, settings: &Settings, shared: &Arc<Shared>, stop: &CancellationToken) {
    let following = follow::<W>(client.clone(), settings.clone(), Arc::clone(shared));
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = following => {}
        }
    });
}

/// Why a watch is not followed any longer.
enum Ended {
    /// A new listing was asked for.
    Refresh,
    /// The API server does not have the kind.
    NotInstalled,
    /// It failed.
    Failed(String),
}

/// Follows one kind for ever.
async fn follow<W: Watched>(client: Client, settings: Settings, shared: Arc<Shared>) {
    let api: Api<W::Object> = Api::all_with(client, &W::api_resource());
    let mut backoff = Backoff::new(settings.first_pause, settings.longest_pause);
    let mut refreshes = shared.refreshes.subscribe();
    let mut was_broken = false;
    loop {
        let began = Instant::now();
        let listed = |items| {
            if std::mem::take(&mut was_broken) {
                info!(kind = %W::KIND, items, "watched again");
            }
        };
        let ended = follow_once::<W>(&api, &settings, &shared, &mut refreshes, listed).await;
        let now = Instant::now();
        if now - began > settings.longest_pause {
            backoff.reset();
        }
        match ended {
            Ended::Refresh => {
                backoff.reset();
                sleep(settings.first_pause.saturating_sub(now - began)).await;
            }
            Ended::NotInstalled => {
                debug!(kind = %W::KIND, "the API server does not have this kind");
                shared.change(|index| W::table(index).apply(Change::NotInstalled(now.into_std())));
                sleep(backoff.pause()).await;
            }
            Ended::Failed(reason) => {
                if !std::mem::replace(&mut was_broken, true) {
                    warn!(kind = %W::KIND, reason, "the watch is broken");
                }
                shared.change(|index| W::table(index).apply(Change::Broke(now.into_std(), reason)));
                sleep(backoff.pause()).await;
            }
        }
    }
}

/// Lists one kind and follows it until something comes in between.
async fn follow_once<W: Watched>(
    api: &Api<W::Object>,
    settings: &Settings,
    shared: &Shared,
    refreshes: &mut watch::Receiver<u64>,
    mut listed: impl FnMut(usize),
) -> Ended {
    // What was asked for until now, this listing answers.
    refreshes.borrow_and_update();
    let config = watcher::Config::default().page_size(LIST_PAGE).timeout(WATCH_TIMEOUT_SECONDS);
    let mut events = pin!(watcher(api.clone(), config));
    let mut is_listing = true;
    loop {
        let item = if is_listing {
            match timeout(LIST_TIMEOUT, events.next()).await {
                Ok(item) => item,
                Err(_) => return Ended::Failed(format!("no page of the listing within {LIST_TIMEOUT:?}")),
            }
        } else {
            tokio::select! {
                item = events.next() => item,
                () = asked_for::<W>(refreshes) => return Ended::Refresh,
            }
        };
        let event = match item {
            Some(Ok(event)) => event,
            Some(Err(error)) => return ended_by::<W>(&error),
            None => return Ended::Failed("the watch ended".to_owned()),
        };
        let is_complete = matches!(event, watcher::Event::InitDone);
        is_listing = matches!(event, watcher::Event::Init | watcher::Event::InitApply(_));
        if let Some(change) = change_of::<W>(event, &settings.driver) {
            shared.change(|index| W::table(index).apply(change));
        }
        if is_complete {
            listed(shared.index.read().unwrap_or_else(PoisonError::into_inner).facts_of(W::KIND));
        }
    }
}

/// Ends when a new listing is asked for that would serve a decision on this kind.
async fn asked_for<W: Watched>(refreshes: &mut watch::Receiver<u64>) {
    let concerns = matches!(W::KIND, Kind::Vmi | Kind::Vmim);
    if !concerns || refreshes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn change_of<W: Watched>(event: watcher::Event<W::Object>, driver: &str) -> Option<Change<W>> {
    match event {
        watcher::Event::Init => Some(Change::ListingBegins(Instant::now().into_std())),
        watcher::Event::InitApply(object) => W::read(object, driver).map(Change::Listed),
        watcher::Event::InitDone => Some(Change::ListingEnds),
        watcher::Event::Apply(object) => W::read(object, driver).map(Change::Is),
        watcher::Event::Delete(object) => W::read(object, driver).map(|fact| Change::Gone(fact.key())),
    }
}

fn ended_by<W: Watched>(error: &watcher::Error) -> Ended {
    if W::MAY_BE_ABSENT
        && let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error
        && status.is_not_found()
    {
        return Ended::NotInstalled;
    }
    Ended::Failed(error.to_string())
}
