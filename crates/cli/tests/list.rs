//! `list` shows what `ss -xp` and /proc show, and `attach` finds processes by it.

mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{SOCKTRACE, command, has, outcome, run, skipped, socktrace, until};
use rustix::process::geteuid;
use serde_json::Value;
use tempfile::TempDir;

/// Ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis(folder: &Path) -> (Running, PathBuf) {
    let socket = folder.join("redis.sock");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket).current_dir(folder);
    let redis = Running::start(&mut command);
    until("redis-server listens", || UnixStream::connect(&socket).is_ok());
    (redis, socket)
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    // For programs of other users.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// The sockets by their inode numbers.
fn list(args: &[&str]) -> BTreeMap<u64, Value> {
    let got = run(&[&["list", "--json"], args].concat());
    assert!(got.code == Some(0) || got.out.is_empty(), "{got:?}");
    let lines = got.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| (line["inode"].as_u64().unwrap(), line)).collect()
}

fn inode(socket: &impl AsRawFd) -> u64 {
    let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
    link.to_str().unwrap().trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap()
}

/// What both say of a socket, in one form: type, state, queues, path, number of the other end, holders with descriptors.
type Said = (String, String, u64, u64, String, u64, BTreeSet<(u64, u64)>);

fn as_said(line: &Value) -> Said {
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    let first_of = |names: [&str; 2]| names.iter().find_map(|name| line[*name].as_u64()).unwrap();
    let state = match &*text("state") {
        "listening" => "LISTEN",
        "unconnected" => "UNCONN",
        _ => "ESTAB",
    };
    let holders = line["holders"].as_array().unwrap().iter().flat_map(|holder| {
        let pid = holder["pid"].as_u64().unwrap();
        holder["fds"].as_array().unwrap().iter().map(move |fd| (pid, fd.as_u64().unwrap()))
    });
    (
        text("socket_type"),
        state.into(),
        first_of(["waiting", "receive_queue"]),
        first_of(["backlog", "send_queue"]),
        text("path"),
        // What waits for a listening socket has no other end for ss.
        if text("state") == "waiting" { 0 } else { line["peer"]["inode"].as_u64().unwrap_or(0) },
        holders.collect(),
    )
}

