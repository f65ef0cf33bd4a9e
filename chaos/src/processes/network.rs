//! A network namespace for each controller, on one bridge with this machine, where nodes, clients and the appliance
//! are. What is cut is cut by nftables inside the namespaces, and by nothing else.
//!
//! The namespaces bear this process's id. Those of a run that was killed are taken away by the next one.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::lab::{bounded, tool};

/// What the names of our namespaces begin with.
const PREFIX: &str = "rds-chaos-";
/// What our bridges' names begin with; an interface's name has 15 bytes.
const BRIDGE: &str = "rdsbr";
/// The table of our rules.
const TABLE: &str = "chaos";
/// The first two bytes of our addresses; the third is of this run.
const NETWORK: [u8; 2] = [10, 213];
/// How many third bytes there are.
const NETWORKS: u32 = 254;

/// What a controller does not hear, or cannot say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// Nothing from that controller comes in.
    Deaf { from: usize },
    /// Nothing from outside comes in: nodes, clients, the appliance.
    DeafToOutside,
    /// Three of ten packets from that controller are lost.
    Lossy { from: usize },
    /// Connections from and to that controller open, and nothing comes through them.
    HalfOpen { from: usize },
}

/// The namespaces, all of which go when it is dropped.
#[derive(Debug)]
pub(super) struct Network {
    pid: u32,
    third: u8,
    count: usize,
}

impl Network {
    /// Makes `count` namespaces.
    pub(super) fn create(count: usize) -> Result<Self> {
        remove_orphans()?;
        let pid = std::process::id();
        let third = free_third(pid, &tool("ip", &["-oneline", "-4", "address", "show"])?)?;
        // Dropped if anything below fails.
        let network = Self { pid, third, count };
        let bridge = network.bridge();
        tool("ip", &["link", "add", &bridge, "type", "bridge"])?;
        tool("ip", &["address", "add", &format!("{}/24", network.outside()), "dev", &bridge])?;
        tool("ip", &["link", "set", &bridge, "up"])?;
        for index in 0..count {
            let (name, near) = (network.namespace(index), network.near_end(index));
            tool("ip", &["netns", "add", &name])?;
            tool("ip", &["link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            tool("ip", &["link", "set", &near, "master", &bridge, "up"])?;
            let address = format!("{}/24", network.address(index));
            tool("ip", &["-n", &name, "address", "add", &address, "dev", "eth0"])?;
            tool("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
            tool("ip", &["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(network)
    }

    fn bridge(&self) -> String {
        format!("{BRIDGE}{:x}", self.pid)
    }

    fn near_end(&self, index: usize) -> String {
        format!("rds{:x}v{index}", self.pid)
    }

    fn namespace(&self, index: usize) -> String {
        format!("{PREFIX}{}-{index}", self.pid)
    }

    /// This machine's own address on the bridge.
    pub(super) fn outside(&self) -> IpAddr {
        self.host(1)
    }

    fn address(&self, index: usize) -> IpAddr {
        self.host(10 + u8::try_from(index).unwrap_or(u8::MAX))
    }

    fn host(&self, last: u8) -> IpAddr {
        let [first, second] = NETWORK;
        IpAddr::V4(Ipv4Addr::new(first, second, self.third, last))
    }

    /// The controllers' addresses, in their order.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        (0..self.count).map(|index| self.address(index)).collect()
    }

    /// What enters the namespace of a controller, and becomes its process.
    pub(super) fn launcher(&self, index: usize) -> Vec<OsString> {
        vec!["nsenter".into(), self.entrance(index).into(), "--".into()]
    }

    /// What nsenter is told. `ip netns exec` would copy all mounts, and keep a disk that is to be unmounted.
    fn entrance(&self, index: usize) -> String {
        format!("--net=/run/netns/{}", self.namespace(index))
    }

    /// Has the controller `index` obey these rules, in place of earlier ones; true if the kernel then lists them all.
    pub(super) fn impose(&self, index: usize, rules: &[Rule]) -> Result<bool> {
        let lines: Vec<String> = rules.iter().map(|rule| self.line(rule)).collect();
        let text = format!(
            "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\nchain heard {{\n\
             type filter hook input priority 0; policy accept;\n{}\n}}\n}}\n",
            lines.join("\n")
        );
        let mut nft = bounded("nsenter")
            .args([self.entrance(index).as_str(), "--", "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run nft")?;
        nft.stdin.take().context("nft has no input")?.write_all(text.as_bytes())?;
        let output = nft.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
        let listed = self.nft(index, &["list", "table", "inet", TABLE])?;
        Ok(listed.matches(" drop").count() == rules.len())
    }

    fn line(&self, rule: &Rule) -> String {
        match rule {
            Rule::Deaf { from } => format!("ip saddr {} counter drop", self.address(*from)),
            Rule::DeafToOutside => format!("ip saddr {} counter drop", self.outside()),
            Rule::Lossy { from } => {
                format!("ip saddr {} numgen random mod 10 < 3 counter drop", self.address(*from))
            }
            Rule::HalfOpen { from } => {
                format!("ip saddr {} tcp flags & psh == psh counter drop", self.address(*from))
            }
        }
    }

    fn nft(&self, index: usize, arguments: &[&str]) -> Result<String> {
        let entrance = self.entrance(index);
        tool("nsenter", &[[entrance.as_str(), "--", "nft"].as_slice(), arguments].concat())
    }

    /// How many packets the rules of a controller have dropped.
    pub(super) fn dropped(&self, index: usize) -> Result<u64> {
        let listed = self.nft(index, &["list", "table", "inet", TABLE])?;
        let mut words = listed.split_whitespace();
        let mut packets = 0;
        while let Some(word) = words.next() {
            if word == "packets" {
                packets += words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(packets)
    }

    /// Takes all rules away.
    pub(super) fn heal(&self) -> Result<()> {
        for index in 0..self.count {
            self.impose(index, &[])?;
        }
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for index in 0..self.count {
            // A namespace takes its interfaces with it, but some time later, and the next run wants their names. What was
            // not made yet is no loss.
            let _ = tool("ip", &["link", "delete", &self.near_end(index)]);
            let _ = tool("ip", &["netns", "delete", &self.namespace(index)]);
        }
        if let Err(error) = tool("ip", &["link", "delete", &self.bridge()]) {
            eprintln!("{error:#}");
        }
    }
}

/// A third byte that no other run on this machine has, beginning with what `pid` suggests; `addresses` are the machine's.
fn free_third(pid: u32, addresses: &str) -> Result<u8> {
    let [first, second] = NETWORK;
    let mut thirds = (0..NETWORKS).filter_map(|step| u8::try_from((pid % NETWORKS + step) % NETWORKS).ok());
    thirds
        .find(|third| !addresses.contains(&format!(" {first}.{second}.{third}.")))
        .with_context(|| format!("every network below {first}.{second} is taken: end other runs"))
}

/// Takes away what runs have left that were killed.
fn remove_orphans() -> Result<()> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Ok(()) };
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        let Some(pid) = pid.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) else { continue };
        tool("ip", &["netns", "delete", &name])?;
        let _ = tool("ip", &["link", "delete", &format!("{BRIDGE}{pid:x}")]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_have_two_networks() {
        let addresses =
            "7: rdsbr1 inet 10.213.5.1/24 scope global\n8: rdsbr2 inet 10.213.6.1/24 scope global";
        assert_eq!(free_third(NETWORKS + 5, addresses).unwrap(), 7);
        assert_eq!(free_third(60, addresses).unwrap(), 60);
        assert_eq!(free_third(NETWORKS - 1, " 10.213.253.1/24 ").unwrap(), 0);
    }
}
