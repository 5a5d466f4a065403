//! Which port makes Wireshark dissect a connection as what it is.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use globset::{Glob, GlobMatcher};

/// Of connections whose protocol is not known, and of those that Wireshark has no port for: no dissector is registered
/// there, so that its heuristics have the say, and `-d tcp.port==60100,…`.
pub const UNKNOWN_PORT: u16 = 60100;

/// Of D-Bus, for which Wireshark has no port either; its messages are written on an interface of their own, too.
pub const DBUS_PORT: u16 = 60101;

/// A protocol by its name, its port, and how a socket of it is known.
#[derive(Debug)]
struct Protocol {
    names: &'static [&'static str],
    port: u16,
    /// Ends of paths, or beginnings where a `*` follows.
    paths: &'static [&'static str],
    /// Whether the first bytes that the client, or the server, sends are of it.
    speaks: fn(&[u8], bool) -> bool,
}

const fn never(_: &[u8], _: bool) -> bool {
    false
}

/// The ports are those that Wireshark's dissectors are registered for; where a protocol has none, one that nothing is
/// registered for.
const PROTOCOLS: &[Protocol] = &[
    Protocol {
        names: &["x11"],
        port: 6000,
        paths: &["/tmp/.X11-unix/X*", "@/tmp/.X11-unix/X*"],
        speaks: |bytes, from_client| {
            from_client && (bytes.starts_with(b"l\0\x0b\0\0\0") || bytes.starts_with(b"B\0\0\x0b\0\0"))
        },
    },
    Protocol {
        names: &["postgres", "postgresql", "pgsql"],
        port: 5432,
        paths: &["/.s.PGSQL.*", "@.s.PGSQL.*"],
        speaks: |bytes, from_client| from_client && starts_as_postgres(bytes),
    },
    Protocol {
        names: &["redis", "resp"],
        port: 6379,
        paths: &["redis*.sock", "redis*.socket", "valkey*.sock"],
        speaks: |bytes, from_client| from_client && starts_as_redis(bytes),
    },
    Protocol {
        names: &["mysql", "mariadb"],
        port: 3306,
        paths: &["mysqld*.sock", "mysql*.sock", "mariadb*.sock"],
        // A greeting of protocol version 10, the first packet of its connection.
        speaks: |bytes, from_client| !from_client && bytes.len() > 5 && bytes[3] == 0 && bytes[4] == 10,
    },
    Protocol {
        names: &["http", "http2", "h2c", "grpc"],
        port: 80,
        paths: &["docker.sock", "podman.sock", "containerd.sock", "crio.sock", "snapd.socket", "lxd/unix.socket"],
        speaks: |bytes, from_client| if from_client { starts_as_http(bytes) } else { bytes.starts_with(b"HTTP/1.") },
    },
    Protocol {
        names: &["tls", "https"],
        port: 443,
        paths: &[],
        speaks: |bytes, _| bytes.len() >= 3 && bytes[0] == 22 && bytes[1] == 3 && bytes[2] <= 4,
    },
    Protocol {
        names: &["ssh"],
        port: 22,
        paths: &[],
        speaks: |bytes, _| bytes.starts_with(b"SSH-2.0-") || bytes.starts_with(b"SSH-1.99-"),
    },
    Protocol { names: &["ipp", "cups"], port: 631, paths: &["/cups/cups.sock"], speaks: never },
    // Not by path: Wireshark looks for a host name, which local messages do not have, and calls some of them malformed.
    Protocol { names: &["syslog"], port: 514, paths: &[], speaks: never },
    Protocol { names: &["memcache", "memcached"], port: 11211, paths: &["memcached.sock"], speaks: never },
    Protocol { names: &["mongo", "mongodb"], port: 27017, paths: &["/mongodb-*.sock"], speaks: never },
    Protocol { names: &["ldap"], port: 389, paths: &["/ldapi"], speaks: never },
    Protocol { names: &["smtp"], port: 25, paths: &[], speaks: never },
    Protocol { names: &["imap"], port: 143, paths: &[], speaks: never },
    Protocol {
        names: &["amqp"],
        port: 5672,
        paths: &[],
        speaks: |bytes, client| client && bytes.starts_with(b"AMQP\0"),
    },
    Protocol { names: &["mqtt"], port: 1883, paths: &[], speaks: never },
    Protocol { names: &["ajp", "ajp13"], port: 8009, paths: &[], speaks: never },
    Protocol { names: &["9p"], port: 564, paths: &[], speaks: never },
    Protocol {
        names: &["dbus", "d-bus"],
        port: DBUS_PORT,
        paths: &["/dbus/system_bus_socket", "/run/user/*/bus", "/tmp/dbus-*", "@/tmp/dbus-*", "/at-spi/bus*"],
        speaks: |bytes, from_client| from_client && (bytes.starts_with(b"\0AUTH ") || bytes.starts_with(b"AUTH ")),
    },
];

