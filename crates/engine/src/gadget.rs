//! The probe through Frida Gadget: a library that is preloaded and runs the script that its configuration names.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use socktrace_event::errno;
use socktrace_params::Params;

use crate::place::Place;
use crate::{Error, agent};

/// Its copy's name.
pub(crate) const GADGET: &str = "frida-gadget.so";
/// Gadget looks for its configuration beside itself, by its own name with this ending.
const CONFIG: &str = "frida-gadget.config";

/// Puts a copy of Gadget, its configuration and agent.js in place; returns what is to be preloaded.
///
/// A copy, because Gadget finds itself by the path that the kernel has for its mapping, which follows links.
pub(crate) fn prepare(place: &Place, gadget: &Path, params: &Params<'_>) -> Result<PathBuf, Error> {
    let agent = agent::write(place)?;
    place.write(CONFIG, config(&agent, params).to_string().as_bytes(), 0o644)?;
    let bytes = fs::read(gadget).map_err(|error| {
        Error::Missing(format!("--gadget {}: cannot be read: {}", gadget.display(), errno::explain(&error)))
    })?;
    place.write(GADGET, &bytes, 0o755)
}

/// <https://frida.re/docs/gadget/#script>
fn config(agent: &Path, params: &Params<'_>) -> Value {
    json!({
        "interaction": {
            "type": "script",
            "path": agent.to_str().unwrap_or_default(),
            // Without `preload`: programs that this one executes inherit LD_PRELOAD, and so Gadget; the probe need not come
            // a second time.
            "parameters": agent::parameters(params),
            "on_change": "ignore",
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gadget_finds_beside_itself() {
        let place = Place::new().unwrap();
        let socket = place.path("sock");
        let params = Params {
            out_socket_path: socket.as_os_str().as_encoded_bytes(),
            transport: socktrace_params::Transport::Stream,
            max_fds: 9,
            max_bytes: 7,
            max_wait_ms: 8,
            ring_bytes: 65536,
            ..Params::DEFAULT
        };
        let original = place.write("original.so", b"\x7fELF", 0o644).unwrap();
        let library = prepare(&place, &original, &params).unwrap();
        assert_eq!(library, place.path("frida-gadget.so"));
        assert_eq!(fs::read(&library).unwrap(), b"\x7fELF");
        let config: Value = serde_json::from_slice(&fs::read(place.path("frida-gadget.config")).unwrap()).unwrap();
        let agent = place.path("agent.js");
        let expected = json!({"interaction": {
            "type": "script", "path": agent, "on_change": "ignore",
            "parameters": {
                "out_socket_path": socket, "out_sock_type": "stream", "max_fds": 9, "max_bytes": 7,
                "on_full": "drop", "max_wait_ms": 8, "ring_bytes": 65536, "preload": "",
            },
        }});
        assert_eq!(config, expected);
        assert!(fs::read_to_string(agent).unwrap().contains("rpc.exports"));
    }

    #[test]
    fn a_gadget_that_is_not_there() {
        let place = Place::new().unwrap();
        let error = prepare(&place, Path::new("/no/gadget.so"), &Params::DEFAULT).unwrap_err();
        assert_eq!(error.to_string(), "--gadget /no/gadget.so: cannot be read: no such file or directory (ENOENT)");
    }
}
