//! agent.js, and its parameters as it takes them: for whatever Frida loads it.

use std::path::PathBuf;

use serde_json::{Value, json};
use socktrace_params::Params;

use crate::Error;
use crate::place::Place;

/// Its name in the folder.
pub(crate) const AGENT: &str = "agent.js";

/// Puts it there.
pub(crate) fn write(place: &Place) -> Result<PathBuf, Error> {
    place.write(AGENT, socktrace_agent::agent_js().as_bytes(), 0o644)
}

/// Its parameters (docs/frida.md).
pub(crate) fn parameters(params: &Params<'_>) -> Value {
    // `place::suits` sees to it that paths are UTF-8.
    let text = |path| str::from_utf8(path).unwrap_or_default();
    json!({
        "out_socket_path": text(params.out_socket_path),
        "out_sock_type": params.transport.name(),
        "max_fds": params.max_fds,
        "max_bytes": params.max_bytes,
        "on_full": params.on_full.name(),
        "max_wait_ms": params.max_wait_ms,
        "ring_bytes": params.ring_bytes,
        "preload": text(params.preload),
    })
}
