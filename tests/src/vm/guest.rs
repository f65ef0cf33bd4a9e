//! The inside of a machine, as its agent shows it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::protocol::{LOG_DIRECTORY, Reply, Request};
use crate::requests::eventually_within;

/// How long a question that the agent answers by itself may take, in milliseconds.
const QUESTION_MS: u64 = 20_000;

/// How long a program may run, in milliseconds, unless its caller knows better. Ten times what it takes on a host.
const RUN_MS: u64 = 90_000;

/// What a program that ran to its end left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// The agent of a machine.
#[derive(Debug, Clone)]
pub struct Guest {
    name: String,
    agent: SocketAddr,
}

impl Guest {
    /// The guest whose agent is reached at `agent`.
    pub fn new(name: &str, agent: SocketAddr) -> Self {
        Self { name: name.to_owned(), agent }
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its agent is reached on the host.
    pub fn agent(&self) -> SocketAddr {
        self.agent
    }

    async fn ask(&self, request: &Request, limit: Duration) -> Result<Reply> {
        let asked = async {
            let (_, reply) = exchange(self.agent, request).await?;
            anyhow::Ok(reply)
        };
        let reply = timeout(limit, asked)
            .await
            .with_context(|| format!("{}: no answer in {} ms to {request:?}", self.name, limit.as_millis()))?
            .with_context(|| format!("{}: {request:?}", self.name))?;
        match reply {
            Reply::Failed(why) => bail!("{}: {request:?}: {why}", self.name),
            Reply::Ran { .. } | Reply::Done | Reply::Ended(_) => Ok(reply),
        }
    }

    /// Runs a program to its end, whatever its exit status.
    pub async fn try_run(&self, argv: &[&str], stdin: &str, limit: Duration) -> Result<Output> {
        let request = Request::Run { argv: owned(argv), stdin: stdin.to_owned() };
        match self.ask(&request, limit).await? {
            Reply::Ran { status, stdout, stderr } => Ok(Output { status, stdout, stderr }),
            odd @ (Reply::Done | Reply::Ended(_) | Reply::Failed(_)) => {
                bail!("{}: an odd answer: {odd:?}", self.name)
            }
        }
    }

    /// Runs a program that has to succeed; what it printed.
    pub async fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self.try_run(argv, "", Duration::from_millis(RUN_MS)).await?;
        ensure!(
            output.status == Some(0),
            "{}: {argv:?} ended with {:?}: {}{}",
            self.name,
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout.trim().to_owned())
    }

    /// Runs a script that has to succeed in every line; what it printed.
    pub async fn sh(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-euc", script]).await
    }

    /// Writes a file, and makes the directories above it.
    pub async fn write(&self, path: &str, text: &str) -> Result<()> {
        let script = r#"mkdir -p "${0%/*}" && cat >"$0""#;
        let output =
            self.try_run(&["sh", "-euc", script, path], text, Duration::from_millis(QUESTION_MS)).await?;
        ensure!(output.status == Some(0), "{}: write {path}: {}", self.name, output.stderr);
        Ok(())
    }

    /// Starts a program that goes on running.
    pub async fn spawn(&self, name: &str, argv: &[&str]) -> Result<()> {
        let request = Request::Spawn { name: name.to_owned(), argv: owned(argv) };
        self.ask(&request, Duration::from_millis(QUESTION_MS)).await.map(drop)
    }

    /// SIGKILL to a program that was started; returns once it is gone.
    pub async fn kill(&self, name: &str) -> Result<()> {
        let kill = rustix::process::Signal::KILL.as_raw();
        let request = Request::Kill { name: name.to_owned(), signal: kill };
        self.ask(&request, Duration::from_millis(QUESTION_MS)).await?;
        self.wait_for_end(name).await.map(drop)
    }

    /// How a program that was started has ended; `None` while it runs.
    pub async fn ended(&self, name: &str) -> Result<Option<String>> {
        match self.ask(&Request::Ended { name: name.to_owned() }, Duration::from_millis(QUESTION_MS)).await? {
            Reply::Ended(how) => Ok(how),
            odd @ (Reply::Ran { .. } | Reply::Done | Reply::Failed(_)) => {
                bail!("{}: an odd answer: {odd:?}", self.name)
            }
        }
    }

    /// Waits until a program that was started has ended, and says how.
    pub async fn wait_for_end(&self, name: &str) -> Result<String> {
        self.eventually(&format!("{name} ends"), RUN_MS, async || {
            self.ended(name).await?.context("it still runs")
        })
        .await
    }

    /// What all programs that were started have printed.
    pub async fn logs(&self) -> Result<String> {
        let argv = ["sh", "-euc", &format!("cat {LOG_DIRECTORY}/*.log")];
        let output = self.try_run(&argv, "", Duration::from_millis(QUESTION_MS)).await?;
        ensure!(output.status == Some(0), "{}: its logs: {}", self.name, output.stderr);
        Ok(output.stdout)
    }

    /// What a program that was started has printed.
    pub async fn log(&self, name: &str) -> Result<String> {
        self.run(&["cat", &format!("{LOG_DIRECTORY}/{name}.log")]).await
    }

    /// Looks again and again until `look` finds something; what was wrong last is in the error.
    pub async fn eventually<T>(
        &self,
        what: &str,
        limit_ms: u64,
        look: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        eventually_within(limit_ms, &format!("{}: {what}", self.name), look).await
    }

    /// Waits until the agent answers.
    pub async fn wait_until_up(&self, limit_ms: u64) -> Result<()> {
        self.eventually("it boots", limit_ms, async || {
            let request = Request::Run { argv: owned(&["true"]), stdin: String::new() };
            // The emulator accepts connections long before the guest does, and then nobody answers.
            self.ask(&request, Duration::from_millis(QUESTION_MS / 10)).await.map(drop)
        })
        .await
    }

    /// An address on the host behind which is a unix socket of the guest.
    pub async fn relay(&self, socket: &str) -> Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("make a relay")?;
        let address = listener.local_addr().context("make a relay")?;
        let request = Request::Connect { socket: socket.to_owned() };
        let agent = self.agent;
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, agent, request.clone()));
            }
        });
        Ok(Relay { address, task })
    }
}

/// A way to a unix socket of a guest; it closes when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Relay {
    /// Where it is on the host.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries one connection. If the other end is not there, whoever connected sees it closed.
async fn carry(mut near: TcpStream, agent: SocketAddr, request: Request) {
    if let Ok((mut far, Reply::Done)) = exchange(agent, &request).await {
        // Either end may just go.
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}

/// Sends a request; the connection, and the answer.
async fn exchange(agent: SocketAddr, request: &Request) -> Result<(TcpStream, Reply)> {
    let mut stream = TcpStream::connect(agent).await?;
    stream.set_nodelay(true)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let answer = match request {
        // What follows the answer is not ours to read: byte by byte up to the line's end.
        Request::Connect { .. } => read_line(&mut stream).await?,
        Request::Run { .. } | Request::Spawn { .. } | Request::Kill { .. } | Request::Ended { .. } => {
            let mut answer = Vec::new();
            BufReader::new(&mut stream).read_until(b'\n', &mut answer).await?;
            answer
        }
    };
    ensure!(!answer.is_empty(), "the agent closed the connection");
    Ok((stream, serde_json::from_slice(&answer)?))
}

async fn read_line(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await?);
    }
    Ok(line)
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
