//! Names of payload files never leave the directory and never meet.

use proptest::prelude::*;
use socktrace_event::util::safe_filename;

#[test]
fn valid_ids_name_themselves() {
    for id in ["_tmp_demo.sock:fd=8:t=1795407956372", "@demo-abstract:fd=9", "a", &"x".repeat(200)] {
        assert_eq!(safe_filename(id.as_bytes()), id);
    }
}

#[test]
fn special_names_stay_inside() {
    for id in [b"".as_slice(), b".", b"..", b"../x", b"/etc/passwd", b".hidden", b"a\0b", b"a|b", &[b'x'; 65535]] {
        let name = safe_filename(id);
        assert!(name.contains('%') && !name.starts_with('.') && !name.contains(['/', '\0']), "{name}");
        assert!((33..=200).contains(&name.len()), "{name}");
    }
}

#[test]
fn a_hashed_name_is_no_ones_own() {
    let hashed = safe_filename(b"a/b").into_owned();
    assert_ne!(safe_filename(hashed.as_bytes()), hashed);
    assert_eq!(hashed, "a_b%c14cddc033f64b9dea80ea675cf280a0", "names must not change between versions");
}

fn id() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..400),
        "[a-c./|%]{0,4}".prop_map(String::into_bytes),
        "[A-Za-z0-9_.:@=+-]{1,210}".prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn is_a_plain_file_name(id in id()) {
        let name = safe_filename(&id);
        prop_assert!((1..=200).contains(&name.len()));
        prop_assert!(!name.starts_with('.'));
        prop_assert!(name.bytes().all(|b| b == b'%' || gttr::is_conn_id(&[b])));
    }

    #[test]
    fn differs_for_different_ids(a in id(), b in id()) {
        prop_assert_eq!(safe_filename(&a) == safe_filename(&b), a == b);
    }

    #[test]
    fn is_the_id_itself_where_that_is_valid(id in "[A-Za-z0-9_:@=+-][A-Za-z0-9_.:@=+-]{0,199}") {
        prop_assert_eq!(safe_filename(id.as_bytes()), id.as_str());
    }
}
