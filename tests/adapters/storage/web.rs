//! Sources on a web server: resumed, checked, and never beyond what is allowed.

use crate::storage::support::{Place, command, failure, task, until};
use kvmlet::model::bytes::Bytes;
use kvmlet::model::ids::ImageId;
use kvmlet::model::image::ImageFormat;
use kvmlet::storage::{
    CheckedSource, ImageSource, Pool, SourceRequest, StorageError, StorageErrorKind, Task, source,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// One request as the server saw it.
#[derive(Debug, Clone)]
struct Asked {
    path: String,
    range_from: Option<usize>,
    if_range: Option<String>,
}

/// A web server that does with each connection what the test says.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `answer` gets the request, its number from 0, and the connection, which
    /// is closed after it.
    fn start(answer: impl Fn(&Asked, usize, &mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let stopping = Arc::new(AtomicBool::new(false));
        let (log, stop) = (Arc::clone(&asked), Arc::clone(&stopping));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let mut stream = stream.expect("a connection");
                let request = read_request(&stream);
                let number = {
                    let mut log = log.lock().expect("no panic");
                    log.push(request.clone());
                    log.len() - 1
                };
                answer(&request, number, &mut stream);
            }
        });
        Self {
            address,
            asked,
            stopping,
            thread: Some(thread),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_request(stream: &TcpStream) -> Asked {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut asked = Asked {
        path,
        range_from: None,
        if_range: None,
    };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").expect("a header");
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let from = value
                    .strip_prefix("bytes=")
                    .and_then(|v| v.strip_suffix('-'));
                asked.range_from = Some(from.expect("an open range").parse().expect("a number"));
            }
            "if-range" => asked.if_range = Some(value.to_owned()),
            _ => {}
        }
    }
    asked
}

/// Sends the head of an answer, and says whether the other end still listens.
fn head(stream: &mut TcpStream, status: &str, headers: &[String]) {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for header in headers {
        text += header;
        text += "\r\n";
    }
    // The client may have gone, which some tests want.
    let _ = stream.write_all((text + "\r\n").as_bytes());
}

/// Sends what a good server would, but stops after `limit` bytes.
fn serve(stream: &mut TcpStream, asked: &Asked, content: &[u8], etag: &str, limit: usize) {
    let tag = format!("ETag: {etag}");
    let same = asked.if_range.as_deref() == Some(etag);
    let body = match asked.range_from.filter(|_| same) {
        Some(from) if from >= content.len() => {
            let range = format!("Content-Range: bytes */{}", content.len());
            head(stream, "416 Range Not Satisfiable", &[range]);
            return;
        }
        Some(from) => {
            let (last, all) = (content.len() - 1, content.len());
            let range = format!("Content-Range: bytes {from}-{last}/{all}");
            let length = format!("Content-Length: {}", all - from);
            head(stream, "206 Partial Content", &[tag, range, length]);
            &content[from..]
        }
        None => {
            head(
                stream,
                "200 OK",
                &[tag, format!("Content-Length: {}", content.len())],
            );
            content
        }
    };
    let _ = stream.write_all(&body[..limit.min(body.len())]);
}

/// Bytes of a raw disk that differ from place to place.
fn content() -> Vec<u8> {
    (0..1_000_000_u32)
        .map(|n| u8::try_from((n / 7 + n / 65536) % 251).expect("< 251"))
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), bytes).expect("it");
    let output = command("sha256sum")
        .arg(file.path())
        .output()
        .expect("it runs")
        .stdout;
    String::from_utf8(output).expect("text")[..64].to_owned()
}

fn request(url: String) -> SourceRequest {
    let source = ImageSource::parse(&url).expect("a URL");
    SourceRequest {
        id: ImageId::random(),
        source,
        format: ImageFormat::Raw,
        sha256: None,
    }
}

fn place(server: &Server) -> Place {
    let mut place = Place::new();
    let prefix = server.url("/images/").parse().expect("a prefix");
    place.policy.allowed_url_prefixes = vec![prefix];
    place
}

