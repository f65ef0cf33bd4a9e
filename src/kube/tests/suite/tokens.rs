//! Token reviews by a simulated API server.

use std::time::{Duration, Instant};

use observer::{MAX_TOKEN_BYTES, PodIdentity, TOKEN_CACHED, TokenAnswer, TokenIdentity, Tokens};
use serde_json::{Value, json};

use crate::cluster::{Cluster, node};
use crate::server::SimulatedApiServer;

const AUDIENCE: &str = "rds-csi-controllers";

async fn server(reviews: &[(&str, Value)]) -> (SimulatedApiServer, Tokens) {
    let server = SimulatedApiServer::start(&Cluster { objects: Vec::new() }).await;
    server.scene(|scene| {
        scene.reviews = reviews.iter().map(|(token, status)| ((*token).to_owned(), status.clone())).collect();
    });
    let tokens = Tokens::new(server.client(), AUDIENCE);
    (server, tokens)
}

fn accepted() -> Value {
    json!({
        "authenticated": true,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:rds-csi:rds-csi-node",
            "uid": "88888888-0000-4000-8000-000000000001",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:rds-csi", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": ["JTI=99999999-0000-4000-8000-000000000001"],
                "authentication.kubernetes.io/node-name": ["worker-a"],
                "authentication.kubernetes.io/node-uid": ["6f0a7f5e-0000-4000-8000-00000000000a"],
                "authentication.kubernetes.io/pod-name": ["rds-csi-node-7xk2p"],
                "authentication.kubernetes.io/pod-uid": ["55555555-0000-4000-8000-0000000000f1"],
            },
        },
    })
}

fn identity() -> TokenIdentity {
    TokenIdentity {
        namespace: "rds-csi".to_owned(),
        service_account: "rds-csi-node".to_owned(),
        node: Some(node("worker-a")),
        pod: Some(PodIdentity {
            name: "rds-csi-node-7xk2p".to_owned(),
            uid: "55555555-0000-4000-8000-0000000000f1".to_owned(),
        }),
    }
}

fn reviews(server: &SimulatedApiServer) -> usize {
    server.scene(|scene| scene.reviewed.len())
}

#[tokio::test]
async fn a_token_is_reviewed_once_in_a_while() {
    let (server, tokens) = server(&[("good", accepted())]).await;
    let now = Instant::now();
    let expect = TokenAnswer::Accepted(identity());
    assert_eq!(tokens.check("good", now).await, expect);
    assert_eq!(tokens.clone().check("good", now + TOKEN_CACHED - Duration::from_millis(1)).await, expect);
    assert_eq!(reviews(&server), 1);
    assert_eq!(tokens.check("good", now + TOKEN_CACHED).await, expect);
    assert_eq!(reviews(&server), 2);
    let asked = server.scene(|scene| scene.reviewed[0]["spec"].clone());
    assert_eq!(asked, json!({"token": "good", "audiences": [AUDIENCE]}));
    // What was revoked is refused once it is asked about again.
    server.scene(|scene| scene.reviews.clear());
    assert!(matches!(tokens.check("good", now + TOKEN_CACHED * 3).await, TokenAnswer::Refused(_)));
}

#[tokio::test]
async fn only_a_service_account_with_the_audience_is_accepted() {
    let with = |pointer: &str, value: Value| {
        let mut status = accepted();
        *status.pointer_mut(pointer).unwrap() = value;
        status
    };
    let refused = [
        ("denied", json!({"authenticated": false, "error": "invalid bearer token"})),
        ("denied, with a user", with("/authenticated", json!(false))),
        ("silent", json!({})),
        ("another audience", with("/audiences", json!(["https://kubernetes.default.svc"]))),
        ("no audience", with("/audiences", json!([]))),
        ("a person", with("/user/username", json!("alice"))),
        ("half an account", with("/user/username", json!("system:serviceaccount:rds-csi"))),
        ("no user", with("/user", json!(null))),
    ];
    let (server, tokens) = server(&refused).await;
    for (token, _) in &refused {
        for _ in 0..2 {
            let answer = tokens.check(token, Instant::now()).await;
            assert!(matches!(answer, TokenAnswer::Refused(_)), "{token}: {answer:?}");
        }
    }
    assert_eq!(reviews(&server), 2 * refused.len(), "a no is not remembered");
    for token in [String::new(), "x".repeat(MAX_TOKEN_BYTES + 1)] {
        assert!(matches!(tokens.check(&token, Instant::now()).await, TokenAnswer::Refused(_)));
    }
    assert_eq!(reviews(&server), 2 * refused.len(), "what is no token is not asked about");
}

#[tokio::test]
async fn a_token_without_one_node_proves_none() {
    let extra = |value: Value| {
        let mut status = accepted();
        status["user"]["extra"] = json!({"authentication.kubernetes.io/node-name": value});
        status
    };
    let cases = [
        ("none", extra(json!([]))),
        ("two", extra(json!(["worker-a", "worker-b"]))),
        ("odd", extra(json!(["../a"]))),
    ];
    let (_server, tokens) = server(&cases).await;
    let expect = TokenAnswer::Accepted(TokenIdentity { node: None, pod: None, ..identity() });
    for (token, _) in &cases {
        assert_eq!(tokens.check(token, Instant::now()).await, expect, "{token}");
    }
}

#[tokio::test]
async fn an_api_server_that_cannot_be_asked_refuses_nobody() {
    let (server, tokens) = server(&[("good", accepted())]).await;
    server.scene(|scene| scene.refuse_creations = vec![500]);
    let now = Instant::now();
    assert!(matches!(tokens.check("good", now).await, TokenAnswer::Unknown(_)));
    assert_eq!(tokens.check("good", now).await, TokenAnswer::Accepted(identity()), "and is asked again");
}
