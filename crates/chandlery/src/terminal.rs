//! The story as people read it: numbered steps, lines below them, and a bar while
//! something takes time, on a terminal alone.

use std::{
    cell::Cell,
    fmt::Display,
    io::{self, Write},
    time::Duration,
};

use console::{Style, style};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::r#type::v1::Money;
use tokio::time::Instant;

/// Writes the story to the standard output, and bars to the standard error.
#[derive(Debug)]
pub(crate) struct Terminal {
    steps: Cell<u32>,
    step_began: Cell<Instant>,
    bar: ProgressBar,
    is_attended: bool,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        let is_attended = console::user_attended() && console::user_attended_stderr();
        let (steps, step_began) = (Cell::new(0), Cell::new(Instant::now()));
        Self { steps, step_began, bar: ProgressBar::hidden(), is_attended }
    }

    /// Begins the next step.
    pub(crate) fn step(&self, title: &str) {
        self.steps.update(|steps| steps + 1);
        self.step_began.set(Instant::now());
        self.line("");
        self.line(format_args!("{} {}", style(self.steps.get()).bold(), style(title).bold()));
    }

    /// Writes a line, above the bar if there is one.
    pub(crate) fn line(&self, text: impl Display) {
        // Whoever closes the pipe has read enough.
        self.bar.suspend(|| {
            let _ = writeln!(io::stdout(), "{text}");
        });
    }

    /// Writes a line of something that happens now, and how long after the step began.
    pub(crate) fn event(&self, what: &str, text: impl Display) {
        let after = self.step_began.get().elapsed();
        let after = style(format!("{:6.2} s", after.as_secs_f64())).dim();
        let colour = match what {
            "kill -9" => Style::new().red(),
            "outside" => Style::new().yellow(),
            _ => Style::new().cyan(),
        };
        self.line(format_args!("  {after}  {}  {text}", colour.apply_to(format!("{what:7}"))));
    }

    /// Shows a bar in place of the one before. Its handle moves it.
    pub(crate) fn begin_bar(&self, length: usize, of: &'static str) -> ProgressBar {
        const TEMPLATE: &str = "  {bar:40} {human_pos} of {human_len} {msg}";
        let template = ProgressStyle::with_template(TEMPLATE);
        self.bar.reset();
        self.bar.set_style(template.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.bar.set_length(u64::try_from(length).unwrap_or(u64::MAX));
        self.bar.set_message(of);
        if self.is_attended {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.clone()
    }

    /// Takes the bar away.
    pub(crate) fn end_bar(&self) {
        self.bar.finish_and_clear();
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.end_bar();
    }
}

/// A duration as people say it.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ ..1_000 => format!("{millis} ms"),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

/// So many of something that forms its plural with an s.
pub(crate) fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{} {noun}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// An amount as people write it.
pub(crate) fn amount(money: &Money) -> String {
    let Money { currency_code, minor_units } = money;
    let sign = if *minor_units < 0 { "-" } else { "" };
    let units = minor_units.unsigned_abs();
    match currency_code.as_str() {
        "ISK" | "JPY" | "KRW" => format!("{sign}{} {currency_code}", HumanCount(units)),
        _ => format!("{sign}{}.{:02} {currency_code}", HumanCount(units / 100), units % 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_decimals_of_their_currency() {
        let amount = |minor_units, currency_code: &str| {
            amount(&Money { minor_units, currency_code: currency_code.to_owned() })
        };
        assert_eq!(amount(1250, "EUR"), "12.50 EUR");
        assert_eq!(amount(-5, "EUR"), "-0.05 EUR");
        assert_eq!(amount(1_000_000, "EUR"), "10,000.00 EUR");
        assert_eq!(amount(1250, "JPY"), "1,250 JPY");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(counted(1, "kill"), "1 kill");
        assert_eq!(counted(0, "kill"), "0 kills");
        assert_eq!(counted(1_000, "kill"), "1,000 kills");
    }

    #[test]
    fn short_times_are_milliseconds() {
        assert_eq!(seconds(Duration::from_micros(12_700)), "12 ms");
        assert_eq!(seconds(Duration::from_millis(1_250)), "1.25 s");
    }
}
