//! HTTP/1 requests and statuses (RFC 9112).

use httparse::{EMPTY_HEADER, Header, ParserConfig, Request, Response};

const MAX_HEADERS: usize = 100;
const MAX_TARGET: usize = 200;

pub fn summarise(bytes: &[u8]) -> Option<String> {
    // Every version is `HTTP/1.`, and a request's method is of capital letters: a look at one byte rejects most.
    if !bytes.first()?.is_ascii_uppercase() {
        return None;
    }
    if bytes.starts_with(b"HTTP/1.") { response(bytes) } else { request(bytes) }
}

fn request(bytes: &[u8]) -> Option<String> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = Request::new(&mut headers);
    let body = request.parse(bytes).ok()?;
    // A version is there only if the whole first line is.
    let (method, target, version) = (request.method?, request.path?, request.version?);
    let target = super::text(target.as_bytes(), MAX_TARGET);
    let mut text = format!("HTTP {method} {target} HTTP/1.{version}");
    if let httparse::Status::Complete(head_len) = body {
        describe_body(&mut text, request.headers, bytes.len() - head_len);
    }
    Some(text)
}

fn response(bytes: &[u8]) -> Option<String> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = Response::new(&mut headers);
    let mut config = ParserConfig::default();
    config.allow_multiple_spaces_in_response_status_delimiters(true);
    let body = config.parse_response(&mut response, bytes).ok()?;
    let (version, code) = (response.version?, response.code?);
    let mut text = format!("HTTP/1.{version} {code}");
    if let Some(reason) = response.reason.filter(|reason| !reason.is_empty()) {
        text.push(' ');
        text.push_str(&super::text(reason.as_bytes(), MAX_TARGET));
    }
    if let httparse::Status::Complete(head_len) = body {
        describe_body(&mut text, response.headers, bytes.len() - head_len);
    }
    Some(text)
}

fn describe_body(text: &mut String, headers: &[Header<'_>], here: usize) {
    let find = |name: &str| headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
    if let Some(kind) = find("content-type") {
        text.push_str(&format!(" {}", super::text(kind.value, MAX_TARGET)));
    }
    match find("content-length") {
        Some(length) => text.push_str(&format!(", body of {} bytes", super::text(length.value, 20))),
        None if here > 0 => text.push_str(", with body"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::summarise;

    #[test]
    fn requests() {
        let of = |bytes: &str| summarise(bytes.as_bytes());
        assert_eq!(of("GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n").unwrap(), "HTTP GET /_ping HTTP/1.1");
        assert_eq!(
            of("PUT /a HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc").unwrap(),
            "HTTP PUT /a HTTP/1.0, body of 3 bytes"
        );
        assert_eq!(of("GET /_ping HTTP/1.1\r\nHo").unwrap(), "HTTP GET /_ping HTTP/1.1");
        for raw in ["", "GET", "GET /x", "GET /x\r\n", "HELO me\r\n", "AUTH EXTERNAL 30\r\n", "PING\r\n"] {
            assert_eq!(of(raw), None, "{raw}");
        }
    }

    #[test]
    fn statuses() {
        let of = |bytes: &str| summarise(bytes.as_bytes());
        let ok = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nOK";
        assert_eq!(of(ok).unwrap(), "HTTP/1.1 200 OK text/plain, body of 2 bytes");
        assert_eq!(of("HTTP/1.1 204 No Content\r\n\r\n").unwrap(), "HTTP/1.1 204 No Content");
        assert_eq!(of("HTTP/1.x"), None);
    }
}
