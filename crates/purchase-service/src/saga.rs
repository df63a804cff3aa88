//! What a worker does for a purchase, as a function of what it knows and what it
//! hears: `step(progress, event) -> (progress, command)`.
//!
//! A worker claims a purchase, carries out one command after another, and feeds
//! what comes of each back in. It may crash at any instant: the progress is
//! forgotten, and whoever claims the purchase next begins from the record alone.
//! The rules are those of `docs/architecture.md`; a model checker drives this very
//! function through every order of events.

use crate::purchase::{FailureReason, State, Transition};

/// How often a purchase that is PENDING is tried before it fails. What gives back
/// is tried for ever.
pub const ATTEMPTS_LIMIT: u32 = 10;

/// What the record says of a purchase when a worker claims it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Where the purchase stands.
    pub state: State,
    /// Its total in minor units, once recorded.
    pub total: Option<i64>,
    /// How many attempts have failed.
    pub attempts: u32,
    /// Whether its `not_after` has passed.
    pub is_late: bool,
}

/// How far a worker is. Kept in memory only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// Nothing is in hand.
    #[default]
    Idle,
    /// Reserve was sent; the total, if one is on record.
    Reserving(Option<i64>),
    /// This total is being recorded.
    Recording(i64),
    /// Charge was sent.
    Charging,
    /// Confirm was sent.
    Confirming,
    /// The transition to this state is being written.
    Deciding(State),
    /// Release was sent in this state.
    Releasing(State),
    /// Refund was sent in this state.
    Refunding(State),
    /// Those who wait are being answered.
    Answering,
}

/// What a worker hears.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// The purchase was claimed, or read again.
    Claimed(Claim),
    /// Reserve was answered with yes, and with the goods at their locked prices.
    Reserved(Vec<Line>),
    /// Charge, Confirm, Release or Refund was answered with yes.
    Yes,
    /// A call was answered with no, now and for ever.
    No(FailureReason),
    /// Nobody knows what came of a call or of a write.
    Unknown,
    /// A write found the purchase in the state that it needs, and is committed.
    Won,
    /// A write found the purchase in another state, and changed nothing.
    Lost,
    /// Those who waited were answered.
    Answered,
}

/// One product of a purchase, at the price that was locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line {
    /// How many pieces.
    pub quantity: u32,
    /// The price of one piece, in minor units of the purchase's currency.
    pub unit_price: i64,
}

/// What a worker is to do next.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Ask for the goods.
    Reserve,
    /// Record the prices and their total, if the purchase is still PENDING.
    RecordTotal {
        /// The price of one piece of each product, in the order of the goods.
        unit_prices: Vec<i64>,
        /// What the goods cost together, in minor units.
        total: i64,
    },
    /// Take this total, in minor units.
    Charge(i64),
    /// Sell the goods.
    Confirm,
    /// Write a state, if the purchase is still in the one before it.
    Transition(Transition),
    /// Put the goods back.
    Release,
    /// Give the money back.
    Refund,
    /// Answer those who wait: the purchase is settled in this state.
    Answer(State),
    /// Drop the work, count a failed attempt, and claim the purchase again later.
    RetryLater,
    /// Drop the work and read the purchase again.
    ReadAgain,
    /// Drop the work: it is done.
    Done,
}