/// What `ss -xapn` says, of sockets whose names have no spaces.
fn ss() -> BTreeMap<u64, Said> {
    let output = Command::new("ss").args(["-xapnH"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        let [kind, state, first, second, path, inode, _, peer, rest @ ..] = words.as_slice() else { continue };
        let (Ok(inode), Ok(peer)) = (inode.parse(), peer.parse()) else { continue };
        let kind = match *kind {
            "u_str" => "stream",
            "u_dgr" => "dgram",
            _ => "seqpacket",
        };
        let number =
            |text: &str, name: &str| -> Option<u64> { text.split(name).nth(1)?.split([',', ')']).next()?.parse().ok() };
        let users = rest.concat();
        let holders = users.split("),(").filter_map(|user| Some((number(user, "pid=")?, number(user, "fd=")?)));
        // The kernel says so of whom datagrams are sent to by a connected socket, which has no other end itself.
        let state = if kind == "dgram" && peer == 0 { "UNCONN" } else { state };
        let path = if *path == "*" { String::new() } else { (*path).to_owned() };
        let numbers = (first.parse().unwrap(), second.parse().unwrap());
        found.insert(inode, (kind.into(), (*state).into(), numbers.0, numbers.1, path, peer, holders.collect()));
    }
    found
}

#[test]
fn what_ss_says() {
    if !has("ss", "what_ss_says") || !has("redis-server", "what_ss_says") || !has("dbus-daemon", "what_ss_says") {
        return;
    }
    let folder = folder();
    let (redis, redis_socket) = redis(folder.path());
    let bus_socket = folder.path().join("bus");
    let mut bus = Command::new("dbus-daemon");
    let bus = Running::start(
        bus.arg("--session").arg(format!("--address=unix:path={}", bus_socket.display())).arg("--nofork"),
    );
    until("the bus listens", || UnixStream::connect(&bus_socket).is_ok());

    let name = format!("socktrace-list-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let accepted = (UnixStream::connect_addr(&address).unwrap(), listener.accept().unwrap().0);
    let waiting = UnixStream::connect_addr(&address).unwrap();
    let (mut pair, _other) = UnixStream::pair().unwrap();
    pair.write_all(b"unread").unwrap();
    let log = UnixDatagram::bind(folder.path().join("log")).unwrap();
    let client = UnixDatagram::unbound().unwrap();
    client.connect(folder.path().join("log")).unwrap();
    client.send(b"a message").unwrap();
    let (closed, gone) = UnixStream::pair().unwrap();
    drop(gone);
    let to_redis: Vec<_> = (0..3).map(|_| UnixStream::connect(&redis_socket).unwrap()).collect();
    let to_bus = UnixStream::connect(&bus_socket).unwrap();
    let accepts = |pid: u32, n: usize| {
        let of = list(&["--pid", &pid.to_string()]);
        let own = std::process::id().to_string();
        of.values()
            .filter(|line| {
                line["state"] == "connected"
                    && line["holders"][0]["pid"] == pid
                    && line["peer"].to_string().contains(&own)
            })
            .count()
            >= n
    };
    until("all is accepted", || accepts(redis.pid(), 3) && accepts(bus.pid(), 1));

    let (ours, theirs) = (list(&[]), ss());
    let held = |pid: u32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let numbers = entries.filter_map(|entry| {
            let link = fs::read_link(entry.path()).ok()?;
            link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
        });
        numbers.filter(|inode| theirs.contains_key(inode)).collect::<BTreeSet<_>>()
    };
    let mut of_interest: BTreeSet<_> = held(redis.pid()).union(&held(bus.pid())).copied().collect();
    assert!(of_interest.len() >= 2 + 4, "{of_interest:?}");
    of_interest.extend([inode(&listener), inode(&accepted.0), inode(&accepted.1), inode(&waiting), inode(&pair)]);
    of_interest.extend([inode(&log), inode(&client), inode(&closed), inode(&to_bus), inode(&to_redis[0])]);
    for inode in of_interest {
        assert_eq!(as_said(&ours[&inode]), theirs[&inode], "{}", ours[&inode]);
    }

    // What ss does not say.
    let state = |socket: u64| ours[&socket]["state"].as_str().unwrap();
    assert_eq!((state(inode(&waiting)), state(inode(&closed))), ("waiting", "closed by peer"));
    assert_eq!(ours[&inode(&waiting)]["peer"]["path"], format!("@{name}"));
    let client = &ours[&inode(&to_redis[0])]["peer"]["holders"][0];
    assert_eq!((&client["pid"], &client["comm"]), (&redis.pid().into(), &"redis-server".into()));
    let holder = &ours[&inode(&listener)]["holders"][0];
    assert_eq!(holder["uid"], geteuid().as_raw());
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(holder["cgroup"].as_str().is_none_or(|path| cgroups.contains(&format!(":{path}\n"))), "{holder}");
    let ways = ["engines", "hindrances"].map(|name| holder[name].to_string()).concat();
    assert!(["inject", "frida", "bpf"].iter().all(|engine| ways.contains(engine)), "{holder}");
}

#[test]
fn filters() {
    let folder = folder();
    let path = folder.path().join("served");
    let listener = UnixListener::bind(&path).unwrap();
    let client = UnixStream::connect(&path).unwrap();
    let server = listener.accept().unwrap().0;
    let (pair, _other) = UnixStream::pair().unwrap();
    let of = |args: &[&str]| list(args).into_keys().collect::<BTreeSet<_>>();
    let path = path.to_str().unwrap();
    let all = BTreeSet::from([inode(&listener), inode(&client), inode(&server)]);
    assert_eq!(of(&["--path", path]), all);
    assert_eq!(of(&["--path", path, "-l"]), BTreeSet::from([inode(&listener)]));
    assert!(of(&["--path", &format!("!{path}")]).is_disjoint(&all));
    let own = std::process::id().to_string();
    let by_pid = of(&["--pid", &own]);
    assert!(by_pid.is_superset(&all) && by_pid.contains(&inode(&pair)));
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    assert!(of(&["--name", name.trim_end(), "--pid", &own]).is_superset(&all) || name.len() < 15);
    assert_eq!(of(&["--name", "no such name", "--pid", &own]), BTreeSet::new());

    let none = run(&["list", "--path", "/no/such"]);
    assert_eq!((none.code, &*none.out), (Some(1), ""));
    assert!(none.err.starts_with("socktrace: no socket matches\n"), "{none:?}");
    let wrong = run(&["list", "--path", "/a["]);
    assert!(wrong.code == Some(1) && wrong.err.contains("--path /a[: not a pattern"), "{wrong:?}");
    let root = run(&["list", "--unit", "/"]);
    assert!(root.code == Some(1) && root.err.contains("--unit: /: is the root"), "{root:?}");
}

/// Whatever bytes a path has: it is told from others, and drives no terminal.
#[test]
fn hostile_paths() {
    let folder = folder();
    let long = [b'y'; 107].as_slice();
    let names: [&[u8]; 5] =
        [b"a\nb c", b"\x1b[31mred\x1b]0;title\x07", b"x\xff\xfe", b"back\\x41slash", "\u{202e}rtl".as_bytes()];
    let mut expected = BTreeMap::new();
    let mut listeners = Vec::new();
    for name in names {
        let path = folder.path().join(OsStr::from_bytes(name));
        listeners.push(UnixListener::bind(&path).unwrap());
        expected.insert(inode(listeners.last().unwrap()), path.as_os_str().as_bytes().to_vec());
    }
    let address = SocketAddr::from_abstract_name([b"\0\n\x1b", &long[..100]].concat()).unwrap();
    listeners.push(UnixListener::bind_addr(&address).unwrap());
    expected.insert(inode(listeners.last().unwrap()), [b"@\0\n\x1b", &long[..100]].concat());
    // The longest there is.
    let to_fill = 107 - folder.path().as_os_str().len() - 1;
    let path = folder.path().join(OsStr::from_bytes(&long[..to_fill]));
    listeners.push(UnixListener::bind(&path).unwrap());
    expected.insert(inode(listeners.last().unwrap()), path.as_os_str().as_bytes().to_vec());

    let own = std::process::id().to_string();
    let found = list(&["--pid", &own, "-l"]);
    for (inode, name) in expected {
        let path = found[&inode]["path"].as_str().unwrap();
        assert!(path.bytes().all(|b| matches!(b, 32..=126)), "{path}");
        assert_eq!(gttr::unescape_path(path.as_bytes()).collect::<Vec<_>>(), name);
    }
    let text = run(&["list", "--pid", &own, "-l"]).out;
    assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    assert!(text.contains(r"/a\nb c  stream") && text.contains(r"/x\xff\xfe  stream"), "{text}");
    let pattern = OsStr::from_bytes(b"*/x\xff?").to_owned();
    let one = outcome(socktrace(&["list", "--path"]).arg(pattern));
    assert!(one.code == Some(0) && one.out.contains(r"x\xff\xfe"), "{one:?}");
}

/// What a socket is bound to where its process runs.
#[test]
fn relative_paths() {
    if !has("python3", "relative_paths") {
        return;
    }
    let folder = folder();
    let script =
        "import socket,time\ns=socket.socket(socket.AF_UNIX)\ns.bind('./rel.sock')\ns.listen()\ntime.sleep(1000)";
    let _python = Running::start(Command::new("python3").args(["-c", script]).current_dir(folder.path()));
    let path = folder.path().canonicalize().unwrap().join("rel.sock");
    until("it listens", || list(&["--path", path.to_str().unwrap(), "-l"]).len() == 1);
    // By its file, too, whatever it is called here.
    let link = folder.path().join("another-name");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(list(&["--path", link.to_str().unwrap(), "-l"]).len(), 1);
}

/// Sockets in other namespaces: root sees them, and nobody else is left without a word.
#[test]
fn namespaces_and_users() {
    if !geteuid().is_root() {
        return skipped("namespaces_and_users", "needs root");
    }
    if !has("unshare", "namespaces_and_users")
        || !has("setpriv", "namespaces_and_users")
        || !has("python3", "namespaces_and_users")
    {
        return;
    }
    let name = format!("inner-{}", std::process::id());
    let script = format!(
        "import socket,time\ns=socket.socket(socket.AF_UNIX)\ns.bind('\\0{name}')\ns.listen()\ntime.sleep(1000)"
    );
    let python = Running::start(Command::new("unshare").args(["-rmn", "python3", "-c", &script]));
    let pattern = format!("@{name}");
    until("it listens", || list(&["--path", &pattern]).len() == 1);
    let line = list(&["--path", &pattern]).into_values().next().unwrap();
    let namespace = fs::read_link(format!("/proc/{}/ns/net", python.pid())).unwrap();
    assert_eq!(namespace.to_str().unwrap(), format!("net:[{}]", line["network_namespace"]));
    assert_eq!((&line["holders"][0]["pid"], &line["state"]), (&python.pid().into(), &"listening".into()));
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let pair = UnixStream::pair().unwrap();
    let ours = &list(&[])[&inode(&pair.0)];
    assert_eq!(own.to_str().unwrap(), format!("net:[{}]", ours["network_namespace"]));
    let text = run(&["list", "--path", &pattern]).out;
    assert!(text.starts_with(&format!("{pattern}  stream  {}\n", namespace.display())), "{text}");

    let copy = folder();
    let program = copy.path().join("socktrace");
    fs::copy(SOCKTRACE, &program).unwrap();
    let args = ["--reuid", "65534", "--regid", "65534", "--clear-groups", program.to_str().unwrap(), "list", "--json"];
    let got = outcome(&mut command("setpriv", &args));
    assert!(got.err.starts_with("socktrace: not seen: what ") && got.err.contains("root sees it"), "{}", got.err);
    let line = got.out.lines().find(|line| line.contains(&format!("\"inode\":{},", inode(&pair.0)))).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["holders"], &line["uid"]), (&serde_json::json!([]), &0.into()));
}

