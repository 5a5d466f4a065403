//! agent.js: the loader and the probe in one file, ready for Frida.

#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// The probe as a shared object, for the architecture this crate was built for.
pub const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe.so"));
/// That architecture, as Frida's `Process.arch` names it.
pub const PROBE_ARCH: &str = env!("SOCKTRACE_PROBE_ARCH");

const LOADER: &str = include_str!("../loader.js");
/// Where the loader has the embedded probes, as a JavaScript object by architecture.
const PROBES: &str = "/*@PROBES@*/ {}";

/// The text of agent.js.
pub fn agent_js() -> String {
    let probe = BASE64.encode(PROBE);
    LOADER.replacen(PROBES, &format!("{{ {PROBE_ARCH}: '{probe}' }}"), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_is_in_the_bundle() {
        assert!(PROBE.starts_with(b"\x7fELF"));
        let agent = agent_js();
        assert!(agent.contains(&BASE64.encode(PROBE)) && !agent.contains(PROBES));
    }
}
