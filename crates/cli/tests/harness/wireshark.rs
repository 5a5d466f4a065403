//! What tshark says of an export.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{Outcome, command, has, outcome, run};

/// Whether the programs are there.
pub fn is_there(test: &str) -> bool {
    ["tshark", "capinfos", "editcap", "tcpdump"].iter().all(|program| has(program, test))
}

/// tshark, without the user's settings.
pub fn tshark(args: &[&str]) -> Outcome {
    let home = tempfile::tempdir().unwrap();
    outcome(command("tshark", args).env("HOME", home.path()).env_remove("XDG_CONFIG_HOME"))
}

/// An exported file.
pub struct Capture {
    pub file: PathBuf,
    /// What the export had to say.
    pub err: String,
    /// By field, of every packet.
    packets: Vec<BTreeMap<&'static str, String>>,
}

/// What is asked of every packet.
const FIELDS: [&str; 14] = [
    "frame.interface_name",
    "tcp.stream",
    "udp.stream",
    "frame.time_epoch",
    "frame.comment",
    "_ws.malformed",
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "tcp.analysis.lost_segment",
    "tcp.analysis.ack_lost_segment",
    "tcp.analysis.retransmission",
    "tcp.analysis.out_of_order",
    "tcp.analysis.window_full",
];
/// Bad, good: as Wireshark has it.
const BAD: &str = "0";
const GOOD: &str = "1";

/// What both ends of a conversation have sent: client, server.
pub type Talk = (Vec<u8>, Vec<u8>);

impl Capture {
    /// Exports a recording beside itself.
    pub fn of(dir: &str, args: &[&str]) -> Self {
        let file = PathBuf::from(format!("{dir}.pcapng"));
        let all: Vec<_> = ["export", dir, "-o", file.to_str().unwrap()].iter().chain(args).copied().collect();
        let exported = run(&all);
        assert_eq!((exported.code, &*exported.out), (Some(0), ""), "{}", exported.err);
        let mut capture = Self { file, err: exported.err, packets: Vec::new() };
        if !args.contains(&"--dbus") {
            capture.is_of_one_link_type();
        }
        let checks = ["-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"];
        let fields: Vec<_> = FIELDS.iter().flat_map(|field| ["-e", field]).collect();
        let lines = capture.tshark(&[&checks[..], &["-T", "fields"], &fields].concat());
        let packet = |line: &String| FIELDS.into_iter().zip(line.split('\t').map(str::to_owned)).collect();
        capture.packets = lines.iter().map(packet).collect();
        capture
    }

    fn path(&self) -> &str {
        self.file.to_str().unwrap()
    }

    /// As a plain pcap file and whatever is built on libpcap need it.
    fn is_of_one_link_type(&self) {
        let plain = outcome(&mut command("editcap", &["-F", "nsecpcap", self.path(), "/dev/null"]));
        assert_eq!(plain.code, Some(0), "{}", plain.err);
        let read = outcome(&mut command("tcpdump", &["-nr", self.path()]));
        assert_eq!(read.code, Some(0), "{}", read.err);
    }

    /// The lines of `tshark -r FILE ARGS…`.
    pub fn tshark(&self, args: &[&str]) -> Vec<String> {
        let all: Vec<_> = ["-r", self.path()].iter().chain(args).copied().collect();
        let outcome = tshark(&all);
        assert_eq!(outcome.code, Some(0), "{}", outcome.err);
        outcome.out.lines().map(str::to_owned).collect()
    }

    /// The values of fields in packets that a display filter lets through: a line a packet, tabs between.
    pub fn fields(&self, filter: &str, fields: &[&str]) -> Vec<String> {
        let fields = fields.iter().flat_map(|field| ["-e", field]);
        let args: Vec<_> = ["-Y", filter, "-T", "fields"].into_iter().chain(fields).collect();
        self.tshark(&args)
    }

