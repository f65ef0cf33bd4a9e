//! What must not be seen in any console or log, whatever the cases say.
//!
//! A kernel that complains, a program that panics, a machine or program that is gone though no case ended it: each is
//! remembered when it is found, since a machine's logs go with its power.

/// What a kernel or one of our programs prints when it is broken.
const SIGNS: &[&str] = &[
    "Kernel panic",
    "BUG:",
    "Oops",
    "WARNING: CPU",
    "general protection fault",
    "Out of memory",
    "blocked for more than",
    "soft lockup",
    "self-detected stall",
    "detected stalls on",
    "panicked at",
    "init: cannot load",
    "init: the agent ended",
];

/// All that was found so far, each once.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    found: Vec<String>,
}

impl Alarms {
    /// Looks for alarms in what `whose` printed.
    pub(super) fn look(&mut self, whose: &str, text: &str) {
        for line in text.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))) {
            self.raise(format!("{whose}: {}", line.trim()));
        }
    }

    /// Remembers one.
    pub(super) fn raise(&mut self, alarm: String) {
        if !self.found.contains(&alarm) {
            self.found.push(alarm);
        }
    }

    /// In the order in which they were found.
    pub(super) fn found(&self) -> &[String] {
        &self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_broken_kernels_and_programs_print_is_found_once() {
        let text = "[    1.2] nvme nvme0: creating 1 I/O queues.\n\
                    [   30.1] rcu: INFO: rcu_preempt self-detected stall on CPU\n\
                    [   31.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n\
                    [   32.1] WARNING: CPU: 0 PID: 9 at fs/ext4/inode.c:1 ext4_x+0x1/0x2\n\
                    [   33.1] Out of memory: Killed process 7 (rds-csi)\n\
                    thread 'main' panicked at src/node/src/run.rs:1:1:\n\
                    init: the agent ended\n";
        let mut alarms = Alarms::default();
        alarms.look("node-a", text);
        alarms.look("node-a", text);
        assert_eq!(alarms.found().len(), text.lines().count() - 1, "{:?}", alarms.found());
    }
}
