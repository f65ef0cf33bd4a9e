//! Commands that are held up on their way to the leader, while whoever asked goes on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use replica::ProposeError;
use state_machine::{
    AppliancePath, ByteSize, Command, HostAddress, NodeId, Response, State, VolumeId, VolumeName,
    VolumeParameters,
};
use tokio::sync::watch;
use tonic::codegen::http::Request;
use tower::Service;

use crate::harness::{Cluster, deadline};

/// How long a command is waited for that is held up.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often each replica asks at the same time as the others.
const AT_ONCE: usize = 20;

/// Holds up, on request, what one replica forwards to another, whoever gives it up meanwhile.
#[derive(Clone, Default)]
pub(crate) struct Road {
    is_closed: Arc<watch::Sender<bool>>,
    held: Arc<AtomicUsize>,
}

impl Road {
    fn close(&self, is_closed: bool) {
        self.is_closed.send_replace(is_closed);
    }

    /// How many commands are on it that were held up.
    fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    pub(crate) fn to<S>(&self, service: S) -> AtTheEnd<S> {
        AtTheEnd { service, road: self.clone() }
    }
}

/// What receives the commands.
#[derive(Clone)]
pub(crate) struct AtTheEnd<S> {
    service: S,
    road: Road,
}

type Answering<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S, B> Service<Request<B>> for AtTheEnd<S>
where
    S: Service<Request<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
    S::Error: Send,
    B: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answering<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let waiting = self.service.clone();
        let mut service = std::mem::replace(&mut self.service, waiting);
        let is_held = request.uri().path().ends_with("/Propose") && *self.road.is_closed.borrow();
        if !is_held {
            return Box::pin(service.call(request));
        }
        let road = self.road.clone();
        road.held.fetch_add(1, Ordering::SeqCst);
        let late = tokio::spawn(async move {
            let open = road.is_closed.subscribe().wait_for(|is_closed| !is_closed).await.map(drop);
            let answer = service.call(request).await;
            open.unwrap();
            road.held.fetch_sub(1, Ordering::SeqCst);
            answer
        });
        Box::pin(async move { late.await.unwrap() })
    }
}

fn name() -> VolumeName {
    VolumeName::parse("a-volume").unwrap()
}

fn create() -> Command {
    let path = AppliancePath::parse("/volumes").unwrap();
    let address = HostAddress::parse("10.0.0.1").unwrap();
    Command::CreateVolume {
        id: VolumeId::for_name(&name()),
        name: name(),
        required: ByteSize::at_least(1).unwrap(),
        limit_bytes: None,
        parameters: VolumeParameters::with_defaults(path, address, 4420),
    }
}

async fn decide(
    cluster: &Cluster,
    i: usize,
    command: Command,
    until: Instant,
) -> Result<Response, ProposeError> {
    cluster.running(i).run(move |replica| async move { replica.propose(command, until).await }).await
}

/// Has a follower give up a creation that is held up on its way, and then something else decided, through the leader.
/// Answers whether the volume is there when the creation has arrived, in the same term as before.
async fn is_created_after(meanwhile: Option<Command>) -> bool {
    let cluster = Cluster::formed().await;
    loop {
        let (leader, follower) = (cluster.leader().await, cluster.follower().await);
        let term = cluster.replica(leader).status().term;
        cluster.road.close(true);
        let given_up = decide(&cluster, follower, create(), Instant::now() + PATIENCE).await;
        let is_held_up = matches!(given_up, Err(ProposeError::Deadline(_))) && cluster.road.held() > 0;
        if let Some(command) = meanwhile.clone() {
            decide(&cluster, leader, command, deadline()).await.unwrap();
        }
        cluster.road.close(false);
        cluster.until("all has arrived", || cluster.road.held() == 0).await;
        let volumes = cluster.replica(leader).read_local(|state: &State| state.volumes().len());
        // A busy machine may change leaders of its own accord, and then it is another story.
        if is_held_up && cluster.replica(leader).status().term == term {
            return volumes > 0;
        }
        assert_eq!(volumes, 0, "{given_up:?}");
    }
}

#[tokio::test]
async fn what_was_given_up_comes_to_nothing_once_something_about_the_same_was_decided() {
    assert!(!is_created_after(Some(Command::DeleteVolume { volume: VolumeId::for_name(&name()) })).await);
}

/// Nobody was told otherwise: it was merely unknown.
#[tokio::test]
async fn what_was_given_up_may_come_late_if_nothing_else_was_asked() {
    let elsewhere = VolumeId::for_name(&VolumeName::parse("another-volume").unwrap());
    assert!(is_created_after(None).await);
    assert!(is_created_after(Some(Command::DeleteVolume { volume: elsewhere })).await);
}

#[tokio::test]
async fn all_who_ask_about_the_same_at_once_are_answered() {
    let cluster = Cluster::formed().await;
    let unpublish = |n: usize| Command::Unpublish {
        volume: VolumeId::for_name(&name()),
        node: Some(NodeId::parse(&format!("node-{n}")).unwrap()),
        require_proof: true,
    };
    let ask = |i| {
        cluster.running(i).run(move |replica| async move {
            let ask = |n| {
                let replica = replica.clone();
                tokio::spawn(async move { replica.propose(unpublish(n), deadline()).await })
            };
            for asked in (0..AT_ONCE).map(ask).collect::<Vec<_>>() {
                assert_eq!(asked.await.unwrap().unwrap(), Response::Done);
            }
        })
    };
    tokio::join!(ask(0), ask(1), ask(2));
}
