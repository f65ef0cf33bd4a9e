//! The protocols that the driver speaks, as generated code: messages, clients and servers.
//!
//! The sources are the `.proto` files of this package; `build.rs` compiles them with protox, so that no
//! `protoc` is needed. Beside them is only how messages are put on the wire ([`codec`]): what a message means is decided
//! where it is parsed.
//!
//! Generated code is held to none of our lints about style and documentation.

pub mod codec;

macro_rules! generated {
    ($(#[$doc:meta])* $module:ident, $package:literal) => {
        $(#[$doc])*
        pub mod $module {
            /// Version 1 of the protocol.
            #[allow(missing_docs, unreachable_pub, rust_2018_idioms, clippy::all, clippy::unwrap_used)]
            #[allow(clippy::wildcard_enum_match_arm)]
            pub mod v1 {
                tonic::include_proto!($package);
            }
        }
    };
}

generated!(
    /// The Container Storage Interface 1.12, spoken with kubelet and the CSI sidecars.
    csi,
    "csi.v1"
);
generated!(
    /// Between controller replicas: consensus, forwarded requests, membership.
    peer,
    "rdscsi.peer.v1"
);
generated!(
    /// From controller replicas to the one that leads.
    leader,
    "rdscsi.leader.v1"
);
generated!(
    /// From node plugins to the controllers.
    node,
    "rdscsi.node.v1"
);
generated!(
    /// From people to the controllers.
    operator,
    "rdscsi.operator.v1"
);
