//! The example does what it says.

#[path = "../examples/count.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod count;

#[test]
fn golden_events_are_counted() {
    let golden = include_bytes!("../../gttr/tests/golden/gttr-v1-events.jsonl");
    let counted = count::count(&golden[..]).unwrap();
    assert_eq!(counted, "Close: 2\nData: 4\nInit: 1\nListen: 2\nOpen: 2\nReady: 1\n4175 bytes moved");
}