/// So many of a connection's first bytes are looked at.
pub const SNIFFED_LEN: usize = 32;

fn starts_as_http(bytes: &[u8]) -> bool {
    const METHODS: &[&[u8]] =
        &[b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"PATCH ", b"OPTIONS ", b"CONNECT ", b"PRI * HTTP/2"];
    METHODS.iter().any(|method| bytes.starts_with(method))
}

/// A startup message, an SSLRequest or a GSSENCRequest (PostgreSQL's manual, "Message Formats").
fn starts_as_postgres(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk::<4>() else { return false };
    let (len, Some(code)) = (u32::from_be_bytes(*len), rest.first_chunk::<4>()) else { return false };
    match u32::from_be_bytes(*code) {
        0x0003_0000 => (9..10_000).contains(&len),
        80_877_102..=80_877_104 => matches!(len, 8 | 16),
        _ => false,
    }
}

/// An array of bulk strings, as every client sends.
fn starts_as_redis(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(b"*") else { return false };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    (1..=6).contains(&digits) && rest[digits..].starts_with(b"\r\n$")
}

/// A path matches the end of itself, or one with a `*` in it that stands for anything but a slash.
fn matches(pattern: &str, path: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return path.ends_with(pattern) };
    let Some(start) = path.rfind(before) else { return false };
    let rest = &path[start + before.len()..];
    // A name that begins in the middle of another is another.
    let begins = before.starts_with(['/', '@']) || start == 0 || path[..start].ends_with(['/', '@']);
    let middle = rest.strip_suffix(after);
    begins && middle.is_some_and(|middle| !middle.contains('/'))
}

/// What the user has to say of ports, and is none.
#[derive(Debug, thiserror::Error)]
#[error("--decode {rule}: {why}")]
pub struct BadRule {
    rule: String,
    why: String,
}

impl BadRule {
    fn new(rule: &str, why: &str) -> Self {
        Self { rule: rule.to_owned(), why: why.to_owned() }
    }
}

/// The table, and what the user has to say about it.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    rules: Vec<(GlobMatcher, u16)>,
}

