//! What users of sriov-cni complain about, and the test that shows that it cannot happen here: prints the table, and
//! fails when a test that it names is not there, or when too little of it is shown.

#![allow(clippy::print_stdout, reason = "the table is what this is for")]

use std::{fs, path::Path, process::ExitCode};

/// How many complaints there are, and how many must be shown by tests.
const ROWS: usize = 27;
const LEAST_SHOWN: usize = 20;

/// A complaint.
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
            reason if reason.starts_with("needs hardware: ") || reason.starts_with("not ours: ") => {
                reason.clone_into(&mut row.reason);
            }
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

fn judge(root: &Path, rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    if rows.len() != ROWS {
        wrong.push(format!("{} rows, not {ROWS}", rows.len()));
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
    println!("{shown} of {} complaints are shown by tests", rows.len());
    if shown < LEAST_SHOWN {
        wrong.push(format!("{shown} complaints are shown, not {LEAST_SHOWN}"));
    }
    wrong
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let table = root.join("tests/complaints/table");
    let wrong = match fs::read_to_string(&table).map_err(|error| error.to_string()).and_then(|text| parse(&text)) {
        Ok(rows) => {
            for row in &rows {
                println!("{}", row.title);
                row.tests.iter().chain(Some(&row.reason).filter(|reason| !reason.is_empty())).for_each(|line| {
                    println!("       {line}");
                });
            }
            judge(&root, &rows)
        }
        Err(problem) => vec![format!("{}: {problem}", table.display())],
    };
    for problem in &wrong {
        println!("wrong: {problem}");
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
