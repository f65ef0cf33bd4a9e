//! Who holds each of several devices: one look at everything, for the regular reports to the controllers.
//!
//! It claims nothing, so it disturbs nobody, and it waits for no holder to pass. What only a claim shows, a mount in a
//! namespace without processes for one, it misses: whoever disconnects a device claims it first.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Check, InUse, Incomplete, LOOK_LIMIT_MS, block, named};
use crate::own_thread;
use crate::sysfs::Number;

impl InUse {
    /// Who holds each of these devices, in words for people; one that nobody holds is left out.
    pub(crate) async fn survey(
        &self,
        numbers: Vec<Number>,
    ) -> Result<BTreeMap<Number, Vec<String>>, Incomplete> {
        if numbers.is_empty() {
            return Ok(BTreeMap::new());
        }
        let hangs = || Incomplete("an earlier look at all devices still hangs".to_owned());
        let mark = self.surveys.begin(()).ok_or_else(hangs)?;
        let check = self.check.clone();
        let work = move || {
            let found = check.survey(&numbers);
            drop(mark);
            found
        };
        let failed = |error: own_thread::Unfinished| Incomplete(format!("a look at all devices: {error}"));
        let looking = own_thread::start("in-use-survey", work, drop).map_err(failed)?;
        own_thread::wait(looking, Duration::from_millis(LOOK_LIMIT_MS)).await.map_err(failed)?
    }
}

impl Check {
    pub(super) fn survey(&self, devices: &[Number]) -> Result<BTreeMap<Number, Vec<String>>, Incomplete> {
        let mut found: BTreeMap<Number, Vec<String>> = BTreeMap::new();
        // Which device a number is, or is a partition of.
        let mut device_of = BTreeMap::new();
        for device in devices {
            let family = block::family(&self.roots, *device)?;
            device_of.extend(family.numbers.iter().map(|number| (*number, *device)));
            if !family.holders.is_empty() {
                found.insert(*device, family.holders);
            }
        }
        let numbers: Vec<Number> = device_of.keys().copied().collect();
        for (number, who) in self.holders_of(&numbers, None)? {
            let Some(device) = device_of.get(&number) else { continue };
            let holders = found.entry(*device).or_default();
            if holders.last() != Some(&who) {
                holders.push(who);
            }
        }
        Ok(found.into_iter().map(|(device, holders)| (device, named(holders))).collect())
    }
}
