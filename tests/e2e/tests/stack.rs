//! What the hooks need of the program's stack, beyond libc's own use: threads of 16 KiB, coroutines of 4 KiB and signal
//! handlers have no more to give.
//!
//! Measured: e2e/stack/stack.c paints a stack, makes a call on it and looks how far the paint is gone, untraced and traced.
//! And read from the probe's machine code: the deepest way through direct calls from each function that it exports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use socktrace_e2e::{Server, SockType, Stage, preload_files};

/// Bytes that any hook may take.
const ANY: usize = 1024;
/// Bytes that a hook may take that is called by the thousand, on a socket that is known.
const COMMON: usize = 512;
/// How often it is measured: once in a while a call goes another way than the common one, to see to the server, and then has
/// to keep to [`ANY`].
const RUNS: usize = 4;
const COMMON_CALLS: [&str; 7] = ["send", "recv", "read", "write", "sendmsg", "recvmsg", "close"];

/// What the program printed: bytes of stack by call, and whether it was the first on its socket.
fn measure(stage: &Stage, probe: Option<&Path>) -> BTreeMap<(String, bool), usize> {
    let mut command = Command::new(env!("SOCKTRACE_STACK"));
    command.arg(stage.sockets()).stdin(Stdio::null()).stderr(Stdio::inherit());
    command.envs(probe.map(|probe| ("LD_PRELOAD", probe)));
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{:?}", output.status);
    let line = |line: &str| {
        let [name, which, bytes] = line.split(' ').collect::<Vec<_>>().try_into().expect("three words");
        ((name.to_owned(), which == "first"), bytes.parse().expect("a number"))
    };
    String::from_utf8(output.stdout).expect("ASCII").lines().map(line).collect()
}

fn compare(sock_type: SockType) {
    let stage = Stage::new();
    let untraced = measure(&stage, None);
    let server = Server::start(&stage, sock_type);
    let parameters = stage.parameters(json!({ "out_sock_type": sock_type.name(), "on_full": "block" }));
    let probe = preload_files(&stage, &parameters);
    let runs = [(); RUNS].map(|()| measure(&stage, Some(&probe)));
    assert!(server.stop().of_type("data").count() > 100, "the calls are traced");
    assert!(runs.iter().all(|traced| untraced.keys().eq(traced.keys())));
    let mut above = Vec::new();
    for (name, is_first) in untraced.keys().cloned() {
        let bytes = runs.iter().map(|traced| traced[&(name.clone(), is_first)]);
        let is_common = !is_first && COMMON_CALLS.contains(&&*name);
        let bytes = if is_common { bytes.min() } else { bytes.max() }.expect("more than one run");
        let more = bytes.saturating_sub(untraced[&(name.clone(), is_first)]);
        let budget = if is_common { COMMON } else { ANY };
        println!("{name}{}: {more}", if is_first { " on a new socket" } else { "" });
        if more > budget {
            above.push(format!("{name}{}: {more}, {budget} allowed", if is_first { " on a new socket" } else { "" }));
        }
    }
    assert!(above.is_empty(), "bytes of stack beyond libc's own:\n  {}", above.join("\n  "));
}

#[test]
fn measured_with_a_ring() {
    compare(SockType::Shm);
}

#[test]
fn measured_with_a_stream() {
    compare(SockType::Stream);
}

#[test]
fn measured_with_datagrams() {
    compare(SockType::Dgram);
}

/// Exported, and no hooks: what Frida calls, on a thread of its own, and exports that loaders call.
const NO_HOOKS: &str = "socktrace_";

/// A function of the probe's machine code.
#[derive(Debug, Default)]
struct Function {
    name: String,
    instructions: Vec<Instruction>,
}

#[derive(Debug)]
struct Instruction {
    address: u64,
    /// In the AT&T syntax of objdump(1).
    text: String,
}

/// The probe's machine code.
struct Code {
    functions: BTreeMap<u64, Function>,
    /// Slots of the global offset table that hold a function of the probe's own.
    table: HashMap<u64, u64>,
    /// Stack that a function takes with all that it calls, and what it takes that by.
    deepest: HashMap<u64, (usize, Vec<String>)>,
    /// Functions on the way to the present one.
    under_way: BTreeSet<u64>,
}

