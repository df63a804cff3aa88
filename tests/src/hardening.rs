//! What hardens the suite, case by case: peers that would hurt a server, and failures that
//! callers must not notice. Tests run every case in its short form; `just hardening` runs
//! them in full and prints the table.

mod bystander;
mod catalog;
mod catalogs;
mod cost;
mod crowd;
mod deadline;
mod dependency;
mod drain;
mod endpoints;
mod flood;
mod rotation;
pub mod soak;
mod supplier;
mod traffic;

use std::{
    fmt,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;

/// How much of a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// In the tests: a quarter of a minute at most, on a machine that does other things.
    Short,
    /// As the case is stated, on a machine that does nothing else.
    Full,
}

impl Scale {
    /// The one of two values that this scale takes.
    pub fn choose<T>(self, short: T, full: T) -> T {
        match self {
            Self::Short => short,
            Self::Full => full,
        }
    }
}

/// What a case is run with.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The program that offers the services as subcommands.
    pub program: String,
    /// How much of the case is run.
    pub scale: Scale,
    /// Where whatever is random comes from.
    pub seed: u64,
}

/// What was found: `Ok` if it is what must hold, `Err` if it is not.
pub type Verdict = Result<String, String>;

/// What was found of all, if each is what must hold.
fn all(found: Vec<Verdict>) -> Verdict {
    found.into_iter().collect::<Result<Vec<_>, _>>().map(|found| found.join("; "))
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Names it, in words of letters and digits alone.
    pub name: &'static str,
    /// What must hold of it.
    pub must_hold: &'static str,
    /// Runs it. What stands in the way of finding out panics.
    pub run: fn(Bench) -> BoxFuture<'static, Verdict>,
}

/// Every case, in the order of the table.
pub fn cases() -> Vec<Case> {
    let all = [
        endpoints::CASES,
        drain::CASES,
        crowd::CASES,
        flood::CASES,
        rotation::CASES,
        dependency::CASES,
        deadline::CASES,
        cost::CASES,
    ];
    all.concat()
}

impl Case {
    /// Runs the case, in a task of its own so that a panic is a finding, too.
    pub async fn row(&self, bench: Bench) -> Row {
        let Self { name, must_hold, run } = *self;
        let begun = Instant::now();
        let verdict = tokio::spawn(run(bench)).await.unwrap_or_else(|error| Err(error.to_string()));
        let holds = verdict.is_ok();
        let found = verdict.unwrap_or_else(|found| found);
        Row { case: name, must_hold, found, holds, took: begun.elapsed() }
    }
}

/// A line of the table, with what was found.
#[derive(Clone, Debug)]
pub struct Row {
    /// The name of the case.
    pub case: &'static str,
    /// What must hold of it.
    pub must_hold: &'static str,
    /// What was found.
    pub found: String,
    /// Whether it is what must hold.
    pub holds: bool,
    /// How long it took to find out.
    pub took: Duration,
}

impl fmt::Display for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, must_hold, found, holds, took } = self;
        let holds = if *holds { "holds" } else { "DOES NOT HOLD" };
        write!(formatter, "{case}: {must_hold}: {holds} ({found}; {:.1} s)", took.as_secs_f64())
    }
}

/// The rows below each other, each wrapped so that no line is longer than `width`.
pub fn table(rows: &[Row], width: usize) -> String {
    const GAP: usize = 2;
    const VERDICT: usize = "no".len();
    let columns = [width / 4, width / 3];
    let found = width.saturating_sub(columns.iter().sum::<usize>() + VERDICT + 3 * GAP);
    let [case, must_hold] = columns;
    let heading = ["case", "must hold", "found", ""].map(str::to_owned);
    let body = rows.iter().map(|row| {
        let holds = if row.holds { "ok" } else { "NO" };
        [row.case, row.must_hold, &row.found, holds].map(str::to_owned)
    });
    let mut lines = String::new();
    for cells in std::iter::once(heading).chain(body) {
        let [left, middle, right, holds] = cells;
        let wrapped = [wrap(&left, case), wrap(&middle, must_hold), wrap(&right, found)];
        let height = wrapped.iter().map(Vec::len).max().unwrap_or_default();
        for line in 0..height {
            let [left, middle, right] =
                wrapped.each_ref().map(|cell| cell.get(line).map_or("", String::as_str));
            let holds = if line == 0 { holds.as_str() } else { "" };
            let text = format!("{holds:VERDICT$}  {left:case$}  {middle:must_hold$}  {right}");
            lines.extend([text.trim_end(), "\n"]);
        }
    }
    lines
}

/// Breaks a text between words into lines of so many characters, if the words let it.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
            continue;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}
