//! The agent in a guest of the VM tests: does what the test on the host asks for over TCP ([`tests::vm::protocol`]),
//! and is the program that writes and checks records there.
//!
//! Life cycle: the guest's init starts it without arguments; it serves until the machine ends. `vm-agent write PATH
//! COUNT` and `vm-agent check PATH COUNT` are for the test to run in the guest. `vm-agent ask ADDRESS PROGRAM
//! ARGUMENT...`, on the host, runs a program in the guest whose agent is at that address.

mod processes;
mod records;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::{env, thread};

use tests::vm::protocol::{AGENT_PORT, Reply, Request};

use processes::Processes;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        [] => serve(),
        ["write", path, count] => with_count(count, |count| records::write(Path::new(path), count)),
        ["check", path, count] => with_count(count, |count| records::check(Path::new(path), count)),
        ["ask", address, argv @ ..] => return ask(address, argv),
        _ => Err(io::Error::other("usage: vm-agent [write|check PATH COUNT | ask ADDRESS PROGRAM ...]")),
    };
    ended(outcome.map(|()| 0))
}

fn ended(outcome: io::Result<i32>) -> ExitCode {
    outcome.map_or_else(
        |error| {
            eprintln!("vm-agent: {error}");
            ExitCode::FAILURE
        },
        |status| u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from),
    )
}

/// Runs a program in a guest; ends as that does.
fn ask(address: &str, argv: &[&str]) -> ExitCode {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    let asked = || {
        let mut stream = TcpStream::connect(address)?;
        serde_json::to_writer(&stream, &Request::Run { argv, stdin: String::new() })?;
        stream.write_all(b"\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            Reply::Ran { status, stdout, stderr } => {
                print!("{stdout}");
                eprint!("{stderr}");
                Ok(status.unwrap_or(-1))
            }
            other @ (Reply::Done | Reply::Ended(_) | Reply::Failed(_)) => {
                Err(io::Error::other(format!("{other:?}")))
            }
        }
    };
    ended(asked())
}

fn with_count(text: &str, act: impl FnOnce(u64) -> io::Result<()>) -> io::Result<()> {
    act(text.parse().map_err(|error| io::Error::other(format!("{text}: {error}")))?)
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, AGENT_PORT))?;
    let processes = Arc::new(Processes::default());
    for stream in listener.incoming() {
        let processes = processes.clone();
        // A test that went away in the middle of a question does not matter here.
        thread::spawn(move || stream.and_then(|stream| answer(&processes, stream)));
    }
    Ok(())
}

fn answer(processes: &Processes, stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let reply = match serde_json::from_str(&line).map_err(io::Error::other) {
        Ok(Request::Connect { socket }) => match UnixStream::connect(&socket) {
            Ok(far) => {
                send(&stream, &Reply::Done)?;
                return relay(reader, stream, far);
            }
            Err(error) => Err(io::Error::new(error.kind(), format!("{socket}: {error}"))),
        },
        Ok(Request::Run { argv, stdin }) => processes::run(&argv, &stdin),
        Ok(Request::Spawn { name, argv }) => processes.spawn(&name, &argv).map(|()| Reply::Done),
        Ok(Request::Kill { name, signal }) => processes.kill(&name, signal).map(|()| Reply::Done),
        Ok(Request::Ended { name }) => processes.ended(&name).map(Reply::Ended),
        Err(error) => Err(error),
    };
    send(&stream, &reply.unwrap_or_else(|error| Reply::Failed(error.to_string())))
}

fn send(mut stream: &TcpStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Carries bytes both ways until both ends are done.
fn relay(mut reader: BufReader<TcpStream>, mut stream: TcpStream, far: UnixStream) -> io::Result<()> {
    let (mut far_reader, mut far_writer) = (far.try_clone()?, far);
    let up = thread::spawn(move || {
        let copied = io::copy(&mut reader, &mut far_writer);
        far_writer.shutdown(Shutdown::Write).and(copied)
    });
    let down = io::copy(&mut far_reader, &mut stream);
    stream.shutdown(Shutdown::Both).ok();
    up.join().map_err(|_| io::Error::other("the relay panicked"))?.and(down).map(drop)
}
