//! Controllers do not hear each other, or not all of it, or not the outside.

use anyhow::{Context, Result};
use rand::Rng;

use super::kinds::Cut;
use super::{Nemesis, Struck};
use crate::history::Installed;
use crate::processes::network::Rule;

/// How long a partition lasts, in ms: several elections.
const CUT_MS: std::ops::Range<u64> = 1_500..4_000;

impl Nemesis {
    pub(super) async fn cut_network(&mut self, cut: Cut) -> Result<Vec<Struck>> {
        self.leader_in_migration().await;
        let Some(leader) = self.lab.watch.leader() else { return Ok(self.skipped("the leader")) };
        let lab = self.lab.clone();
        let network = lab.network.as_ref().context("there is no network of our own")?;
        let names = lab.doors.controllers();
        let leader_at =
            names.iter().position(|name| *name == leader.name).context("the leader has no place")?;
        let all = 0..names.len();
        let others: Vec<usize> = all.clone().filter(|index| *index != leader_at).collect();
        let rules = self.rules(cut, leader_at, &others);
        let at = lab.recorder.now();
        let mut listed = true;
        for index in all.clone() {
            let own: Vec<Rule> =
                rules.iter().filter(|(at, _)| *at == index).map(|(_, rule)| rule.clone()).collect();
            listed &= network.impose(index, &own)?;
        }
        self.wait(CUT_MS).await;
        let mut dropped = 0;
        for index in all {
            dropped += network.dropped(index)?;
        }
        network.heal()?;
        // Rules that caught no packet were there, and nobody noticed.
        let installed = if listed && dropped > 0 { Installed::Yes } else { Installed::Indeterminate };
        Ok(vec![Struck { target: leader.name, at, installed, hit_leader: true, healed: true }])
    }

    /// Who obeys which rule.
    fn rules(&mut self, cut: Cut, leader: usize, others: &[usize]) -> Vec<(usize, Rule)> {
        let deaf = |at: usize, from: usize| (at, Rule::Deaf { from });
        match cut {
            Cut::BothWays => {
                let mut rules: Vec<_> =
                    others.iter().flat_map(|other| [deaf(leader, *other), deaf(*other, leader)]).collect();
                if self.random.random_bool(0.5) {
                    rules.push((leader, Rule::DeafToOutside));
                }
                rules
            }
            Cut::OneWay if self.random.random_bool(0.5) => {
                others.iter().map(|other| deaf(leader, *other)).collect()
            }
            Cut::OneWay => others.iter().map(|other| deaf(*other, leader)).collect(),
            Cut::Bridge => {
                others.first().into_iter().flat_map(|one| [deaf(leader, *one), deaf(*one, leader)]).collect()
            }
            Cut::Loss => others
                .iter()
                .flat_map(|other| {
                    [(leader, Rule::Lossy { from: *other }), (*other, Rule::Lossy { from: leader })]
                })
                .collect(),
            Cut::HalfOpen => others
                .iter()
                .flat_map(|other| {
                    [(leader, Rule::HalfOpen { from: *other }), (*other, Rule::HalfOpen { from: leader })]
                })
                .collect(),
            Cut::Outside => vec![(leader, Rule::DeafToOutside)],
        }
    }
}
