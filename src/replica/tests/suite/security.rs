//! Who may speak to a replica, and for whom.

use std::path::PathBuf;

use proto::peer::v1::peer_client::PeerClient;
use proto::peer::v1::{AdoptRequest, IdentifyRequest, JoinRequest, ProposeRequest, RaftMessage};
use replica::TlsFiles;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::harness::{Authority, Cluster};

fn client_tls(files: &TlsFiles) -> ClientTlsConfig {
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    let ca = Certificate::from_pem(read(&files.ca));
    let identity = Identity::from_pem(read(&files.cert), read(&files.key));
    ClientTlsConfig::new().domain_name("rds-csi").ca_certificate(ca).identity(identity)
}

/// A connection to place `i`, as whoever the files say; they are read now.
pub(crate) async fn client(
    cluster: &Cluster,
    i: usize,
    tls: &TlsFiles,
) -> Result<PeerClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("https://{}", cluster.places[i].address))?;
    Ok(PeerClient::new(endpoint.tls_config(client_tls(tls))?.connect().await?))
}

async fn identify(cluster: &Cluster, tls: &TlsFiles) -> Code {
    match client(cluster, 0, tls).await {
        Ok(mut client) => match client.identify(IdentifyRequest {}).await {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        },
        // The connection itself was refused.
        Err(_) => Code::Unavailable,
    }
}

#[tokio::test]
async fn only_replicas_of_our_ca_are_heard() {
    let mut cluster = Cluster::new();
    cluster.start(0).await;
    let ours = |role: &str| cluster.authority.issue(role, "someone");
    assert_eq!(identify(&cluster, &ours("replica")).await, Code::Ok);
    assert_eq!(identify(&cluster, &ours("node")).await, Code::PermissionDenied);
    assert_eq!(identify(&cluster, &ours("operator")).await, Code::PermissionDenied);
    assert_eq!(identify(&cluster, &ours("king")).await, Code::Unauthenticated);

    // A replica's certificate of another CA; the caller even knows ours.
    let other = Authority::new(&cluster.dir.path().join("other-tls"));
    let foreign = TlsFiles { ca: ours("replica").ca, ..other.issue("replica", "someone") };
    let refused = identify(&cluster, &foreign).await;
    // By TLS, before anybody looks for a role.
    assert!(!matches!(refused, Code::Ok | Code::PermissionDenied | Code::Unauthenticated), "{refused:?}");
    // No certificate at all.
    let endpoint = Endpoint::from_shared(format!("https://{}", cluster.places[0].address)).unwrap();
    let ca = tonic::transport::Certificate::from_pem(std::fs::read(ours("replica").ca).unwrap());
    let tls = tonic::transport::ClientTlsConfig::new().domain_name("rds-csi").ca_certificate(ca);
    let anonymous = endpoint.tls_config(tls).unwrap().connect().await;
    let heard = match anonymous {
        Ok(channel) => PeerClient::new(channel).identify(IdentifyRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(!heard);
}

/// A node's certificate does not bear the server's name: it cannot pose as a replica's server.
#[tokio::test]
async fn a_node_cannot_pose_as_a_replica() {
    let mut cluster = Cluster::new();
    let mut config = cluster.config(0);
    config.tls = cluster.authority.issue("node", "r0");
    cluster.try_start(0, config).await.unwrap();
    let tls = cluster.authority.issue("replica", "r1");
    assert!(client(&cluster, 0, &tls).await.is_err());
}

#[tokio::test]
async fn messages_for_another_replica_or_cluster_are_refused() {
    let cluster = Cluster::formed().await;
    let status = cluster.replica(0).status();
    let (id, cluster_id) = (status.id, status.cluster_id.unwrap().as_bytes().to_vec());
    let mut client = client(&cluster, 0, &cluster.authority.issue("replica", "r1")).await.unwrap();
    let message =
        |cluster_id: &[u8], to: u64| RaftMessage { cluster_id: cluster_id.to_vec(), to, payload: vec![1] };

    let to_another = client.vote(message(&cluster_id, id + 1)).await.unwrap_err();
    assert_eq!(to_another.code(), Code::FailedPrecondition, "{to_another}");
    let of_another = client.vote(message(&[7; 16], id)).await.unwrap_err();
    assert_eq!(of_another.code(), Code::FailedPrecondition, "{of_another}");
    let of_none = client.vote(message(&[], id)).await.unwrap_err();
    assert_eq!(of_none.code(), Code::FailedPrecondition, "{of_none}");
    // Rightly addressed, it is opened, and found to be nothing.
    let garbage = client.vote(message(&cluster_id, id)).await.unwrap_err();
    assert_eq!(garbage.code(), Code::InvalidArgument, "{garbage}");
    let command = ProposeRequest {
        cluster_id: cluster_id.clone(),
        term: 1,
        timeout_ms: 100,
        command: vec![255; 9],
        ..Default::default()
    };
    assert_eq!(client.propose(command).await.unwrap_err().code(), Code::InvalidArgument);

    // A replica stays in its cluster.
    let adopted = client.adopt(AdoptRequest { cluster_id: vec![7; 16], to: id }).await.unwrap_err();
    assert_eq!(adopted.code(), Code::FailedPrecondition, "{adopted}");
    // And nobody joins in another's name.
    let join = JoinRequest { replica_id: 5, name: "r2".to_owned(), address: "127.0.0.1:1".to_owned() };
    assert_eq!(client.join(join).await.unwrap_err().code(), Code::PermissionDenied);
}