/// Says what to do next.
pub fn step(progress: Progress, event: Event) -> (Progress, Command) {
    match (progress, event) {
        (_, Event::Claimed(claim)) => begin(&claim),

        (Progress::Reserving(None), Event::Reserved(lines)) => match total(&lines) {
            Some(total) => {
                let unit_prices = lines.iter().map(|line| line.unit_price).collect();
                let command = Command::RecordTotal { unit_prices, total };
                (Progress::Recording(total), command)
            }
            None => fail(FailureReason::TotalTooLarge),
        },
        (Progress::Reserving(Some(total)), Event::Reserved(_))
        | (Progress::Recording(total), Event::Won) => charge(total),
        (Progress::Charging, Event::Yes) => (Progress::Confirming, Command::Confirm),
        (Progress::Confirming, Event::Yes) => {
            write(Transition::new(State::Pending, State::Confirmed))
        }
        (Progress::Reserving(_) | Progress::Charging | Progress::Confirming, Event::No(reason)) => {
            fail(reason)
        }

        (Progress::Releasing(state), Event::Yes) => (Progress::Refunding(state), Command::Refund),
        (Progress::Refunding(State::Failing), Event::Yes) => {
            write(Transition::new(State::Failing, State::Failed))
        }
        (Progress::Refunding(State::Cancelling), Event::Yes) => {
            write(Transition::new(State::Cancelling, State::Cancelled))
        }
        (Progress::Refunding(State::Refunding), Event::Yes) => {
            write(Transition::new(State::Refunding, State::Refunded))
        }

        (Progress::Deciding(state), Event::Won) => pursue(state),
        (Progress::Answering, Event::Answered) => (Progress::Idle, Command::Done),

        // Somebody else moved the purchase on, and may be giving back or have
        // confirmed: whatever this worker believed is worth nothing now.
        (_, Event::Lost) => (Progress::Idle, Command::ReadAgain),
        // Every call and every write may be repeated, so that not to know costs no
        // more than an attempt. The same goes for what should never be heard here.
        _ => (Progress::Idle, Command::RetryLater),
    }
}

fn begin(claim: &Claim) -> (Progress, Command) {
    match claim.state {
        State::Pending if claim.is_late || claim.attempts >= ATTEMPTS_LIMIT => {
            fail(FailureReason::TimedOut)
        }
        State::Pending => (Progress::Reserving(claim.total), Command::Reserve),
        decided => pursue(decided),
    }
}

/// Goes on from a state that is on record.
fn pursue(state: State) -> (Progress, Command) {
    match state {
        State::Pending => (Progress::Idle, Command::ReadAgain),
        State::Failing | State::Cancelling | State::Refunding => {
            (Progress::Releasing(state), Command::Release)
        }
        State::Confirmed | State::Failed | State::Cancelled | State::Refunded => {
            (Progress::Answering, Command::Answer(state))
        }
    }
}

fn charge(total: i64) -> (Progress, Command) {
    (Progress::Charging, Command::Charge(total))
}

fn fail(reason: FailureReason) -> (Progress, Command) {
    write(Transition { reason: Some(reason), ..Transition::new(State::Pending, State::Failing) })
}

fn write(transition: Transition) -> (Progress, Command) {
    let progress = Progress::Deciding(transition.to);
    (progress, Command::Transition(transition))
}

