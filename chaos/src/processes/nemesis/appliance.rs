//! The appliance restarts, hangs, loses answers, does half of it, or does it later.

use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use routeros_simulator::{Fault, Scope};
use tokio::time::{Instant, sleep};

use super::kinds::Trouble;
use super::{Nemesis, POLL, Struck};
use crate::history::Installed;

/// How long commands may take to run into a fault.
const STRIKE_LIMIT: Duration = Duration::from_secs(4);
/// How late a command comes, in ms: later than the volume is deleted that it was about, often enough.
const LATE_MS: std::ops::Range<u64> = 500..15_000;
/// How long an appliance hangs, in ms.
const TROUBLE_MS: std::ops::Range<u64> = 500..2_500;
/// How many commands are struck at most.
const COMMANDS: std::ops::Range<u32> = 1..4;
/// What every command that changes something contains: the fence.
const CHANGES: &str = "/system script set";
/// What a command contains that makes a disk.
const ADDS: &str = "/disk add";

impl Nemesis {
    pub(super) async fn trouble_appliance(&mut self, trouble: Trouble) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        let lab = self.lab.clone();
        let simulator = &lab.appliance.simulator;
        let changes = || Scope::Containing(CHANGES.to_owned());
        let count = self.random.random_range(COMMANDS);
        let at = lab.recorder.now();
        let asked = match trouble {
            Trouble::Restarts => {
                let before = simulator.connections_seen();
                simulator.restart();
                // A controller that dials again was cut off.
                let until = Instant::now() + STRIKE_LIMIT;
                while simulator.connections_seen() == before && Instant::now() < until {
                    sleep(POLL).await;
                }
                let installed = if simulator.connections_seen() > before {
                    Installed::Yes
                } else {
                    Installed::Indeterminate
                };
                return Ok(vec![appliance(at, installed)]);
            }
            Trouble::Hangs => {
                simulator.inject(Fault::Hang, Scope::Any, count);
                count
            }
            Trouble::LosesAnswers => {
                simulator.inject(Fault::DropAfterEffect, changes(), count);
                count
            }
            Trouble::StopsHalfWay => {
                simulator.inject(Fault::HalfDone, Scope::Containing(ADDS.to_owned()), 1);
                1
            }
            Trouble::IsLate => {
                simulator.inject(Fault::DelayDelivery, changes(), 1);
                simulator.inject(Fault::DuplicateLater, changes(), count);
                count + 1
            }
        };
        let until = Instant::now() + STRIKE_LIMIT;
        while simulator.armed_faults() > 0 && Instant::now() < until {
            sleep(POLL).await;
        }
        let installed = if simulator.armed_faults() < asked { Installed::Yes } else { Installed::Skipped };
        if trouble == Trouble::IsLate {
            simulator.clear_faults();
            let late = Duration::from_millis(self.random.random_range(LATE_MS));
            self.delivery_due.get_or_insert(Instant::now() + late);
            return Ok(vec![appliance(at, installed)]);
        }
        self.wait(TROUBLE_MS).await;
        simulator.clear_faults();
        if trouble == Trouble::Hangs {
            // What hangs does so until its connection ends.
            simulator.restart();
        }
        Ok(vec![appliance(at, installed)])
    }
}

impl Nemesis {
    /// Has held commands arrive, if it is time: whatever fault is under way by now.
    pub(super) fn deliver_late(&mut self) {
        if self.delivery_due.take_if(|due| Instant::now() >= *due).is_some() {
            self.lab.appliance.simulator.deliver_held();
        }
    }
}

fn appliance(at: u64, installed: Installed) -> Struck {
    Struck { target: "appliance".to_owned(), at, installed, hit_leader: false, healed: true }
}
