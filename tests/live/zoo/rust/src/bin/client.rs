//! reqwest.  client PORT PLAN keepalive|fresh CONNECTIONS
use std::{io::Write, time::Duration};

use futures_util::{future::join_all, stream};
use reqwest::{Body, Client, Method};

struct Planned {
    n: usize,
    method: Method,
    path: String,
    body_bytes: usize,
    chunked: bool,
}

fn monotonic_ns() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn parse(line: &str) -> Planned {
    let parts: Vec<&str> = line.split('\t').collect();
    Planned {
        n: parts[0].parse().expect("a number"),
        method: parts[1].parse().expect("a method"),
        path: parts[2].to_owned(),
        body_bytes: parts[3].parse().expect("a size"),
        chunked: parts[4] == "1",
    }
}

async fn exchange(client: &Client, base: &str, planned: &Planned, fresh: bool) -> reqwest::Result<(u16, usize)> {
    let mut request = client.request(planned.method.clone(), format!("{base}{}", planned.path));
    if fresh {
        request = request.header("connection", "close");
    }
    if planned.method == Method::POST {
        let body = vec![b'x'; planned.body_bytes];
        request = request.body(if planned.chunked {
            Body::wrap_stream(stream::iter([Ok::<_, std::io::Error>(body)]))
        } else {
            Body::from(body)
        });
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    Ok((status, response.bytes().await?.len()))
}

async fn work(client: &Client, base: &str, plan: &[Planned], first: usize, step: usize, fresh: bool) -> String {
    let mut truth = String::new();
    for planned in plan.iter().skip(first).step_by(step) {
        let start = monotonic_ns();
        let outcome = exchange(client, base, planned, fresh).await;
        let end = monotonic_ns();
        let (status, bytes, error) = match outcome {
            Ok((status, bytes)) => (status, bytes, String::new()),
            Err(error) => (0, 0, error.to_string().replace(['"', '\\', '\n'], " ")),
        };
        truth += &format!(
            "{{\"n\":{},\"method\":\"{}\",\"path\":\"{}\",\"status\":{status},\"start_ns\":{start},\"end_ns\":{end},\
             \"bytes\":{bytes},\"error\":\"{error}\"}}\n",
            planned.n, planned.method, planned.path
        );
    }
    truth
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let authority = std::env::var("ZOO_TLS_CA").ok();
    let scheme = if authority.is_some() { "https" } else { "http" };
    let base = format!("{scheme}://127.0.0.1:{}", arguments[1]);
    let plan: Vec<Planned> = std::fs::read_to_string(&arguments[2]).expect("a plan").lines().map(parse).collect();
    let fresh = arguments[3] == "fresh";
    let connections: usize = arguments[4].parse().expect("a number of connections");
    rustls::crypto::ring::default_provider().install_default().expect("the first provider");
    // The zoo's certificate is its own authority, which rustls does not let a server be.
    let client = Client::builder()
        .tls_danger_accept_invalid_certs(authority.is_some())
        .no_proxy()
        .pool_max_idle_per_host(if fresh { 0 } else { connections })
        .timeout(Duration::from_secs(60))
        .build()
        .expect("a client");
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).expect("the start signal");
    let workers = (0..connections).map(|first| work(&client, &base, &plan, first, connections, fresh));
    let truth = join_all(workers).await.concat();
    std::io::stdout().write_all(truth.as_bytes()).expect("somebody reads");
}