fn objdump(args: &[&str], file: &Path) -> String {
    let output = Command::new("objdump").args(args).arg(file).output().expect("objdump comes with the linker");
    assert!(output.status.success(), "objdump: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("ASCII")
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

impl Code {
    fn read(file: &Path) -> Self {
        let mut functions: BTreeMap<u64, Function> = BTreeMap::new();
        for line in objdump(&["--disassemble", "--no-show-raw-insn", "--section=.text"], file).lines() {
            // "0000000000001000 <name>:", "    1000:\tpush   %rbp"
            if let Some((address, name)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
                let function = Function { name: name.to_owned(), ..Function::default() };
                functions.insert(hex(address).expect("an address"), function);
            } else if let Some((address, text)) = line.trim_start().split_once(":\t")
                && let (Some(address), Some(mut last)) = (hex(address), functions.last_entry())
            {
                last.get_mut().instructions.push(Instruction { address, text: text.trim().to_owned() });
            }
        }
        // "000000000002ea60 R_X86_64_RELATIVE  *ABS*+0x1f000"
        let relocations = objdump(&["--dynamic-reloc"], file);
        let slot = |line: &str| {
            let (slot, rest) = line.split_once(' ')?;
            Some((hex(slot)?, hex(rest.trim().strip_prefix("R_X86_64_RELATIVE")?.trim().strip_prefix("*ABS*+")?)?))
        };
        let table = relocations.lines().filter_map(slot).filter(|(_, to)| functions.contains_key(to)).collect();
        Self { functions, table, deepest: HashMap::new(), under_way: BTreeSet::new() }
    }

    /// The function that an instruction calls, jumps to, or takes from the table to call it.
    fn target(&self, text: &str) -> Option<u64> {
        // "call   1234 <name>", "call   *0xf919(%rip)        # 2ea60 <…>", "mov    0x12(%rip),%rbx        # 2ea60 <…>"
        if let Some((_, slot)) = text.split_once("# ") {
            return self.table.get(&hex(slot.split(' ').next()?)?).copied();
        }
        hex(text.split_whitespace().nth(1)?)
    }

    /// Bytes that a function needs from its first instruction on, with the functions that it calls, and the way there.
    fn deepest(&mut self, start: u64) -> (usize, Vec<String>) {
        if let Some(known) = self.deepest.get(&start) {
            return known.clone();
        }
        if !self.under_way.insert(start) {
            return (0, vec!["(again)".into()]);
        }
        let function = std::mem::take(self.functions.get_mut(&start).expect("a function's address"));
        let (mut deepest, mut way) = (0, Vec::new());
        for (depth, index) in depths(&function) {
            let text = &function.instructions[index].text;
            let (mut needed, mut callee) = (depth, None);
            let is_table = text.starts_with("mov ") && text.contains("# ");
            let is_call = text.starts_with("call") || is_table;
            if is_call {
                needed += size_of::<u64>();
            }
            let is_jump = text.starts_with('j');
            if let Some(to) = (is_call || is_jump).then(|| self.target(text)).flatten()
                && to != start
                && let Some(name) = self.functions.get(&to).map(|function| function.name.clone())
                && !ends_the_program(&name)
            {
                // On a stack of its own, whatever it calls; its own two words.
                let (more, on) = if name.contains("switch_stack") { (16, vec![name]) } else { self.deepest(to) };
                needed += more;
                callee = Some(on);
            }
            if needed > deepest {
                deepest = needed;
                way = callee.unwrap_or_default();
            }
        }
        way.insert(0, format!("{} {deepest}", function.name));
        *self.functions.get_mut(&start).expect("it was there before") = function;
        self.under_way.remove(&start);
        self.deepest.insert(start, (deepest, way.clone()));
        (deepest, way)
    }
}

/// What is called when the probe itself is wrong.
fn ends_the_program(name: &str) -> bool {
    ["panic", "unwrap_failed", "expect_failed", "_fail"].iter().any(|part| name.contains(part))
}

/// How far the stack is down at each instruction that can be reached, in bytes from the function's beginning.
fn depths(function: &Function) -> Vec<(usize, usize)> {
    let at: HashMap<u64, usize> =
        function.instructions.iter().enumerate().map(|(index, is)| (is.address, index)).collect();
    let mut depths: Vec<Option<usize>> = vec![None; function.instructions.len()];
    let mut waiting = vec![(0, 0)];
    loop {
        while let Some((index, depth)) = waiting.pop() {
            if index >= depths.len() || depths[index].is_some_and(|known| known >= depth) {
                continue;
            }
            depths[index] = Some(depth);
            let text = &function.instructions[index].text;
            let name = text.split_whitespace().next().unwrap_or_default();
            let after = moved(text, depth);
            if name.starts_with('j')
                && let Some(to) = text.split_whitespace().nth(1).and_then(hex).and_then(|to| at.get(&to))
            {
                waiting.push((*to, after));
            }
            if !matches!(name, "jmp" | "ret" | "ud2" | "notrack" | "hlt") {
                waiting.push((index + 1, after));
            }
        }
        // The targets of a jump through a table, which is made where the whole frame is there.
        let frame = depths.iter().flatten().copied().max().unwrap_or(0);
        match depths.iter().zip(&function.instructions).position(|(depth, is)| depth.is_none() && !is_padding(&is.text))
        {
            Some(index) => waiting.push((index, frame)),
            None => break,
        }
    }
    depths.into_iter().enumerate().filter_map(|(index, depth)| Some((depth?, index))).collect()
}

fn is_padding(text: &str) -> bool {
    text.starts_with("int3") || text.contains("nop") || text.starts_with("cs ") || text.starts_with("xchg   %ax")
}

/// The depth after an instruction.
fn moved(text: &str, depth: usize) -> usize {
    let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim();
    let amount = || rest.split_once(',').and_then(|(amount, _)| hex(amount.trim_start_matches('$')));
    let amount = || usize::try_from(amount().expect("an immediate operand")).expect("a frame's length");
    match name {
        "push" => depth + size_of::<u64>(),
        "pop" => depth.saturating_sub(size_of::<u64>()),
        "sub" if rest.ends_with(",%rsp") => depth + amount(),
        "add" if rest.ends_with(",%rsp") => depth.saturating_sub(amount()),
        // "and $0xffffffffffffffe0,%rsp"
        "and" if rest.ends_with(",%rsp") => depth + (amount().wrapping_neg() & 0xffff),
        "lea" if rest.ends_with("(%rsp),%rsp") => match rest.strip_prefix("-0x") {
            Some(rest) => depth + usize::try_from(hex(&rest[..rest.len() - 11]).expect("a number")).expect("small"),
            None => depth,
        },
        _ => depth,
    }
}

/// A function that a signature or a table hides from [`Code`] is not followed: those that the program's own libc has, and
/// the few that the probe calls by a pointer, which the measured tests see.
#[test]
fn read_from_the_code() {
    let stage = Stage::new();
    let file = preload_files(&stage, &stage.parameters(json!({})));
    let mut code = Code::read(&file);
    let exported = Command::new("nm").args(["--dynamic", "--defined-only"]).arg(&file).output().expect("nm is there");
    let exported = String::from_utf8(exported.stdout).expect("ASCII");
    // "0000000000012340 T send"
    let hook = |line: &str| {
        let [address, kind, name] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
        (matches!(kind, "T" | "W") && !name.starts_with(NO_HOOKS)).then(|| Some((hex(address)?, name.to_owned())))?
    };
    let hooks: Vec<(u64, String)> = exported.lines().filter_map(hook).collect();
    assert!(hooks.len() > 50, "{} hooks", hooks.len());
    let mut above = Vec::new();
    for (address, name) in hooks {
        let (deepest, way) = code.deepest(address);
        println!("{name}: {deepest}");
        if deepest > ANY {
            above.push(format!("{name}: {deepest}: {}", way.join(" > ")));
        }
    }
    assert!(above.is_empty(), "bytes of stack, {ANY} allowed:\n  {}", above.join("\n  "));
}