fn fetch(place: &Place, request: &SourceRequest) -> Result<CheckedSource, StorageError> {
    place.policy.fetch(request, place.pool.scratch(), &task())
}

fn assert_whole(source: &CheckedSource, content: &[u8]) {
    assert_eq!(source.sha256(), sha256(content));
    assert!(
        std::fs::read(source.path()).expect("the copy") == content,
        "the bytes differ"
    );
}

#[test]
fn a_download_is_whole_and_tells_how_far_it_is() {
    let server =
        Server::start(|asked, _, stream| serve(stream, asked, &content(), "\"a\"", 1 << 30));
    let place = place(&server);
    let mut request = request(server.url("/images/disk.raw"));
    request.sha256 = Some(sha256(&content()).to_uppercase());
    let last = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&last);
    let watching = Task::new(Arc::default(), None, move |done, total| {
        assert_eq!(total, 1_000_000);
        assert!(seen.swap(done, Ordering::Relaxed) < done);
    });
    let source = place
        .policy
        .fetch(&request, place.pool.scratch(), &watching)
        .expect("a source");
    assert_eq!(last.load(Ordering::Relaxed), 1_000_000);
    assert_whole(&source, &content());
    let made = place
        .pool
        .put_image(request.id, &source, &task())
        .expect("an image");
    assert_eq!(made.virtual_size, source.virtual_size());
    drop(source);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let server = Server::start(|asked, number, stream| {
        let limit = if number < 3 { 300_000 } else { 1 << 30 };
        serve(stream, asked, &content(), "\"a\"", limit);
    });
    let place = place(&server);
    let source = fetch(&place, &request(server.url("/images/disk.raw"))).expect("a source");
    assert_whole(&source, &content());
    let from: Vec<_> = server
        .asked()
        .iter()
        .map(|asked| asked.range_from)
        .collect();
    assert_eq!(from, [None, Some(300_000), Some(600_000), Some(900_000)]);
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"a\""));
}

/// Sends a part, then is silent until the client goes away.
fn go_silent(stream: &mut TcpStream, asked: &Asked, sent: usize) {
    serve(stream, asked, &content(), "\"a\"", sent);
    let _ = BufReader::new(&*stream).read_line(&mut String::new());
}

