//! Programs that the agent runs or has running.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tests::vm::protocol::{LOG_DIRECTORY, Reply};

/// The programs that were started, by name.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    children: Mutex<BTreeMap<String, Child>>,
}

impl Processes {
    fn children(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program under a name that nothing that runs has.
    pub(crate) fn spawn(&self, name: &str, argv: &[String]) -> io::Result<()> {
        let mut children = self.children();
        if let Some(child) = children.get_mut(name)
            && child.try_wait()?.is_none()
        {
            return Err(io::Error::other(format!("{name} runs already")));
        }
        fs::create_dir_all(LOG_DIRECTORY)?;
        let log = Path::new(LOG_DIRECTORY).join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command(argv)?.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        children.insert(name.to_owned(), child);
        Ok(())
    }

    /// Sends a signal to a program that was started. One that has ended is done already.
    pub(crate) fn kill(&self, name: &str, signal: i32) -> io::Result<()> {
        let mut children = self.children();
        let child = children.get_mut(name).ok_or_else(|| unknown(name))?;
        // Until it is waited for, its process id is nobody else's.
        if child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let signal = Signal::from_named_raw(signal);
        match (pid, signal) {
            (Some(pid), Some(signal)) => Ok(kill_process(pid, signal)?),
            (None, _) | (_, None) => Err(io::Error::other("no such signal or process id")),
        }
    }

    /// How a program has ended; `None` while it runs.
    pub(crate) fn ended(&self, name: &str) -> io::Result<Option<String>> {
        let mut children = self.children();
        let child = children.get_mut(name).ok_or_else(|| unknown(name))?;
        Ok(child.try_wait()?.map(|status| status.to_string()))
    }
}

fn unknown(name: &str) -> io::Error {
    io::Error::other(format!("{name} was never started"))
}

fn command(argv: &[String]) -> io::Result<Command> {
    let (program, arguments) = argv.split_first().ok_or_else(|| io::Error::other("no program"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}

/// Runs a program to its end.
pub(crate) fn run(argv: &[String], stdin: &str) -> io::Result<Reply> {
    let mut child =
        command(argv)?.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let input = child.stdin.take();
    let text = stdin.to_owned();
    // A program need not read what it is given.
    let writer = thread::spawn(move || input.map(|mut input| input.write_all(text.as_bytes())));
    let output = child.wait_with_output()?;
    drop(writer.join());
    Ok(Reply::Ran {
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
