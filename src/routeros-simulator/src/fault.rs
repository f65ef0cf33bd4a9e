//! Faults that tests inject.
//!
//! A fault is armed with a scope and a count, strikes the next commands in its scope, and is used up.

use std::collections::VecDeque;
use std::time::Duration;

/// What goes wrong with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No answer; the command does not run. The channel stays open until the client gives up.
    Hang,
    /// The connection drops; the command does not run.
    DropBeforeEffect,
    /// The command runs; the connection drops before its answer.
    DropAfterEffect,
    /// A disk is added without its export, the script stops, and the connection drops.
    HalfDone,
    /// The first change to disks or files fails with these words, such as `not enough space`.
    Fail(String),
    /// The command runs after this much more time.
    Slow(Duration),
    /// The command runs; its answer is replaced by these bytes.
    Garbage(Vec<u8>),
    /// The command runs and is answered; its text is held too, and runs again at
    /// [`deliver_held`](crate::Simulator::deliver_held).
    DuplicateLater,
    /// The connection drops; the command is held, and runs only at
    /// [`deliver_held`](crate::Simulator::deliver_held).
    DelayDelivery,
}

/// Which commands a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Any command.
    Any,
    /// Commands that contain this text.
    Containing(String),
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    armed: VecDeque<(Fault, Scope, u32)>,
}

impl Faults {
    pub(crate) fn arm(&mut self, fault: Fault, scope: Scope, count: u32) {
        if count > 0 {
            self.armed.push_back((fault, scope, count));
        }
    }

    /// The fault that strikes `command`, if any; uses it up.
    pub(crate) fn strike(&mut self, command: &str) -> Option<Fault> {
        let index = self.armed.iter().position(|(_, scope, _)| match scope {
            Scope::Any => true,
            Scope::Containing(text) => command.contains(text.as_str()),
        })?;
        let (fault, _, left) = self.armed.get_mut(index)?;
        let fault = fault.clone();
        *left -= 1;
        if *left == 0 {
            self.armed.remove(index);
        }
        Some(fault)
    }

    /// How many commands are still to be struck.
    pub(crate) fn left(&self) -> u32 {
        self.armed.iter().map(|(_, _, left)| left).sum()
    }

    pub(crate) fn clear(&mut self) {
        self.armed.clear();
    }
}
