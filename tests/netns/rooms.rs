//! Which room of the product uses which: in one direction alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::sources::rust_files;

/// Each room, with the rooms that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The rooms that a text names: what follows `crate::`, alone or in braces.
fn rooms_named(text: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap().to_owned();
    let mut found = BTreeSet::new();
    for (at, mark) in text.match_indices("crate::") {
        let rest = &text[at + mark.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, c) in list.char_indices() {
            match c {
                '}' if depth == 0 => break,
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                c if begins && !c.is_whitespace() => {
                    found.insert(word(&list[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// What the rooms below `source` use of each other. A room is a folder, or a file where there is none.
fn uses(source: &Path) -> Uses {
    let mut files = Vec::new();
    rust_files(source, &mut files);
    let mut uses = Uses::new();
    for path in files {
        let within = path.strip_prefix(source).unwrap();
        let room = within.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        uses.entry(room).or_default().extend(rooms_named(product));
    }
    // The crate's own root shows things again; it is no room.
    uses.remove("lib");
    let rooms: BTreeSet<String> = uses.keys().cloned().collect();
    for (room, used) in &mut uses {
        used.retain(|name| name != room && rooms.contains(name));
    }
    uses
}

/// The rooms that stand in no order: what is left when those are taken away, again and again, that use none of the others.
fn without_order(mut uses: Uses) -> Uses {
    loop {
        let low: BTreeSet<String> =
            uses.iter().filter(|(_, used)| used.is_empty()).map(|(room, _)| room.clone()).collect();
        if low.is_empty() {
            return uses;
        }
        uses.retain(|room, _| !low.contains(room));
        uses.values_mut().for_each(|used| used.retain(|room| !low.contains(room)));
    }
}

#[test]
fn no_two_rooms_use_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let uses = uses(&root.join("meta-cni/src"));
    assert!(
        uses["attach"].contains("cluster") && uses["cni"].contains("log"),
        "the sources are read otherwise: {uses:?}"
    );
    assert_eq!(without_order(uses), Uses::new(), "these rooms, and who uses them, stand in no order");
}
