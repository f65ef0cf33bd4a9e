//! What the hotplug webhook costs: so many reviews a second over TLS lines that stay open, against one thread that serves.
//!
//! The server is the real one, with its watched facts made up: VMs of two hotplugged volumes each, in the middle of a
//! hand-over from one attachment pod to the next. It has a thread to itself and so one core at most; the questions come
//! from this process's other threads, at even distances, whether or not the ones before are answered. What counts is the
//! time from the moment that a question is meant for to the last byte of its answer: whatever makes it wait counts,
//! the want of a free line and a late start too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use observer::hotplug::{Settings, WAITING_READY_LIMIT};
use observer::{CREATE_PATH, DELETE_PATH, Events, Index, Observer, Webhook, WebhookSettings};
use replica::TlsFiles;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tls::{Callers, Tls};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::hotplug_cluster as made_up;
use super::samples::Samples;
use crate::certificates::{Authority, Owner};
use crate::http::Line;
use crate::table::Table;

/// Questions that may wait for a line; with more, the webhook is far too slow, and the run is given up.
const WAITING: usize = 100_000;

/// The longest hold: nothing expires while it is measured.
const MAX_HOLD: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Measures the hotplug webhook: answers a second, how long they take, and what share of a core they cost
#[derive(Debug, Args)]
pub(super) struct WebhookArguments {
    /// Questions a second
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long each row is measured, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Virtual machines that the webhook knows, all in one namespace
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    vms: u32,
    /// Lines that are open
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=200))]
    lines: u32,
}

/// Runs all rows and prints the table.
pub(super) async fn measure(arguments: &WebhookArguments) -> anyhow::Result<()> {
    let directory = tempfile::tempdir().context("cannot make a directory for certificates")?;
    let authority = Authority::open_or_create(directory.path())?;
    let files = authority.files(&Owner::Replica("bench".to_owned()), "bench")?;
    let (observer, _shown) = Observer::simulated(facts(arguments.vms)?);
    let ca = authority.certificate();
    let server = Server::start(observer, TlsFiles { ca, cert: files.cert, key: files.key })?;

    let mut table =
        Table::new(["WHAT", "ANSWERS", "PER SECOND", "P50 MS", "P99 MS", "MAX MS", "CORE %", "BODY KIB"]);
    let rows = [
        ("delete, denied: LastHolder", DELETE_PATH, made_up::Review::DeleteUncovered, "\"allowed\":false"),
        ("delete, allowed: Covered", DELETE_PATH, made_up::Review::DeleteCovered, "\"allowed\":true}"),
        ("create, completed", CREATE_PATH, made_up::Review::Create, "\"patch\":"),
    ];
    for (what, path, review, expected) in rows {
        eprintln!("{what}: {} a second for {} s", arguments.rate, arguments.seconds);
        let bodies: Arc<Vec<String>> =
            Arc::new((0..arguments.vms).map(|vm| made_up::review(vm, review).to_string()).collect());
        let kib = bodies.iter().map(String::len).max().unwrap_or(0) / 1024;
        let mut lines = Vec::new();
        for _ in 0..arguments.lines {
            lines.push(
                Line::open_with_tls(&server.address, &authority.certificate(), replica::SERVER_NAME).await?,
            );
        }
        let cpu = server.cpu().await?;
        let samples = ask_all(arguments, lines, path, bodies, expected).await?;
        let cpu = server.cpu().await?.saturating_sub(cpu);
        let core = 100.0 * cpu.as_secs_f64() / f64::from(arguments.seconds);
        let ms = |share| samples.quantile_ms(share).map(|ms| format!("{ms:.2}")).unwrap_or_default();
        let rate = samples.per_second().map(|rate| format!("{rate:.0}")).unwrap_or_default();
        table.row([
            what.to_owned(),
            samples.len().to_string(),
            rate,
            ms(0.5),
            ms(0.99),
            ms(1.0),
            format!("{core:.0}"),
            kib.to_string(),
        ]);
    }
    server.stop()?;
    print!("{}", table.render());
    Ok(())
}