/// Lines fit a terminal of 80 columns.
#[test]
fn eighty_columns() {
    if !has("script", "eighty_columns") {
        return;
    }
    let folder = folder();
    let long = folder.path().join("a-folder-with-a-name").join("and-another-one-that-is-long-too");
    fs::create_dir_all(&long).unwrap();
    let listener = UnixListener::bind(long.join("socket")).unwrap();
    let clients: Vec<_> = (0..3).map(|_| UnixStream::connect(long.join("socket")).unwrap()).collect();
    let _accepted: Vec<_> = clients.iter().map(|_| listener.accept().unwrap()).collect();
    let own = std::process::id();
    let of_width = |width: usize| {
        let line = format!("stty cols {width} rows 50; exec {SOCKTRACE} list --pid {own}");
        let got = outcome(&mut command("script", &["-qec", &line, "/dev/null"]));
        let lines: Vec<_> = got.out.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect();
        assert!(got.code == Some(0) && !lines.is_empty(), "{got:?}");
        assert!(lines.iter().all(|line| line.chars().count() <= width), "{width} columns: {}", got.out);
        lines
    };
    let lines = of_width(80);
    assert!(lines.iter().any(|line| line.starts_with('…') && line.ends_with("/socket  stream")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.trim_end().ends_with("×3")), "{lines:#?}");
    assert!(of_width(200).iter().any(|line| line.starts_with(folder.path().to_str().unwrap())));
}

