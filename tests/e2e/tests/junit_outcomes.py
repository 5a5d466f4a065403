"""Prints a JUnit file's tests as one JSON object: what became of each, by its name."""
import json
import sys
import xml.etree.ElementTree as ElementTree

outcomes = {}
for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    parts = [f"skipped: {part.text}" if part.tag == "skipped" else part.tag for part in case
             if part.tag in ("failure", "error", "skipped")]
    # A test with subtests is there once for each of them that did not pass.
    outcomes.setdefault(case.get("name"), []).extend(parts or ["passed"])
json.dump({name: sorted(parts) for name, parts in outcomes.items()}, sys.stdout)