#[test]
fn a_download_goes_on_after_it_was_interrupted_as_by_a_restart() {
    let server = Server::start(|asked, number, stream| match number {
        0 => go_silent(stream, asked, 400_000),
        _ => serve(stream, asked, &content(), "\"a\"", 1 << 30),
    });
    let place = place(&server);
    let request = request(server.url("/images/disk.raw"));
    let cancelled = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancelled);
    let task = Task::new(cancelled, None, move |done, _| {
        stop.store(done == 400_000, Ordering::Relaxed);
    });
    // The silent server says nothing more until the client has gone.
    let result = place.policy.fetch(&request, place.pool.scratch(), &task);
    assert_eq!(failure(result), StorageErrorKind::Cancelled);
    assert_eq!(place.leftovers().len(), 2, "the part and what it is of");

    let source = fetch(&place, &request).expect("a source");
    assert_whole(&source, &content());
    let from = server.asked()[1].range_from.expect("a range");
    assert_eq!(
        from,
        400_000 - 400_000 % (64 << 10),
        "whole blocks are kept"
    );
    drop(source);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_download_that_was_given_up_is_discarded() {
    let server = Server::start(|asked, _, stream| go_silent(stream, asked, 400_000));
    let place = place(&server);
    let request = request(server.url("/images/disk.raw"));
    let cancelled = Arc::new(AtomicBool::new(false));
    let task = Task::new(Arc::clone(&cancelled), None, |_, _| ());
    std::thread::scope(|scope| {
        let call = scope.spawn(|| place.policy.fetch(&request, place.pool.scratch(), &task));
        until("a request", || (!server.asked().is_empty()).then_some(()));
        let while_running = source::discard(place.pool.scratch(), request.id);
        assert_eq!(failure(while_running), StorageErrorKind::InUse);
        cancelled.store(true, Ordering::Relaxed);
        assert_eq!(
            failure(call.join().expect("no panic")),
            StorageErrorKind::Cancelled
        );
    });
    source::discard(place.pool.scratch(), request.id).expect("gone");
    source::discard(place.pool.scratch(), request.id).expect("absent is success");
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn another_version_of_the_file_is_fetched_from_its_start() {
    let server = Server::start(|asked, number, stream| match number {
        0 => serve(stream, asked, &vec![9; 900_000], "\"old\"", 400_000),
        _ => serve(stream, asked, &content(), "\"new\"", 1 << 30),
    });
    let place = place(&server);
    let source = fetch(&place, &request(server.url("/images/disk.raw"))).expect("a source");
    assert_whole(&source, &content());
    assert_eq!(server.asked()[1].if_range.as_deref(), Some("\"old\""));
}

#[test]
fn bytes_that_the_server_does_not_vouch_for_are_not_joined() {
    let server = Server::start(|asked, number, stream| {
        let limit = if number == 0 { 400_000 } else { 1 << 30 };
        serve(stream, asked, &content(), "W/\"weak\"", limit);
    });
    let place = place(&server);
    let source = fetch(&place, &request(server.url("/images/disk.raw"))).expect("a source");
    assert_whole(&source, &content());
    assert_eq!(server.asked()[1].range_from, None);
}

#[test]
fn a_silent_server_is_asked_again() {
    let server = Server::start(|asked, number, stream| match number {
        0 => go_silent(stream, asked, 400_000),
        _ => serve(stream, asked, &content(), "\"a\"", 1 << 30),
    });
    let mut place = place(&server);
    place.policy.stall_timeout = Duration::from_millis(300);
    let source = fetch(&place, &request(server.url("/images/disk.raw"))).expect("a source");
    assert_whole(&source, &content());
}

#[test]
fn a_download_past_its_deadline_ends() {
    let server = Server::start(|asked, _, stream| go_silent(stream, asked, 400_000));
    let place = place(&server);
    let request = request(server.url("/images/disk.raw"));
    let task = Task::within(Duration::from_millis(500));
    let result = place.policy.fetch(&request, place.pool.scratch(), &task);
    assert_eq!(failure(result), StorageErrorKind::DeadlinePassed);
}

#[test]
fn wrong_bytes_are_refused_and_removed() {
    let server =
        Server::start(|asked, _, stream| serve(stream, asked, &content(), "\"a\"", 1 << 30));
    let place = place(&server);
    let mut request = request(server.url("/images/disk.raw"));
    request.sha256 = Some("0".repeat(64));
    assert_eq!(
        failure(fetch(&place, &request)),
        StorageErrorKind::ChecksumMismatch
    );
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn a_download_ends_as_soon_as_it_is_too_large() {
    let server = Server::start(|asked, _, stream| {
        if asked.path.contains("announced") {
            head(stream, "200 OK", &["Content-Length: 99999999".to_owned()]);
        } else {
            // No length: only the bytes tell.
            head(stream, "200 OK", &[]);
            while stream.write_all(&[1; 65536]).is_ok() {}
        }
    });
    let mut place = place(&server);
    place.policy.max_source_size = Bytes::mib(2);
    for path in ["/images/announced", "/images/endless"] {
        let result = fetch(&place, &request(server.url(path)));
        assert_eq!(failure(result), StorageErrorKind::TooLarge, "{path}");
    }
    assert_eq!(server.asked().len(), 2);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn redirects_are_followed_only_to_where_downloads_are_allowed() {
    let elsewhere = Server::start(|asked, _, stream| serve(stream, asked, &[1; 512], "\"a\"", 512));
    let target = elsewhere.url("/images/disk.raw");
    let server = Server::start(move |asked, _, stream| {
        let to = match asked.path.as_str() {
            "/images/here" => "disk.raw",
            "/images/up" => "/secret",
            "/images/out" => "../secret",
            "/images/elsewhere" => &target,
            "/images/file" => "file:///etc/shadow",
            "/images/loop" => "/images/loop",
            _ => return serve(stream, asked, &content(), "\"a\"", 1 << 30),
        };
        head(
            stream,
            "302 Found",
            &[format!("Location: {to}"), "Content-Length: 0".to_owned()],
        );
    });
    let place = place(&server);
    let fetch = |path: &str| fetch(&place, &request(server.url(path)));
    assert_whole(
        &fetch("/images/here").expect("an allowed redirect"),
        &content(),
    );
    for path in [
        "/images/up",
        "/images/out",
        "/images/elsewhere",
        "/images/file",
        "/secret",
    ] {
        assert_eq!(
            failure(fetch(path)),
            StorageErrorKind::SourceRefused,
            "{path}"
        );
    }
    assert!(elsewhere.asked().is_empty(), "it was never asked");
    let before = server.asked().len();
    assert_eq!(
        failure(fetch("/images/loop")),
        StorageErrorKind::Unreachable
    );
    assert_eq!(
        server.asked().len() - before,
        6,
        "the first and five redirects"
    );
}

#[test]
fn what_a_server_refuses_is_told_apart() {
    let server = Server::start(|asked, number, stream| {
        let status = match asked.path.as_str() {
            "/images/absent" => "404 Not Found",
            "/images/forbidden" => "403 Forbidden",
            "/images/busy" if number == 2 => "503 Service Unavailable",
            "/images/odd" => "418 Teapot",
            _ => return serve(stream, asked, &content(), "\"a\"", 1 << 30),
        };
        head(stream, status, &["Content-Length: 0".to_owned()]);
    });
    let place = place(&server);
    let fetch = |path: &str| fetch(&place, &request(server.url(path)));
    assert_eq!(failure(fetch("/images/absent")), StorageErrorKind::NotFound);
    assert_eq!(
        failure(fetch("/images/forbidden")),
        StorageErrorKind::Denied
    );
    fetch("/images/busy").expect("asked again");
    assert_eq!(failure(fetch("/images/odd")), StorageErrorKind::Unreachable);
    assert_eq!(server.asked().len(), 5);
}

#[test]
fn a_server_that_is_not_there_is_given_up_after_some_tries() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let mut place = Place::new();
    place.policy.allowed_url_prefixes = vec!["http://".parse().expect("a prefix")];
    let result = fetch(&place, &request(format!("http://{address}/x")));
    assert_eq!(failure(result), StorageErrorKind::Unreachable);
}

#[test]
fn a_download_that_was_whole_is_not_sent_again() {
    let whole = vec![3; 1 << 20];
    let sent = whole.clone();
    let server =
        Server::start(move |asked, _, stream| serve(stream, asked, &sent, "\"a\"", 1 << 30));
    let place = place(&server);
    let request = request(server.url("/images/disk.raw"));
    let cancelled = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&cancelled);
    let task = Task::new(cancelled, None, move |done, total| {
        stop.store(done == total, Ordering::Relaxed);
    });
    let result = place.policy.fetch(&request, place.pool.scratch(), &task);
    assert_eq!(failure(result), StorageErrorKind::Cancelled);
    let source = fetch(&place, &request).expect("a source");
    assert_whole(&source, &whole);
    let from: Vec<_> = server
        .asked()
        .iter()
        .map(|asked| asked.range_from)
        .collect();
    assert_eq!(from, [None, Some(1 << 20)]);
}

#[test]
fn an_https_address_is_asked_in_tls_and_never_in_clear() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut first = [0];
        stream.read_exact(&mut first).expect("a byte");
        drop(listener);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 512\r\n\r\n");
        first[0]
    });
    let mut place = Place::new();
    place.policy.allowed_url_prefixes = vec!["https://".parse().expect("a prefix")];
    let result = fetch(&place, &request(format!("https://{address}/disk.raw")));
    assert_eq!(failure(result), StorageErrorKind::Unreachable);
    assert_eq!(server.join().expect("no panic"), 0x16, "a TLS handshake");
}