    /// Every check that holds for any export: nothing malformed, right checksums, times that ascend within each
    /// conversation, a file that capinfos accepts.
    pub fn is_sound(&self) {
        let mut last = BTreeMap::new();
        for packet in &self.packets {
            assert_eq!(packet["_ws.malformed"], "", "{packet:?}");
            assert_ne!(packet["frame.comment"], "", "{packet:?}");
            if packet["frame.interface_name"] == "D-Bus" {
                continue;
            }
            assert_eq!(packet["ip.checksum.status"], GOOD, "{packet:?}");
            assert!(packet["tcp.checksum.status"] != BAD && packet["udp.checksum.status"] != BAD, "{packet:?}");
            let stream = (&packet["tcp.stream"], &packet["udp.stream"]);
            let time: Vec<u64> = packet["frame.time_epoch"].split('.').map(|part| part.parse().unwrap()).collect();
            let before = last.insert(stream, time.clone());
            assert!(before.is_none_or(|before| before <= time), "{packet:?}");
        }
        let info = outcome(&mut command("capinfos", &[self.path()]));
        assert!(info.code == Some(0) && info.out.contains("nanoseconds (9)"), "{info:?}");
    }

    /// What `follow,tcp,raw` shows of every conversation.
    pub fn talks(&self) -> Vec<Talk> {
        let mut streams: Vec<_> = self.packets.iter().map(|packet| &packet["tcp.stream"]).collect();
        streams.retain(|stream| !stream.is_empty());
        streams.sort();
        streams.dedup();
        let follow: Vec<_> = streams.iter().map(|stream| format!("follow,tcp,raw,{stream}")).collect();
        let args: Vec<_> = ["-q"].into_iter().chain(follow.iter().flat_map(|one| ["-z", one])).collect();
        if streams.is_empty() {
            return Vec::new();
        }
        let mut talks = Vec::new();
        let mut is_inside = false;
        for line in self.tshark(&args) {
            if line.starts_with("Node 1:") {
                talks.push(Talk::default());
                is_inside = true;
            } else if line.starts_with('=') {
                is_inside = false;
            } else if is_inside {
                let (client, server) = talks.last_mut().unwrap();
                // What the server has sent is indented.
                let side = if line.starts_with('\t') { server } else { client };
                side.extend(hex(line.trim()));
            }
        }
        assert_eq!(talks.len(), streams.len());
        talks.sort();
        talks
    }

    /// Whether every conversation is what the payload files of one end say, and nothing is missing.
    pub fn is_what_was_recorded(&self, dir: &str) {
        let (shown, recorded) = (self.talks(), recorded(dir));
        assert_eq!(shown.len(), recorded.len(), "conversations");
        for (shown, recorded) in shown.iter().zip(&recorded) {
            assert_eq!((shown.0.len(), shown.1.len()), (recorded.0.len(), recorded.1.len()));
            assert!(shown == recorded, "a conversation differs");
        }
        self.has_no_gaps();
    }

    /// Whether Wireshark has nothing to say against the sequence numbers.
    pub fn has_no_gaps(&self) {
        for packet in &self.packets {
            let said: Vec<_> =
                packet.iter().filter(|(name, value)| name.contains("analysis") && !value.is_empty()).collect();
            assert!(said.is_empty(), "{packet:?}");
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| 16 * digit(pair[0]) + digit(pair[1])).collect()
}

/// The stream connections of a recording, as the end that was heard of first has them; those with bytes or an end.
pub fn recorded(dir: &str) -> Vec<Talk> {
    let mut talks = Vec::new();
    for event in events(dir) {
        if event["type"] != "open" || event["socket_type"] == "dgram" || event["peer_conn_id"].is_string() {
            continue;
        }
        let file = |direction: &str| {
            let name = format!("{}.{direction}.bin", event["conn_id"].as_str().unwrap());
            fs::read(Path::new(dir).join(name)).unwrap_or_default()
        };
        let (sent, received) = (file("out"), file("in"));
        let how = event["how"].as_str().unwrap();
        let is_server = how.starts_with("accept") || how.starts_with("re") || how.ends_with("getsockname");
        talks.push(if is_server { (received, sent) } else { (sent, received) });
    }
    talks.sort();
    talks
}

/// The events of a recording.
pub fn events(dir: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(Path::new(dir).join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Records what a command says, into a new folder below `folder`.
pub fn record(folder: &Path, args: &[&str]) -> String {
    let dir = folder.join("rec").to_str().unwrap().to_owned();
    let all: Vec<_> = ["run", "-w", &dir, "-o", "/dev/null", "--"].iter().chain(args).copied().collect();
    let traced = outcome(super::socktrace(&all).stdin(Stdio::null()));
    assert_eq!(traced.code, Some(0), "{traced:?}");
    assert!(!traced.err.contains("LOST"), "{}", traced.err);
    dir
}
