//! Tables for people: columns as wide as what is in them, and no blanks at the end of a line.

/// Lines of a table with a head, each behind `indent`. A dash stands for what is empty.
pub(super) fn table<const COLUMNS: usize>(indent: &str, head: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count().max(1));
        cells.chain(head.get(column).map(|title| title.len())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{indent}{}", padded.collect::<Vec<_>>().join("  ")).trim_end().to_owned() + "\n"
    };
    let body =
        rows.iter().map(|row| line(&row.each_ref().map(|cell| if cell.is_empty() { "-" } else { cell.as_str() })));
    std::iter::once(line(&head)).chain(body).collect()
}
