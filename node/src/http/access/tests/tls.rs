//! Attacks on the interface over TLS: other certificates, slow handshakes, renewal, clients' own.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

use super::*;

fn pinned(node: &Node) -> ClientTls {
    let fingerprints = vec![node.security.tls().unwrap().fingerprint()];
    ClientTls { fingerprints, ..ClientTls::default() }
}

async fn by(tls: &ClientTls, url: &str, token: &str) -> Result<u16, reqwest::Error> {
    let sent = client(tls).get(format!("{url}/v1/nodes")).bearer_auth(token).send().await;
    sent.map(|response| response.status().as_u16())
}

async fn secured(tokens: &str) -> Node {
    node(tokens, |settings, _| settings.tls = true).await
}

#[tokio::test]
async fn a_node_is_trusted_by_its_certificate_alone() {
    let token = make_token();
    let node = secured(&entry("t", &token, &["read:*"])).await;
    assert_eq!(by(&pinned(&node), &node.url, &token).await.unwrap(), 200);
    let own = node.folder.path().join("http-cert.pem");
    let signed = ClientTls { ca_file: Some(own), ..ClientTls::default() };
    assert_eq!(by(&signed, &node.url, &token).await.unwrap(), 200);
    let wrong = vec![Fingerprint::of(b"another")];
    let wrong = ClientTls { fingerprints: wrong, ..ClientTls::default() };
    for tls in [wrong, ClientTls::default()] {
        assert!(by(&tls, &node.url, &token).await.unwrap_err().is_connect());
    }
    assert!(node.asked.lock().unwrap().len() == 2, "only who trusts the node asks it");
    // Without TLS nothing is answered, and no token read.
    let answer = node.raw("GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
}

#[tokio::test]
async fn browsers_are_told_to_stay_with_tls_where_the_name_is_the_nodes_own() {
    let node = node("", |settings, _| {
        settings.tls = true;
        settings.hosts = vec!["mesh.example".to_owned()];
    })
    .await;
    let client = client(&pinned(&node));
    for (host, expected) in [("mesh.example", true), ("localhost", false), ("127.0.0.1", false)] {
        let request = client.get(format!("{}/healthz", node.url)).header("host", host);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{host}");
        let strict = response.headers().contains_key("strict-transport-security");
        assert_eq!(strict, expected, "{host}");
    }
    let foreign = client.get(format!("{}/healthz", node.url)).header("host", "evil.example");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn who_is_slow_with_tls_does_not_keep_others_out_and_is_let_go() {
    let node = secured("").await;
    let mut slow = Vec::new();
    for at in 0..100 {
        let mut stream = TcpStream::connect(node.address).await.unwrap();
        // Half of a client's first record, byte by byte.
        stream.write_all(&[0x16, 3, 1][..1 + at % 3]).await.unwrap();
        slow.push(stream);
    }
    let client = client(&pinned(&node));
    let response = client.get(format!("{}/healthz", node.url)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    for stream in &mut slow {
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a client that says nothing is let go");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let token = make_token();
    let node = secured(&entry("t", &token, &["read:*"])).await;
    let before = pinned(&node);
    let other = tempfile::tempdir().unwrap();
    crate::tls::TlsFiles::own(other.path(), &["localhost".to_owned()]).unwrap();
    // Half of a renewal: the certificate without its key.
    let put = |name: &str| {
        fs::copy(other.path().join(name), node.folder.path().join(name)).unwrap();
    };
    put("http-cert.pem");
    assert_eq!(by(&before, &node.url, &token).await.unwrap(), 200);
    put("http-key.pem");
    let renewed = timeout(PATIENCE, async {
        while pinned(&node).fingerprints == before.fingerprints {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    renewed.await.unwrap();
    assert_eq!(by(&pinned(&node), &node.url, &token).await.unwrap(), 200);
    assert!(by(&before, &node.url, &token).await.is_err());
}

/// An authority, and certificates of clients that it has signed: `NAME.pem` and `NAME.key`.
fn authority(folder: &Path, file: &str, clients: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, file);
    let root = params.self_signed(&key).unwrap();
    fs::write(folder.join(file), root.pem()).unwrap();
    for name in clients {
        let own = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![(*name).to_owned()]).unwrap();
        let made = params.signed_by(&own, &root, &key).unwrap();
        fs::write(folder.join(format!("{name}.pem")), made.pem()).unwrap();
        crate::tls::write_private(
            &folder.join(format!("{name}.key")),
            own.serialize_pem().as_bytes(),
        )
        .unwrap();
    }
}

#[tokio::test]
async fn clients_may_show_certificates_instead_of_tokens() {
    let token = make_token();
    let tokens = entry("ci", &token, &["enqueue:*"])
        + "[[certificates]]\nname = 'dash'\nsan = 'dash.example'\nscopes = ['read:*', 'pipelines:p']\n";
    let node = node(&tokens, |settings, folder| {
        authority(folder, "ca.pem", &["dash.example", "other.example"]);
        authority(folder, "evil.pem", &["evil.example"]);
        // Of the same name, by another authority.
        let foreign = folder.join("foreign");
        fs::create_dir(&foreign).unwrap();
        authority(&foreign, "ca.pem", &["dash.example"]);
        settings.tls = true;
        settings.client_ca = Some(folder.join("ca.pem"));
    })
    .await;
    let folder = node.folder.path();
    let with = |of: &str| {
        let identity = Some((folder.join(format!("{of}.pem")), folder.join(format!("{of}.key"))));
        client(&ClientTls { identity, ..pinned(&node) })
    };
    let get = |client: &Client| client.get(format!("{}/v1/nodes", node.url));
    assert_eq!(get(&with("dash.example")).send().await.unwrap().status(), 200);
    assert_eq!(get(&with("other.example")).send().await.unwrap().status(), 401);
    for of in ["evil.example", "foreign/dash.example"] {
        assert!(get(&with(of)).send().await.is_err(), "{of}");
    }
    // Without a certificate a token will do; with both, the token is what counts.
    let none = client(&pinned(&node));
    assert_eq!(get(&none).send().await.unwrap().status(), 401);
    assert_eq!(get(&none).bearer_auth(&*token).send().await.unwrap().status(), 403);
    assert_eq!(get(&with("dash.example")).bearer_auth(&*token).send().await.unwrap().status(), 403);
    assert_eq!(get(&with("dash.example")).bearer_auth("x").send().await.unwrap().status(), 401);
    let remove = with("dash.example").delete(format!("{}/v1/pipelines/p", node.url));
    assert_eq!(remove.send().await.unwrap().status(), 204);
    let lines = node.audit().await;
    assert!(lines.iter().any(|line| line.event.who == "certificate dash"));
}
