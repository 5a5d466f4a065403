//! The probe through Frida Gadget: a library that is preloaded and runs the script that its configuration names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Parameters, Place};

pub const GADGET: &str = "frida-gadget.so";
/// Gadget looks for its configuration beside itself, by its own name with this ending.
const CONFIG: &str = "frida-gadget.config";
pub const AGENT: &str = "agent.js";

/// Puts a copy of Gadget, its configuration and agent.js in place; returns what is to be preloaded.
///
/// A copy, because Gadget finds itself by the path that the kernel has for its mapping, which follows links.
///
/// # Errors
///
/// The file cannot be read, or no space.
pub fn prepare(place: &Place, gadget: &Path, parameters: &Parameters) -> Result<PathBuf> {
    let agent = place.write(AGENT, socktrace_agent::agent_js().as_bytes(), 0o644)?;
    place.write(CONFIG, config(&agent, parameters).to_string().as_bytes(), 0o644)?;
    let bytes = fs::read(gadget).with_context(|| format!("--gadget {}: cannot be read", gadget.display()))?;
    place.write(GADGET, &bytes, 0o755)
}

/// <https://frida.re/docs/gadget/#script>
fn config(agent: &Path, parameters: &Parameters) -> Value {
    let mut parameters = parameters.to_json();
    // Programs that this one executes inherit LD_PRELOAD, and so Gadget; the probe need not come a second time.
    parameters["preload"] = "".into();
    json!({
        "interaction": {
            "type": "script",
            "path": agent.to_str().unwrap_or_default(),
            "parameters": parameters,
            "on_change": "ignore",
        },
    })
}

#[cfg(test)]
mod tests {
    use socktrace_params::{OnFull, Transport};

    use super::*;

    fn parameters(place: &Place) -> Parameters {
        let (socket, probe) = (place.path("sock"), place.path("probe.so"));
        Parameters {
            socket,
            max_bytes: 7,
            max_fds: 9,
            follow_children: true,
            transport: Transport::Stream,
            on_full: OnFull::Drop,
            max_wait: 8,
            ring_size: 65536,
            probe,
        }
    }

    #[test]
    fn what_gadget_finds_beside_itself() {
        let place = Place::new().unwrap();
        let parameters = parameters(&place);
        let original = place.write("original.so", b"\x7fELF", 0o644).unwrap();
        let library = prepare(&place, &original, &parameters).unwrap();
        assert_eq!(library, place.path("frida-gadget.so"));
        assert_eq!(fs::read(&library).unwrap(), b"\x7fELF");
        let config: Value = serde_json::from_slice(&fs::read(place.path("frida-gadget.config")).unwrap()).unwrap();
        let agent = place.path("agent.js");
        let expected = json!({"interaction": {
            "type": "script", "path": agent, "on_change": "ignore",
            "parameters": {
                "out_socket_path": place.path("sock"), "out_sock_type": "stream", "max_fds": 9, "max_bytes": 7,
                "on_full": "drop", "max_wait_ms": 8, "ring_bytes": 65536, "preload": "",
            },
        }});
        assert_eq!(config, expected);
        assert!(fs::read_to_string(agent).unwrap().contains("rpc.exports"));
    }

    #[test]
    fn a_gadget_that_is_not_there() {
        let place = Place::new().unwrap();
        let error = prepare(&place, Path::new("/no/gadget.so"), &parameters(&place)).unwrap_err();
        assert!(format!("{error:#}").starts_with("--gadget /no/gadget.so: cannot be read"));
    }
}
