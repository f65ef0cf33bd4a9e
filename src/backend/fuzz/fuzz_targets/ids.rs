//! Arbitrary text as an id: no panic, and what is accepted cannot leave the quotes of a command line.
#![no_main]

use state_machine::{AppliancePath, HostAddress, NodeId, Nqn, VolumeId, VolumeName};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let accepted = [
        VolumeId::parse(text).is_ok(),
        VolumeName::parse(text).is_ok(),
        NodeId::parse(text).is_ok(),
        Nqn::parse(text).is_ok(),
        AppliancePath::parse(text).is_ok(),
        HostAddress::parse(text).is_ok(),
    ];
    if accepted.contains(&true) {
        assert!(text.chars().all(|c| c.is_ascii_alphanumeric() || "._-:/".contains(c)));
        assert!(text.len() <= 255);
    }
});