/// What the goods cost together, if an int64 can hold it.
pub(crate) fn total(lines: &[Line]) -> Option<i64> {
    lines.iter().try_fold(0_i64, |sum, line| {
        sum.checked_add(line.unit_price.checked_mul(i64::from(line.quantity))?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: [Line; 2] =
        [Line { quantity: 3, unit_price: 250 }, Line { quantity: 1, unit_price: 4000 }];

    fn claimed(state: State) -> Event {
        Event::Claimed(Claim { state, total: None, attempts: 0, is_late: false })
    }

    fn commands(events: impl IntoIterator<Item = Event>) -> Vec<Command> {
        let mut progress = Progress::default();
        events
            .into_iter()
            .map(|event| {
                let command;
                (progress, command) = step(progress, event);
                command
            })
            .collect()
    }

    fn every_progress() -> Vec<Progress> {
        let by_state = State::ALL.into_iter().flat_map(|state| {
            [Progress::Deciding(state), Progress::Releasing(state), Progress::Refunding(state)]
        });
        [
            Progress::Idle,
            Progress::Reserving(None),
            Progress::Reserving(Some(1)),
            Progress::Recording(1),
            Progress::Charging,
            Progress::Confirming,
            Progress::Answering,
        ]
        .into_iter()
        .chain(by_state)
        .collect()
    }

    fn every_answer() -> [Event; 7] {
        [
            Event::Reserved(LINES.to_vec()),
            Event::Yes,
            Event::No(FailureReason::TimedOut),
            Event::Unknown,
            Event::Won,
            Event::Lost,
            Event::Answered,
        ]
    }

    #[test]
    fn a_purchase_reserves_records_charges_confirms_and_answers_once_it_is_committed() {
        assert_eq!(
            commands([
                claimed(State::Pending),
                Event::Reserved(LINES.to_vec()),
                Event::Won,
                Event::Yes,
                Event::Yes,
                Event::Won,
                Event::Answered,
            ]),
            [
                Command::Reserve,
                Command::RecordTotal { unit_prices: vec![250, 4000], total: 4750 },
                Command::Charge(4750),
                Command::Confirm,
                Command::Transition(Transition::new(State::Pending, State::Confirmed)),
                Command::Answer(State::Confirmed),
                Command::Done,
            ]
        );
    }

    #[test]
    fn a_no_is_recorded_before_goods_and_money_go_back() {
        let reason = FailureReason::InsufficientCredit;
        assert_eq!(
            commands([
                claimed(State::Pending),
                Event::Reserved(LINES.to_vec()),
                Event::Won,
                Event::No(reason),
                Event::Won,
                Event::Yes,
                Event::Yes,
                Event::Won,
            ])[3..],
            [
                Command::Transition(Transition {
                    from: State::Pending,
                    to: State::Failing,
                    reason: Some(reason)
                }),
                Command::Release,
                Command::Refund,
                Command::Transition(Transition::new(State::Failing, State::Failed)),
                Command::Answer(State::Failed),
            ]
        );
    }

    #[test]
    fn a_total_on_record_is_charged_and_not_recorded_again() {
        let (_, command) = step(Progress::Reserving(Some(7)), Event::Reserved(LINES.to_vec()));
        assert_eq!(command, Command::Charge(7));
    }

    #[test]
    fn a_total_beyond_an_int64_fails_the_purchase() {
        for unit_price in [i64::MAX, i64::MAX / 2] {
            let line = Line { quantity: 2, unit_price };
            let (_, command) = step(Progress::Reserving(None), Event::Reserved(vec![line; 2]));
            assert!(
                matches!(command, Command::Transition(transition)
                    if transition.reason == Some(FailureReason::TotalTooLarge)),
                "{command:?}"
            );
        }
    }

    #[test]
    fn only_a_pending_purchase_gives_up() {
        for state in State::ALL {
            for (attempts, is_late) in [(ATTEMPTS_LIMIT, false), (0, true)] {
                let (_, command) = step(
                    Progress::Idle,
                    Event::Claimed(Claim { state, total: None, attempts, is_late }),
                );
                let gives_up = matches!(command, Command::Transition(_));
                assert_eq!(gives_up, state == State::Pending, "{state:?}: {command:?}");
            }
        }
    }

    #[test]
    fn whatever_is_lost_or_unknown_drops_the_work() {
        for progress in every_progress() {
            assert_eq!(step(progress, Event::Lost), (Progress::Idle, Command::ReadAgain));
            assert_eq!(step(progress, Event::Unknown), (Progress::Idle, Command::RetryLater));
        }
    }

    #[test]
    fn nothing_is_given_back_before_it_is_decided() {
        for progress in every_progress() {
            for event in every_answer() {
                let (_, command) = step(progress, event.clone());
                if matches!(command, Command::Release | Command::Refund) {
                    assert!(
                        matches!((progress, &event), (Progress::Deciding(_), Event::Won))
                            || matches!(progress, Progress::Releasing(_)),
                        "{progress:?}, {event:?}"
                    );
                }
            }
        }
    }
}
