//! The example does what it says.

#[path = "../examples/frames.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod frames;

#[test]
fn a_frame_is_found_behind_noise() {
    let understood =
        "5 bytes are no frame: the frame does not begin with GTTR\nprocess Some(4711) on demo:fd=8: ping\n";
    assert_eq!(frames::there_and_back(), understood);
}
