//! A bridge, and a network namespace for each pod, within the network namespace of this whole run.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The bridge's own address: the API server and the appliance are there.
pub(crate) const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1));
/// The addresses of Services.
pub(crate) const SERVICES: &str = "10.96.0.0/24";

const BRIDGE: &str = "pods";
/// Bits of an address that all pods share.
const PREFIX: u8 = 24;

/// The address of the pod of this number.
pub(crate) fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 244, 0, 10_u8.saturating_add(number)))
}

/// The path by which the network namespace `name` is entered.
pub(crate) fn namespace(name: &str) -> String {
    format!("/run/netns/{name}")
}

/// Makes the bridge. What it needs of the file system is seen in this mount namespace only.
pub(crate) fn make_bridge() -> Result<()> {
    run("mount", &["-t", "tmpfs", "run", "/run"])?;
    ip(&["link", "set", "lo", "up"])?;
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["address", "add", &format!("{GATEWAY}/{PREFIX}"), "dev", BRIDGE])?;
    ip(&["link", "set", BRIDGE, "up"])
}

/// Makes the network namespace `name`, which has `address`. `number` is not used by another.
pub(crate) fn make_namespace(name: &str, number: u8, address: IpAddr) -> Result<()> {
    let end = format!("pod{number}");
    ip(&["netns", "add", name])?;
    ip(&["link", "add", &end, "type", "veth", "peer", "name", "eth0", "netns", name])?;
    ip(&["link", "set", &end, "master", BRIDGE, "up"])?;
    ip(&["-n", name, "address", "add", &format!("{address}/{PREFIX}"), "dev", "eth0"])?;
    ip(&["-n", name, "link", "set", "eth0", "up"])?;
    ip(&["-n", name, "link", "set", "lo", "up"])
}

/// Gives this machine the address of a Service.
pub(crate) fn add_service_address(address: &str) -> Result<()> {
    ip(&["address", "add", &format!("{address}/32"), "dev", "lo"])
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("start {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    Ok(())
}