impl Ports {
    /// Of texts `PATH=PROTOCOL`: a pattern of paths, in which `*` matches slashes, too, and a protocol's name or a port.
    ///
    /// # Errors
    ///
    /// One line that says what is wrong with which text.
    pub fn new<'r>(rules: impl IntoIterator<Item = &'r str>) -> Result<Self, BadRule> {
        let rules = rules.into_iter().map(|rule| {
            let Some((pattern, protocol)) = rule.rsplit_once('=') else {
                return Err(BadRule::new(rule, "takes PATH=PROTOCOL, such as /run/x.sock=http"));
            };
            let glob = Glob::new(pattern)
                .map_err(|error| BadRule::new(rule, &format!("{pattern} is not a pattern: {error}")))?;
            let lower = protocol.to_ascii_lowercase();
            let named = PROTOCOLS.iter().find(|known| known.names.contains(&&*lower)).map(|known| known.port);
            let port = named.or_else(|| protocol.parse().ok().filter(|&port| port > 0));
            let Some(port) = port else {
                let names: Vec<_> = PROTOCOLS.iter().map(|known| known.names[0]).collect();
                let why = format!("{protocol} is neither a port nor one of {}", names.join(", "));
                return Err(BadRule::new(rule, &why));
            };
            Ok((glob.compile_matcher(), port))
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// By the socket's path, as events have it; None if that says nothing.
    pub fn by_path(&self, path: &str) -> Option<u16> {
        let name = OsString::from_vec(gttr::unescape_path(path.as_bytes()).collect());
        let rule = self.rules.iter().find(|(glob, _)| glob.is_match(&name)).map(|(_, port)| *port);
        let known = || PROTOCOLS.iter().find(|known| known.paths.iter().any(|pattern| matches(pattern, path)));
        rule.or_else(|| known().map(|known| known.port))
    }

    /// By the first bytes that one end has sent.
    pub fn by_bytes(bytes: &[u8], from_client: bool) -> Option<u16> {
        PROTOCOLS.iter().find(|known| (known.speaks)(bytes, from_client)).map(|known| known.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let ports = Ports::default();
        for (path, port) in [
            ("/var/run/docker.sock", 80),
            ("/var/run/postgresql/.s.PGSQL.5432", 5432),
            ("/tmp/.X11-unix/X0", 6000),
            ("@/tmp/.X11-unix/X12", 6000),
            ("/tmp/redis.sock", 6379),
            ("/run/redis/redis-server.sock", 6379),
            ("/run/mysqld/mysqld.sock", 3306),
            ("/run/dbus/system_bus_socket", 60101),
            ("/run/user/1000/bus", 60101),
        ] {
            assert_eq!(ports.by_path(path), Some(port), "{path}");
        }
        for path in ["/tmp/x.sock", "", "/tmp/.X11-unix/X0/y", "/tmp/notredis.sock", "/run/user/1000/sub/bus"] {
            assert_eq!(ports.by_path(path), None, "{path}");
        }
    }

    #[test]
    fn first_bytes() {
        for (bytes, from_client, port) in [
            (&b"GET / HTTP/1.1\r\n"[..], true, 80),
            (b"PRI * HTTP/2.0\r\n\r\nSM", true, 80),
            (b"HTTP/1.1 200 OK", false, 80),
            (b"*1\r\n$4\r\nPING\r\n", true, 6379),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", true, 5432),
            (b"\0\0\0\x54\0\x03\0\0user\0", true, 5432),
            (b"\x16\x03\x01\x02\0\x01", true, 443),
            (b"l\0\x0b\0\0\0\x12\0", true, 6000),
            (b"\x4a\0\0\0\x0a8.0.36", false, 3306),
            (b"\0AUTH EXTERNAL 30\r\n", true, 60101),
        ] {
            assert_eq!(Ports::by_bytes(bytes, from_client), Some(port), "{bytes:?}");
        }
        for bytes in [&b""[..], b"*", b"hello", b"*x\r\n", b"\0\0\0\0\0\0\0\0", b"GETTING"] {
            assert_eq!(Ports::by_bytes(bytes, true), None, "{bytes:?}");
        }
    }

    #[test]
    fn the_user_has_the_last_word() {
        let ports = Ports::new(["/tmp/redis*=http", "*/odd=name=MySQL", "@x=8080"]).unwrap();
        assert_eq!(ports.by_path("/tmp/redis.sock"), Some(80));
        assert_eq!(ports.by_path("/run/odd=name"), Some(3306));
        assert_eq!(ports.by_path("@x"), Some(8080));
        for (wrong, why) in
            [("x", "takes PATH=PROTOCOL"), ("x=0", "neither"), ("x=no", "one of x11"), ("[=http", "not a")]
        {
            let error = Ports::new([wrong]).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn ports_are_not_those_of_clients() {
        assert!(PROTOCOLS.iter().all(|known| known.port < crate::pcapng::FIRST_CLIENT_PORT));
    }
}
