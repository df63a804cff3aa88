//! What the checker found, as a table for people.

use std::fmt;

use console::style;
use indicatif::HumanCount;

/// How many offenders of one invariant are shown.
const SHOWN_OFFENDERS: usize = 5;

/// Something that must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariant {
    /// No product has fewer than no pieces available.
    NothingOversold,
    /// Of every product, `available + reserved + sold = initial + restocked`, and
    /// reserved and sold are those of the reservations.
    StockBalances,
    /// Every purchase that was answered is on record as it was answered, or
    /// refunded since.
    AnswersKept,
    /// There is no purchase that nobody sent.
    NothingInvented,
    /// No request has made two purchases.
    OncePerRequest,
    /// What is captured and not refunded is nothing or the price.
    PaidPriceOrNothing,
    /// A purchase is paid if and only if it is CONFIRMED.
    PaidIfConfirmed,
    /// Goods are sold if and only if their purchase is CONFIRMED, and for its total;
    /// none are held once it is settled.
    SoldIfConfirmed,
    /// Postings sum to zero in every currency, and what was deposited is with the
    /// users or captured.
    LedgerBalances,
    /// Every account is the sum of its postings, and none is negative that may not be.
    AccountsSound,
    /// No purchase is under way long after its deadline.
    SettledInTime,
    /// The events of every purchase have no gap and end in its state.
    EventsComplete,
}

impl Invariant {
    /// Every invariant, in the order of the table.
    pub const ALL: [Self; 12] = [
        Self::NothingOversold,
        Self::StockBalances,
        Self::AnswersKept,
        Self::NothingInvented,
        Self::OncePerRequest,
        Self::PaidPriceOrNothing,
        Self::PaidIfConfirmed,
        Self::SoldIfConfirmed,
        Self::LedgerBalances,
        Self::AccountsSound,
        Self::SettledInTime,
        Self::EventsComplete,
    ];

    /// What must hold, in a line.
    pub const fn statement(self) -> &'static str {
        match self {
            Self::NothingOversold => "no product is oversold",
            Self::StockBalances => "available + reserved + sold = initial + restocked",
            Self::AnswersKept => "every answer given is kept",
            Self::NothingInvented => "no purchase exists that was never sent",
            Self::OncePerRequest => "no request has made two purchases",
            Self::PaidPriceOrNothing => "captured - refunded is nothing or the price",
            Self::PaidIfConfirmed => "paid if and only if CONFIRMED",
            Self::SoldIfConfirmed => "goods sold if and only if CONFIRMED, for the same total",
            Self::LedgerBalances => "the ledger sums to zero in every currency",
            Self::AccountsSound => "every account is the sum of its postings",
            Self::SettledInTime => "no purchase is under way past its deadline",
            Self::EventsComplete => "the events of every purchase are without a gap",
        }
    }
}

/// What was found of one invariant, before it is put beside the others.
pub(super) enum Findings {
    /// Nobody has said what is needed to tell.
    Unknown,
    Known {
        counted: String,
        offenders: Vec<String>,
    },
}

impl Findings {
    pub(super) fn of(
        count: impl TryInto<u64>,
        of: &str,
        offenders: impl IntoIterator<Item = String>,
    ) -> Self {
        // A count that is negative is for its own invariant to report.
        let count = HumanCount(count.try_into().unwrap_or_default());
        Self::Known { counted: format!("{count} {of}"), offenders: offenders.into_iter().collect() }
    }
}

/// What was found of one invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What must hold.
    pub invariant: Invariant,
    /// What was looked at, for example "400 purchases"; `None` if it cannot be known
    /// from outside.
    pub counted: Option<String>,
    /// Everything that breaks the invariant, by identifier where it has one.
    pub offenders: Vec<String>,
}

impl Finding {
    /// Whether nothing was found that breaks the invariant.
    pub fn holds(&self) -> bool {
        self.offenders.is_empty()
    }
}

/// What was found of every invariant. Shown as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// In the order of [`Invariant::ALL`].
    pub findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(examine: impl Fn(Invariant) -> Findings) -> Self {
        let findings = Invariant::ALL.map(|invariant| match examine(invariant) {
            Findings::Unknown => Finding { invariant, counted: None, offenders: Vec::new() },
            Findings::Known { counted, offenders } => {
                Finding { invariant, counted: Some(counted), offenders }
            }
        });
        Self { findings: findings.into() }
    }

    /// Whether no invariant is broken.
    pub fn holds(&self) -> bool {
        self.findings.iter().all(Finding::holds)
    }

    /// The invariants that are broken.
    pub fn broken(&self) -> impl Iterator<Item = Invariant> {
        self.findings.iter().filter(|finding| !finding.holds()).map(|finding| finding.invariant)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = Invariant::ALL.iter().map(|it| it.statement().len()).max().unwrap_or_default();
        for Finding { invariant, counted, offenders } in &self.findings {
            let mark = match (counted, offenders.is_empty()) {
                (None, _) => style("–").dim(),
                (Some(_), true) => style("✓").green(),
                (Some(_), false) => style("✗").red().bold(),
            };
            let counted = counted.as_deref().unwrap_or("not known from outside");
            writeln!(formatter, "  {mark} {:width$}  {counted}", invariant.statement())?;
            for offender in offenders.iter().take(SHOWN_OFFENDERS) {
                writeln!(formatter, "      {}", style(offender).red())?;
            }
            if let Some(more) = offenders.len().checked_sub(SHOWN_OFFENDERS).filter(|it| *it > 0) {
                writeln!(formatter, "      and {more} more")?;
            }
        }
        Ok(())
    }
}
