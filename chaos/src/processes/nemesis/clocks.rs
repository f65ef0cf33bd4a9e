//! Wall clocks jump by hours, on one controller or on all.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::time::{Instant, sleep};

use super::{Nemesis, Struck};
use crate::history::Installed;

/// By how much, in seconds.
const JUMPS_S: [i64; 4] = [-86_400, -10_800, 10_800, 86_400];
/// A clock is off that is wrong by more than this, in seconds.
const OFF_S: u64 = 3_600;
/// How long a controller may take to log a line with the wrong time.
const SIGHT_LIMIT: Duration = Duration::from_secs(4);
/// Pause between two looks into a log.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long a clock stays wrong, in ms.
const WRONG_MS: std::ops::Range<u64> = 500..2_500;

impl Nemesis {
    pub(super) async fn jump_clock(&mut self) -> Result<Vec<Struck>> {
        let all = self.lab.doors.controllers();
        let Some(leader) = self.leader_in_migration().await else { return Ok(self.skipped("the leader")) };
        let targets = if self.random.random_bool(0.5) { all } else { vec![leader.name.clone()] };
        let offset_s = JUMPS_S.choose(&mut self.random).copied().unwrap_or_default();
        let at = self.lab.recorder.now();
        for name in &targets {
            self.lab.set_clock(name, offset_s)?;
        }
        let seen = self.tells_wrong_time(&leader.name).await;
        self.wait(WRONG_MS).await;
        for name in &targets {
            self.lab.set_clock(name, 0)?;
        }
        let installed = if seen { Installed::Yes } else { Installed::Indeterminate };
        Ok(vec![Struck { target: targets.join(", "), at, installed, hit_leader: true, healed: true }])
    }

    /// Whether the last line of a controller's log comes to bear a time that is not now.
    async fn tells_wrong_time(&self, name: &str) -> bool {
        let path = self.lab.cluster().log_path(name);
        let until = Instant::now() + SIGHT_LIMIT;
        while Instant::now() < until {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let said = text.lines().rev().find_map(seconds_of);
            if said.is_some_and(|said| said.abs_diff(now) > OFF_S) {
                return true;
            }
            sleep(LOOK_PAUSE).await;
        }
        false
    }
}

/// The time of a log's line, `2026-11-21T11:46:47.123Z ...`, in seconds since 1970.
fn seconds_of(line: &str) -> Option<u64> {
    let (date, rest) = line.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<Vec<u64>> {
        text.splitn(3, by).map(|part| part.get(..part.len().min(4))?.parse().ok()).collect()
    };
    let [year, month, day] = numbers(date, '-')?[..] else { return None };
    let [hour, minute, second] = numbers(rest.get(..8)?, ':')?[..] else { return None };
    // Days of the civil calendar, with years that begin in March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(days.checked_sub(719_469)? * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lines_time_is_read() {
        assert_eq!(seconds_of("1970-01-01T00:00:00.5Z  INFO x"), Some(0));
        assert_eq!(seconds_of("2024-02-29T12:00:01.000001Z  INFO x"), Some(1_709_208_001));
        assert_eq!(seconds_of("2026-11-21T11:46:47Z x"), Some(1_795_261_607));
        assert_eq!(seconds_of("thread 'main' panicked"), None);
    }
}
