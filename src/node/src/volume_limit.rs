//! How many volumes a node can take when nobody says: CSI 1.12, "NodeGetInfo", `max_volumes_per_node`.
//!
//! A connected volume is an NVMe controller with one admin queue and its I/O queues, and each queue is a TCP socket
//! with its buffers and the memory of the commands that may be in flight on it. That memory is the kernel's, is never
//! swapped, and what cannot be had makes I/O of the volumes that are there slow. So the limit is how many volumes'
//! queues fit into a share of the node's memory. A volume counts with the queues that it has by default, also where the
//! kernel makes fewer because there are fewer CPUs; a class with more of them wants a `max_volumes` of its own:
//!
//! `memory / MEMORY_PARTS / ((io_queues + 1) * QUEUE_BYTES)`, but at least [`LEAST_VOLUMES`] and at most
//! [`MOST_VOLUMES`].
//!
//! | Memory | I/O queues a volume | Limit |
//! |---|---|---|
//! | 16 GiB | 8 | 113 |
//! | 64 GiB and more | 8 | 256 |

/// One part in this many of the node's memory is for queues.
const MEMORY_PARTS: u64 = 16;
/// What a queue costs, in bytes: 128 commands with their headers and scatter lists (about 150 KiB), and a socket's
/// buffers as they are under ordinary load.
const QUEUE_BYTES: u64 = 1 << 20;
/// Even a small node takes this many volumes.
const LEAST_VOLUMES: u64 = 8;
/// No node takes more, whatever its memory: each volume is one more that has to be reconnected when the appliance
/// restarts.
const MOST_VOLUMES: u64 = 256;
/// The admin queue of each NVMe controller.
const ADMIN_QUEUES: u64 = 1;

/// The limit of a node with this much memory whose volumes have this many I/O queues each.
pub(crate) fn volume_limit(memory_bytes: u64, io_queues: u32) -> u32 {
    let volume_bytes = (u64::from(io_queues) + ADMIN_QUEUES) * QUEUE_BYTES;
    let fit = memory_bytes / MEMORY_PARTS / volume_bytes;
    u32::try_from(fit.clamp(LEAST_VOLUMES, MOST_VOLUMES)).unwrap_or(u32::MAX)
}

/// The machine's memory in bytes, from the text of `/proc/meminfo`.
pub(crate) fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_follows_from_memory_and_queues() {
        let rows = [
            (1 << 29, 1, 16),
            (1 << 28, 8, 8),
            (2 << 30, 2, 42),
            (16 << 30, 8, 113),
            (64 << 30, 8, 256),
            (u64::MAX, 1, 256),
            (0, u32::MAX, 8),
        ];
        for (memory, queues, limit) in rows {
            assert_eq!(volume_limit(memory, queues), limit, "{memory} bytes, {queues} queues");
        }
    }

    #[test]
    fn memory_is_read_or_not_known() {
        let text = "MemTotal:       24684456 kB\nMemFree:        23951260 kB\n";
        assert_eq!(memory_bytes(text), Some(24_684_456 * 1024));
        for text in ["", "MemFree: 1 kB\n", "MemTotal: many kB\n", "MemTotal: 18446744073709551615 kB\n"] {
            assert_eq!(memory_bytes(text), None, "{text:?}");
        }
    }
}
