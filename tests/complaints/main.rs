//! What users of sriov-cni and of Multus complain about, and the tests that show that it cannot happen here; what Multus'
//! own suites test, and our tests of the same. Prints the tables, and fails when a test that one names is not there, or
//! when too little of it is shown.

#![allow(clippy::print_stdout, reason = "the table is what this is for")]

use std::{fs, path::Path, process::ExitCode};

/// A table: its file, of what it is, how many rows it has, and how many of them must be shown by tests.
struct Table {
    name: &'static str,
    of: &'static str,
    rows: usize,
    least_shown: usize,
}

const TABLES: [Table; 3] = [
    Table { name: "sriov", of: "complaints", rows: 27, least_shown: 23 },
    Table { name: "multus", of: "complaints", rows: 28, least_shown: 25 },
    Table { name: "cases", of: "cases", rows: 58, least_shown: 52 },
];
/// What a reason begins with.
const REASONS: [&str; 3] = ["needs hardware: ", "not ours: ", "not there yet: "];

/// A complaint, or a case.
#[derive(Debug, Default)]
struct Row {
    title: String,
    /// `FILE::FUNCTION`.
    tests: Vec<String>,
    /// Why no test shows it.
    reason: String,
}

/// Reads the table: `NUMBER | ISSUE | SYMPTOM`, below it, indented, its tests or the reason why there is none.
fn parse(text: &str) -> Result<Vec<Row>, String> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if !line.starts_with(' ') {
            let number = line.split('|').next().unwrap_or_default().trim();
            if number != (rows.len() + 1).to_string() {
                return Err(format!("row {} is wanted, found: {line}", rows.len() + 1));
            }
            rows.push(Row { title: line.to_owned(), ..Row::default() });
            continue;
        }
        let row = rows.last_mut().ok_or_else(|| format!("before the first row: {line}"))?;
        match line.trim() {
            reason if REASONS.iter().any(|start| reason.starts_with(start)) => reason.clone_into(&mut row.reason),
            test if test.contains(".rs::") => row.tests.push(test.to_owned()),
            other => return Err(format!("neither a test nor a reason: {other}")),
        }
    }
    Ok(rows)
}

/// Whether `FILE::FUNCTION`, from the root of the sources, is a test.
fn is_test(root: &Path, name: &str) -> bool {
    let Some((file, function)) = name.split_once("::") else { return false };
    let text = fs::read_to_string(root.join(file)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let start = [format!("fn {function}("), format!("async fn {function}(")];
    let Some(at) = lines.iter().position(|line| start.iter().any(|start| line.starts_with(start))) else {
        return false;
    };
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    above.into_iter().any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
}

fn judge(root: &Path, table: &Table, rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    if rows.len() != table.rows {
        wrong.push(format!("{} rows, not {}", rows.len(), table.rows));
    }
    for (row, number) in rows.iter().zip(1..) {
        if row.tests.is_empty() == row.reason.is_empty() {
            wrong.push(format!("row {number} needs either tests or a reason why there are none"));
        }
        wrong.extend(
            row.tests.iter().filter(|test| !is_test(root, test)).map(|test| format!("row {number}: no test {test}")),
        );
    }
    let shown = rows.iter().filter(|row| !row.tests.is_empty()).count();
    println!("{}: {shown} of {} {} are shown by tests", table.name, rows.len(), table.of);
    if shown < table.least_shown {
        wrong.push(format!("{shown} {} are shown, not {}", table.of, table.least_shown));
    }
    wrong
}

fn print(root: &Path, table: &Table) -> Vec<String> {
    let path = root.join("tests/complaints").join(table.name);
    match fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
        Ok(rows) => {
            for row in &rows {
                println!("{}", row.title);
                row.tests.iter().chain(Some(&row.reason).filter(|reason| !reason.is_empty())).for_each(|line| {
                    println!("       {line}");
                });
            }
            judge(root, table, &rows)
        }
        Err(problem) => vec![format!("{}: {problem}", path.display())],
    }
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let wrong: Vec<String> = TABLES.iter().flat_map(|table| print(&root, table)).collect();
    for problem in &wrong {
        println!("wrong: {problem}");
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
