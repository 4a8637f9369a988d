//! Tokens of service accounts with a life that a test can wait for. The server issues none for less than ten minutes, so
//! these are signed here, with its own key: what kubelet projects into the DaemonSet's pod, but for the times.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::{rand::SystemRandom, signature};
use serde_json::{Value, json};

use crate::bed::Bed;

/// For how long after its end the server still takes a token: clocks differ.
const LEEWAY: i64 = 60;

/// Signs tokens as the server does.
pub(crate) struct Mint {
    key: signature::RsaKeyPair,
    /// The first part of a token of the server's own: the algorithm, and which key.
    header: String,
    /// What a token of the server's own claims: the account, the pod and the node that it is bound to.
    claims: Value,
    made: AtomicU32,
}

impl Mint {
    /// A mint for tokens of our account that are bound to a pod on a node, as kubelet has them made.
    pub(crate) fn new(pod: &str) -> Self {
        Bed::create(&[json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "kube-system"},
            "spec": {"nodeName": "node-1", "serviceAccountName": "meta-cni", "automountServiceAccountToken": false,
                     "containers": [{"name": "c", "image": "localhost/test/pause:1"}]}
        })]);
        let create = ["create", "token", "meta-cni", "--namespace", "kube-system"];
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
        let token = Bed::kubectl(&[create.as_slice(), &bound].concat(), "");
        let parts: Vec<&str> = token.split('.').collect();
        let claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let pem = fs::read_to_string(Bed::path("pki/sa.key")).unwrap();
        let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let key = signature::RsaKeyPair::from_pkcs8(&BASE64_STANDARD.decode(der).unwrap()).unwrap();
        Self { key, header: parts[0].to_owned(), claims, made: AtomicU32::new(0) }
    }

    /// A token that the server takes for so many seconds more, and that it has never seen: what it found good it remembers
    /// for ten seconds, whatever the token says.
    pub(crate) fn token(&self, seconds: i64) -> String {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
        let end = now + seconds - LEEWAY;
        let mut claims = self.claims.clone();
        for (key, value) in [("iat", end - 600), ("nbf", end - 600), ("exp", end)] {
            claims[key] = json!(value);
        }
        claims["jti"] = json!(format!("minted-{}", self.made.fetch_add(1, Ordering::Relaxed)));
        let signed = format!("{}.{}", self.header, BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
        let mut proof = vec![0; self.key.public().modulus_len()];
        self.key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut proof).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(proof))
    }
}

/// What the server says of a token: the node that it is bound to, or why it is refused.
pub(crate) fn review(token: &str) -> Result<String, String> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}
    });
    let answer = Bed::kubectl(&["create", "-o", "json", "-f", "-"], &review.to_string());
    let status = serde_json::from_str::<Value>(&answer).unwrap()["status"].take();
    if status["authenticated"] == true {
        Ok(status["user"]["extra"]["authentication.kubernetes.io/node-name"][0].as_str().unwrap_or_default().to_owned())
    } else {
        Err(status["error"].as_str().unwrap_or_default().to_owned())
    }
}

/// How many requests the server has refused because of their credentials since a place in its log.
pub(crate) fn refused_since(place: usize) -> usize {
    let text = fs::read(Bed::path("audit.log")).unwrap();
    let lines = text[place..].split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .filter(|event| event["stage"] != "RequestReceived" && event["responseStatus"]["code"] == 401)
        .count()
}

/// Where the server's log ends by now.
pub(crate) fn log_end() -> usize {
    usize::try_from(fs::metadata(Bed::path("audit.log")).unwrap().len()).unwrap()
}
