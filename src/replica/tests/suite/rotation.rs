//! Certificates and their authority are replaced while the replicas run.

use std::fs;

use proto::peer::v1::IdentifyRequest;
use replica::{TlsFiles, ask_to_hand_over};

use crate::harness::{Authority, Cluster};
use crate::security::client;

/// The files of the replica at place `i`, made anew by `authority`, where that replica looks for them.
fn reissue(cluster: &Cluster, authority: &Authority, i: usize) {
    let name = &cluster.places[i].name;
    let (made, used) = (authority.issue("replica", name), place_of(cluster, i));
    fs::rename(made.cert, used.cert).unwrap();
    fs::rename(made.key, used.key).unwrap();
}

fn place_of(cluster: &Cluster, i: usize) -> TlsFiles {
    let (dir, name) = (cluster.dir.path().join("tls"), &cluster.places[i].name);
    let file = |kind: &str| dir.join(format!("replica-{name}.{kind}.pem"));
    TlsFiles { ca: dir.join("ca.pem"), cert: file("cert"), key: file("key") }
}

/// All replicas look at their files, now.
fn reread(cluster: &Cluster) {
    for i in 0..3 {
        assert!(cluster.replica(i).tls().reread().unwrap(), "replica {i} saw nothing new");
    }
}

#[tokio::test]
async fn an_authority_is_replaced_while_all_work() {
    let mut cluster = Cluster::formed().await;
    let old = cluster.authority.issue("replica", "old");
    let new = Authority::new(&cluster.dir.path().join("new-tls"));
    let files_of_new = new.issue("replica", "new");
    let ca = place_of(&cluster, 0).ca;
    let old_only = cluster.dir.path().join("old-only.pem");
    fs::copy(&ca, &old_only).unwrap();
    let mut early = client(&cluster, 0, &old).await.unwrap();
    early.identify(IdentifyRequest {}).await.unwrap();

    // Both are believed, then the new one signs, then the old one is believed no more.
    fs::write(&ca, format!("{}{}", cluster.authority.pem(), new.pem())).unwrap();
    reread(&cluster);
    for i in 0..3 {
        reissue(&cluster, &new, i);
    }
    reread(&cluster);
    let both = TlsFiles { ca: files_of_new.ca.clone(), ..old.clone() };
    assert!(
        client(&cluster, 0, &both).await.is_ok(),
        "the old authority's callers are let in as long as it is there"
    );
    fs::write(&ca, new.pem()).unwrap();
    reread(&cluster);

    // Who connected before is still there; who connects now sees the new certificate and needs one.
    early.identify(IdentifyRequest {}).await.unwrap();
    client(&cluster, 0, &files_of_new).await.unwrap().identify(IdentifyRequest {}).await.unwrap();
    let believes_old = TlsFiles { ca: old_only, ..files_of_new.clone() };
    assert!(client(&cluster, 0, &believes_old).await.is_err(), "the old certificate is still shown");
    let shows_old = TlsFiles { ca: new.issue("replica", "x").ca, ..old };
    let heard = match client(&cluster, 0, &shows_old).await {
        Ok(mut client) => client.identify(IdentifyRequest {}).await.is_ok(),
        Err(_) => false,
    };
    assert!(!heard, "the old authority is still believed");

    // And so do the replicas' own clients: whoever comes back is reached again, and reaches the others.
    let follower = cluster.follower().await;
    cluster.crash(follower).await;
    let config = replica::ReplicaConfig { tls: place_of(&cluster, follower), ..cluster.config(follower) };
    fs::write(&ca, new.pem()).unwrap();
    reissue(&cluster, &new, follower);
    cluster.try_start(follower, config).await.unwrap();
    cluster.propose(follower, 1).await.unwrap();
    cluster.until_equal().await;
}

#[tokio::test]
async fn what_cannot_be_used_leaves_the_old_in_use() {
    let mut cluster = Cluster::new();
    cluster.start(0).await;
    let caller = cluster.authority.issue("replica", "caller");
    let files = place_of(&cluster, 0);
    let good = [&files.ca, &files.cert, &files.key].map(|path| (path.clone(), fs::read(path).unwrap()));
    let other = cluster.authority.issue("replica", "other");
    for (path, content) in [
        (&files.cert, good[1].1[..good[1].1.len() / 2].to_vec()),
        (&files.key, Vec::new()),
        (&files.key, fs::read(&other.key).unwrap()),
        (&files.ca, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec()),
        (&files.ca, Vec::new()),
    ] {
        fs::write(path, content).unwrap();
        let error = cluster.replica(0).tls().reread().unwrap_err().to_string();
        let named = [path, &files.cert].iter().any(|path| error.contains(&*path.to_string_lossy()));
        assert!(named, "{error}");
        for (path, content) in &good {
            fs::write(path, content).unwrap();
        }
        client(&cluster, 0, &caller).await.unwrap().identify(IdentifyRequest {}).await.unwrap();
    }
    fs::remove_file(&files.cert).unwrap();
    assert!(cluster.replica(0).tls().reread().unwrap_err().to_string().contains("cannot read"));
    client(&cluster, 0, &caller).await.unwrap().identify(IdentifyRequest {}).await.unwrap();
    // A program that begins now has nothing to go on with.
    assert!(ask_to_hand_over(files, "127.0.0.1:1").await.unwrap_err().contains("cannot read"));
}