fn facts(vms: u32) -> anyhow::Result<Index> {
    let objects: Vec<Value> = made_up::objects(vms);
    Index::recorded(made_up::DRIVER, &objects, Instant::now()).context("cannot make facts up")
}

/// The webhook on a thread of its own.
struct Server {
    address: String,
    runtime: Handle,
    stop: CancellationToken,
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
}

impl Server {
    fn start(observer: Observer, files: TlsFiles) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("no port")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let guard = Settings { strict: false, max_hold: MAX_HOLD, waiting_ready_limit: WAITING_READY_LIMIT };
        let kubevirt_namespace = made_up::KUBEVIRT_NAMESPACE.to_owned();
        let settings = WebhookSettings { guard, kubevirt_namespace, mutate: true };
        let webhook = Webhook::new(observer, Events::none(), None, settings, |_| ());
        let (handle, stop) = (runtime.handle().clone(), CancellationToken::new());
        let stopped = stop.clone();
        let serving = async {
            let tls = Tls::follow(files.into())?;
            let incoming = tls.incoming(TcpListener::from_std(listener)?, Callers::Unasked)?;
            webhook.serve(incoming, stopped).await;
            Ok(())
        };
        let thread = std::thread::spawn(move || runtime.block_on(serving));
        Ok(Self { address, runtime: handle, stop, thread })
    }

    /// The processor time of its thread.
    async fn cpu(&self) -> anyhow::Result<Duration> {
        let read = async { clock_gettime(ClockId::ThreadCPUTime) };
        let time = self.runtime.spawn(read).await.context("the server ended")?;
        Duration::try_from(time).context("a negative processor time")
    }

    fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.thread.join().map_err(|_| anyhow::anyhow!("the server failed"))?
    }
}

async fn ask_all(
    arguments: &WebhookArguments,
    lines: Vec<Line>,
    path: &'static str,
    bodies: Arc<Vec<String>>,
    expected: &'static str,
) -> anyhow::Result<Samples> {
    let (due, questions) = mpsc::channel::<Instant>(WAITING);
    let questions = Arc::new(Mutex::new(questions));
    let next = Arc::new(AtomicUsize::new(0));
    let mut asking: JoinSet<anyhow::Result<Vec<Duration>>> = JoinSet::new();
    for mut line in lines {
        let (questions, next, bodies) = (Arc::clone(&questions), Arc::clone(&next), Arc::clone(&bodies));
        asking.spawn(async move {
            let mut took = Vec::new();
            loop {
                let Some(asked_at) = questions.lock().await.recv().await else { return Ok(took) };
                let number = next.fetch_add(1, Ordering::Relaxed) % bodies.len();
                let body = bodies.get(number).context("no body")?;
                let answer = line.post(path, body.as_bytes()).await?;
                took.push(asked_at.elapsed());
                let (status, text) = (answer.status, answer.text());
                ensure!(status == 200 && text.contains(expected), "{status}: {text}");
            }
        });
    }
    let began = Instant::now();
    let (rate, seconds) = (arguments.rate, arguments.seconds);
    tokio::task::spawn_blocking(move || pace(rate, seconds, began, &due)).await?;
    let mut took = Vec::new();
    while let Some(done) = asking.join_next().await {
        took.extend(done??);
    }
    let asked = u64::from(rate) * u64::from(seconds);
    ensure!(
        took.len() as u64 == asked,
        "{} of {asked} questions were answered: it is far behind",
        took.len()
    );
    Ok(Samples::within(took, began.elapsed()))
}

/// Says at even distances that a question is due. A thread's sleep is finer than the runtime's timer, which counts
/// whole milliseconds.
fn pace(rate: u32, seconds: u32, began: Instant, due: &mpsc::Sender<Instant>) {
    for number in 0..u64::from(rate) * u64::from(seconds) {
        let at = began + Duration::from_nanos(1_000_000_000 * number / u64::from(rate));
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        if due.try_send(at).is_err() {
            // Either all lines failed, which says why, or the webhook is far behind.
            break;
        }
    }
}