/// Nobody to attach to is one line.
#[test]
fn nobody_is_found() {
    for (args, said) in [
        (["--path", "/no/such.sock"], "no process has a socket with the path /no/such.sock open"),
        (["--path", "!/run/*"], "--path !/run/* says which sockets are left out, not which processes are meant"),
        (["--unit", "no-such-unit"], "no process is in a unit, container or cgroup named no-such-unit"),
        (["--unit", "/"], "--unit: /: is the root, in which every process is"),
    ] {
        let got = run(&["attach", args[0], args[1]]);
        assert!(got.code == Some(1) && got.err.starts_with(&format!("socktrace: {said}")), "{got:?}");
        assert_eq!(got.err.lines().count(), 1, "{got:?}");
    }
    let nothing = run(&["attach"]);
    assert!(nothing.code == Some(2) && nothing.err.contains("--path <GLOB>"), "{nothing:?}");
}

#[test]
fn attach_finds_both_ends_by_a_path() {
    let test = "attach_finds_both_ends_by_a_path";
    if !has("redis-server", test) || !has("redis-cli", test) {
        return;
    }
    let folder = folder();
    let (redis, socket) = redis(folder.path());
    let mut client = Command::new("redis-cli");
    let client = Running::start(client.arg("-s").arg(&socket).args(["-r", "-1", "-i", "0.1", "ping"]));
    until("the client is connected", || {
        let line = list(&["--path", socket.to_str().unwrap()]);
        line.values().any(|line| line["holders"][0]["pid"] == client.pid())
    });
    let mut attach = socktrace(&["attach", "--for", "3s", "--path"]);
    let got = outcome(attach.arg(&socket));
    let mut pids = [redis.pid(), client.pid()];
    pids.sort_unstable();
    assert_eq!(got.code, Some(0), "{}", got.err);
    assert!(got.err.contains(&format!("attached to {}, {}\n", pids[0], pids[1])), "{}", got.err);
    for (name, pid) in [("redis-server", redis.pid()), ("redis-cli", client.pid())] {
        let sent = format!("{name}[{pid}] → {}", socket.display());
        assert!(got.err.contains(&sent), "{sent}: {}", got.err);
    }
}

