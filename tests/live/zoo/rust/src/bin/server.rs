//! A hyper server.  server PORT
use std::{convert::Infallible, env, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{combinators::BoxBody, BodyExt, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
    Request, Response,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::ssl::{select_next_proto, AlpnError, Ssl, SslAcceptor, SslFiletype, SslMethod};
use rustls::pki_types::{pem::PemObject, CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;
use tokio_rustls::TlsAcceptor;

type Body = BoxBody<Bytes, Infallible>;

fn answer(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    Response::builder().status(status).body(Full::new(body.into()).boxed()).expect("a valid response")
}

fn pieces() -> Response<Body> {
    let frames = stream::unfold(0, |piece| async move {
        if piece == 5 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok(Frame::data(Bytes::from(format!("piece {piece}\n")))), piece + 1))
    });
    Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(frames)))))
}

/// `BoxBody` asks for `Sync`, which a stream that is only ever polled through `&mut` may claim.
struct SyncStream<T>(std::pin::Pin<Box<dyn stream::Stream<Item = T> + Send>>);
unsafe impl<T> Sync for SyncStream<T> {}
impl<T> stream::Stream for SyncStream<T> {
    type Item = T;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.as_mut().poll_next(context)
    }
}

async fn serve(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let mut parts = path.split('/').skip(1);
    let page = parts.next().unwrap_or("");
    let argument = parts.next().unwrap_or("");
    Ok(match page {
        "items" => answer(200, format!("{{\"item\":\"{argument}\"}}\n")),
        "fail" => answer(500, "failed\n"),
        "echo" => answer(200, request.into_body().collect().await?.to_bytes()),
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(argument.parse().unwrap_or(0))).await;
            answer(200, "slept\n")
        }
        "big" => answer(200, vec![b'x'; argument.parse().unwrap_or(0)]),
        "stream" => pieces(),
        _ => answer(404, "no such page\n"),
    })
}

/// What encrypts.
#[derive(Clone)]
enum Acceptor {
    OpenSsl(SslAcceptor),
    Rustls(TlsAcceptor),
}

impl Acceptor {
    async fn converse(self, socket: TcpStream) {
        match self {
            Self::OpenSsl(acceptor) => {
                let Ok(ssl) = Ssl::new(acceptor.context()) else { return };
                let Ok(mut stream) = SslStream::new(ssl, socket) else { return };
                if Pin::new(&mut stream).accept().await.is_ok() {
                    converse(stream).await;
                }
            }
            Self::Rustls(acceptor) => {
                if let Ok(stream) = acceptor.accept(socket).await {
                    converse(stream).await;
                }
            }
        }
    }
}

/// HTTPS, if the environment names a certificate, by the library that it names.
fn acceptor() -> Option<Acceptor> {
    let certificate = env::var("ZOO_TLS_CERTIFICATE").ok()?;
    if env::var("ZOO_TLS_LIBRARY").is_ok_and(|name| name == "rustls") {
        let chain: Result<_, _> = CertificateDer::pem_file_iter(certificate).ok()?.collect();
        let key = PrivateKeyDer::from_pem_file(env::var("ZOO_TLS_KEY").ok()?).ok()?;
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().ok()?.with_no_client_auth();
        let mut config = config.with_single_cert(chain.ok()?, key).ok()?;
        if http2() {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        return Some(Acceptor::Rustls(Arc::new(config).into()));
    }
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).ok()?;
    builder.set_certificate_chain_file(certificate).ok()?;
    builder.set_private_key_file(env::var("ZOO_TLS_KEY").ok()?, SslFiletype::PEM).ok()?;
    if http2() {
        builder.set_alpn_select_callback(|_, offered| select_next_proto(b"\x02h2", offered).ok_or(AlpnError::NOACK));
    }
    Some(Acceptor::OpenSsl(builder.build()))
}

/// Whether all connections speak HTTP/2.
fn http2() -> bool {
    env::var_os("ZOO_HTTP2").is_some()
}

async fn converse<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(stream: T) {
    // A client that goes away in the middle is its own affair.
    let stream = TokioIo::new(stream);
    if http2() {
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service_fn(serve)).await;
    } else {
        let _ = http1::Builder::new().serve_connection(stream, service_fn(serve)).await;
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0u16);
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening {}", listener.local_addr()?.port());
    let acceptor = acceptor();
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Some(acceptor) = acceptor {
                acceptor.converse(socket).await;
            } else {
                converse(socket).await;
            }
        });
    }
}
