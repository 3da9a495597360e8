//! gRPC by tonic without generated code.  server PORT, or client PORT PLAN CONCURRENCY
use std::{
    convert::Infallible,
    env, fs,
    io::{BufRead, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut};
use tokio::sync::Mutex;
use tokio_stream::{Stream, StreamExt};
use tonic::{
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    server::NamedService,
    transport::{Channel, Endpoint, Server},
    Code, Request, Response, Status, Streaming,
};
use tower::{service_fn, Service};

/// Messages are bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut message = vec![0; buffer.remaining()];
        buffer.copy_to_slice(&mut message);
        Ok(Some(message))
    }
}

// ---- server

struct Wish {
    status: i32,
    responses: usize,
    message: Vec<u8>,
    delay: Duration,
}

impl Wish {
    fn of(said: &MetadataMap) -> Wish {
        let number = |name: &str, otherwise: u64| {
            said.get(name).and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(otherwise)
        };
        Wish {
            status: number("zoo-status", 0) as i32,
            responses: number("zoo-responses", 1) as usize,
            message: vec![b'a'; number("zoo-bytes", 10) as usize],
            delay: Duration::from_millis(number("zoo-delay-ms", 0)),
        }
    }

    async fn finish(&self) -> Result<(), Status> {
        tokio::time::sleep(self.delay).await;
        match self.status {
            0 => Ok(()),
            code => Err(Status::new(Code::from_i32(code), "as asked")),
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<Vec<u8>, Status>> + Send>>;

async fn unary(request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Status> {
    let wish = Wish::of(request.metadata());
    wish.finish().await?;
    Ok(Response::new(wish.message))
}

async fn collect(request: Request<Streaming<Vec<u8>>>) -> Result<Response<Vec<u8>>, Status> {
    let wish = Wish::of(request.metadata());
    let mut asked = request.into_inner();
    while asked.message().await?.is_some() {}
    wish.finish().await?;
    Ok(Response::new(wish.message))
}

/// What a stream of answers still has to do.
struct Left {
    wish: Wish,
    count: usize,
    asked: Option<Streaming<Vec<u8>>>,
    over: bool,
}

fn answers(left: Left) -> Answers {
    let next = |mut left: Left| async move {
        if left.over {
            return None;
        }
        let more = match &mut left.asked {
            Some(asked) => matches!(asked.message().await, Ok(Some(_))),
            None if left.count > 0 => {
                left.count -= 1;
                true
            }
            None => false,
        };
        if more {
            return Some((Ok(left.wish.message.clone()), left));
        }
        left.over = true;
        match left.wish.finish().await {
            Ok(()) => None,
            Err(status) => Some((Err(status), left)),
        }
    };
    // `unfold` of another crate would be one more dependency
    let mut state: Option<Pin<Box<dyn std::future::Future<Output = Option<(Result<Vec<u8>, Status>, Left)>> + Send>>> =
        Some(Box::pin(next(left)));
    Box::pin(Unfold(Box::new(move |context: &mut Context<'_>| {
        let Some(future) = &mut state else { return Poll::Ready(None) };
        match future.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                state = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some((item, left))) => {
                state = Some(Box::pin(next(left)));
                Poll::Ready(Some(item))
            }
        }
    })))
}

type PollNext = Box<dyn FnMut(&mut Context<'_>) -> Poll<Option<Result<Vec<u8>, Status>>> + Send>;
struct Unfold(PollNext);
impl Stream for Unfold {
    type Item = Result<Vec<u8>, Status>;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        (self.0)(context)
    }
}

async fn listen(request: Request<Vec<u8>>) -> Result<Response<Answers>, Status> {
    let wish = Wish::of(request.metadata());
    let count = wish.responses;
    Ok(Response::new(answers(Left { wish, count, asked: None, over: false })))
}

async fn talk(request: Request<Streaming<Vec<u8>>>) -> Result<Response<Answers>, Status> {
    let wish = Wish::of(request.metadata());
    Ok(Response::new(answers(Left { wish, count: 0, asked: Some(request.into_inner()), over: false })))
}

#[derive(Clone)]
struct Zoo;

impl NamedService for Zoo {
    const NAME: &'static str = "zoo.Zoo";
}

impl Service<http::Request<Body>> for Zoo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn std::future::Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut server = tonic::server::Grpc::new(Raw);
            let name = request.uri().path().rsplit('/').next().unwrap_or("").to_owned();
            Ok(match name.as_str() {
                "Unary" => server.unary(service_fn(unary), request).await,
                "Collect" => server.client_streaming(service_fn(collect), request).await,
                "Listen" => server.server_streaming(service_fn(listen), request).await,
                "Talk" => server.streaming(service_fn(talk), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

// ---- client

const NAMES: [&str; 17] = [
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
];

fn monotonic() -> i64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

async fn exchange(channel: Channel, words: &[String], came: Arc<Mutex<u32>>) -> Result<(), Status> {
    let (kind, requests, bytes) = (words[1].as_str(), words[4].parse::<usize>().unwrap(), words[6].parse().unwrap());
    let message = vec![b'q'; bytes];
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = format!("/zoo.Zoo/{kind}").parse().unwrap();
    let fill = |metadata: &mut MetadataMap| {
        for (name, word) in
            [("traceparent", 2), ("zoo-status", 3), ("zoo-responses", 5), ("zoo-bytes", 6), ("zoo-delay-ms", 7)]
        {
            metadata.insert(name, words[word].parse().unwrap());
        }
    };
    let limit: u64 = words[8].parse().unwrap();
    macro_rules! request {
        ($message:expr) => {{
            let mut request = Request::new($message);
            fill(request.metadata_mut());
            if limit > 0 {
                request.set_timeout(Duration::from_millis(limit));
            }
            request
        }};
    }
    let many = tokio_stream::iter(std::iter::repeat_n(message.clone(), requests));
    match kind {
        "Collect" => {
            client.client_streaming(request!(many), path, Raw).await?;
            *came.lock().await = 1;
        }
        "Listen" | "Talk" => {
            let mut answers = if kind == "Talk" {
                client.streaming(request!(many), path, Raw).await?.into_inner()
            } else {
                client.server_streaming(request!(message), path, Raw).await?.into_inner()
            };
            while let Some(answer) = answers.next().await {
                answer?;
                *came.lock().await += 1;
            }
        }
        _ => {
            client.unary(request!(message), path, Raw).await?;
            *came.lock().await = 1;
        }
    }
    Ok(())
}

async fn carry_out(channel: Channel, words: &[String]) -> String {
    let came = Arc::new(Mutex::new(0));
    let start = monotonic();
    let (deadline, cancel): (u64, u64) = (words[8].parse().unwrap(), words[9].parse().unwrap());
    let running = exchange(channel, words, came.clone());
    let outcome = if cancel > 0 {
        tokio::time::timeout(Duration::from_millis(cancel), running)
            .await
            .unwrap_or_else(|_| Err(Status::cancelled("as planned")))
    } else if deadline > 0 {
        // tonic's own timer answers for the headers only
        tokio::time::timeout(Duration::from_millis(deadline), running)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("as planned")))
    } else {
        running.await
    };
    let end = monotonic();
    let code = match outcome.err().map(|status| status.code()) {
        // what tonic calls the end of its own timer
        Some(Code::Cancelled) if deadline > 0 => Code::DeadlineExceeded,
        Some(code) => code,
        None => Code::Ok,
    } as usize;
    let came = *came.lock().await;
    format!(
        "{{\"n\":{},\"status\":\"{}\",\"start_ns\":{start},\"end_ns\":{end},\"responses\":{came}}}",
        words[0], NAMES[code]
    )
}

async fn run_client(port: &str, planned: &str, concurrency: usize) {
    let plan: Arc<Vec<Vec<String>>> = Arc::new(
        fs::read_to_string(planned)
            .expect("a plan")
            .lines()
            .map(|line| line.split(' ').map(str::to_owned).collect())
            .collect(),
    );
    println!("ready");
    std::io::stdin().lock().read_line(&mut String::new()).expect("a line");
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URL").connect_lazy();
    let mut workers = vec![];
    for first in 0..concurrency {
        let (plan, channel) = (plan.clone(), channel.clone());
        workers.push(tokio::spawn(async move {
            let mut lines = vec![];
            for words in plan.iter().skip(first).step_by(concurrency) {
                lines.push(carry_out(channel.clone(), words).await);
            }
            lines
        }));
    }
    let mut out = std::io::stdout().lock();
    for worker in workers {
        for line in worker.await.expect("a worker") {
            writeln!(out, "{line}").expect("written");
        }
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let arguments: Vec<String> = env::args().collect();
    if arguments[1] == "server" {
        let address = format!("127.0.0.1:{}", arguments[2]).parse().expect("a port");
        Server::builder().add_service(Zoo).serve(address).await.expect("served");
    } else {
        run_client(&arguments[2], &arguments[3], arguments[4].parse().expect("a number")).await;
    }
}