#[test]
fn attach_finds_a_unit() {
    let test = "attach_finds_a_unit";
    if !has("redis-server", test) {
        return;
    }
    let hierarchy = ["/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/pids"]
        .map(Path::new)
        .into_iter()
        .find(|folder| folder.join("cgroup.procs").exists());
    let name = format!("socktrace-test-{}.service", std::process::id());
    let Some(cgroup) = hierarchy.map(|folder| folder.join(&name)).filter(|cgroup| fs::create_dir(cgroup).is_ok())
    else {
        return skipped(test, "needs to make a cgroup");
    };
    let folder = folder();
    let (redis, _) = redis(folder.path());
    fs::write(cgroup.join("cgroup.procs"), redis.pid().to_string()).unwrap();
    let listed = list(&["--unit", &name]);
    assert!(!listed.is_empty() && listed.values().all(|line| line["holders"][0]["pid"] == redis.pid()), "{listed:?}");
    let attach = |unit: &str| run(&["attach", "--for", "1s", "--unit", unit]);
    let by_name = attach(name.strip_suffix(".service").unwrap());
    assert!(by_name.err.contains(&format!("attached to {}\n", redis.pid())), "{}", by_name.err);
    let by_path = attach(cgroup.to_str().unwrap());
    assert!(by_path.err.contains(&format!("attached to {}\n", redis.pid())), "{}", by_path.err);
    drop(redis);
    until("the cgroup is empty", || fs::remove_dir(&cgroup).is_ok());
}
